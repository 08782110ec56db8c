"""Means over the prompts of a task, with intervals, as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.circuits.measure import CHANCE
from benchmarks.common import table
from benchmarks.patching.measures import Row, interval
from captum_lig.metrics.circuits import SHARES, circuit_cmd, circuit_cpr

Curves = dict[str, list[list[float]]]
"""By method: the faithfulness of each prompt's circuits, ``(texts, K)``."""
SMALL = 5
"""Shares shown of each prompt: 0.1 to 2 %."""
AREAS = {
    "CMD": lambda f: circuit_cmd(f),
    "CMD, log k": lambda f: circuit_cmd(f, scale="log"),
    "CPR": lambda f: circuit_cpr(f),
    "CPR, log k": lambda f: circuit_cpr(f, scale="log"),
}
TITLES = {"objects": "indirect objects", "greater": "greater-than"}
HEADS = 6


def text(found: dict[str, Any]) -> str:
    """All tasks."""
    parts = []
    for task in dict.fromkeys(one["task"] for one in found["texts"]):
        texts = [one for one in found["texts"] if one["task"] == task]
        parts.append(f"### {TITLES.get(task, task)}: {len(texts)} prompts")
        parts.append(passed_over(found["dropped"].get(task)))
        for (kind, order), curves in of_kinds(texts).items():
            count = next(c["count"] for c in texts[0]["curves"] if c["kind"] == kind)
            parts.append(f"**{kind}**, by {order} ({count:,} in the first prompt)")
            parts.append(of_curves(curves))
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
    """By kind and order; the random orders of a prompt are one mean."""
    found: dict[tuple[str, str], Curves] = defaultdict(lambda: defaultdict(list))
    for one in texts:
        random: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
        for curve in one["curves"]:
            key = curve["kind"], curve["order"]
            if curve["method"].startswith(CHANCE):
                random[key].append(curve["faithfulness"])
            else:
                found[key][curve["method"]].append(curve["faithfulness"])
        for key, rows in random.items():
            found[key][CHANCE] += rows
    return found


def summary(curves: Curves) -> dict[str, dict[str, Row]]:
    """By method: means and intervals of the faithfulness at each share, and of the areas."""
    found: dict[str, dict[str, Row]] = {}
    for method, rows in curves.items():
        faithfulness = torch.tensor(rows, dtype=torch.float64)
        columns = {f"{share:.1%}": faithfulness[:, n] for n, share in enumerate(SHARES)}
        columns |= {name: area(faithfulness) for name, area in AREAS.items()}
        found[method] = {name: interval(values.tolist()) for name, values in columns.items()}
    return found


def of_curves(curves: Curves) -> str:
    """Faithfulness of all sizes, and the areas."""
    means = summary(curves)
    shares = [f"{share:.1%}" for share in SHARES]
    names = [f"{100 * share:g} %" for share in SHARES]
    rows = [
        [method, *(cell(row[s], n < SMALL) for n, s in enumerate(shares[:-1]))]
        for method, row in means.items()
    ]
    areas = [[method, *(cell(row[name]) for name in AREAS)] for method, row in means.items()]
    return (
        "Faithfulness of circuits that keep a share\n\n"
        f"{table(['', *names[:-1]], rows)}\n\n{table(['', *AREAS], areas)}"
    )


def cell(row: Row, spread: bool = True) -> str:
    """Mean, and its interval."""
    mean = f"{row['mean']:.3f}" if spread else f"{row['mean']:.2f}"
    return f"{mean} [{row['low']:.2f}, {row['high']:.2f}]" if spread else mean


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
    header = ["head", "part of the change", "attends to the answer", "to what is exchanged"]
    header += ["adds directly", "promotes the answer most"]
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
            f"{own['to_answer']:.0%}",
            f"{own['to_changed']:.0%}",
            f"{own['direct']:+.2f}",
            f"{own['promotes']:.0%}",
        ]
