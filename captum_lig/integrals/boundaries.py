"""The boundaries of a block: instances of :class:`~captum_lig.integrals.boundary.Boundary`.

Shapes: ``P`` path points, ``R`` rows (targets), ``S`` sources, ``H`` heads, ``d`` head width, ``D``
width of the residual stream. Results have their rows first.

=====================  ==============  ============  ==========================================
name                   nodes           outputs       scalarization
=====================  ==============  ============  ==========================================
attention, cross       source tokens   ``u`` by      the caller's
                                       head
chain                  source tokens   ``u`` by      the cotangent that the mlp boundary hands
                                       head          down
mlp                    heads, the      ``z'``        the caller's
                       token itself
layer                  source tokens   ``z'``        the caller's
attention_influence    source tokens   ``u``         vectors
influence              source tokens   ``z'``        vectors
=====================  ==============  ============  ==========================================
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lig._types import Parts
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.rows import Rows
from captum_lig.integrals.scalarization import (
    L2,
    Cotangent,
    Scalarization,
    Vector,
)
from captum_lig.paths.base import Points

__all__ = [
    "GRADIENT",
    "AttentionBoundary",
    "LayerBoundary",
    "MlpBoundary",
    "OfRows",
]


@dataclass(frozen=True)
class OfRows(Boundary):
    """A boundary of the rows of a block."""

    name: str
    rows: Rows
    scalarization: Scalarization

    @classmethod
    def of(cls, name: str, rows: Rows, scalarization: type[Scalarization]) -> Self:
        """The boundary with the scalarization of its own outputs."""
        return cls(name, rows, scalarization.of(cls.outputs(rows)))

    @staticmethod
    @abstractmethod
    def outputs(rows: Rows) -> Tensor:
        """``(R, K, E)`` change of the outputs along the whole path."""

    @property
    def step(self) -> Tensor:
        """Shape ``(R, K, E)``."""
        return self.outputs(self.rows)

    @property
    def path(self) -> object:
        """The path of the attention core."""
        return self.rows.path

    def at(self, a: Tensor) -> Any:
        """The attention core at ``a (P,)``."""
        return self.rows.at(a)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Tensor) -> Self:
        """Some of the rows."""
        return replace(
            self, rows=self.rows.select(rows), scalarization=self.scalarization.select(rows)
        )

    @property
    def pairs_at_once(self) -> int:
        """Fewer for vectors: there a pair has as many as there are sources."""
        many = self.rows.path.sources if isinstance(self.scalarization, Vector) else 1
        return max(1, self.rows.pairs_at_once // many)

    def sums(self, parts: Parts) -> Tensor:
        """Over the sources, ``(R, K)``, or ``(R, K, E)`` for vectors."""
        return parts[self.name].sum(2)

    def results(self, parts: Parts) -> Parts:
        """``NAME (R, K, S)``; of vectors their lengths, and of what they miss ``NAME_missing``."""
        if not isinstance(self.scalarization, Vector):
            return {self.name: parts[self.name], f"{self.name}_total": self.totals}
        missing = self.error(self.sums(parts), self.totals)
        lengths = torch.linalg.vector_norm(parts[self.name], dim=-1)
        return {self.name: lengths, f"{self.name}_missing": missing}

    def with_l2(self) -> Self:
        """The same with the l2 scalarization."""
        return replace(self, scalarization=L2.of(self.step))


@dataclass(frozen=True)
class AttentionBoundary(OfRows):
    """``z -> u``, or an encoder's states to ``u``, each head by itself."""

    scale_by: Tensor | None = None
    """``(R, K or 1)`` what errors are measured against, if not the size of the totals."""

    @staticmethod
    def outputs(rows: Rows) -> Tensor:
        """Shape ``(R, H, d)``."""
        return rows.u_step

    def change(self, a: float) -> Tensor:
        """Shape ``(R, H, d)``."""
        return self.rows.path.at(self.rows.point(a)).moved[0] - self.rows.moved_start

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, H or 1)``."""
        return super().scale if self.scale_by is None else self.scale_by

    def select(self, rows: Tensor) -> Self:
        """Some of the rows."""
        scale = None if self.scale_by is None else self.scale_by[rows]
        return replace(super().select(rows), scale_by=scale)

    def precise(self) -> Self:
        """In float64: a head can move far and come back, and its total be lost in rounding."""
        rows = self.rows.double()
        return replace(self, rows=rows, scalarization=self.scalarization.renewed(rows.u_step))

    def across(self) -> tuple[Boundary, Tensor | float] | None:
        """The l2 boundary, times the length of the cotangent ``(R, H)``."""
        if not isinstance(self.scalarization, Cotangent):
            return None
        factor = torch.linalg.vector_norm(self.scalarization.g, dim=-1)
        return replace(self.with_l2(), scale_by=None), factor

    def rates(self, at: Points, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """``(R, H, S)``, or ``(R, H, S, d)``."""
        scalarization, rows = self.scalarization, self.rows
        if isinstance(scalarization, Vector):
            vectors = torch.einsum("p,prshd->rhsd", w.to(at.vectors), at.vectors)
            return {self.name: vectors * scalarization.moves[:, :, None]}
        change = at.moved - rows.moved_start
        if starts and scalarization.limit_at_start:
            change = torch.cat([at.velocity()[:1], change[1:]])
        g = scalarization.cotangent(change)
        return {self.name: at.rates(g * w.to(g).view(-1, 1, 1, 1)).transpose(0, 1)}


@dataclass(frozen=True)
class _OfOutputs(OfRows):
    """What the boundaries to the tokens leaving the block have in common."""

    @staticmethod
    def outputs(rows: Rows) -> Tensor:
        """Shape ``(R, 1, D)``."""
        return rows.y_step[:, None]

    def across(self) -> tuple[Boundary, Tensor | float] | None:
        """The l2 boundary."""
        return (self.with_l2(), 1.0) if isinstance(self.scalarization, Cotangent) else None

    def gradients(self, a: Tensor, u: Tensor, departure: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients of ``A`` at some points: ``dA/du (P, R, H, d)`` and ``dA/dz (P, R, D)``.

        Args:
            a: ``(P,)`` path points.
            u: ``(P, R, H, d)`` attention outputs there.
            departure: ``(R, H, d)`` derivative of ``u`` at the first point if that is where the
                path starts, or None.
        """

        def cotangent(change: Tensor) -> Tensor:
            return self.scalarization.cotangent(change.unsqueeze(2)).squeeze(2)

        limit = departure if self.scalarization.limit_at_start else None
        return self.rows.gradients(a, u, cotangent, limit)


