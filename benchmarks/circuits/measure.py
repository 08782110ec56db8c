"""One prompt: circuits of edges and of nodes, by every method."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.circuits import edges as edge_rivals
from benchmarks.circuits import nodes as node_rivals
from benchmarks.circuits.known import heads_found
from benchmarks.patching.cases import Case
from benchmarks.patching.net import Net, Question
from captum_lig import FlowGraph, LayerFlowIG, circuits
from captum_lig.circuits import EdgeCircuits, NodeCircuits
from captum_lig.circuits.order import Order

__all__ = ["CHANCE", "EDGE_METHODS", "NODE_METHODS", "OURS", "SIZE", "measured"]

OURS = "flows towards the target"
CHANCE = "chance"
SIZE = ", size over tokens"
"""Of an edge at all tokens: not the sum over tokens, in which opposite values cancel."""
EDGE_METHODS: dict[str, Callable[[Question], Tensor]] = {
    "EAP": partial(edge_rivals.eap_ig, steps=1),
    "EAP-IG, 5": partial(edge_rivals.eap_ig, steps=5),
    "EAP-IG, 16": partial(edge_rivals.eap_ig, steps=16),
}
"""Each gives ``(W, R, S)``."""
NODE_METHODS: dict[str, Callable[[Question], Any]] = {
    "attribution patching": partial(node_rivals.integrated, steps=1),
    "integrated, 5": partial(node_rivals.integrated, steps=5),
    "integrated, 16": partial(node_rivals.integrated, steps=16),
}
"""Each gives numbers of heads and of MLPs, at each token."""
PATCHING = "patching"
"""Of nodes at all tokens."""
Timed = dict[str, float]


def measured(net: Net, case: Case, kinds: tuple[str, ...], orders: tuple[Order, ...]) -> Any:
    """The curves of all methods on one prompt, and what they took."""
    question = Question(net, case, prefix=False)
    other = case.baseline["input_ids"]
    about = net.model, case.inputs, other, case.read
    found: dict[str, Any] = {
        "task": case.task,
        "text": case.text,
        "other": case.other,
        "tokens": question.length,
        "input": float(question.input.value),
        "baseline": float(question.baseline.value),
        "curves": [],
        "seconds": {},
    }

    def curves(kind: str, of: EdgeCircuits | NodeCircuits, scores: dict[str, Tensor]) -> None:
        for method, own in scores.items():
            for order in orders:
                curve = of.curve_of(own, order=order)
                found["curves"].append(
                    {
                        "kind": kind,
                        "method": method,
                        "order": order,
                        "count": curve.count,
                        "faithfulness": curve.faithfulness.tolist(),
                    }
                )

    lig, seconds = LayerFlowIG(net.model), found["seconds"]

    def scored(name: str, work: Callable[[], Any]) -> Any:
        return timed(seconds, name, work)

    if of_edge_kinds := [kind for kind in kinds if kind.startswith("edges")]:
        by_position = [kind.endswith("by position") for kind in of_edge_kinds]
        direct = scored(f"{OURS}, edges", partial(lig.direct_edges, *about[1:], keep=10**9))
        gradients = {name: scored(name, partial(m, question)) for name, m in EDGE_METHODS.items()}
        for kind, each in zip(of_edge_kinds, by_position, strict=True):
            with circuits.of_edges(*about, by_position=each) as edges:
                scores = {OURS: edges.scores(direct, "sum")}
                for name, own in gradients.items():
                    scores[name] = edges.flat(own if each else own.sum(-1))
                if not each:
                    scores[OURS + SIZE] = edges.scores(direct, "size")
                    name, own = list(gradients.items())[-1]
                    scores[name + SIZE] = edges.flat(own.norm(dim=-1))
                curves(kind, edges, scores | chance(case, edges.count))
    if of_node_kinds := [kind for kind in kinds if kind.startswith("nodes")]:
        graph = FlowGraph(scored(f"{OURS}, nodes", partial(lig.attribute, *about[1:])))
        found["heads"] = heads_found(net, case, graph)
        places = {name: scored(name, partial(m, question)) for name, m in NODE_METHODS.items()}
        for kind in of_node_kinds:
            own_places = dict(places)
            if not kind.endswith("by position"):  # else two runs for each
                work = partial(node_rivals.patched, Question(net, case))
                own_places[PATCHING] = scored(PATCHING, work)
            with circuits.of_nodes(*about, by_position=kind.endswith("by position")) as nodes:
                scores = {OURS: nodes.scores(graph)}
                for name, place in own_places.items():
                    scores[name] = node_rivals.of_nodes(nodes.nodes, place)
                curves(kind, nodes, scores | chance(case, nodes.count))
    return found


def chance(case: Case, count: int) -> dict[str, Tensor]:
    """A random order, another one for each prompt."""
    generator = torch.Generator().manual_seed(sum(case.inputs["input_ids"][0].tolist()))
    return {CHANCE: torch.randn(count, generator=generator)}


def timed(seconds: Timed, name: str, work: Callable[[], Any]) -> Any:
    """What a call gives; its processor time is noted."""
    began = time.process_time()
    done = work()
    seconds[name] = time.process_time() - began
    return done
