"""Records of many texts pooled, and pairings ranked for each layer baseline."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.experiments.consistency.pairings import Pairing

__all__ = ["MEASURES", "Pooled", "Ranked", "check_measure", "pool"]

MEASURES = {
    "l2": "rows",
    "relative_l2": "relative_rows",
    "pearson": "correlation_rows",
    "spearman": "correlation_rows",
}
"""Measures, and the count of the rows that each is a mean over."""

COUNTS = ("rows", "unconverged_rows", "relative_rows", "correlation_rows")
_DESCENDING = ("pearson", "spearman")


@dataclass
class _Pool:
    """Sums over the rows of a pairing."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    first: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    second: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, record: Mapping[str, Any]) -> None:
        for count in COUNTS:
            self.counts[count] += record[count]
        for measure, count in MEASURES.items():
            mean, std = record[f"{measure}_mean"], record[f"{measure}_std"]
            if mean is not None:
                self.first[measure] += record[count] * mean
                self.second[measure] += record[count] * (std**2 + mean**2)

    def measure(self, name: str) -> tuple[float, float] | None:
        count = self.counts[MEASURES[name]]
        if count == 0:
            return None
        mean = self.first[name] / count
        return mean, math.sqrt(max(0.0, self.second[name] / count - mean**2))


@dataclass(frozen=True)
class Ranked:
    """A pairing or a control in the ranking of its layer baseline."""

    rank: int
    """From 1; controls are ranked with the pairings."""
    pairing: Pairing
    measures: dict[str, tuple[float, float] | None]
    """Mean and deviation over all rows; None if no row has the measure."""
    rows: int
    unconverged_rows: int
    relative_rows: int
    correlation_rows: int

    @property
    def is_control(self) -> bool:
        """Whether it is made without the model."""
        return self.pairing.attention_baseline is None


class Pooled:
    """Rows of many texts, pooled by layer baseline and pairing, per layer and over all."""

    def __init__(self) -> None:
        self._pools: dict[tuple[int | None, str], dict[Pairing, _Pool]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record in, see :class:`captum_lig.experiments.consistency.Record`."""
        pairing = Pairing(record["attention_baseline"], record["mlp_start"], record["rule"])
        for layer in (record["layer"], None):
            pools = self._pools.setdefault((layer, record["layer_baseline"]), {})
            pools.setdefault(pairing, _Pool()).add(record)

    @property
    def layers(self) -> list[int]:
        """Indices of the layers, in order."""
        return sorted({layer for layer, _ in self._pools if layer is not None})

    def rank(self, layer_baseline: str, layer: int | None = None, by: str = "l2") -> list[Ranked]:
        """Pairings and controls, best first.

        Args:
            layer_baseline: what the direct maps started from.
            layer: one layer, or None for the rows of all.
            by: ``"l2"`` or ``"relative_l2"``, the smallest mean first; ``"pearson"`` or
                ``"spearman"``, the largest first. What has no such rows comes last.

        Raises:
            LigError: for an unknown measure, or if there are no such records.
        """
        check_measure(by)
        pools = self._pools.get((layer, layer_baseline))
        if pools is None:
            where = "" if layer is None else f" in layer {layer}"
            raise LigError(f"there are no records of layer baseline {layer_baseline!r}{where}.")

        def order(item: tuple[Pairing, _Pool]) -> float:
            found = item[1].measure(by)
            if found is None:
                return math.inf
            return -found[0] if by in _DESCENDING else found[0]

        return [
            Ranked(
                rank=rank,
                pairing=pairing,
                measures={name: one.measure(name) for name in MEASURES},
                **{count: one.counts[count] for count in COUNTS},
            )
            for rank, (pairing, one) in enumerate(sorted(pools.items(), key=order), 1)
        ]


def check_measure(name: str) -> None:
    """Say which measures there are, if this is none."""
    if name not in MEASURES:
        raise LigError(f"ranking by {brief(name)}: use one of {', '.join(MEASURES)}.")


def pool(records: Iterable[Mapping[str, Any]]) -> Pooled:
    """Pool records: each row counts once, whatever text it is of."""
    pooled = Pooled()
    for record in records:
        pooled.add(record)
    return pooled
