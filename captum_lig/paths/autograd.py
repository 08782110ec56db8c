"""A path of the attention core by autograd, for blocks whose queries, keys and values are hidden.

All there is of such a block is ``attend``, from the residual stream to the attention outputs. The
rates of row ``j`` and head ``h`` are a vector-Jacobian product of ``u[h, j]``, one backward pass;
pairs of a path point and a row go through it together, heads one after the other. What follows
the attention core hands down a cotangent for all heads at once: there one pass does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from captum_lig._types import Attend
from captum_lig.cost import PATHS, Meter
from captum_lig.paths.jvp import jvp
from captum_lig.paths.memory import shares

__all__ = ["AutogradPath", "AutogradPoints"]

AT_ONCE = 1024
"""Tokens that go through the block at once: a backward pass keeps all activations of them."""


@dataclass(frozen=True)
class AutogradPath:
    """Paths of the residual stream, seen through the block alone."""

    attend: Attend
    start: Tensor
    """``(1, S, D)`` of all rows, or ``(R, S or 1, D)`` of each."""
    end: Tensor
    """``(S, D)``"""
    rows: Tensor
    frozen: Tensor
    """``(R, S)`` sources that the path does not move."""
    meter: Meter
    """Counts the tokens that go backward (``attend`` counts those that go forward)."""
    in_double: bool = False
    """Whether what follows is to be computed in float64; the block runs as it is."""

    @property
    def kind(self) -> str:
        """One of :data:`captum_lig.cost.PATHS`."""
        return PATHS[2]

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""
        return self.frozen.shape[1]

    def select(self, rows: Tensor) -> AutogradPath:
        """The same paths for some of their rows."""
        start = self.start if len(self.start) == 1 else self.start[rows]
        return replace(self, start=start, rows=self.rows[rows], frozen=self.frozen[rows])

    def double(self) -> AutogradPath:
        """The same paths; the sums of what the block gives in float64."""
        return replace(self, in_double=True)

    def at(self, alphas: Tensor) -> AutogradPoints:
        """The attention core at ``alphas (P,)``."""
        return AutogradPoints(self, alphas.to(self.end.dtype))


@dataclass(frozen=True)
class _Pairs:
    """Some pairs of a path point and a row, ``N`` of them."""

    point: Tensor
    row: Tensor
    z: Tensor
    """``(N, S, D)`` the residual stream there."""
    step: Tensor
    """``(N, S, D)`` its derivative along the path."""


@dataclass(frozen=True)
class AutogradPoints:
    """Points (:class:`~captum_lig.paths.base.Points`) by running the block."""

    path: AutogradPath
    alphas: Tensor

    @property
    def rows(self) -> Tensor:
        """``(R,)`` the rows' positions among the sources."""
        return self.path.rows

    @cached_property
    def u(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs."""
        with torch.no_grad():
            if len(self.path.start) == 1:
                step = self.path.end - self.path.start
                points = self.path.start + self.alphas.view(-1, 1, 1) * step
                chunks = points.split(self._at_once)
                u = torch.cat([self.path.attend(z)[:, self.rows] for z in chunks])
            else:
                u = self._by_pairs([self._own(self.path.attend(x.z), x) for x in self._pairs()])
        return self._precise(u)

    @property
    def moved(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs."""
        return self.u

    @property
    def self_weights(self) -> None:
        """None: they are hidden."""
        return None

    def velocity(self) -> Tensor:
        """``(P, R, H, d)`` derivative of ``u`` along the path."""
        found = [self._own(self._pushed(x.z, x.step), x) for x in self._pairs()]
        return self._by_pairs(found)

    def rates(self, g: Tensor) -> Tensor:
        """Rates ``(H, R, S)`` for cotangents ``g (P, R, H, d)``, summed over the points."""
        return self._pulled(g, [slice(h, h + 1) for h in range(g.shape[2])])

    def summed_rates(self, g: Tensor) -> Tensor:
        """The same, summed over heads, ``(R, S)``: one backward pass instead of ``H``."""
        return self._pulled(g, [slice(None)])[0]

    @cached_property
    def vectors(self) -> Tensor:
        """Rates of each source as vectors, ``(P, R, S, H, d)``.

        Each source is moved by itself, with the others held, through the whole block.
        """
        points, count = len(self.alphas), len(self.rows)
        found = []
        for x in self._pairs(1):
            tangents = torch.diag_embed(x.step[0].T).permute(1, 2, 0)  # (S moved, S, D)
            moved = [
                self._pushed(x.z.repeat(len(part), 1, 1), part)[:, self.rows[x.row[0]]]
                for part in tangents.split(self._at_once)
            ]
            found.append(torch.cat(moved).masked_fill(self.path.frozen[x.row[0], :, None, None], 0))
        return torch.stack(found).view(points, count, *found[0].shape)

    # --- through the block ---

    @property
    def _at_once(self) -> int:
        return max(1, AT_ONCE // self.path.sources // shares())

    def _pairs(self, at_once: int | None = None) -> Iterator[_Pairs]:
        """All pairs, points first, ``at_once`` at a time."""
        start, end, count = self.path.start, self.path.end, len(self.rows)
        every = torch.arange(len(self.alphas) * count, device=end.device)
        for chosen in every.split(at_once or self._at_once):
            point, row = chosen // count, chosen % count
            own = start[row] if len(start) > 1 else start.expand(len(row), -1, -1)
            step = end - own
            yield _Pairs(point, row, own + self.alphas[point].view(-1, 1, 1) * step, step)

    def _own(self, u: Tensor, x: _Pairs) -> Tensor:
        """``u (N, S, H, d)`` to each pair's row, ``(N, H, d)``."""
        return u[torch.arange(len(u), device=u.device), self.rows[x.row]]

    def _by_pairs(self, found: list[Tensor]) -> Tensor:
        return torch.cat(found).view(len(self.alphas), len(self.rows), *found[0].shape[1:])

    def _pulled(self, g: Tensor, groups: list[slice]) -> Tensor:
        """Rates ``(groups, R, S)``: one backward pass for each group of heads."""
        rates = g.new_zeros(len(groups), len(self.rows), self.path.sources)
        for x in self._pairs():
            z = x.z.requires_grad_()
            with torch.enable_grad():
                u = self._own(self.path.attend(z), x)
                parts = [u[:, heads] for heads in groups]
            for index, heads in enumerate(groups):
                (gradient,) = torch.autograd.grad(
                    parts[index],
                    z,
                    g[x.point, x.row][:, heads].to(u),
                    retain_graph=index < len(groups) - 1,
                    materialize_grads=True,
                )
                self.path.meter.passed += z.shape[0] * z.shape[1]
                rates[index].index_add_(0, x.row, (gradient * x.step).sum(-1).to(rates))
        rates.masked_fill_(self.path.frozen, 0.0)
        return rates

    def _pushed(self, z: Tensor, tangent: Tensor) -> Tensor:
        """Derivative of ``attend`` at ``z (N, S, D)`` along ``tangent``, ``(N, S, H, d)``."""
        u = jvp(self.path.attend, (z,), (tangent,))[1]
        self.path.meter.passed += z.shape[0] * z.shape[1]
        return self._precise(u)

    def _precise(self, x: Tensor) -> Tensor:
        return x.double() if self.path.in_double else x
