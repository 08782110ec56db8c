"""Means over the prompts of a task, with intervals, as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.common import table
from captum_lig.metrics import CircuitsOverTexts, Interval
from captum_lig.metrics.circuits import SHARES

Curves = dict[str, list[list[float]]]
"""By method: the faithfulness of each prompt's circuits, ``(texts, K)``."""
AREAS = {"cmd": "CMD", "cmd log": "CMD, log k", "cpr": "CPR", "cpr log": "CPR, log k"}
TITLES = {"objects": "indirect objects", "greater": "greater-than"}
HEADS = 8


def text(found: dict[str, Any]) -> str:
    """All tasks."""
    parts = []
    for task in dict.fromkeys(one["task"] for one in found["texts"]):
        texts = [one for one in found["texts"] if one["task"] == task]
        parts.append(f"### {TITLES.get(task, task)}: {len(texts)} prompts")
        parts.append(passed_over(found["dropped"].get(task)))
        for (kind, order), curves in of_kinds(texts).items():
            count = next(c["count"] for c in texts[0]["curves"] if c["kind"] == kind)
            parts.append(
                f"**{kind.capitalize()}**, best by {order} first ({count:,} in the first prompt)"
            )
            parts.append(of_curves(curves))
        parts.append(of_costs(texts))
        parts.append(of_heads(texts))
    return "\n\n".join(part for part in parts if part)


def passed_over(dropped: dict[str, int] | None) -> str:
    """How many prompts the model does not do."""
    if not dropped:
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


def of_curves(curves: Curves) -> str:
    """Faithfulness of all sizes, and the areas."""
    means = summary(curves)
    shares = SHARES[:-1]  # of all edges it is 1
    rows = [
        [method, *(cell(row[f"faithfulness {share:g}"]) for share in shares)]
        for method, row in means.items()
    ]
    areas = [[method, *(cell(row[name], 3) for name in AREAS)] for method, row in means.items()]
    header = ["", *(f"{100 * share:g} %" for share in shares)]
    return f"{table(header, rows)}\n\n{table(['', *AREAS.values()], areas)}"


def cell(row: Interval, digits: int = 2) -> str:
    """Mean, and half of its interval."""
    return f"{row.mean:.{digits}f}±{(row.high - row.low) / 2:.{digits}f}"


def of_costs(texts: list[dict[str, Any]]) -> str:
    """Mean processor seconds of the scores of a prompt."""
    names = texts[0]["seconds"]
    means = {name: sum(one["seconds"][name] for one in texts) / len(texts) for name in names}
    said = ", ".join(f"{name} {seconds:.1f}" for name, seconds in means.items())
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
