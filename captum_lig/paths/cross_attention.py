"""The path of an encoder's states as the heads of a decoder see it: their queries are held."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_lig.paths.points import PointSet
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.values import SharedValues, grouped

__all__ = ["CrossPath"]


@dataclass(frozen=True)
class CrossPath:
    """All targets share one path of the sources' states ``(S, D)``, and are no sources."""

    along: QKVClosedForm | QKVByRunning
    """Of keys and values; what it says of queries is not looked at."""
    query: Tensor
    """``(H, R, d)`` the queries, scaled."""
    mask: Tensor | None
    """``(1 or H, R, S)``"""
    row: RowFunction
    frozen: Tensor
    """``(R, S)`` sources that the path does not move."""

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""
        return self.frozen.shape[1]

    def select(self, rows: Tensor) -> CrossPath:
        """The same path for some of its rows."""
        return replace(
            self,
            query=self.query[:, rows],
            mask=None if self.mask is None else self.mask[:, rows],
            frozen=self.frozen[rows],
        )

    def double(self) -> CrossPath:
        """The same path in float64."""
        return replace(self, along=self.along.double(), query=self.query.double())

    def at(self, alphas: Tensor) -> CrossPoints:
        """Layout ``(P, H, R, S)``."""
        x = self.along(alphas)
        q = self.query.expand(len(alphas), -1, -1, -1)
        weights = self.row(grouped(q, x.k.transpose(-1, -2)), self.mask, heads=1)
        return CrossPoints(
            weights=weights,
            ds_key=weights.capped(grouped(q, x.dk.transpose(-1, -2))),
            ds_query=None,
            values=SharedValues(x.v, x.dv, q.shape[1] // x.v.shape[1]),
            to_layout=(0, 2, 1),
            rows=torch.arange(q.shape[2], device=q.device),
            frozen=self.frozen,
        )


class CrossPoints(PointSet):
    """Points whose rows are no sources."""

    @property
    def self_weights(self) -> None:
        """None: no target is a source."""
        return None
