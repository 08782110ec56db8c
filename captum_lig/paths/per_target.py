"""A path for each target, whatever it is, by running the block on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_lig.paths.points import PointSet
from captum_lig.paths.qkv import QKVByRunning
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.values import PairValues, pairs

__all__ = ["PerTargetPath"]


@dataclass(frozen=True)
class PerTargetPath:
    """Each target's own path ``(S, D)``, by running the block on it: slow, and always right."""

    along: QKVByRunning
    """From ``(R, S or 1, D)``."""
    rows: Tensor
    scaling: float
    mask: Tensor | None
    """``(1 or H, T, S)``"""
    row: RowFunction
    frozen: Tensor
    """``(R, S)`` sources that the path does not move."""

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""
        return self.frozen.shape[1]

    def select(self, rows: Tensor) -> PerTargetPath:
        """The same paths for some of their rows."""
        return replace(
            self,
            along=replace(self.along, start=self.along.start[rows]),
            rows=self.rows[rows],
            frozen=self.frozen[rows],
        )

    def double(self) -> PerTargetPath:
        """The same paths, the attention core in float64."""
        return replace(self, along=self.along.double())

    def at(self, alphas: Tensor) -> PointSet:
        """Layout ``(P, R, H, S)``."""
        x = self.along(alphas)
        points, count = len(alphas), len(self.rows)

        def split(t: Tensor) -> Tensor:
            return t.view(points, count, *t.shape[1:])  # (P, R, heads, S, d)

        own = torch.arange(count, device=self.rows.device)
        q, dq = (self.scaling * split(t)[:, own, :, self.rows].transpose(0, 1) for t in (x.q, x.dq))
        k, dk, v, dv = (split(t) for t in (x.k, x.dk, x.v, x.dv))
        mask = None if self.mask is None else self.mask[:, self.rows].transpose(0, 1)
        weights = self.row(pairs(q, k.transpose(-1, -2)), mask, heads=2)
        return PointSet(
            weights=weights,
            ds_key=weights.capped(pairs(q, dk.transpose(-1, -2))),
            ds_query=weights.capped(pairs(dq, k.transpose(-1, -2))),
            values=PairValues(v, dv, self._own(v), q.shape[2] // k.shape[2]),
            to_layout=(0, 1, 2),
            rows=self.rows,
            frozen=self.frozen,
        )

    def _own(self, v: Tensor) -> Tensor:
        """``(P, R, Hkv, d)`` the value of the targets that the path does not move, else 0."""
        count = torch.arange(len(self.rows), device=v.device)
        own = v[:, count, :, self.rows].transpose(0, 1)
        return own * self.frozen[count, self.rows][:, None, None]