@dataclass(frozen=True)
class LayerBoundary(_OfOutputs):
    """``z -> z'`` in one go."""

    def change(self, a: float) -> Tensor:
        """Shape ``(R, 1, D)``."""
        rows = self.rows
        u = rows.path.at(rows.point(a)).u[0].to(rows.y_start)
        return (rows.post(u, rows.residual(rows.point(a))[0]) - rows.y_start)[:, None]

    def rates(self, at: Points, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """``(R, 1, S)``, or ``(R, 1, S, D)``."""
        rows, w = self.rows, w.to(self.rows.y_start)
        if isinstance(self.scalarization, Vector):
            points = zip(a, at.u, at.vectors, strict=True)
            vectors = torch.stack([rows.vectors(*point, at.rows) for point in points])
            summed = torch.einsum("p,prsd->rsd", w, vectors)[:, None]
            return {self.name: summed * self.scalarization.moves[:, :, None]}
        gu, gz = self.gradients(a, at.u, at.velocity()[0] if starts else None)
        rates = at.summed_rates(gu * w.view(-1, 1, 1, 1))
        itself = torch.einsum("p,prd,rd->r", w, gz.to(w), rows.step.to(w))
        rates[torch.arange(len(itself), device=itself.device), at.rows] += itself
        return {self.name: rates[:, None]}

    def precise(self) -> Self:
        """Of vectors with the attention core in float64; the block's code runs as it is."""
        if not isinstance(self.scalarization, Vector):
            return self
        return replace(self, rows=self.rows.double())

    def results(self, parts: Parts) -> Parts:
        """``NAME (R, S)``, and its total or what is missing of it, ``(R,)``."""
        return {name: part[:, 0] for name, part in super().results(parts).items()}


@dataclass(frozen=True)
class MlpBoundary(_OfOutputs):
    """``(u, z) -> z'`` on a straight line between the ends of the path."""

    @property
    def path(self) -> object:
        """The straight line, which no other boundary follows."""
        return self

    def at(self, a: Tensor) -> Tensor:
        """``(P, R, H, d)`` the attention outputs at ``a (P,)``."""
        rows = self.rows
        rows.meter.pairs += len(a) * len(rows)
        return rows.u_start + a.to(rows.u_step).view(-1, 1, 1, 1) * rows.u_step

    def change(self, a: float) -> Tensor:
        """Shape ``(R, 1, D)``."""
        rows = self.rows
        u = rows.u_start + a * rows.u_step
        return (rows.post(u, rows.start + a * rows.step) - rows.y_start)[:, None]

    def rates(self, at: Tensor, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """``gradient (R, H, d)``, the average of ``dA/du``, and ``residual (R,)``."""
        rows, w = self.rows, w.to(self.rows.y_start)
        gu, gz = self.gradients(a, at, rows.u_step if starts else None)
        return {
            "gradient": torch.einsum("p,prhd->rhd", w, gu),
            "residual": torch.einsum("p,prd,rd->r", w, gz.to(w), rows.step.to(w)),
        }

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, 1)``."""
        return ((parts["gradient"] * self.rows.u_step).flatten(1).sum(-1) + parts["residual"])[
            :, None
        ]

    def results(self, parts: Parts) -> Parts:
        """``mlp (R, H)``, ``residual (R,)``, ``mlp_total (R,)`` and the gradient."""
        return {
            self.name: (parts["gradient"] * self.rows.u_step).sum(-1),
            "residual": parts["residual"],
            f"{self.name}_total": self.totals[:, 0],
            GRADIENT: parts["gradient"],
        }


GRADIENT = "_gradient"
"""What the mlp boundary hands down to the chain; not kept in a flow."""
