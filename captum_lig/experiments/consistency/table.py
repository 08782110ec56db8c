"""The terminal tables of the consistency experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from captum_lig.experiments.consistency.pairings import LAYER_BASELINES, Pairing
from captum_lig.experiments.consistency.ranking import MEASURES, Pooled, Ranked

__all__ = ["excerpt", "number", "report"]

BEST = 5
_HEADINGS = ("L2", "relative\nL2", "Pearson", "Spearman")


def report(
    pooled: Pooled, counts: Mapping[str, int], by: str = "l2", by_layer: bool = False
) -> Group:
    """What was compared, and a ranking for each layer baseline; it fits 80 columns.

    Args:
        pooled: the records.
        counts: sentences by status, see :attr:`captum_lig.corpus.Results.counts`.
        by: measure to order by.
        by_layer: also the best pairing of each ranking, layer by layer.
    """
    parts: list[RenderableType] = [Text(_sentences(counts)), Text()]
    for baseline in LAYER_BASELINES:
        ranking = pooled.rank(baseline, by=by)
        parts += [Text(f"Direct maps from {baseline}", style="bold"), _table(ranking)]
        parts += [Text(_rows(ranking), style="dim"), Text()]
        if by_layer:
            parts += [_by_layer(pooled, baseline, ranking), Text()]
    parts.append(
        Text(
            "Mean and deviation over rows. relative L2: distance in units of the direct row's "
            "length. correl.: rows that have a correlation; there is none if either row is "
            "constant over what the target can see. uncert.: rows that are made of one that is "
            "not within tolerance of its total. Controls: all_zero, and uniform, the direct row's "
            "total spread evenly over what the target can see.",
            style="dim",
        )
    )
    return Group(*parts)


def excerpt(ranking: Sequence[Ranked], best: int = BEST) -> list[Ranked]:
    """The best, the worst, and the controls, in the order of the ranking."""
    return [
        one for one in ranking if one.rank <= best or one.is_control or one.rank == len(ranking)
    ]


def number(measure: tuple[float, float] | None) -> str:
    """Mean and deviation as they are shown."""
    if measure is None:
        return "n/a"
    mean, deviation = (float(f"{x:.{digits}g}") for x, digits in zip(measure, (3, 2), strict=True))
    return f"{mean:g} ± {deviation:g}"


def _sentences(counts: Mapping[str, int]) -> str:
    others = [f"{count} {status}" for status, count in counts.items() if status != "done"]
    return f"{counts.get('done', 0)} sentences compared, {', '.join(others) or 'none skipped'}."


def _table(ranking: Sequence[Ranked]) -> Table:
    table = _empty_table()
    table.add_column("rank", justify="right", min_width=4)
    table.add_column("attention baseline\nmlp start, rule", no_wrap=True)
    for name in (*_HEADINGS, "correl.\nuncert."):
        table.add_column(name, justify="right", no_wrap=True)
    for one in excerpt(ranking):
        table.add_row(
            str(one.rank),
            _name(one.pairing),
            *(_over(one.measures[name]) for name in MEASURES),
            f"{one.correlation_rows}\n{one.unconverged_rows}",
            style="italic" if one.is_control else None,
        )
    return table


def _empty_table(title: str | None = None) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title=title,
        title_justify="left",
    )


def _name(pairing: Pairing) -> str:
    if pairing.attention_baseline is None:
        return f"control: {pairing.rule}"
    return f"{pairing.attention_baseline}\n{pairing.mlp_start}, {pairing.rule}"


def _over(measure: tuple[float, float] | None) -> str:
    """The mean, and the deviation under it."""
    return number(measure).replace(" ±", "\n±")


def _rows(ranking: Sequence[Ranked]) -> str:
    one = ranking[0]
    zeros = one.rows - one.relative_rows
    return f"{one.rows} rows" + (f", {zeros} of them with a direct row of 0" if zeros else "")


def _by_layer(pooled: Pooled, baseline: str, ranking: Sequence[Ranked]) -> Table:
    best = next(one.pairing for one in ranking if not one.is_control)
    table = _empty_table(f"The best, {_name(best)}, layer by layer".replace("\n", ", "))
    for name in ("layer", *_HEADINGS, "uniform\nL2"):
        table.add_column(name, justify="right")
    for layer in pooled.layers:
        found = {one.pairing: one for one in pooled.rank(baseline, layer)}
        uniform = next(one for one in found.values() if one.pairing.rule == "uniform")
        shown = [_over(found[best].measures[name]) for name in MEASURES]
        table.add_row(str(layer), *shown, _over(uniform.measures["l2"]))
    return table
