"""Means over the texts of a task, as data and as Markdown."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.common import table
from benchmarks.patching.measures import Row, interval
from benchmarks.patching.net import KINDS

MEASURES = ("pearson", "spearman", "distance", "size")
NAMES = {
    "tokens": "tokens at every layer",
    "attention": "attention outputs",
    "mlp": "MLP outputs",
    "heads": "heads, all positions at once",
}
COSTS = (
    "Passes are of the blocks, on the whole text. Patching and LayerIntegratedGradients run the "
    "blocks above a node and the tokens that can change alone; Captum runs the whole model. "
    "The two runs that give the changes are not counted."
)
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


def shown(row: Row) -> str:
    """Mean and interval."""
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def text(summary: dict[str, Any], dropped: dict[str, Any]) -> str:
    """All tasks in Markdown."""
    parts = [
        "Score beside the mean of both effects of a node: put back to the baseline, put into the "
        "baseline run. Pearson, Spearman, and distance over the truth's norm; means over texts, "
        "in brackets bootstrap 95 % intervals; nodes that are the same in both runs are left out. "
        "Out and into: Pearson with each effect alone."
    ]
    for task, found in summary.items():
        parts.append(f"### {task}: {found['texts']} texts")
        if task in dropped:
            gone = dropped[task]
            parts.append(
                f"Passed over: {gone['length']} for words or lengths in tokens, {gone['answer']} "
                "where the model does not prefer the right word on both sides."
            )
        for kind in KINDS:
            parts += [f"**{NAMES[kind]}**", of_kind(found, kind)]
        parts += ["**Cost of a text**", COSTS, of_costs(found["costs"])]
        parts += ["**Tokens by layer: distance (length over the truth's)**", of_layers(found)]
    return "\n\n".join(parts)


def of_kind(found: dict[str, Any], kind: str) -> str:
    """A line a method."""
    by = {(r["method"], r["truth"]): r for r in found["rows"] if r["kind"] == kind}
    lines = []
    for method in dict.fromkeys(method for method, _ in by):
        row = by[method, "mean"]
        apart = [f"{by[method, truth]['pearson']['mean']:.3f}" for truth in ("out", "into")]
        lines.append([method, *(shown(row[name]) for name in MEASURES[:3]), *apart])
    both = shown(found["agreement_out_into"][kind])
    header = ["", "Pearson", "Spearman", "distance", "out", "into"]
    return f"Out and into agree with each other at {both}.\n\n{table(header, lines)}"


def of_costs(costs: dict[str, Any]) -> str:
    """Seconds and passes of each method."""
    names = ("seconds", "forward", "backward")
    lines = [
        [method, f"{cost['seconds']['mean']:.2f}", *(f"{cost[n]['mean']:.1f}" for n in names[1:])]
        for method, cost in costs.items()
    ]
    return table(["", "seconds", "forward passes", "backward passes"], lines)


def of_layers(found: dict[str, Any], most: int = 8) -> str:
    """Tokens entering some of the layers, and leaving the last."""
    rows = [row for row in found["layers"] if row["kind"] == "tokens"]
    by = {(row["method"], row["layer"]): row for row in rows}
    depths = sorted({row["layer"] for row in rows})
    step = max(1, -(-len(depths) // most))
    chosen = sorted({*depths[::step], depths[-1]})
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [by.get((method, depth)) for depth in chosen]
        lines.append([method, *(layer_cell(cell) if cell else "" for cell in cells)])
    return table(["entering", *map(str, chosen)], lines)


def layer_cell(row: dict[str, Any]) -> str:
    """Distance, and size in brackets."""
    return f"{row['distance']['mean']:.2f} ({row['size']['mean']:.2f})"
