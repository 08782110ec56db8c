"""The boundaries of one block, for one text: totals, and the integrals of their rates.

Shapes: ``P`` path points, ``R`` rows (targets), ``S`` sources, ``H`` heads, ``d`` head width, ``D``
width of the residual stream. Results have their rows first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lig._types import Parts
from captum_lig.integrals.rows import Rows, one
from captum_lig.integrals.scalarization import cotangent, unit, value
from captum_lig.paths.base import Points

__all__ = ["AttentionBoundary", "Chain", "LayerBoundary", "MlpBoundary", "sweep_together"]

# --- boundaries: what the refinement integrates -------------------------------------------------
#
# Each has ``totals (R, K)``: what its ``K`` certified sums per row have to be, and ``scale``: what
# their errors are measured against. ``across`` is its l2 twin, with a factor: a projection (and
# the chain's fixed cotangent is one) does not see what happens across it. Where a path starts
# from zero, scale-invariant norms turn the outputs round before they grow; sources then trade
# contributions that cancel in the projected sum, and only the norm shows an unresolved start.


@dataclass(frozen=True)
class _OfRows:
    """What all boundaries have in common."""

    rows: Rows

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """What sums miss of a change, as ``totals``."""
        return (sums - change).abs()


@dataclass(frozen=True)
class _OfOutputs(_OfRows):
    """What the boundaries whose targets are the block's outputs have in common."""

    def select(self, rows: Tensor) -> Self:
        """Some of the rows."""
        return replace(self, rows=self.rows.select(rows))

    def precise(self) -> Self:
        """Itself: the block's code runs in the model's precision."""
        return self

    def across(self) -> tuple[Self, Tensor | float] | None:
        """The l2 twin, or None if this is l2."""
        l2 = self.rows.with_l2()
        return None if l2 is None else (replace(self, rows=l2), 1.0)

    @property
    def totals(self) -> Tensor:
        """Shape ``(R, 1)``."""
        return self.rows.layer_total[:, None]

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, 1)``."""
        return self.totals


@dataclass(frozen=True)
class MlpBoundary(_OfOutputs):
    """``(u, z) -> z'`` on a straight line between the ends of the path."""

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``mlp (R, H)``, ``residual (R,)``, ``gradient (R, H, d)``: the average of ``dA/du``."""
        rows, at_start = self.rows, self.rows.starts_at(alphas)
        gradient, residual = torch.zeros_like(rows.u_step), torch.zeros_like(rows.step[:, 0])
        for a, w in rows.batches(alphas, weights):
            rows.meter.pairs += len(a) * len(rows)
            u = rows.u_start + a.view(-1, 1, 1, 1) * rows.u_step
            gu, gz = rows.gradients(a, u, rows.u_step if at_start else None)
            at_start = False
            gradient += torch.einsum("p,prhd->rhd", w, gu)
            residual += torch.einsum("p,prd,rd->r", w, gz, rows.step)
        return {
            "mlp": (gradient * rows.u_step).sum(-1),
            "residual": residual,
            "gradient": gradient,
        }

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, 1)``."""
        return (parts["mlp"].sum(-1) + parts["residual"])[:, None]

    def values(self, a: float) -> Tensor:
        """``A`` at one path point, ``(R, 1)``."""
        rows = self.rows
        u = rows.u_start + a * rows.u_step
        y = rows.post(u, rows.start + a * rows.step)
        return value(rows.scalarization, y - rows.y_start, unit(rows.y_step))[:, None]


