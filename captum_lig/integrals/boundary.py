"""The one form of a boundary.

A boundary maps nodes to the outputs of ``R`` rows (targets). It knows how the outputs change along
the path, and at some points of the path what each node contributes to them per unit of the path
(its rate). What its attributions add up to is the scalarization's value of the whole change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lig._types import Parts
from captum_lig.integrals.scalarization import Scalarization
from captum_lig.paths.memory import in_halves, shares

__all__ = ["Boundary", "sweep"]


class Boundary(ABC):
    """A map from nodes to the outputs of ``R`` rows. ``K`` sums of each row are checked.

    Results are tensors by name, rows first.
    """

    scalarization: Scalarization

    # --- what it maps ---

    @property
    @abstractmethod
    def step(self) -> Tensor:
        """``(R, K, E)`` change of the outputs along the whole path."""

    @abstractmethod
    def change(self, a: float) -> Tensor:
        """``(R, K, E)`` change of the outputs from the start of the path to a point of it."""

    @property
    @abstractmethod
    def path(self) -> object:
        """Boundaries with the same path are integrated together, and see the same points."""

    @abstractmethod
    def at(self, a: Tensor) -> Any:
        """The points of the path at ``a (P,)``."""

    @abstractmethod
    def rates(self, at: Any, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """Contributions of all nodes at some points, times their weights, summed over the points.

        Args:
            at: the points.
            a: ``(P,)`` where they are.
            w: ``(P,)`` their weights.
            starts: whether the first of them is the start of the path.
        """

    @abstractmethod
    def sums(self, parts: Parts) -> Tensor:
        """Sums over the nodes, ``(R, K)``, or ``(R, K, E)`` for vectors."""

    def results(self, parts: Parts) -> Parts:
        """What is kept of the integrals, under the names that it has in a flow."""
        return parts

    # --- what its rows add up to ---

    @property
    def totals(self) -> Tensor:
        """What the sums have to be, ``(R, K)``, or ``(R, K, E)`` for vectors."""
        return self.scalarization.value(self.step)

    @property
    def scale(self) -> Tensor:
        """``(R, K or 1)`` what errors are measured against: by default the size of the totals."""
        length: Tensor = torch.linalg.vector_norm(self.step, dim=-1)
        return length

    def value(self, a: float) -> Tensor:
        """What sums over the path up to ``a`` have to be, as ``totals``."""
        return self.scalarization.value(self.change(a))

    def error(self, sums: Tensor, change: Tensor) -> Tensor:
        """``(R, K)`` what sums miss of a change, to compare with ``scale``."""
        return self.scalarization.error(sums, change)

    # --- which rows, and how exactly ---

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows ``R``."""

    @abstractmethod
    def select(self, rows: Tensor) -> Self:
        """Some of the rows: ``(R',)`` indices into them."""

    def precise(self) -> Self:
        """The same in the best precision there is."""
        return self

    def across(self) -> tuple[Boundary, Tensor | float] | None:
        """Another boundary of the same rows, and a factor, or None.

        Its errors, times the factor, count too where the path starts. A fixed cotangent does not
        see what happens across it: where a path starts from zero, scale-invariant norms turn the
        outputs round before they grow, and nodes trade contributions that cancel in the sum. Only
        the length shows an unresolved start.
        """
        return None

    @property
    def graded(self) -> bool:
        """Whether panels gather their nodes where the path starts: see :meth:`across`."""
        return True

    @property
    def pairs_at_once(self) -> int:
        """How many pairs of a path point and a row to evaluate at once."""
        return 2**62

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """The integrals by one rule: nodes ``alphas (P,)`` with ``weights (P,)``."""
        return sweep([self], alphas, weights)[0]


def sweep(boundaries: Sequence[Boundary], alphas: Tensor, weights: Tensor) -> list[Parts]:
    """Integrate boundaries that share their path, whose points are evaluated once."""
    found: list[Parts] = [{} for _ in boundaries]
    device = boundaries[0].step.device
    nodes, weights = alphas.to(device), weights.to(device)
    starts = float(alphas[0]) == 0.0
    at_once = min(boundary.pairs_at_once for boundary in boundaries)

    def rates(some: Tensor) -> list[Parts]:
        return _rates(boundaries, nodes[some], weights[some], starts and int(some[0]) == 0)

    left = torch.arange(len(nodes), device=device)
    while len(left):
        points = max(1, at_once // shares() // max(1, len(boundaries[0])))
        points = -(-len(left) // -(-len(left) // points))  # in parts of about the same size
        for each in in_halves(rates, left[:points]):
            for parts, more in zip(found, each, strict=True):
                for name, part in more.items():
                    parts[name] = parts[name] + part if name in parts else part
        left = left[points:]
    return found


def _rates(boundaries: Sequence[Boundary], a: Tensor, w: Tensor, starts: bool) -> list[Parts]:
    """Of each boundary; of a single point by parts of the rows where memory runs out."""
    every = torch.arange(len(boundaries[0]), device=a.device)

    def rates(rows: Tensor) -> list[Parts]:
        own = boundaries if len(rows) == len(every) else [b.select(rows) for b in boundaries]
        at = own[0].at(a)
        return [boundary.rates(at, a, w, starts) for boundary in own]

    if len(a) > 1:
        return rates(every)
    halves = in_halves(rates, every)
    if len(halves) == 1:
        return halves[0]
    return [
        {name: torch.cat([parts[name] for parts in own]) for name in own[0]}
        for own in zip(*halves, strict=True)
    ]
