"""Means over the prompts of a task, with intervals, as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.circuits.measure import OURS, SIZE
from benchmarks.common import table
from benchmarks.records import stamp_of
from captum_lig.metrics import CircuitsOverTexts, Interval, circuit_cmd, interval
from captum_lig.metrics.circuits import SHARES

Curves = dict[str, list[list[float]]]
"""By method: the faithfulness of each prompt's circuits, ``(texts, K)``."""
AREAS = {"cmd": "CMD", "cmd log": "CMD, log k", "cpr": "CPR", "cpr log": "CPR, log k"}
TITLES = {
    "objects": "Indirect objects",
    "agreement": "Agreement",
    "greater": "Greater-than",
}
WHAT = {
    "objects": 'Two names, "When Mary and John went to the store, John gave a drink to" against '
    'the other giver; logit of " Mary" less that of " John".',
    "agreement": 'A noun before another, "The keys to the cabinet" against "The key to the '
    'cabinet"; logit of " are" less that of " is".',
    "greater": 'A year and a century, "The war lasted from the year 1761 to the year 17" against '
    "1701 (Hanna et al. 2023); log odds of a later decade's digit (7 to 9) against an earlier "
    "one's (0 to 5).",
}
HEADS = 8


def text(found: dict[str, Any]) -> str:
    """All tasks."""
    parts = [stamp_of(found["texts"])]
    for task in dict.fromkeys(one["task"] for one in found["texts"]):
        texts = [one for one in found["texts"] if one["task"] == task]
        parts.append(f"### {TITLES.get(task, task)}: {len(texts)} prompts")
        parts.append(WHAT.get(task, ""))
        parts.append(passed_over(found["dropped"].get(task)))
        for (kind, order), curves in of_kinds(texts).items():
            counts = [c["count"] for t in texts for c in t["curves"] if c["kind"] == kind]
            many = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
            first = "" if order == "size" else ", signed order"
            parts.append(f"{kind.capitalize()} ({many}){first}")
            parts.append(of_curves(kind, curves))
        parts.append(of_costs(texts))
        parts.append(of_heads(texts))
    return "\n\n".join(part for part in parts if part)


def passed_over(dropped: dict[str, int] | None) -> str:
    """How many prompts the model does not do."""
    if not dropped or not any(dropped.values()):
        return ""
    return (
        f"Passed over: {dropped['length']} for words or lengths in tokens, {dropped['answer']} "
        "where the model does not prefer the right word on both sides."
    )


def of_kinds(texts: list[dict[str, Any]]) -> dict[tuple[str, str], Curves]:
    """By kind and order."""
    found: dict[tuple[str, str], Curves] = defaultdict(lambda: defaultdict(list))
    for one in texts:
        for curve in one["curves"]:
            found[curve["kind"], curve["order"]][curve["method"]].append(curve["faithfulness"])
    return found


def summary(curves: Curves) -> dict[str, dict[str, Interval]]:
    """By method: means and intervals, named as by ``CircuitsOverTexts``."""
    found = {}
    for method, rows in curves.items():
        over = CircuitsOverTexts()
        for row in rows:
            over.update(row)
        found[method] = over.compute()
    return found


def of_curves(kind: str, curves: Curves) -> str:
    """Faithfulness at the sizes that differ, the areas, and how far ours is ahead."""
    means = summary(curves)
    shares = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    if kind == "nodes":
        shares = shares[3:]  # a share of less is hardly a node
    rows = [
        [name(kind, method), *(cell(row[f"faithfulness {share:g}"]) for share in shares),
         *(cell(row[area], 3) for area in AREAS)]
        for method, row in means.items()
    ]  # fmt: skip
    header = ["", *(f"{100 * share:g} %" for share in shares), *AREAS.values()]
    ours = OURS + SIZE if OURS + SIZE in curves else OURS
    small = [SHARES.index(share) for share in shares if share <= (0.02 if kind != "nodes" else 1)]
    lines = [
        [name(kind, method), *(cell(one, 3) for one in ahead(curves[ours], curves[method], small))]
        for method in curves
        if method not in (ours, "chance")
    ]
    mean = f"mean at {100 * SHARES[small[0]]:g} to {100 * SHARES[small[-1]]:g} %"
    beside = table([f"{name(kind, ours)} less", mean, "CMD", "CMD, log k"], lines)
    return f"{table(header, rows)}\n\n{beside}"


def ahead(ours: list[list[float]], other: list[list[float]], small: list[int]) -> list[Interval]:
    """Differences paired by prompt: of mean faithfulness, CMD and CMD over log k."""

    def numbers(row: list[float]) -> tuple[float, float, float]:
        mean = sum(row[place] for place in small) / len(small)
        values = torch.tensor(row)
        return mean, float(circuit_cmd(values)), float(circuit_cmd(values, scale="log"))

    pairs = zip(map(numbers, ours), map(numbers, other), strict=True)
    gaps = [[a - b for a, b in zip(one, two, strict=True)] for one, two in pairs]
    return [interval(list(column)) for column in zip(*gaps, strict=True)]


def name(kind: str, method: str) -> str:
    """As the page has it: of edges, how values over tokens become one is part of it."""
    bare = method.removesuffix(SIZE)
    shown = "**`LayerFlowIG`**" if bare == OURS else bare
    if kind != "edges" or method == "chance":
        return shown
    return f"{shown}, {'size' if method.endswith(SIZE) else 'sum'}"


def cell(row: Interval, digits: int = 2) -> str:
    """Mean, and half of its interval."""
    return f"{row.mean:.{digits}f}±{(row.high - row.low) / 2:.{digits}f}"


def of_costs(texts: list[dict[str, Any]]) -> str:
    """Mean processor seconds of the scores of a prompt."""
    names = texts[0]["seconds"]
    means = {one: sum(text["seconds"][one] for text in texts) / len(texts) for one in names}
    said = ", ".join(
        f"{one.replace(OURS, '`LayerFlowIG`')} {seconds:.1f}" for one, seconds in means.items()
    )
    return f"Processor seconds for the scores of a prompt: {said}."


def of_heads(texts: list[dict[str, Any]]) -> str:
    """The strongest heads at the last token, and what they do; means over prompts."""
    texts = [one for one in texts if "heads" in one]
    if not texts or texts[0]["task"] == "greater":
        return ""
    means = {
        name: torch.tensor([one["heads"][name] for one in texts]).double().mean(0)
        for name in texts[0]["heads"]
    }
    change = sum(one["input"] - one["baseline"] for one in texts) / len(texts)
    header = ["head", "part of the change", "attends to the answer", "to the other word"]
    header += ["to what is exchanged", "adds to the answer", "to the other word"]
    rows = list(strongest(means, change))
    return f"**Strongest heads at the last token**\n\n{table(header, rows)}"


def strongest(means: dict[str, torch.Tensor], change: float) -> Iterator[list[str]]:
    """A line a head."""
    heads = means["relevance"].shape[1]
    for number in means["relevance"].abs().flatten().argsort(descending=True)[:HEADS].tolist():
        at = divmod(number, heads)
        own = {name: float(x[at]) for name, x in means.items()}
        yield [
            f"{at[0]}.{at[1]}",
            f"{own['relevance'] / change:+.0%}",
            *(f"{own[name]:.0%}" for name in ("to_answer", "to_foil", "to_changed")),
            *(f"{own[name]:+.2f}" for name in ("answer", "foil")),
        ]
