"""What every path of the attention core offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["AttentionPath", "Points"]


class AttentionPath(Protocol):
    """A path of the residual stream as the attention core sees it, for ``R`` rows."""

    def at(self, alphas: Tensor) -> Points:
        """The attention core at ``alphas (P,)``."""

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""

    def select(self, rows: Tensor) -> AttentionPath:
        """The same path for some of its rows: ``(R',)`` indices into them."""

    def double(self) -> AttentionPath:
        """The same path with the attention core in float64."""


class Points(Protocol):
    """The attention core at ``P`` points of a path.

    Rates are what each source contributes per unit of the path. They are linear in the cotangents:
    to integrate, multiply those by the weights of a rule.
    """

    @property
    def rows(self) -> Tensor:
        """``(R,)`` the rows' positions among the sources."""

    @property
    def u(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs."""

    @property
    def moved(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs, up to a constant of the row."""

    @property
    def self_weights(self) -> Tensor | None:
        """``(P, R, H)`` attention weights of the rows on themselves; None if they are hidden."""

    def velocity(self) -> Tensor:
        """``(P, R, H, d)`` derivative of ``u`` along the path."""

    def rates(self, g: Tensor) -> Tensor:
        """Rates ``(H, R, S)`` for cotangents ``g (P, R, H, d)``, summed over the points."""

    def summed_rates(self, g: Tensor) -> Tensor:
        """The same, summed over heads, ``(R, S)``."""

    @property
    def vectors(self) -> Tensor:
        """Rates as vectors, ``(P, R, S, H, d)``: ``rates`` are their scalar products with ``g``."""
