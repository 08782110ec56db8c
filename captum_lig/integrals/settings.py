"""How path integrals are to be computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from captum_lig._arguments import fraction, whole_number
from captum_lig.integrals.quadrature import nodes_and_weights

__all__ = ["Settings"]

MEMORY = 2**28
"""Bytes that the path points and targets in flight may take, if nothing else is said."""
SEVERAL = 2
"""A CPU takes several points at once within this part of it only: a few hundred tokens keep it as
busy as thousands, and what little memory they take it need not ask the system for again and again.
"""


@dataclass(frozen=True)
class Settings:
    """The first rule, and when a row is done."""

    alphas: Tensor
    """``(P,)`` nodes of the first rule, ascending, float64."""
    weights: Tensor
    """``(P,)`` their weights."""
    tolerance: float | None
    """Completeness error of a row, relative to its scale; None: the first rule is all."""
    max_steps: int
    """Most nodes for one row."""
    internal_batch_size: int | None
    """Most pairs of a path point and a target at once; None chooses by memory."""
    method: str = "gausslegendre"
    """Name of the first rule."""

    @classmethod
    def checked(
        cls,
        n_steps: int,
        method: str,
        tolerance: float | None = None,
        max_steps: int = 1024,
        internal_batch_size: int | None = None,
    ) -> Settings:
        """Settings from what the caller gave.

        Raises:
            LigError: for anything unknown or out of range.
        """
        alphas, weights = nodes_and_weights(method, n_steps)
        if internal_batch_size is not None:
            whole_number("internal_batch_size", internal_batch_size, 1)
        if tolerance is not None:
            fraction("tolerance", tolerance)
            whole_number("max_steps", max_steps, n_steps)
        return cls(alphas, weights, tolerance, max_steps, internal_batch_size, method)

    def with_nodes(self, count: int) -> Settings:
        """The same with another number of nodes in the first rule."""
        if count == len(self.alphas):
            return self
        alphas, weights = nodes_and_weights(self.method, count)
        return replace(self, alphas=alphas, weights=weights)

    def points_at_once(self, floats: int, tokens: int, like: Tensor) -> int:
        """How many points of a line to work on at once, all tokens together.

        Args:
            floats: about how many numbers a point takes.
            tokens: how many tokens a point has.
            like: a tensor of them.
        """
        if self.internal_batch_size is not None:
            return max(1, self.internal_batch_size // tokens)
        return max(1, MEMORY // (floats * like.element_size()))

    def pairs_at_once(self, floats: int, targets: int, like: Tensor) -> int:
        """How many pairs of a path point and a target to work on at once.

        Args:
            floats: about how many numbers each takes.
            targets: how many targets there are.
            like: a tensor of them.
        """
        if self.internal_batch_size is not None:
            return self.internal_batch_size
        most = max(1, MEMORY // (floats * like.element_size()))
        if like.device.type != "cpu":
            return most
        return max(min(most, targets), most // SEVERAL)
