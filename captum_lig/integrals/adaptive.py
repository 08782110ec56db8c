"""Refining an integral, row by row, until its completeness error is within tolerance.

The exact increment of ``A`` over an interval is known from its two ends. So each panel of a
composite rule carries its own error for each row: panels are halved, and only for the rows that
are not within tolerance yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import Parts
from captum_lig.integrals.quadrature import nodes_and_weights

__all__ = ["Integrable", "Panel", "refine"]

SHARE = 1 / 8
"""Part of a row's tolerance that one panel may use up, the first whole interval included. It
leaves room for several panels; and since errors of single entries can cancel in a row's sum, it
keeps entries, too, within the tolerance. Gauss-Legendre errors fall so fast that this costs
little."""


class Integrable(Protocol):
    """A boundary: rates to integrate for ``R`` rows, with ``K`` certified sums each."""

    def across(self) -> tuple[Integrable, Tensor | float] | None:
        """Another boundary of the same rows, and a factor, or None.

        Its errors, times the factor, count too where the path starts.
        """

    @property
    def totals(self) -> Tensor:
        """``(R, K)`` what the sums have to be."""

    @property
    def scale(self) -> Tensor:
        """``(R, K or 1)`` what errors are measured against."""

    def select(self, rows: Tensor) -> Integrable:
        """Some of the rows."""

    def precise(self) -> Integrable:
        """The same in the best precision there is."""

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """Integrals by a rule, rows first."""

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, K)``."""

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """What sums miss of a change, to compare with ``scale``."""

    def values(self, a: float) -> Tensor:
        """``(R, K)`` of the function whose increments the sums are, at a path point."""


@dataclass(frozen=True)
class Panel:
    """An interval of the path."""

    low: float
    high: float

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Nodes and weights, gathered towards the low end as far as the panel spans scales.

        At the start of a path everything can happen below any scale (scale-invariant norms), so
        a panel from 0 is graded, and one that spans scales is uniform in log a.
        """
        if self.low == 0:
            t, w = nodes_and_weights("gausslegendre_graded", count)
            return self.high * t, self.high * w
        t, w = nodes_and_weights("gausslegendre", count)
        if self.high <= NARROW * self.low:
            return self.low + (self.high - self.low) * t, (self.high - self.low) * w
        ratio = math.log(self.high / self.low)
        a = self.low * torch.exp(ratio * t)
        return a, w * ratio * a

    def halves(self) -> tuple[Panel, Panel]:
        """Two panels in its place."""
        if self.low == 0:
            middle = self.high / 16
        elif self.high <= NARROW * self.low:
            middle = (self.low + self.high) / 2
        else:
            middle = math.sqrt(self.low * self.high)
        return Panel(self.low, middle), Panel(middle, self.high)


NARROW = 4.0


def refine(
    boundary: Integrable, parts: Parts, tolerance: float, n_steps: int, max_steps: int
) -> Parts:
    """Replace the rows of ``parts`` that are not within tolerance.

    Args:
        boundary: what to integrate.
        parts: its integrals by one rule of ``n_steps`` nodes, rows first.
        tolerance: largest completeness error of a row, relative to the boundary's scale.
        n_steps: nodes of the first rule; panels get half as many.
        max_steps: most nodes for one row, all its panels together.

    Returns:
        The integrals, with the rows refined.
    """
    limit = SHARE * tolerance * boundary.scale
    bad = (
        (boundary.miss(boundary.sums(parts), boundary.totals) > limit).any(-1).nonzero().squeeze(-1)
    )
    if len(bad) == 0 or n_steps + 3 * _panel_steps(n_steps) > max_steps:
        return parts
    refined = _by_panels(boundary.select(bad).precise(), tolerance, n_steps, max_steps)
    return {
        name: part.index_copy(0, bad, refined[name].to(part.dtype)) for name, part in parts.items()
    }


def _by_panels(boundary: Integrable, tolerance: float, n_steps: int, max_steps: int) -> Parts:
    limit = SHARE * tolerance * boundary.scale
    totals = boundary.totals
    rows = torch.arange(len(totals), device=totals.device)
    count = _panel_steps(n_steps)
    used = torch.full_like(rows, n_steps)
    parts: Parts = {}
    queue = _split([_Piece(Panel(0.0, 1.0), rows, torch.zeros_like(totals), totals)], boundary)
    while queue:
        remaining: list[_Piece] = []
        open_panels = torch.zeros_like(rows)
        for piece in queue:
            open_panels[piece.rows] += 1
        for piece in queue:
            here = boundary.select(piece.rows)
            nodes = piece.panel.nodes(count)
            found = here.sweep(*nodes)
            used[piece.rows] += count
            error = here.miss(here.sums(found), piece.at_high - piece.at_low)
            done = (error <= limit[piece.rows]).all(-1)
            if piece.panel.low == 0 and (beside := here.across()) is not None:
                other, factor = beside
                unseen = other.sums(other.sweep(*nodes)) - other.values(piece.panel.high)
                done &= (factor * unseen.abs() <= limit[piece.rows]).all(-1)
                used[piece.rows] += count
            # Halving this panel once more costs two, the first of them perhaps twice; and each
            # panel that is open for a row can.
            done |= used[piece.rows] + 3 * count * open_panels[piece.rows] > max_steps
            for name, part in found.items():
                if name not in parts:
                    parts[name] = part.new_zeros(len(rows), *part.shape[1:])
                parts[name][piece.rows[done]] += part[done]
            if not bool(done.all()):
                remaining.append(piece.keep(~done))
        queue = _split(remaining, boundary)
    return parts


def _panel_steps(n_steps: int) -> int:
    return max(4, n_steps // 2)


@dataclass(frozen=True)
class _Piece:
    """A panel, with the rows ``(R',)`` that it is open for and the values at its ends."""

    panel: Panel
    rows: Tensor
    at_low: Tensor
    at_high: Tensor

    def keep(self, chosen: Tensor) -> _Piece:
        return _Piece(self.panel, self.rows[chosen], self.at_low[chosen], self.at_high[chosen])


def _split(pieces: list[_Piece], boundary: Integrable) -> list[_Piece]:
    halves = []
    for piece in pieces:
        low, high = piece.panel.halves()
        middle = boundary.select(piece.rows).values(low.high)
        halves.append(_Piece(low, piece.rows, piece.at_low, middle))
        halves.append(_Piece(high, piece.rows, middle, piece.at_high))
    return halves