@dataclass(frozen=True)
class AttentionBoundary(_OfRows):
    """``z -> u``, each head by itself."""

    gives: ClassVar[tuple[str, ...]] = ("attention",)

    def select(self, rows: Tensor) -> AttentionBoundary:
        """Some of the rows."""
        return AttentionBoundary(self.rows.select(rows))

    def precise(self) -> AttentionBoundary:
        """In float64: a head can move far and come back, and its total be lost in rounding."""
        return AttentionBoundary(self.rows.double())

    def across(self) -> tuple[AttentionBoundary, Tensor | float] | None:
        """The l2 twin, or None if this is l2."""
        l2 = self.rows.with_l2()
        return None if l2 is None else (AttentionBoundary(l2), 1.0)

    @property
    def totals(self) -> Tensor:
        """Shape ``(R, H)``."""
        return self.rows.attention_total

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, H)``."""
        return self.totals

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``attention (R, H, S)``."""
        return sweep_together([self], alphas, weights)

    def rates(self, a: Tensor, w: Tensor, at: Points, first: bool) -> Parts:
        """The share of some nodes: ``attention (R, H, S)``."""
        rows = self.rows
        change = at.moved - rows.moved_start
        if first:
            change = torch.cat([at.velocity()[:1], change[1:]])
        g = cotangent(rows.scalarization, change, unit(rows.u_step)) * rows.moved_heads
        return {"attention": _rates(at, w, g)}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, H)``."""
        return parts["attention"].sum(-1)

    def values(self, a: float) -> Tensor:
        """``A`` at one path point, ``(R, H)``."""
        rows = self.rows
        change = rows.path.at(one(a, rows)).moved[0] - rows.moved_start
        return value(rows.scalarization, change, unit(rows.u_step))


@dataclass(frozen=True)
class Chain(_OfRows):
    """``z -> u`` with the cotangent ``(R, H, d)`` that the mlp boundary hands down."""

    gradient: Tensor
    target_total: Tensor
    """``(R,)`` total of the mlp boundary."""
    name: str
    """Of its part: chains from several starts of the mlp boundary are integrated together."""

    @property
    def gives(self) -> tuple[str, ...]:
        """Name of its part."""
        return (self.name,)

    def select(self, rows: Tensor) -> Chain:
        """Some of the rows."""
        return replace(
            self,
            rows=self.rows.select(rows),
            gradient=self.gradient[rows],
            target_total=self.target_total[rows],
        )

    def precise(self) -> Chain:
        """In float64."""
        return replace(self, rows=self.rows.double(), gradient=self.gradient.double())

    def across(self) -> tuple[AttentionBoundary, Tensor | float] | None:
        """The l2 attention boundary, times the length of the cotangent ``(R, H)``."""
        rows = self.rows.with_l2() or self.rows
        return AttentionBoundary(rows), torch.linalg.vector_norm(self.gradient, dim=-1)

    @property
    def totals(self) -> Tensor:
        """Shape ``(R, H)``."""
        return (self.gradient * self.rows.u_step).sum(-1)

    @property
    def scale(self) -> Tensor:
        """``(R, 1)``: a head's share of a target can be 0, so the target's total counts."""
        return self.target_total[:, None]

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``(R, H, S)``."""
        return sweep_together([self], alphas, weights)

    def rates(self, a: Tensor, w: Tensor, at: Points, first: bool) -> Parts:
        """The share of some nodes: ``(R, H, S)``."""
        return {self.name: _rates(at, w, self.gradient.expand(len(a), -1, -1, -1))}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, H)``."""
        return parts[self.name].sum(-1)

    def values(self, a: float) -> Tensor:
        """``<gradient, u(a) - u(0)>`` at one path point, ``(R, H)``."""
        moved = self.rows.path.at(one(a, self.rows)).moved[0] - self.rows.moved_start
        return (self.gradient * moved).sum(-1)


@dataclass(frozen=True)
class LayerBoundary(_OfOutputs):
    """``z -> z'`` in one go."""

    gives: ClassVar[tuple[str, ...]] = ("layer",)

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``layer (R, S)``."""
        return sweep_together([self], alphas, weights)

    def rates(self, a: Tensor, w: Tensor, at: Points, first: bool) -> Parts:
        """The share of some nodes: ``layer (R, S)``."""
        rows = self.rows
        gu, gz = rows.gradients(a, at.u, at.velocity()[0] if first else None)
        rates = at.summed_rates(gu * w.view(-1, 1, 1, 1))
        own = torch.einsum("p,prd,rd->r", w, gz, rows.step)
        rates[torch.arange(len(own), device=own.device), at.rows] += own
        return {"layer": rates}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, 1)``."""
        return parts["layer"].sum(-1, keepdim=True)

    def values(self, a: float) -> Tensor:
        """``A`` at one path point, ``(R, 1)``."""
        rows = self.rows
        y = rows.post(rows.path.at(one(a, rows)).u[0], rows.start + a * rows.step)
        return value(rows.scalarization, y - rows.y_start, unit(rows.y_step))[:, None]


def sweep_together(
    boundaries: list[AttentionBoundary | Chain | LayerBoundary], alphas: Tensor, weights: Tensor
) -> Parts:
    """Integrate boundaries that share their rows, evaluating the attention core once."""
    rows, sums = boundaries[0].rows, Parts()
    at_start = rows.starts_at(alphas)
    for a, w in rows.batches(alphas, weights):
        at = rows.at(a)
        for boundary in boundaries:
            for name, part in boundary.rates(a, w, at, at_start).items():
                sums[name] = sums[name] + part if name in sums else part
        at_start = False
    return sums


def _rates(at: Points, w: Tensor, g: Tensor) -> Tensor:
    """Weighted rates ``(R, H, S)`` for cotangents ``g (P, R, H, d)``."""
    return at.rates(g * w.view(-1, 1, 1, 1)).transpose(0, 1)
