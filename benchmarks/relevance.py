"""Relevances that a flow graph carries down, beside LayerIntegratedGradients at every layer.

    python -m benchmarks.relevance --corpus CORPUS                    # the embedded model
    python -m benchmarks.relevance --corpus CORPUS --model FOLDER     # a decoder

The corpus is CoNLL-U, or plain text with one sentence a line. Of the embedded sentence encoder the
scalar is the cosine with the sentence that comes next in the selection; of a decoder it is, after
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
from statistics import mean
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from benchmarks.common import say, stamp, table, use_threads
from captum_lig import FlowGraph, LayerFlow, LayerFlowIG
from captum_lig.prediction import (
    DirectRelevance,
    cosine,
    direct_relevance,
    layer_baselines,
    logit_difference,
    token_baseline,
)
from captum_lig.prediction.comparison import MAPS, compare
from captum_lig.pretrained.minilm import embedded_model_path

BASELINES = ("zero", "target_token", "target_token+zero_ratio", "layer_baselines")
HOW = (("conserve", False), ("chain", False), ("conserve", True), ("chain", True))
FEWEST, MOST = 8, 20
UNSURE = 0.05
"""Direct relevances that miss their sum by more than this part of their absolute sum tell nothing:
Captum's integral has not converged there."""
MEASURES = ("pearson", "spearman", "relative_l2")


class Case(NamedTuple):
    """A text and a scalar of it."""

    inputs: dict[str, Tensor]
    baseline: Tensor
    scalar: Any


def texts_of(corpus: Path) -> Iterator[str]:
    for line in corpus.read_text(encoding="utf-8").splitlines():
        if corpus.suffix != ".conllu":
            yield line
        elif line.startswith("# text = "):
            yield line.removeprefix("# text = ")


def cases(model: nn.Module, tokenizer: Any, corpus: Path, count: int) -> Iterator[Case]:
    """The first sentences of the corpus that have between 8 and 20 tokens."""
    fitting = []
    for text in texts_of(corpus):
        encoded = dict(tokenizer(text, return_tensors="pt"))
        if FEWEST <= encoded["input_ids"].shape[1] <= MOST:
            fitting.append(encoded)
        if len(fitting) > count:
            break
    encoder = getattr(model, "lm_head", None) is None
    for number, inputs in enumerate(fitting[:count]):
        if encoder:
            scalar = cosine(model, fitting[(number + 1) % len(fitting)])
        else:
            inputs = {name: value[:, :-1] for name, value in inputs.items()}
            scalar = decided(model, inputs, token_baseline(inputs, tokenizer))
        yield Case(inputs, token_baseline(inputs, tokenizer), scalar)


def decided(model: Any, inputs: dict[str, Tensor], baseline: Tensor) -> Any:
    """The most likely next token against the one without the text's content."""
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        other = int(model(**{**inputs, "input_ids": baseline}).logits[0, -1].argmax())
    first, second = logits.topk(2).indices.tolist()
    return logit_difference(model, first, second if other == first else other)


def graphs(model: nn.Module, case: Case) -> dict[str, FlowGraph]:
    """The text's graph by the baseline of its layers' paths."""
    lig, wanted = LayerFlowIG(model), {"boundaries": ("attention", "mlp")}
    matched = layer_baselines(model, case.inputs, case.baseline)
    starts: dict[str, Any] = {"zero": "zero", "target_token": "target_token"}
    starts["layer_baselines"] = matched
    flows: dict[str, list[LayerFlow]] = {}
    for name, start in starts.items():
        found = lig.attribute(case.inputs, start, **wanted)
        assert isinstance(found, list)
        flows[name] = found
    pairs = zip(flows["target_token"], flows["zero"], strict=True)
    flows["target_token+zero_ratio"] = [f.with_self_term("zero_ratio", zero) for f, zero in pairs]
    return {name: FlowGraph(flows[name]) for name in BASELINES}


def measured(direct: DirectRelevance, case_graphs: dict[str, FlowGraph]) -> list[dict[str, Any]]:
    """One row a graph, rule and depth, and one for each control and depth."""
    rows = []
    misses = direct.delta.abs() / direct.tokens.abs().sum(-1)
    for name, graph in case_graphs.items():
        for rule, absolute in HOW:
            if absolute and name == "target_token+zero_ratio":
                continue
            comparison = compare(graph, direct, rule, absolute)
            gross = comparison.carried.abs().sum(-1)
            lost = (comparison.carried.sum(-1) - comparison.carried[-1].sum()).abs() / gross
            carried = (name, rule + (", absolute" if absolute else ""))
            found = zip(comparison.rows(), lost.tolist(), misses.tolist(), strict=True)
            rows += [
                {"map": carried, "of": "carried", "lost": gap, "misses": miss, **row}
                for row, gap, miss in found
            ]
    for control in MAPS[1:]:
        name = ("control", {"stays": "left on its token", "uniform": "uniform"}[control])
        found = zip(comparison.rows(), misses.tolist(), strict=True)
        rows += [
            {"map": name, "of": control, "lost": 0.0, "misses": miss, **row} for row, miss in found
        ]
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """Means over texts; the depth where all begin is left out of "all"."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    end = max(row["layer"] for row in rows)
    for row in rows:
        if row["layer"] != end and row["misses"] <= UNSURE:
            groups[row["map"]].append(row)
    layers = sorted({row["layer"] for row in rows} - {end})
    header = ["path of the layers", "rule", "Pearson", "Spearman", "L2 / norm: mean", "median"]
    lines = []
    for (baseline, rule), group in groups.items():
        values = {m: [row[f"{m}_{row['of']}"] for row in group] for m in MEASURES}
        numbers = {m: [v for v in values[m] if v == v] for m in MEASURES}
        cells = [f"{mean(numbers[m]):.2f}" if numbers[m] else "" for m in MEASURES]
        middle = sorted(numbers["relative_l2"])[len(numbers["relative_l2"]) // 2]
        lines.append([baseline, rule, *cells, f"{middle:.2f}"])
    by_layer = []
    for (baseline, rule), group in groups.items():
        cells = []
        for layer in layers:
            here = [row[f"spearman_{row['of']}"] for row in group if row["layer"] == layer]
            there = [row[f"pearson_{row['of']}"] for row in group if row["layer"] == layer]
            here, there = ([v for v in part if v == v] for part in (here, there))
            cells.append(f"{mean(there):.2f}, {mean(here):.2f}" if here and there else "")
        if any(cells):
            by_layer.append([baseline, rule, *cells])
    columns = ["path of the layers", "rule", *(f"entering {layer}" for layer in layers)]
    return (
        f"Over all depths:\n\n{table(header, lines)}\n\n"
        f"Pearson, Spearman where tokens enter a layer:\n\n{table(columns, by_layer)}"
    )


def run(model: nn.Module, tokenizer: Any, asked: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    texts = 0
    for texts, case in enumerate(cases(model, tokenizer, asked.corpus, asked.sentences), 1):
        began = time.perf_counter()
        made = graphs(model, case)
        count = len(next(iter(made.values())).layers)
        direct = direct_relevance(
            model,
            case.scalar,
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
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    use_threads(1)
    source = asked.model or embedded_model_path()
    kind = transformers.AutoModelForCausalLM if asked.model else transformers.AutoModel
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = kind.from_pretrained(source, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*within tolerance.*")
        run(model, tokenizer, asked)


if __name__ == "__main__":
    main()
