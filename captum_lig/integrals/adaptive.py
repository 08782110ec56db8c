"""Integrating boundaries, each row refined until its completeness error is within tolerance.

The exact increment of ``A`` over an interval is known from its two ends. So each panel of a
composite rule carries its own error for each row: panels are halved, and only for the rows that
are not within tolerance yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_lig._types import Parts
from captum_lig.integrals.boundary import Boundary, sweep
from captum_lig.integrals.quadrature import nodes_and_weights
from captum_lig.integrals.settings import Settings

__all__ = ["Panel", "integrate", "refine"]

SHARE = 1 / 8
"""Part of a row's tolerance that one panel may use up, the first whole interval included. It
leaves room for several panels; and since errors of single entries can cancel in a row's sum, it
keeps entries, too, within the tolerance. Gauss-Legendre errors fall so fast that this costs
little."""


@dataclass(frozen=True)
class Panel:
    """An interval of the path."""

    low: float
    high: float
    graded: bool = True
    """Whether everything can happen near 0, below any scale."""

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Nodes and weights, gathered towards the low end as far as the panel spans scales.

        At the start of a path everything can happen below any scale (scale-invariant norms), so
        a panel from 0 is graded, and one that spans scales is uniform in log a.
        """
        if self.low == 0 and self.graded:
            t, w = nodes_and_weights("gausslegendre_graded", count)
            return self.high * t, self.high * w
        t, w = nodes_and_weights("gausslegendre", count)
        if not self.graded or self.high <= NARROW * self.low:
            return self.low + (self.high - self.low) * t, (self.high - self.low) * w
        ratio = math.log(self.high / self.low)
        a = self.low * torch.exp(ratio * t)
        return a, w * ratio * a

    def halves(self) -> tuple[Panel, Panel]:
        """Two panels in its place."""
        if not self.graded or (self.low > 0 and self.high <= NARROW * self.low):
            middle = (self.low + self.high) / 2
        elif self.low == 0:
            middle = self.high / 16
        else:
            middle = math.sqrt(self.low * self.high)
        return replace(self, high=middle), replace(self, low=middle)


NARROW = 4.0


def integrate(boundaries: Sequence[Boundary], settings: Settings) -> Parts:
    """Integrate boundaries of the same rows, each row until it is within tolerance.

    Args:
        boundaries: those that share their path are integrated together.
        settings: the first rule, the tolerance and the most nodes of a row.

    Returns:
        The results of all of them.
    """
    found: Parts = {}
    together: dict[tuple[int, int], list[Boundary]] = {}
    for boundary in boundaries:
        at_once = min(len(boundary), boundary.pairs_at_once)
        together.setdefault((id(boundary.path), at_once), []).append(boundary)
    for (_, at_once), group in together.items():
        chunks: list[Parts] = []
        for rows in torch.arange(len(group[0]), device=group[0].step.device).split(at_once):
            part = group if len(rows) == len(group[0]) else [b.select(rows) for b in group]
            swept = sweep(part, settings.alphas, settings.weights)
            results: Parts = {}
            for boundary, parts in zip(part, swept, strict=True):
                results |= boundary.results(refine(boundary, parts, settings))
            chunks.append(results)
        found |= {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return found


def refine(boundary: Boundary, parts: Parts, settings: Settings) -> Parts:
    """Replace the rows of ``parts`` that are not within tolerance.

    Args:
        boundary: what to integrate.
        parts: its integrals by the first rule, rows first.
        settings: the tolerance, None to leave everything as it is; panels get half as many nodes
            as the first rule.

    Returns:
        The integrals, with the rows refined.
    """
    tolerance, n_steps, max_steps = settings.tolerance, len(settings.alphas), settings.max_steps
    if tolerance is None:
        return parts
    limit = SHARE * tolerance * boundary.scale
    error = boundary.error(boundary.sums(parts), boundary.totals)
    bad = (error > limit).any(-1).nonzero().squeeze(-1)
    if len(bad) == 0 or n_steps + 3 * _panel_steps(boundary, n_steps) > max_steps:
        return parts
    refined = _by_panels(boundary.select(bad).precise(), tolerance, n_steps, max_steps)
    return {
        name: part.index_copy(0, bad, refined[name].to(part.dtype)) for name, part in parts.items()
    }


def _by_panels(boundary: Boundary, tolerance: float, n_steps: int, max_steps: int) -> Parts:
    limit = SHARE * tolerance * boundary.scale
    totals = boundary.totals
    rows = torch.arange(len(totals), device=totals.device)
    count = _panel_steps(boundary, n_steps)
    used = torch.full_like(rows, n_steps)
    parts: Parts = {}
    queue = _split(
        [_Piece(Panel(0.0, 1.0, boundary.graded), rows, torch.zeros_like(totals), totals)], boundary
    )
    while queue:
        remaining: list[_Piece] = []
        unfinished = torch.zeros_like(rows)
        for piece in queue:
            unfinished[piece.rows] += 1
        for piece in queue:
            here = boundary.select(piece.rows)
            nodes = piece.panel.nodes(count)
            found = here.sweep(*nodes)
            used[piece.rows] += count
            error = here.error(here.sums(found), piece.at_high - piece.at_low)
            done = (error <= limit[piece.rows]).all(-1)
            if piece.panel.low == 0 and (beside := here.across()) is not None:
                other, factor = beside
                unseen = other.sums(other.sweep(*nodes)) - other.value(piece.panel.high)
                done &= (factor * unseen.abs() <= limit[piece.rows]).all(-1)
                used[piece.rows] += count
            # Halving this panel once more costs two, the first of them perhaps twice; and each
            # unfinished panel of a row can.
            done |= used[piece.rows] + 3 * count * unfinished[piece.rows] > max_steps
            for name, part in found.items():
                if name not in parts:
                    parts[name] = part.new_zeros(len(rows), *part.shape[1:])
                parts[name][piece.rows[done]] += part[done]
            if not bool(done.all()):
                remaining.append(piece.keep(~done))
        queue = _split(remaining, boundary)
    return parts


def _panel_steps(boundary: Boundary, n_steps: int) -> int:
    """Half of the first rule, if a panel's grading makes up for it or the rule is not short."""
    return max(4, n_steps // 2) if boundary.graded else min(max(5, n_steps // 2), max(4, n_steps))


@dataclass(frozen=True)
class _Piece:
    """A panel, with the rows ``(R',)`` it is unfinished for and the values at its ends."""

    panel: Panel
    rows: Tensor
    at_low: Tensor
    at_high: Tensor

    def keep(self, chosen: Tensor) -> _Piece:
        return _Piece(self.panel, self.rows[chosen], self.at_low[chosen], self.at_high[chosen])


def _split(pieces: list[_Piece], boundary: Boundary) -> list[_Piece]:
    halves = []
    for piece in pieces:
        low, high = piece.panel.halves()
        middle = boundary.select(piece.rows).value(low.high)
        halves.append(_Piece(low, piece.rows, piece.at_low, middle))
        halves.append(_Piece(high, piece.rows, middle, piece.at_high))
    return halves
