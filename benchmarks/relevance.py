"""Relevances that a flow graph carries down, beside LayerIntegratedGradients at every layer.

    python -m benchmarks.relevance --corpus CORPUS                    # the embedded model
    python -m benchmarks.relevance --corpus CORPUS --model FOLDER     # a decoder

The corpus is CoNLL-U, or plain text with one sentence a line. Of the embedded sentence encoder the
target is the cosine with the sentence that comes next in the selection; of a decoder it is, after
all but the last token of a sentence, the logit of the token it finds most likely less that of the
token it finds most likely after the baseline. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median_high
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import say, stamp, table, use_threads
from benchmarks.texts import flows_from, load, sentences
from captum_lig import FlowGraph
from captum_lig.prediction import (
    DirectRelevance,
    cosine,
    direct_relevance,
    input_baseline,
    logit,
)
from captum_lig.prediction.comparison import RelevanceComparison, compare

BASELINES = ("zero", "target_token", "target_token+zero_ratio", "layer_baselines")
HOW = (("conserve", False), ("chain", False), ("conserve", True), ("chain", True))
FEWEST, MOST = 8, 20
UNSURE = 0.05
"""Direct relevances that miss their sum by more than this part of their absolute sum tell nothing:
Captum's integral has not converged there."""
CONTROLS = {"stays": "left on its token", "uniform": "uniform"}
MEASURES = ("pearson", "spearman", "relative_l2")


class Case(NamedTuple):
    """A text, its baseline and a target."""

    inputs: dict[str, Tensor]
    baseline: Any
    target: Any


def cases(model: nn.Module, tokenizer: Any, corpus: Path, count: int) -> Iterator[Case]:
    """The first sentences of the corpus that have between 8 and 20 tokens."""
    fitting = []
    for text in sentences(corpus):
        encoded = dict(tokenizer(text, return_tensors="pt"))
        if FEWEST <= encoded["input_ids"].shape[1] <= MOST:
            fitting.append(encoded)
        if len(fitting) > count:
            break
    encoder = getattr(model, "lm_head", None) is None
    for number, inputs in enumerate(fitting[:count]):
        if encoder:
            target: Any = cosine(fitting[(number + 1) % len(fitting)])
            baseline = input_baseline(model, inputs, tokenizer=tokenizer)
        else:
            inputs = {name: value[:, :-1] for name, value in inputs.items()}
            baseline = input_baseline(model, inputs, tokenizer=tokenizer)
            target = decided(model, inputs, baseline)
        yield Case(inputs, baseline, target)


def decided(model: Any, inputs: dict[str, Tensor], baseline: Any) -> Any:
    """The most likely next token against the one without the text's content."""
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        other = int(model(**baseline).logits[0, -1].argmax())
    first, second = logits.topk(2).indices.tolist()
    return logit(first, minus=second if other == first else other)


def graphs(model: nn.Module, case: Case) -> dict[str, FlowGraph]:
    """The text's graph by the baseline of its layers' paths."""
    flows = flows_from(model, case.inputs, case.baseline)
    pairs = zip(flows["target_token"], flows["zero"], strict=True)
    flows["target_token+zero_ratio"] = [f.with_self_term("zero_ratio", zero) for f, zero in pairs]
    return {name: FlowGraph(flows[name]) for name in BASELINES}


def measured(direct: DirectRelevance, case_graphs: dict[str, FlowGraph]) -> list[dict[str, Any]]:
    """One row a graph, rule and depth, and one for each control and depth."""
    found: list[tuple[tuple[str, str], str, RelevanceComparison, Tensor]] = []
    misses = direct.delta.abs() / direct.tokens.abs().sum(-1)
    for name, graph in case_graphs.items():
        for rule, absolute in HOW:
            if absolute and name == "target_token+zero_ratio":
                continue
            comparison = compare(graph, direct, rule, absolute)
            gross = comparison.carried.abs().sum(-1)
            lost = (comparison.carried.sum(-1) - comparison.carried[-1].sum()).abs() / gross
            names = (name, rule + (", absolute" if absolute else ""))
            found.append((names, "carried", comparison, lost))
    for control, name in CONTROLS.items():
        found.append((("control", name), control, comparison, torch.zeros_like(misses)))
    return [
        {"map": names, "of": of, "lost": float(lost[i]), "misses": float(misses[i]), **row}
        for names, of, comparison, lost in found
        for i, row in enumerate(comparison.rows())
    ]


def report(rows: list[dict[str, Any]]) -> str:
    """Means over texts; the depth where all begin is left out of "all"."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    end = max(row["layer"] for row in rows)
    for row in rows:
        if row["layer"] != end and row["misses"] <= UNSURE:
            groups[row["map"]].append(row)
    layers = sorted({row["layer"] for row in rows} - {end})
    lines, by_layer = [], []
    for names, group in groups.items():
        values = np.array([[row[f"{m}_{row['of']}"] for m in MEASURES] for row in group])
        at = np.array([row["layer"] for row in group])
        middle = median_high(values[~np.isnan(values[:, -1]), -1].tolist())
        lines.append([*names, *map(mean, values.T), f"{middle:.2f}"])
        cells = [", ".join(filter(None, map(mean, values[at == n, :2].T))) for n in layers]
        if any(cells):
            by_layer.append([*names, *cells])
    header = ["path of the layers", "rule"]
    return (
        "Over all depths:\n\n"
        f"{table([*header, 'Pearson', 'Spearman', 'L2 / norm: mean', 'median'], lines)}\n\n"
        "Pearson, Spearman where tokens enter a layer:\n\n"
        f"{table([*header, *(f'entering {layer}' for layer in layers)], by_layer)}"
    )


def mean(values: np.ndarray[Any, Any]) -> str:
    """Of those that are there."""
    values = values[~np.isnan(values)]
    return f"{values.mean():.2f}" if len(values) else ""


def run(model: nn.Module, tokenizer: Any, asked: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    texts = 0
    for texts, case in enumerate(cases(model, tokenizer, asked.corpus, asked.sentences), 1):
        began = time.perf_counter()
        made = graphs(model, case)
        count = len(next(iter(made.values())).layers)
        direct = direct_relevance(
            model,
            case.target,
            case.inputs,
            case.baseline,
            layers=range(0, count, asked.every),
            n_steps=asked.n_steps,
        )
        rows += measured(direct, made)
        tokens, seconds = len(direct.positions), time.perf_counter() - began
        say(f"{texts}: {tokens} tokens, change {direct.change:.3g}, {seconds:.0f} s")
    lost = max(row["lost"] for row in rows)
    control = [row for row in rows if row["of"] == "uniform"]
    unsure: dict[int, int] = defaultdict(int)
    for row in control:
        unsure[row["layer"]] += row["misses"] > UNSURE
    left_out = ", ".join(f"{n} entering {layer}" for layer, n in unsure.items() if n) or "none"
    print(
        f"{texts} texts. {stamp()}\n\n{report(rows)}\n\n"
        f"Left out, as LayerIntegratedGradients with {asked.n_steps} nodes misses its sum by more "
        f"than {UNSURE:.0%} of its absolute sum: {left_out}.\n"
        f"Carried sums differ from the start by at most {lost:.1e} of the row's absolute sum."
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--model", default=None, help="a folder with a decoder")
    parser.add_argument("--every", type=int, default=1, help="compare at every so many layers")
    parser.add_argument("--n-steps", type=int, default=50)
    asked = parser.parse_args()
    use_threads(1)
    tokenizer, model = load(asked.model, causal=asked.model is not None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*within tolerance.*")
        run(model, tokenizer, asked)


if __name__ == "__main__":
    main()
