"""How well attributions of a prediction agree with patching: ours beside rivals, in one run.

    python -m benchmarks.patching --model FOLDER --corpus CORPUS --out patching.jsonl

FOLDER holds a Llama-like decoder (three tasks of prompts against counterfactuals); the sentences
of CORPUS, CoNLL-U or plain text, are for the embedded encoder (cosine of two, against padding).
Prints the tables of docs/patching.md. All numbers are in the file of JSON lines that ``--out``
names, a text each: a run that finds it goes on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import say, use_threads
from benchmarks.patching import cases, measures, report
from benchmarks.patching.chain import available, chain
from benchmarks.patching.gradients import attribution_patching, integrated
from benchmarks.patching.layer_ig import NODES, layer_integrated_gradients, left_in_place
from benchmarks.patching.net import Net, Question, Scores
from benchmarks.patching.others import chance, rollout, shares_of_lengths
from benchmarks.patching.passes import counted
from benchmarks.patching.relp import relp
from benchmarks.patching.truth import effects
from benchmarks.records import Record
from benchmarks.texts import load

Method = Callable[..., Scores]
"""Gets a question; some have settings."""
METHODS: dict[str, Method] = {
    "flows towards the target": chain,
    "EAP-IG path, 16": partial(integrated, steps=16),
    "EAP-IG path, 5": partial(integrated, steps=5),
    "RelP": relp,
    "attribution patching": attribution_patching,
    "LayerIntegratedGradients": layer_integrated_gradients,
    "attention rollout": rollout,
    "shares of lengths": partial(shares_of_lengths, n_steps=24, tolerance=None),
    "left on its token": left_in_place,
    "chance": chance,
}
FROM_FIRST_CHANGE = ("LayerIntegratedGradients", "left on its token")
"""Run on the tokens that can change alone: many passes, and the same numbers."""


def methods(nodes: int = NODES) -> dict[str, Method]:
    """Those that can be run, with so many nodes for ``LayerIntegratedGradients``."""
    direct = {name: partial(METHODS[name], nodes=nodes) for name in FROM_FIRST_CHANGE}
    chosen = {**METHODS, **direct}
    return {name: m for name, m in chosen.items() if m is not chain or available()}


def measured(net: Net, case: cases.Case, chosen: dict[str, Method]) -> dict[str, Any]:
    """One text: methods beside patching."""
    short, whole = Question(net, case), Question(net, case, prefix=False)
    moved = short.moved()
    with counted(net.blocks, short.length) as spent:
        out, into = effects(short)
    truths = {"out": out, "into": into, "mean": measures.mean_of(out, into)}
    rows, layers, costs = [], [], {"patching": vars(spent)}
    for name, method in chosen.items():
        with counted(net.blocks, short.length) as cost:
            scores = method(short if name in FROM_FIRST_CHANGE else whole)
        costs[name] = vars(cost)
        rows += [{"method": name, **row} for row in measures.against(scores, truths, moved)]
        found = measures.by_layer(scores, truths["mean"], moved)
        layers += [{"method": name, **row} for row in found]
    both = measures.against(out, {"into": into}, moved)
    return {
        "task": case.task,
        "text": case.text,
        "other": case.other,
        "tokens": short.length,
        "input": float(short.input.value),
        "baseline": float(short.baseline.value),
        "nodes": {kind: int(kept.sum()) for kind, kept in moved.items()},
        "agreement_out_into": {row["kind"]: row["pearson"] for row in both},
        "rows": rows,
        "layers": layers,
        "costs": costs,
    }


def run(net: Net, asked: Iterable[cases.Case], chosen: dict[str, Method], record: Record) -> None:
    """Texts one by one, with progress; those of the record are not run again."""
    done = {(row["task"], row["text"], row["other"]) for row in record.rows}
    for number, case in enumerate(asked, 1):
        if (case.task, case.text, case.other) in done:
            continue
        began = time.perf_counter()
        found = measured(net, case, chosen)
        took = time.perf_counter() - began
        record.add(found, took)
        slowest = sorted(found["costs"].items(), key=lambda item: -item[1]["seconds"])[:3]
        named = ", ".join(f"{name} {cost['seconds']:.1f}" for name, cost in slowest)
        say(f"{case.task} {number}: {found['tokens']} tokens, {took:.1f} s ({named})")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*cases.TASKS, "sentences"]
    parser.add_argument("--model", default=None, help="a folder with a Llama-like decoder")
    parser.add_argument("--corpus", type=Path, default=None, help="CoNLL-U, or lines of text")
    parser.add_argument("--tasks", nargs="*", choices=known, default=known)
    parser.add_argument("--prompts", type=int, default=40, help="of each task")
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=NODES, help="of LayerIntegratedGradients")
    parser.add_argument("--out", type=Path, default=None, help="JSON lines, gone on with")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    use_threads(asked.threads)
    warnings.filterwarnings("ignore", message=".*not within tolerance.*")
    if not available():
        say("LayerFlowIG.attribute has no target: flows towards the target are left out.")
    chosen = methods(asked.nodes)
    settings = {"model": asked.model, "nodes": asked.nodes, "methods": list(chosen)}
    record = Record(asked.out, settings)
    dropped: dict[str, Any] = {}
    decoding = [task for task in asked.tasks if task in cases.TASKS]
    if decoding and asked.model is None:
        say(f"--model names no decoder: {', '.join(decoding)} left out.")
    elif decoding:
        tokenizer, model = load(asked.model, causal=True)
        net = Net(model)
        for task in decoding:
            count = cases.Dropped()
            prompts = cases.prompts(model, tokenizer, task, asked.prompts, count)
            run(net, prompts, chosen, record)
            dropped[task] = vars(count)
    if "sentences" in asked.tasks:
        texts = cases.treebank(asked.corpus)
        if texts:
            tokenizer, model = load(None)
            asked_of = cases.cosines(model, tokenizer, texts, asked.sentences)
            run(Net(model), asked_of, chosen, record)
        else:
            say(f"--corpus {asked.corpus} is no file: sentences left out.")
    summary = report.summarised([row for row in record.rows if row["task"] in asked.tasks])
    print(f"{record.stamp()}\n\n{report.text(summary, dropped)}")


if __name__ == "__main__":
    main()
