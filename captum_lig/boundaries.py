"""The boundaries of one block, for one text: totals, and the integrals of their rates.

Knows the block only as ``pre`` and ``post`` and the path only as an :class:`AttentionPath`.
Shapes: ``P`` path points, ``R`` rows (targets), ``S`` sources, ``H`` heads, ``d`` head width,
``D`` width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig.attention_path import AttentionPath, PointSet
from captum_lig.scalarization import cotangent, unit

__all__ = ["MlpBoundary", "RowIntegrand"]

Post = Callable[[Tensor, Tensor], Tensor]
"""``(M, H, d)`` attention outputs and ``(M, D)`` residual stream to ``(M, D)``."""


@dataclass(frozen=True)
class MlpBoundary:
    """The mlp boundary of some rows."""

    mlp: Tensor
    """``(R, H)``"""
    residual: Tensor
    """``(R,)``"""
    gradient: Tensor
    """``(R, H, d)`` average over the path of ``dA/du``: the cotangent of the chain rule."""


class RowIntegrand:
    """Everything that one block integrates for some rows of one text.

    Args:
        path: the path of the residual stream as the attention core sees it.
        post: what follows the attention core.
        start: ``(R, D)`` where the residual stream of the targets starts.
        end: ``(R, D)`` the residual stream of the targets.
        still: ``(R,)`` rows that the path does not move: their totals are exactly 0.
        scalarization: ``"l2"`` or ``"projection"``.
        points: how many path points to evaluate at once.
    """

    def __init__(
        self,
        path: AttentionPath,
        post: Post,
        start: Tensor,
        end: Tensor,
        still: Tensor,
        scalarization: str,
        points: int,
    ) -> None:
        self._path, self._post, self._scalarization = path, post, scalarization
        self._start, self._step, self._points = start, end - start, points
        ends = path.at(torch.tensor([0.0, 1.0], dtype=torch.float64, device=end.device))
        self.u = ends.u
        """``(2, R, H, d)`` attention outputs at the start and at the end."""
        with torch.no_grad():
            self._y = self._apply(self.u, torch.stack([start, end]))
        self._du = _change(self.u, still)
        self._dy = _change(self._y, still)
        self._e_u, self._e_y = unit(self._du), unit(self._dy)
        self.attention_total = torch.linalg.vector_norm(self._du, dim=-1)
        """``(R, H)``"""
        self.layer_total = torch.linalg.vector_norm(self._dy, dim=-1)
        """``(R,)``"""
        self._moving = (~still).to(end.dtype)

    @property
    def y(self) -> Tensor:
        """``(2, R, D)`` tokens leaving the block at the start and at the end."""
        return self._y

    def mlp(self, alphas: Tensor, weights: Tensor) -> MlpBoundary:
        """Integrate the mlp boundary: ``(u, z)`` on a straight line between the path's ends."""
        du = self._du
        gradient_u = torch.zeros_like(du)
        residual = du.new_zeros(du.shape[0])
        for a, w in self._batches(alphas, weights):
            u = self.u[0] + a.view(-1, 1, 1, 1) * du
            y_start = du.expand_as(u)
            gu, gz = self._post_gradients(a, u, y_start)
            gradient_u += (w.view(-1, 1, 1, 1) * gu).sum(0)
            residual += (w[:, None] * (gz * self._step).sum(-1)).sum(0)
        return MlpBoundary((gradient_u * du).sum(-1), residual * self._moving, gradient_u)

    def attention(
        self, alphas: Tensor, weights: Tensor, chain: Tensor | None, boundaries: frozenset[str]
    ) -> dict[str, Tensor]:
        """Integrate what depends on the path of the attention core.

        Args:
            alphas: ``(P,)`` nodes.
            weights: ``(P,)`` their weights.
            chain: ``(R, H, d)`` cotangent for the chain rule.
            boundaries: which of ``attention``, ``chain`` and ``layer`` are wanted.

        Returns:
            ``attention``, ``chain``: ``(H, R, S)``; ``layer``: ``(R, S)``.
        """
        sums: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            sums[name] = sums[name] + value if name in sums else value

        for a, w in self._batches(alphas, weights):
            at, weight = self._path.at(a), w.view(-1, 1, 1, 1)
            if "attention" in boundaries:
                g = cotangent(self._scalarization, self._u_change(a, at), self._e_u)
                add("attention", at.rates(weight * self._quiet(g)))
            if "chain" in boundaries and chain is not None:
                add("chain", at.rates(weight * self._quiet(chain.expand_as(at.u))))
            if "layer" in boundaries:
                gu, gz = self._post_gradients(a, at.u, at.velocity() if a[0] == 0 else None)
                rates = at.rates(weight * self._quiet(gu)).sum(0)
                own = (w[:, None] * (gz * self._step).sum(-1)).sum(0) * self._moving
                rates[torch.arange(len(own), device=own.device), at.rows] += own
                add("layer", rates)
        return sums

    def _batches(self, alphas: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        dtype = self._step.dtype
        for a, w in zip(alphas.split(self._points), weights.split(self._points), strict=True):
            yield a.to(dtype), w.to(dtype)

    def _apply(self, u: Tensor, z: Tensor) -> Tensor:
        """``post`` for ``u (P, R, H, d)``, ``z (P, R, D)``."""
        return self._post(u.flatten(0, 1), z.flatten(0, 1)).view(*u.shape[:2], -1)

    def _u_change(self, a: Tensor, at: PointSet) -> Tensor:
        """``u(a) - u(0)``, and its direction of departure where ``a`` is 0."""
        change = at.u - self.u[0]
        if self._scalarization == "l2" and a[0] == 0:
            change = torch.cat([at.velocity()[:1], change[1:]])
        return change

    def _post_gradients(
        self, a: Tensor, u: Tensor, velocity: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``dA/du (P, R, H, d)`` and ``dA/dz (P, R, D)`` of the block's outputs."""
        z = self._start + a.view(-1, 1, 1) * self._step
        with torch.enable_grad():
            u, z = u.detach().requires_grad_(), z.requires_grad_()
            y = self._apply(u, z)
            change = y.detach() - self._y[0]
            if self._scalarization == "l2" and a[0] == 0 and velocity is not None:
                # The norm has no gradient here: its right limit is the direction of departure.
                _, dy = torch.func.jvp(
                    self._apply,
                    (u.detach()[:1], z.detach()[:1]),
                    (velocity[:1], self._step[None]),
                )
                change = torch.cat([dy.detach(), change[1:]])
            g = cotangent(self._scalarization, change, self._e_y)
            gu, gz = torch.autograd.grad(y, (u, z), g)
        return gu, gz

    def _quiet(self, g: Tensor) -> Tensor:
        """``g (P, R, H, d)``, 0 for the rows that do not move."""
        return g * self._moving[:, None, None]


def _change(ends: Tensor, still: Tensor) -> Tensor:
    change = ends[1] - ends[0]
    return change.masked_fill(still.view(-1, *[1] * (change.dim() - 1)), 0.0)
