"""The terminal table of carried relevances beside direct ones: one row a depth."""

from __future__ import annotations

import math

from rich import box
from rich.table import Column, Table

from captum_lig.prediction.comparison import MAPS, RelevanceComparison

__all__ = ["relevance_table"]

COLUMNS = (
    "entering\nlayer",
    "Pearson\n(stays)",
    "Spearman\n(stays)",
    "L2 / norm of direct\n(stays, uniform)",
    "carried\nmisses",
    "direct\nmisses",
)
CONTROLS = {"pearson": MAPS[:2], "spearman": MAPS[:2], "relative_l2": MAPS}


def relevance_table(comparison: RelevanceComparison) -> Table:
    """The rows of a comparison, for a rich console: ``rich.print(relevance_table(comparison))``."""
    change = comparison.change
    columns = (Column(title, justify="right", no_wrap=True) for title in COLUMNS)
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.title = f"carried by {comparison.rule}{', absolute' if comparison.absolute else ''}"
    for row in comparison.rows():
        end = row["layer"] == comparison.layers[-1]
        cells = ["end" if end else str(row["layer"])]
        for measure, names in CONTROLS.items():
            numbers = [row[f"{measure}_{name}"] for name in names]
            first, *others = ("" if math.isnan(one) else f"{one:.2f}" for one in numbers)
            cells.append(f"{first} ({', '.join(others)})")
        for name in ("carried_delta", "direct_delta"):
            cells.append(f"{abs(row[name] / change):.1e}" if change else "")
        table.add_row(*cells)
    table.caption = (
        "In brackets, controls: relevance left on its tokens, or spread evenly. misses: "
        f"|sum - change| / |change|, of the target's change of {change:.4g}."
    )
    return table
