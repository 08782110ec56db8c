"""Relevances that a flow graph carries down, beside LayerIntegratedGradients at every layer.

    python -m benchmarks.relevance --corpus CORPUS --out FILE                      # MiniLM
    python -m benchmarks.relevance --corpus CORPUS --model smollm2 --out FILE      # a decoder

The corpus is CoNLL-U, or plain text with one sentence a line. Of the embedded sentence encoder the
target is the cosine with the sentence that comes next in the selection; of a decoder it is, after
all but the last token of a sentence, the logit of the token it finds most likely less that of the
token it finds most likely after the baseline. Prints Markdown; a run that finds its file of JSON
lines goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import say, table, use_threads
from benchmarks.records import Record
from benchmarks.texts import flows_from, load, sentences
from captum_lig import FlowGraph
from captum_lig.graph import CannotCarryWarning
from captum_lig.prediction import (
    DirectRelevance,
    cosine,
    direct_relevance,
    input_baseline,
    logit,
)
from captum_lig.prediction.comparison import compare

BASELINES = ("zero", "target_token", "layer_baselines")
RULES = ("conserve", "chain")
FEWEST, MOST = 8, 20
UNSURE = 0.05
"""Direct relevances that miss their sum by more than this part of their absolute sum tell nothing:
Captum's integral has not converged there."""
CONTROLS = {"stays": "left on its token"}
MEASURES = {"pearson": "Pearson", "spearman": "Spearman"}


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


def measured(direct: DirectRelevance, graphs: dict[str, FlowGraph]) -> list[dict[str, Any]]:
    """One row a graph, rule and depth, and one for each control and depth."""
    found = []
    misses = direct.delta.abs() / direct.tokens.abs().sum(-1)
    for name, graph in graphs.items():
        for rule in RULES:
            comparison = compare(graph, direct, rule)
            found.append((f"`{name}`, `{rule}`", "carried", comparison))
    found += [(f"control: {name}", control, comparison) for control, name in CONTROLS.items()]
    return [
        {
            "map": name,
            "layer": row["layer"],
            "misses": float(misses[i]),
            **{measure: row[f"{measure}_{of}"] for measure in MEASURES},
        }
        for name, of, comparison in found
        for i, row in enumerate(comparison.rows())
    ]


def report(rows: list[dict[str, Any]]) -> str:
    """Means over texts and depths; the depth where all begin is left out."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    end = max(row["layer"] for row in rows)
    for row in rows:
        if row["layer"] != end and row["misses"] <= UNSURE:
            groups[row["map"]].append(row)
    lines = [
        [name, *(mean([row[measure] for row in group]) for measure in MEASURES)]
        for name, group in groups.items()
    ]
    return table(["path of the layers, rule", *MEASURES.values()], lines)


def mean(values: list[float]) -> str:
    """Of those that are there."""
    there = [value for value in values if not math.isnan(value)]
    return f"{sum(there) / len(there):.2f}" if there else ""


def run(model: nn.Module, tokenizer: Any, asked: argparse.Namespace) -> None:
    """Measure what is not in the record yet, and print."""
    names = ("model", "every", "n_steps", "sentences")
    settings = {name: getattr(asked, name) for name in names} | {"corpus": asked.corpus.name}
    record = Record(asked.out, settings)
    for number, case in enumerate(cases(model, tokenizer, asked.corpus, asked.sentences), 1):
        if number <= len(record.rows):
            continue
        began = time.perf_counter()
        made = {
            name: FlowGraph(flows)
            for name, flows in flows_from(model, case.inputs, case.baseline).items()
        }
        direct = direct_relevance(
            model,
            case.target,
            case.inputs,
            case.baseline,
            layers=range(0, len(next(iter(made.values())).layers), asked.every),
            n_steps=asked.n_steps,
        )
        took = time.perf_counter() - began
        record.add({"rows": measured(direct, {name: made[name] for name in BASELINES})}, took)
        tokens = len(direct.positions)
        say(f"{number}: {tokens} tokens, change {direct.change:.3g}, {took:.0f} s")
    where = "all layers" if asked.every == 1 else f"one layer in {asked.every}"
    rows = [row for text in record.rows for row in text["rows"]]
    last = f"control: {CONTROLS['stays']}"
    unsure = sum(row["misses"] > UNSURE for row in rows if row["map"] == last)
    depths = sum(row["map"] == last for row in rows)
    print(
        f"{record.stamp()}\n\n{len(record.rows)} texts of {FEWEST} to {MOST} tokens, {where}, "
        f"correlations over the tokens, means:\n\n{report(rows)}\n\n"
        f"Left out: {unsure} of {depths} depths of a text, where `LayerIntegratedGradients` with "
        f"{asked.n_steps} nodes misses its own sum by more than {UNSURE:.0%} of its absolute sum."
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--model", default=None, help="smollm2, or a folder with a decoder")
    parser.add_argument("--every", type=int, default=1, help="compare at every so many layers")
    parser.add_argument("--n-steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines, gone on with")
    asked = parser.parse_args()
    use_threads(1)
    tokenizer, model = load(asked.model, causal=asked.model is not None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*within tolerance.*")
        warnings.simplefilter("ignore", CannotCarryWarning)
        run(model, tokenizer, asked)


if __name__ == "__main__":
    main()
