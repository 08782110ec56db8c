"""One path of the residual stream for all targets: ``zero`` and other fixed baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from captum_lig.paths.points import PointSet
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.values import SharedValues, grouped

__all__ = ["SharedPath"]


@dataclass(frozen=True)
class SharedPath:
    """All targets share one path of the residual stream ``(S, D)``."""

    along: QKVClosedForm | QKVByRunning
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

    def select(self, rows: Tensor) -> SharedPath:
        """The same path for some of its rows."""
        return replace(self, rows=self.rows[rows], frozen=self.frozen[rows])

    def double(self) -> SharedPath:
        """The same path in float64."""
        return replace(self, along=self.along.double())

    def at(self, alphas: Tensor) -> PointSet:
        """Layout ``(P, H, R, S)``."""
        x = self.along(alphas)
        q, dq = self.scaling * x.q[:, :, self.rows], self.scaling * x.dq[:, :, self.rows]
        mask = None if self.mask is None else self.mask[:, self.rows]
        weights = self.row(grouped(q, x.k.transpose(-1, -2)), mask, heads=1)
        return PointSet(
            weights=weights,
            ds_key=weights.capped(grouped(q, x.dk.transpose(-1, -2))),
            ds_query=weights.capped(grouped(dq, x.k.transpose(-1, -2))),
            values=SharedValues(x.v, x.dv, x.q.shape[1] // x.k.shape[1]),
            to_layout=(0, 2, 1),
            rows=self.rows,
            frozen=self.frozen,
        )
