"""Scalarizations: how a row's output becomes the number that its attributions add up to.

For an output ``y(a)`` along the path, its change ``y(a) - y(0)`` and its whole change
``y(1) - y(0)``:

- :class:`L2` (Suzuki et al. 2026): ``A(a) = ||y(a) - y(0)||``;
- :class:`Projection`: ``A(a) = <y(a) - y(0), e>`` with ``e`` the unit vector of the whole change,
  linear in ``y`` and so smooth where the path starts;
- :class:`Cotangent`: ``A(a) = <y(a) - y(0), g>`` with a given ``g``: what a boundary above hands
  down, or 1 for outputs that are numbers;
- :class:`Vector`: the change itself, without loss; attributions are vectors.

All are 0 at ``a = 0``. Outputs are ``(R, ..., E)``, rows first; path points stand before the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = [
    "L2",
    "SCALARIZATIONS",
    "Cotangent",
    "Projection",
    "Scalarization",
    "Vector",
    "check",
    "unit",
]


@dataclass(frozen=True)
class Scalarization(ABC):
    """A number, or a vector, of a change of outputs. Its tensors have the rows first."""

    limit_at_start: ClassVar[bool] = False
    """Whether the gradient at ``a = 0`` exists as a limit only, the cotangent of ``y'(0)``."""

    @classmethod
    @abstractmethod
    def of(cls, step: Tensor) -> Self:
        """For outputs whose whole change is ``step (R, ..., E)``."""

    @abstractmethod
    def value(self, change: Tensor) -> Tensor:
        """``A`` of ``change (R, ..., E)``: ``(R, ...)``, or ``(R, ..., E)`` for vectors."""

    @abstractmethod
    def cotangent(self, change: Tensor) -> Tensor:
        """``dA/dy (P, R, ..., E)`` at ``change (P, R, ..., E)``."""

    def error(self, sums: Tensor, change: Tensor) -> Tensor:
        """What sums of attributions miss of a change of ``A``, ``(R, ...)``."""
        return (sums - change).abs()

    def renewed(self, step: Tensor) -> Self:
        """The same for the outputs' whole change in another precision."""
        return self.of(step)

    def select(self, rows: Tensor) -> Self:
        """Some of the rows: ``(R',)`` indices into them."""
        chosen: dict[str, Any] = {name: value[rows] for name, value in vars(self).items()}
        return replace(self, **chosen)


@dataclass(frozen=True)
class L2(Scalarization):
    """``A = ||y(a) - y(0)||``."""

    moves: Tensor
    """``(R, ..., 1)`` 0 where the output does not change along the whole path, else 1."""
    limit_at_start = True

    @classmethod
    def of(cls, step: Tensor) -> Self:  # noqa: D102
        return cls(_moves(step))

    def value(self, change: Tensor) -> Tensor:  # noqa: D102
        length: Tensor = torch.linalg.vector_norm(change, dim=-1)
        return length

    def cotangent(self, change: Tensor) -> Tensor:
        """The unit vector of the change; at the start of the path pass ``y'(0)`` for it."""
        return unit(change) * self.moves


@dataclass(frozen=True)
class Cotangent(Scalarization):
    """``A = <y(a) - y(0), g>``."""

    g: Tensor
    """``(R, ..., E)``"""

    @classmethod
    def of(cls, step: Tensor) -> Self:
        """Of outputs that are numbers: the change itself."""
        return cls(torch.ones_like(step))

    def value(self, change: Tensor) -> Tensor:  # noqa: D102
        return (change * self.g).sum(-1)

    def cotangent(self, change: Tensor) -> Tensor:  # noqa: D102
        return self.g.expand_as(change)

    def renewed(self, step: Tensor) -> Self:  # noqa: D102
        return replace(self, g=self.g.to(step.dtype))


@dataclass(frozen=True)
class Projection(Cotangent):
    """``A = <y(a) - y(0), e>``, ``e`` the unit vector of the whole change."""

    @classmethod
    def of(cls, step: Tensor) -> Self:  # noqa: D102
        return cls(unit(step))

    def renewed(self, step: Tensor) -> Self:  # noqa: D102
        return self.of(step)


@dataclass(frozen=True)
class Vector(Scalarization):
    """The change itself; a row's attributions are vectors that add up to it."""

    moves: Tensor
    """``(R, ..., 1)`` 0 where the output does not change along the whole path, else 1."""

    @classmethod
    def of(cls, step: Tensor) -> Self:  # noqa: D102
        return cls(_moves(step))

    def value(self, change: Tensor) -> Tensor:  # noqa: D102
        return change

    def cotangent(self, change: Tensor) -> Tensor:  # noqa: D102
        raise TypeError("a vector has no cotangent: integrate its Jacobian-vector products")

    def error(self, sums: Tensor, change: Tensor) -> Tensor:
        """Lengths of what is missing, ``(R, ...)``."""
        length: Tensor = torch.linalg.vector_norm(sums - change, dim=-1)
        return length


SCALARIZATIONS: dict[str, type[Scalarization]] = {"l2": L2, "projection": Projection}
"""By the name that callers know them by, those of a single boundary's own outputs."""


def check(scalarization: str, *more: str) -> str:
    """Return the name, or say which names there are.

    Raises:
        LigError: if it is unknown.
    """
    allowed = (*SCALARIZATIONS, *more)
    if scalarization not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise LigError(f"scalarization {brief(scalarization)} is unknown: use one of {names}.")
    return scalarization


def unit(x: Tensor) -> Tensor:
    """``x / ||x||`` over the last dimension; the zero vector where ``x`` is 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, 0.0)


def _moves(step: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    return (length > 0).to(step.dtype)
