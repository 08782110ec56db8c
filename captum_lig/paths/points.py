"""The attention core at some points of a path, from weights, logits' derivatives and values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from captum_lig.paths.softmax import RowWeights
from captum_lig.paths.values import Values

__all__ = ["PointSet"]


@dataclass(frozen=True)
class PointSet:
    """Points (:class:`~captum_lig.paths.base.Points`) in closed form.

    Weights and derivatives of the logits are ``(..., S)``, with the first three axes in the order
    that suits the path; ``to_layout`` brings ``(P, R, H)`` there.
    """

    weights: RowWeights
    ds_key: Tensor
    """Derivative of the (capped) logits by the sources as keys."""
    ds_query: Tensor | None
    """Derivative of the (capped) logits by the target as query; None if the query is constant."""
    values: Values
    to_layout: tuple[int, int, int]
    rows: Tensor
    """``(R,)`` the rows' positions among the sources."""
    frozen: Tensor | None
    """``(R, S)`` sources that the path does not move, or None if that is left to arithmetic."""
    among_sources: bool = True
    """Whether the rows are sources, too."""

    @cached_property
    def _mixed(self) -> Tensor:
        """Attention outputs less the reference; the sink's value, 0, is ``-reference`` then."""
        mixed, rest = self.values.mix(self.weights.p), self.weights.rest
        return mixed if rest is None else mixed - rest * self.values.reference

    def _in(self, x: Tensor) -> Tensor:
        return x.permute(*self.to_layout, 3)

    def _out(self, x: Tensor) -> Tensor:
        back = [self.to_layout.index(axis) for axis in range(3)]
        return x.permute(*back, 3)

    @property
    def u(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs."""
        return self._out(self._mixed + self.values.reference)

    @property
    def moved(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs, up to a constant of the row."""
        return self._out(self._mixed)

    @property
    def self_weights(self) -> Tensor | None:
        """``(P, R, H)`` attention weights of the rows on themselves; None if they are no source."""
        if not self.among_sources:
            return None
        p = self._out(self.weights.p)
        own = self.rows.view(1, -1, 1, 1).expand(*p.shape[:3], 1)
        return p.gather(-1, own).squeeze(-1)

    def velocity(self) -> Tensor:
        """``(P, R, H, d)`` derivative of ``u`` along the path."""
        p, rest = self.weights.p, self.weights.rest
        ds = self.ds_key if self.ds_query is None else self.ds_key + self.ds_query
        mean = (p * ds).sum(-1, keepdim=True)
        velocity = self.values.mix_rates(p) + self.values.mix(p * (ds - mean))
        if rest is not None:
            velocity = velocity + rest * mean * self.values.reference
        return self._out(velocity)

    def edges(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Rates as :meth:`rates` gives them, and their part through the values alone."""
        values = self._sum(self.values.dots(self._in(g))[1].mul_(self.weights.p))
        if self.frozen is not None:
            values.masked_fill_(self.frozen, 0.0)
        return self.rates(g), values

    def rates(self, g: Tensor) -> Tensor:
        """Rates ``(H, R, S)`` for cotangents ``g (P, R, H, d)``, summed over the points."""
        g = self._in(g)
        gv, gdv = self.values.dots(g)
        # In place: at hundreds of tokens these tensors are larger than any cache.
        gv -= (g * self._mixed).sum(-1, keepdim=True)
        if self.ds_query is None:
            rates = self._sum(gv.mul_(self.ds_key).add_(gdv).mul_(self.weights.p))
        else:
            moved = gv.mul_(self.weights.p)
            query = torch.einsum("...s,...s->...", moved, self.ds_query)
            query = self._sum(query.unsqueeze(-1)).squeeze(-1)
            rates = self._sum(moved.mul_(self.ds_key).addcmul_(gdv, self.weights.p))
            rates[:, torch.arange(len(self.rows), device=g.device), self.rows] += query
        return rates if self.frozen is None else rates.masked_fill_(self.frozen, 0.0)

    def summed_rates(self, g: Tensor) -> Tensor:
        """The same, summed over heads, ``(R, S)``."""
        return self.rates(g).sum(0)

    @cached_property
    def vectors(self) -> Tensor:
        """Rates of each source as vectors, ``(P, R, S, H, d)``.

        ``rates`` are their scalar products with ``g``: ``p_i v'_i + p_i s'_i (v_i - u)``, and for
        the target as query the sum of ``p_k s'_k (v_k - u)``.
        """
        p, mixed = self.weights.p, self._mixed
        v, dv = self.values.pairs()
        weight = (p * self.ds_key).unsqueeze(-1)
        rates = p.unsqueeze(-1) * dv + weight * (v - mixed.unsqueeze(-2))
        rates = rates.permute(*(self.to_layout.index(axis) for axis in range(3)), 3, 4)
        rates = rates.transpose(2, 3).contiguous()  # (P, R, S, H, d)
        if self.ds_query is not None:
            moved = p * self.ds_query
            query = self._out(self.values.mix(moved) - moved.sum(-1, keepdim=True) * mixed)
            rates[:, torch.arange(len(self.rows), device=rates.device), self.rows] += query
        if self.frozen is not None:
            rates.masked_fill_(self.frozen[:, :, None, None], 0.0)
        return rates

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over the points: layout ``(..., S)`` to ``(H, R, S)``; it may be ``x`` itself."""
        points = self.to_layout.index(0)
        summed = x.squeeze(points) if x.shape[points] == 1 else x.sum(points)
        heads_first = self.to_layout.index(2) < self.to_layout.index(1)
        return summed if heads_first else summed.transpose(0, 1)
