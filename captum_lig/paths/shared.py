"""One path of the residual stream for all targets: ``zero`` and other fixed baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from captum_lig.cost import PATHS
from captum_lig.paths.few_rows import FewRows
from captum_lig.paths.points import PointSet
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.values import SharedValues, Values, grouped

__all__ = ["SharedPath"]


@dataclass(frozen=True)
class SharedPath:
    """All targets share one path of the sources ``(S, D)``."""

    along: QKVClosedForm | QKVByRunning
    rows: Tensor
    """``(R,)`` positions of the targets."""
    scaling: float
    mask: Tensor | None
    """``(1 or H, T, S)``"""
    row: RowFunction
    frozen: Tensor
    """``(R, S)`` sources that the path does not move."""
    query: Tensor | None = None
    """``(H, T, d)`` queries that are held, of targets that are no sources (a decoder's, whose
    sources are an encoder's states); None: the targets are sources, and their queries move."""

    @property
    def kind(self) -> str:
        """One of :data:`captum_lig.cost.PATHS`."""
        return PATHS[0] if isinstance(self.along, QKVClosedForm) else PATHS[1]

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""
        return self.frozen.shape[1]

    def select(self, rows: Tensor) -> SharedPath:
        """The same path for some of its rows."""
        chosen = replace(self, rows=self.rows[rows], frozen=self.frozen[rows])
        few = vars(self).get("_few")
        if few is not None:  # what the property would find again
            vars(chosen)["_few"] = few.select(rows)
        return chosen

    def double(self) -> SharedPath:
        """The same path in float64."""
        query = None if self.query is None else self.query.double()
        return replace(self, along=self.along.double(), query=query)

    @cached_property
    def _few(self) -> FewRows | None:
        """What is made once, if the rows are so few that it pays."""
        if self.query is not None or not isinstance(self.along, QKVClosedForm):
            return None
        return FewRows.of(self.along, self.rows, self.scaling)

    def at(self, alphas: Tensor) -> PointSet:
        """Layout ``(P, H, R, S)``."""
        logits, ds_key, ds_query, values = (
            self._by_tables(alphas) if self._few is None else self._few.at(alphas)
        )
        mask = None if self.mask is None else self.mask[:, self.rows]
        weights = self.row(logits, mask, heads=1)
        return PointSet(
            weights=weights,
            ds_key=weights.capped(ds_key),
            ds_query=None if ds_query is None else weights.capped(ds_query),
            values=values,
            to_layout=(0, 2, 1),
            rows=self.rows,
            frozen=self.frozen,
            among_sources=self.query is None,
        )

    def _by_tables(self, alphas: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Values]:
        """Logits and their derivatives by keys and by queries, ``(P, H, R, S)``, and values."""
        x = self.along(alphas)
        keys, key_rates = x.k.transpose(-1, -2), x.dk.transpose(-1, -2)
        if self.query is None:
            q, dq = self.scaling * x.q[:, :, self.rows], self.scaling * x.dq[:, :, self.rows]
        else:
            q = (self.scaling * self.query[:, self.rows]).expand(len(alphas), -1, -1, -1)
            dq = None
        values = SharedValues(x.v, x.dv, q.shape[1] // x.v.shape[1])
        of_query = None if dq is None else grouped(dq, keys)
        return grouped(q, keys), grouped(q, key_rates), of_query, values
