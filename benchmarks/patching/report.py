"""Means over the texts of a task, as data and as Markdown."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.common import table
from benchmarks.patching.measures import Row, interval
from benchmarks.patching.net import KINDS

MEASURES = ("pearson", "spearman", "distance", "size")
COLUMNS = {"tokens": "tokens", "attention": "attention outputs", "mlp": "MLPs", "heads": "heads"}
TITLES = {
    "agreement": "Subject and verb",
    "objects": "Indirect objects",
    "capitals": "Capitals",
    "sentences": "Cosine of two sentences, against padding",
}
WHAT = {
    "agreement": 'SmolLM2-135M, "The keys to the cabinet" against "The key to the cabinet", logit '
    'of " are" less that of " is", or the other way round.',
    "objects": "SmolLM2-135M, two names, and a counterfactual in which the other one is the giver; "
    "logit of one name less that of the other.",
    "capitals": 'SmolLM2-135M, "The capital of Austria is" against "The capital of Portugal is", '
    "logit of one capital less that of the other.",
    "sentences": "all-MiniLM-L6-v2, sentences of the corpus, padding with special tokens kept for "
    "a baseline.",
}
OURS = "flows towards the target"
Texts = list[dict[str, Any]]


def summarised(texts: Texts) -> dict[str, Any]:
    """By task: means with intervals of every measure, and of the costs."""
    tasks: dict[str, Texts] = defaultdict(list)
    for one in texts:
        tasks[one["task"]].append(one)
    return {task: of_task(group) for task, group in tasks.items()}


def of_task(texts: Texts) -> dict[str, Any]:
    """Rows are named by method, kind and truth (or layer)."""
    rows: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    layers: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in texts:
        for row in one["rows"]:
            for name in MEASURES:
                rows[row["method"], row["kind"], row["truth"]][name].append(row[name])
        for row in one["layers"]:
            for name in ("distance", "size"):
                layers[row["method"], row["kind"], row["layer"]][name].append(row[name])
        for method, cost in one["costs"].items():
            for name, value in cost.items():
                costs[method][name].append(value)
    both = {kind: [one["agreement_out_into"][kind] for one in texts] for kind in KINDS}

    def means(found: dict[str, list[float]]) -> dict[str, Row]:
        return {name: interval(values) for name, values in found.items()}

    return {
        "texts": len(texts),
        "agreement_out_into": means(both),
        "costs": {method: means(found) for method, found in costs.items()},
        "rows": [
            {"method": method, "kind": kind, "truth": truth, **means(found)}
            for (method, kind, truth), found in rows.items()
        ],
        "layers": [
            {"method": method, "kind": kind, "layer": layer, **means(found)}
            for (method, kind, layer), found in layers.items()
        ],
    }


def text(summary: dict[str, Any], dropped: dict[str, Any]) -> str:
    """All tasks in Markdown."""
    parts = []
    for task, found in summary.items():
        parts += [f"## {TITLES[task]}: {found['texts']} texts", WHAT[task]]
        gone = dropped.get(task, {})
        if any(gone.values()):
            parts.append(
                f"Passed over: {gone['length']} for words or lengths in tokens, {gone['answer']} "
                "where the model does not prefer the right word on both sides."
            )
        parts.append(of_methods(found))
    return "\n\n".join(parts)


def of_methods(found: dict[str, Any]) -> str:
    """A line a method, a column a kind of node."""
    by = {(r["method"], r["kind"]): r for r in found["rows"] if r["truth"] == "mean"}
    lines = []
    for method in dict.fromkeys(method for method, _ in by):
        cells = [shown(by[method, kind]) if (method, kind) in by else "" for kind in COLUMNS]
        name = "**`LayerFlowIG`, this library**" if method == OURS else method
        lines.append([name, *cells, f"{found['costs'][method]['seconds']['mean']:.1f}"])
    both = [f"{found['agreement_out_into'][kind]['mean']:.3f}" for kind in COLUMNS]
    lines.append(["*taking out and putting in, with each other*", *both, ""])
    return table(["", *COLUMNS.values(), "seconds"], lines)


def shown(row: dict[str, Row]) -> str:
    """Pearson with half of its interval, and the distance."""
    pearson = row["pearson"]
    half = (pearson["high"] - pearson["low"]) / 2
    return f"{pearson['mean']:.3f}±{half:.3f} / {row['distance']['mean']:.2f}"
