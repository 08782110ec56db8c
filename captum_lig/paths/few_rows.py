"""Few rows of a path in closed form, without all queries, keys and values at each of its points.

Along such a path queries, keys and values are sums of tables with a weight for each token, as
``k_i(a) = sum_m w_mi(a) K_mi`` of the bias, the start and the end. So are their products, ``q_j.k_i
= sum_nm w_nj(a) w_mi(a) Q_nj.K_mi``, of which those of the tables are made once. For one target of
a long text the tables themselves, of all tokens at every point, would be nearly all of the work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from captum_lig.paths.qkv import QKVClosedForm
from captum_lig.paths.values import WeightedValues, grouped, sum_of

__all__ = ["FewRows", "pays"]


@dataclass(frozen=True)
class FewRows:
    """What of the attention core of some rows does not change along their path."""

    along: QKVClosedForm
    rows: Tensor
    """``(R,)``"""
    ends: tuple[int, ...]
    """Which of the bias, the start and the end there are, ``M`` of them."""
    products: list[list[Tensor]]
    """``scale Q_nj.K_mi``, ``M`` times ``M`` of ``(H, R, S)``, queries first."""
    values: list[Tensor]
    """``M`` tables ``(Hkv, S, d)``."""

    @classmethod
    def of(cls, along: QKVClosedForm, rows: Tensor, scaling: float) -> FewRows | None:
        """Those of ``rows (R,)``; None where forming the tables at each point costs less."""
        heads, _, width = along.tables[0].shape[1:]
        sizes = len(rows), heads, along.tables[1].shape[1], width
        if not pays(1, *sizes):
            return None
        q, k, v = (_apart(table) for table in along.tables)
        there = [m for m in range(3) if any(bool(x[m].any()) for x in (q, k, v))]
        ends = tuple(there) or (0,)
        if not pays(len(ends), *sizes):
            return None
        queries = [scaling * q[n][:, rows] for n in ends]
        products = [[grouped(x, k[m].transpose(-1, -2)) for m in ends] for x in queries]
        return cls(along, rows, ends, products, [v[m] for m in ends])

    def select(self, rows: Tensor) -> FewRows:
        """Those of some of the rows: ``(R',)`` indices into them."""
        products = [[x[:, rows] for x in each] for each in self.products]
        return replace(self, rows=self.rows[rows], products=products)

    def at(self, alphas: Tensor) -> tuple[Tensor, Tensor, Tensor, WeightedValues]:
        """Logits, their derivatives by the sources as keys and by the targets as queries, values.

        ``(P, H, R, S)`` each at ``alphas (P,)``, without mask and cap.
        """
        found = self.along.weights(alphas)
        weights, rates = ([each[m] for m in self.ends] for each in found)
        at_rows = [[self._of_rows(x) for x in each] for each in (weights, rates)]
        keys, key_rates = ([x[:, None, None] for x in each] for each in (weights, rates))
        of_keys = list(zip(*self.products, strict=True))
        contents, moved = ([sum_of(each, products) for products in of_keys] for each in at_rows)
        logits, ds_key = sum_of(keys, contents), sum_of(key_rates, contents)
        ds_query = sum_of(keys, moved)
        groups = len(self.products[0][0]) // len(self.values[0])
        values = WeightedValues(weights, rates, self.values, groups)
        return logits, ds_key, ds_query, values

    def _of_rows(self, weights: Tensor) -> Tensor:
        """Weights ``(P, S or 1)`` of the rows, ``(P, 1, R or 1, 1)``."""
        own = weights if weights.shape[1] == 1 else weights[:, self.rows]
        return own[:, None, :, None]


def pays(ends: int, rows: int, heads: int, key_heads: int, width: int) -> bool:
    """Whether products of the ends, for each source, are fewer numbers than the tables are."""
    return ends**2 * heads * rows <= 2 * (heads + 2 * key_heads) * width


def _apart(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bias, and start and end without it."""
    bias, at_start, at_end = table
    return bias, at_start - bias, at_end - bias
