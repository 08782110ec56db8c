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
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lig._arguments import brief
from captum_lig._types import Parts
from captum_lig.errors import LigError
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.rows import Rows
from captum_lig.integrals.scalarization import (
    L2,
    SCALARIZATIONS,
    Cotangent,
    Scalarization,
    Vector,
)
from captum_lig.paths.base import Points

__all__ = [
    "KINDS",
    "MLP_STARTS",
    "Asked",
    "AttentionBoundary",
    "Kind",
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


MLP_STARTS = ("attention", "zero")


# --- by the name that callers ask for them ------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What an attribution of a block is asked for."""

    boundaries: frozenset[str]
    """Names among :data:`KINDS`."""
    scalarization: type[Scalarization]
    mlp_start: str = "attention"
    """Where ``u`` starts at the mlp boundary: ``"attention"``, where the path of the block starts,
    or ``"zero"``, with the residual stream held where it ends."""

    @classmethod
    def of(cls, boundaries: Collection[str], scalarization: str, mlp_start: str) -> Asked:
        """What a caller asked for.

        Args:
            boundaries: names, or one of them.
            scalarization: a name among ``SCALARIZATIONS``.
            mlp_start: ``"attention"`` or ``"zero"``.

        Raises:
            LigError: for a name that is unknown.
        """
        asked = (boundaries,) if isinstance(boundaries, str) else boundaries
        names = ", ".join(map(repr, KINDS))
        if not isinstance(asked, (tuple, list, set, frozenset)) or not asked:
            raise LigError(f"boundaries={brief(boundaries)}: name one or more of {names}.")
        for name in asked:
            if name not in KINDS:
                raise LigError(
                    f"boundaries={brief(boundaries)}: {brief(name)} is unknown, name one or more "
                    f"of {names}."
                )
        if mlp_start not in MLP_STARTS:
            starts = " or ".join(map(repr, MLP_STARTS))
            raise LigError(f"mlp_start={brief(mlp_start)} is unknown: use {starts}.")
        return cls(frozenset(asked), SCALARIZATIONS[scalarization], mlp_start)

    def only(self, names: Collection[str]) -> Asked:
        """The same of some of the boundaries."""
        return replace(self, boundaries=frozenset(names) & self.boundaries)


@dataclass(frozen=True)
class Kind:
    """A boundary, or several, that can be asked for by name."""

    build: Callable[[Rows, Asked, Parts], list[Boundary]]
    """From the rows, what is asked for, and the results of what is integrated before."""
    after: tuple[str, ...] = ()
    """Names of those that are integrated before, if they are asked for too."""
    needs_heads: bool = False
    """Whether a block whose attention is not reached has none."""
    needs_outputs: bool = True
    """Whether it looks at what follows the attention."""
    of_encoder: bool = False
    """Whether its sources are an encoder's tokens."""


def _mlp(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    rows = rows if asked.mlp_start == "attention" else rows.from_zero()
    return [MlpBoundary.of("mlp", rows, asked.scalarization)]


def _attention(rows: Rows, asked: Asked, found: Parts) -> list[Boundary]:
    """The attention boundary; with the mlp boundary the chain too."""
    boundary = AttentionBoundary.of("attention", rows, asked.scalarization)
    if GRADIENT not in found:
        return [boundary]
    handed_down, scale = Cotangent(found[GRADIENT]), found["mlp_total"][:, None]
    return [boundary, AttentionBoundary("chain", rows, handed_down, scale)]


def _layer(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    return [LayerBoundary.of("layer", rows, asked.scalarization)]


def _influence(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    whole = LayerBoundary.of("influence", rows, Vector)
    if not rows.has_heads:
        return [whole]
    return [AttentionBoundary.of("attention_influence", rows, Vector), whole]


def _cross(rows: Rows, asked: Asked, _: Parts) -> list[Boundary]:
    return [AttentionBoundary.of("cross", rows, asked.scalarization)]


KINDS: dict[str, Kind] = {
    "attention": Kind(_attention, after=("mlp",), needs_heads=True, needs_outputs=False),
    "mlp": Kind(_mlp, needs_heads=True),
    "layer": Kind(_layer),
    "influence": Kind(_influence),
    "cross": Kind(_cross, needs_outputs=False, of_encoder=True),
}
"""What ``boundaries=(...)`` may name. A boundary of one's own is entered here, and its results
declared with :func:`captum_lig.flow.axes.declare`."""
