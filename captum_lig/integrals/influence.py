"""Influence: the attention and layer boundaries without a scalarization, as vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._types import Parts, Post
from captum_lig.integrals.rows import Rows, one
from captum_lig.paths.jvp import jvp

__all__ = ["Influence"]


@dataclass(frozen=True)
class Influence:
    """The attention and layer boundaries without a scalarization: each source's vector."""

    rows: Rows

    def select(self, rows: Tensor) -> Influence:
        """Some of the rows."""
        return Influence(self.rows.select(rows))

    def precise(self) -> Influence:
        """With the attention core in float64."""
        return Influence(self.rows.double())

    def across(self) -> None:
        """Nothing: vectors see everything."""

    @property
    def totals(self) -> Tensor:
        """``(R, H * d + D)``: the changes of each head's output and of the block's."""
        return self._joined(self.rows.u_step, self.rows.y_step)

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, H + 1)``."""
        return torch.cat([self.rows.attention_total, self.rows.layer_total[:, None]], -1)

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """Lengths ``(R, H + 1)`` of what is missing of each head's and of the block's change."""
        heads, width = self.rows.u_step.shape[1:]
        u, y = (sums - change).split([heads * width, self.rows.y_step.shape[-1]], -1)
        lengths: Tensor = torch.linalg.vector_norm(u.view(len(u), heads, width), dim=-1)
        return torch.cat([lengths, torch.linalg.vector_norm(y, dim=-1, keepdim=True)], -1)

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``head_vectors (R, S, H, d)`` and ``vectors (R, S, D)``."""
        rows = self.rows
        dtype = rows.y_start.dtype
        parts: Parts = {}
        # One point at a time: a point is rows times sources vectors already.
        for a, w in zip(alphas.to(rows.step).split(1), weights.to(rows.step), strict=True):
            at = rows.at(a)
            heads = at.vectors()[0] * rows.moved_heads[:, None]
            count, sources = heads.shape[:2]
            residual = torch.zeros(
                count, sources, rows.step.shape[-1], dtype=dtype, device=heads.device
            )
            residual[torch.arange(count, device=heads.device), at.rows] = rows.step.to(dtype)
            u, z = at.u[0].to(dtype), rows.residual(a)[0].to(dtype)
            vectors = _push(rows.post, (u, z), (heads.to(dtype), residual))
            rows.meter.passed += count * sources
            vectors = vectors * rows.moved[:, None]
            for name, part in (("head_vectors", heads), ("vectors", vectors)):
                parts[name] = parts[name] + w * part if name in parts else w * part
        return parts

    def sums(self, parts: Parts) -> Tensor:
        """``(R, H * d + D)``, as ``totals``."""
        return self._joined(parts["head_vectors"].sum(1), parts["vectors"].sum(1))

    def values(self, a: float) -> Tensor:
        """Changes so far at one path point, as ``totals``."""
        rows, dtype = self.rows, self.rows.y_start.dtype
        at = rows.path.at(one(a, rows))
        y = rows.post(at.u[0].to(dtype), rows.residual(one(a, rows))[0].to(dtype))
        return self._joined(at.moved[0] - rows.moved_start, y - rows.y_start)

    def _joined(self, u: Tensor, y: Tensor) -> Tensor:
        return torch.cat([u.flatten(1), y.to(u.dtype)], -1)


def _push(post: Post, at: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor]) -> Tensor:
    """Jacobian-vector products of ``post`` at ``R`` tokens, for ``S`` tangents each.

    Args:
        post: the map.
        at: ``(R, H, d)`` and ``(R, D)``.
        tangents: ``(R, S, H, d)`` and ``(R, S, D)``.

    Returns:
        ``(R, S, D)``.
    """
    count, sources = tangents[0].shape[:2]
    if count == sources:
        # The block runs on whole sequences: as many rows as tokens fill one, and the tangents
        # can share its forward pass, if its code takes that (a mixture of experts does not).
        def moved_by(du: Tensor, dz: Tensor) -> Tensor:
            moved: Tensor = torch.func.jvp(post, at, (du, dz))[1]
            return moved

        try:
            pushed: Tensor = torch.func.vmap(moved_by, in_dims=1, out_dims=1)(*tangents)
            return pushed.detach()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass
    _, moved = jvp(
        post,
        tuple(x.repeat_interleave(sources, 0) for x in at),
        tuple(x.flatten(0, 1) for x in tangents),
    )
    return moved.view(count, sources, -1)  # type: ignore[no-any-return]
