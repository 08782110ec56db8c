"""Calls of the library on small models, to be interrupted; as a program, at every line.

    python -m tests.helpers.interrupted_calls [--each] [--check] [NAME ...]

A line is another place where another line called its function. What several calls lead to is
interrupted in the first of them; with ``--each`` in each, which takes six times as long.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import say, stamp, table, use_threads
from captum_lig import FlowGraph, LayerFlowIG, SetToSetIG, circuits, inspect_model
from captum_lig.explain import explain
from captum_lig.metrics import edge_interventions, interventions
from captum_lig.patching import check, edge_effects, effects
from captum_lig.pretrained.load import Pretrained, load_model
from tests.helpers import models
from tests.helpers.interrupts import Spot, interrupted, spots
from tests.helpers.saved import save_tiny_bert
from tests.helpers.state import snapshot

QUICK: dict[str, Any] = {"n_steps": 2, "tolerance": None}
TEXTS = [(5, 9, 7), (5, 4, 7)]
"""A text and a baseline."""


class Call(NamedTuple):
    """What is called, and the model that it must not change."""

    model: nn.Module
    run: Callable[[], Any]


def number(output: Any) -> Tensor:
    """Of the last token."""
    found: Tensor = output.last_hidden_state[:, -1, 0]
    return found


def flows_of_bert() -> Call:
    model = models.tiny_bert(layers=1)
    return Call(model, lambda: LayerFlowIG(model).attribute(TEXT, **QUICK))


def flows_of_llama() -> Call:
    model = models.tiny_llama(layers=1)
    return Call(model, lambda: LayerFlowIG(model).attribute(TEXT, **QUICK))


def towards_a_number() -> Call:
    model = models.tiny_bert(layers=1)
    return Call(model, lambda: LayerFlowIG(model).attribute(TEXT, OTHER, number, **QUICK))


def towards_a_number_of_llama() -> Call:
    model = models.tiny_llama(layers=1)
    return Call(model, lambda: LayerFlowIG(model).attribute(TEXT, OTHER, number, **QUICK))


def direct_edges() -> Call:
    model = models.tiny_llama(layers=1)
    return Call(model, lambda: LayerFlowIG(model).direct_edges(TEXT, OTHER, number, **QUICK))


def set_to_set() -> Call:
    with torch.random.fork_rng(devices=[]):
        model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).double().eval()
    z = torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, 3, 8)
    # The nodes of this rule include the start, where the rate is a Jacobian-vector product.
    settings: dict[str, Any] = {"n_steps": 2, "method": "riemann_left"}
    return Call(model, lambda: SetToSetIG(model).attribute(z, "zero", **settings))


def patching() -> Call:
    model = models.tiny_llama(layers=1)
    return Call(model, lambda: effects(model, TEXT, OTHER, number, by_position=False))


def patching_edges() -> Call:
    model = models.tiny_llama(layers=1)

    def run() -> Any:
        edges = LayerFlowIG(model).direct_edges(TEXT, OTHER, number, **QUICK)
        return edge_effects(model, TEXT, OTHER, number, list(edges)[:3])

    return Call(model, run)


def checking() -> Call:
    model = models.tiny_bert(layers=1)
    graph = FlowGraph(LayerFlowIG(model).attribute(TEXT, OTHER, number, **QUICK))
    return Call(model, lambda: check(graph, model, TEXT, OTHER, number, k=1))


def circuits_of_edges() -> Call:
    model = models.tiny_llama(layers=1)

    def run() -> Any:
        with circuits.of_edges(model, TEXT, OTHER, number) as found:
            order = torch.arange(found.reads.numel()).view(found.reads.shape)
            return found.curve(order, [0.0, 0.5, 1.0])

    return Call(model, run)


def circuits_of_nodes() -> Call:
    model = models.tiny_bert(layers=1)
    graph = FlowGraph(LayerFlowIG(model).attribute(TEXT, OTHER, number, **QUICK))

    def run() -> Any:
        with circuits.of_nodes(model, TEXT, OTHER, number) as found:
            return found.curve(graph, [0.0, 0.5, 1.0])

    return Call(model, run)


def inspecting() -> Call:
    model = models.tiny_llama(layers=1)
    return Call(model, lambda: inspect_model(model, TEXT))


def intervening() -> Call:
    model = models.tiny_bert(layers=1)
    return Call(model, lambda: interventions(model, TEXT))


def intervening_in_edges() -> Call:
    model = models.tiny_bert(layers=1)
    return Call(model, lambda: edge_interventions(model, TEXT))


def explaining() -> Call:
    with TemporaryDirectory() as folder:
        save_tiny_bert(Path(folder))
        model: Pretrained = load_model(folder)
    return Call(model.network, lambda: explain("the cat", model, layers=[0], **QUICK))


TEXT, OTHER = (torch.tensor([ids]) for ids in TEXTS)

CALLS: dict[str, Callable[[], Call]] = {
    make.__name__: make
    for make in (
        flows_of_bert,
        flows_of_llama,
        towards_a_number,
        towards_a_number_of_llama,
        direct_edges,
        set_to_set,
        patching,
        patching_edges,
        checking,
        circuits_of_edges,
        circuits_of_nodes,
        inspecting,
        intervening,
        intervening_in_edges,
        explaining,
    )
}


def main() -> int:
    """Interrupt calls at each line that runs, the first time and the last time that it does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(CALLS))
    parser.add_argument("--each", action="store_true", help="all places of each call")
    parser.add_argument("--check", action="store_true", help="fail if something is left changed")
    given = parser.parse_args()
    use_threads(1)
    rows: list[list[str]] = []
    done: set[Spot] = set()
    counts = [0, 0, 0]
    for name in given.names or CALLS:
        start, (model, run) = time.process_time(), CALLS[name]()
        run()
        before, found = snapshot(model), spots(run)
        new = {spot: all_of for spot, all_of in found.items() if given.each or spot not in done}
        done |= found.keys()
        moments = sorted({m for all_of in new.values() for m in (all_of[0], all_of[-1])})
        raised = left = 0
        for moment in moments:
            where = interrupted(run, moment, KeyboardInterrupt)
            raised += where is not None
            if changed := before.changes():
                left += 1
                say(f"{name}: interrupted at {where}: {', '.join(changed)}")
                before = snapshot(model)
        rows.append([f"`{name}`", *(f"{n:,}" for n in (len(found), len(new), raised, left))])
        counts = [a + b for a, b in zip(counts, (len(new), raised, left), strict=True)]
        say(f"{name}: {raised} times, {left} left changed, {time.process_time() - start:.0f} s")
    rows.append(["all", "", *(f"{n:,}" for n in counts)])
    header = ["", "places", "of them new", "times interrupted", "times something was left changed"]
    print(f"{stamp()}\n\n{table(header, rows)}")
    return int(counts[-1] > 0 and given.check)


if __name__ == "__main__":
    sys.exit(main())
