"""The values that the rows of a path's points mix: shared, or each row's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_lig.paths.norm import Mixture

__all__ = [
    "MixtureValues",
    "PairValues",
    "SharedValues",
    "Values",
    "WeightedValues",
    "grouped",
    "pairs",
    "sum_of",
]


class Values(Protocol):
    """The values ``v_i`` that the rows of a point set mix; ``(..., S)`` stands for its layout."""

    def mix(self, p: Tensor) -> Tensor:
        """``sum_i p_i v_i`` for ``p (..., S)``, ``(..., d)``."""

    def mix_rates(self, p: Tensor) -> Tensor:
        """``sum_i p_i v'_i`` for ``p (..., S)``, ``(..., d)``."""

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """``g.v_i`` and ``g.v'_i`` for ``g (..., d)``, ``(..., S)`` each."""

    def pairs(self) -> tuple[Tensor, Tensor]:
        """``v_i`` and ``v'_i`` of each row, ``(..., S, d)`` each, some axes of length 1."""

    @property
    def reference(self) -> Tensor | float:
        """What is left out of every value of a row ``(..., d)``, the same all along the path.

        The rates do not depend on it, and without it a head that hardly moves (it looks at the
        target itself, which stays put) is not lost in rounding.
        """


def grouped(x: Tensor, y: Tensor) -> Tensor:
    """``x (..., H, R, m) @ y (..., Hkv, m, n)``: query heads share key heads in runs."""
    by_key_head = x.reshape(*x.shape[:-3], y.shape[-3], -1, x.shape[-1])
    return (by_key_head @ y).view(*x.shape[:-1], y.shape[-1])


def pairs(x: Tensor, y: Tensor) -> Tensor:
    """``x (P, R, H, m)`` with ``y (P, R, Hkv, m, n)``: each row has keys of its own."""
    return grouped(x.unsqueeze(-2), y).squeeze(-2)


def sum_of(weights: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """``sum_m w_m x_m``, whatever their shapes are."""
    parts = [w * x for w, x in zip(weights, tables, strict=True)]
    return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class SharedValues:
    """``v``, ``v'``: ``(P, Hkv, S, d)``; rows ``(P, H, R, .)``."""

    v: Tensor
    dv: Tensor
    groups: int
    """Query heads that share a key head."""

    def mix(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return grouped(p, self.v)

    def mix_rates(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return grouped(p, self.dv)

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        return grouped(g, self.v.transpose(-1, -2)), grouped(g, self.dv.transpose(-1, -2))

    def pairs(self) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        v, dv = (x.repeat_interleave(self.groups, 1).unsqueeze(2) for x in (self.v, self.dv))
        return v, dv

    @property
    def reference(self) -> float:
        """Nothing is left out."""
        return 0.0


@dataclass(frozen=True)
class WeightedValues:
    """``v_i = sum_m w_mi V_mi``; rows ``(P, H, R, .)``."""

    weights: list[Tensor]
    """``(P, S or 1)`` of each table."""
    rates: list[Tensor]
    """Their derivatives."""
    tables: list[Tensor]
    """``(Hkv, S, d)`` each."""
    groups: int
    """Query heads that share a key head."""

    def _mix(self, p: Tensor, weights: list[Tensor]) -> Tensor:
        mixed = [
            grouped(p * w[:, None, None], x) for w, x in zip(weights, self.tables, strict=True)
        ]
        return sum(mixed[1:], mixed[0])

    def mix(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return self._mix(p, self.weights)

    def mix_rates(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return self._mix(p, self.rates)

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        products = [grouped(g, table.transpose(-1, -2)) for table in self.tables]
        values, rates = (
            sum_of([w[:, None, None] for w in each], products)
            for each in (self.weights, self.rates)
        )
        return values, rates

    def pairs(self) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        tables = [x.repeat_interleave(self.groups, 0)[None, :, None] for x in self.tables]
        v, dv = (
            sum_of([w[:, None, None, :, None] for w in each], tables)
            for each in (self.weights, self.rates)
        )
        return v, dv

    @property
    def reference(self) -> float:
        """Nothing is left out."""
        return 0.0


@dataclass(frozen=True)
class MixtureValues:
    """``v_ji = b + w0_ji start_j + w1_ji end_i``; rows ``(H, P, R, .)``, weights ``(P, R, S)``.

    Without ``b + start_j``, the target's own value: ``(w0_ji - 1) start_j + w1_ji end_i``.
    """

    w: Mixture
    """0 where the value is the target's own, ``(P, R, S)``."""
    start: Tensor
    """``(H, R, d)``"""
    end: Tensor
    """``(Hkv, S, d)``"""
    bias: Tensor
    """``(H, d)``"""

    def _mix(self, p: Tensor, start: Tensor, end: Tensor) -> Tensor:
        from_start = torch.einsum("hprs,prs->hpr", p, start)
        from_end = grouped((p * end).flatten(1, 2), self.end).view(*p.shape[:3], -1)
        return torch.addcmul(from_end, from_start.unsqueeze(-1), self.start[:, None])

    def mix(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return self._mix(p, self.w.less_one, self.w.end)

    def mix_rates(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return self._mix(p, self.w.d_start, self.w.d_end)

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        start = (g * self.start[:, None]).sum(-1, keepdim=True)
        end = grouped(g.flatten(1, 2), self.end.transpose(-1, -2)).view(*g.shape[:3], -1)
        w = self.w
        values = (w.end * end).addcmul_(w.less_one, start)
        return values, end.mul_(w.d_end).addcmul_(w.d_start, start)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        start = self.start[:, None, :, None]
        end = self.end.repeat_interleave(len(self.start) // len(self.end), 0)[:, None, None]
        w = self.w
        return (
            w.less_one.unsqueeze(-1) * start + w.end.unsqueeze(-1) * end,
            w.d_start.unsqueeze(-1) * start + w.d_end.unsqueeze(-1) * end,
        )

    @property
    def reference(self) -> Tensor:
        """The target's own value, ``(H, 1, R, d)``."""
        return (self.bias[:, None] + self.start)[:, None]


@dataclass(frozen=True)
class PairValues:
    """``v``, ``v'``: ``(P, R, Hkv, S, d)``; rows ``(P, R, H, .)``."""

    v: Tensor
    dv: Tensor
    own: Tensor
    """``(P, R, Hkv, d)`` the target's own value where the path does not move it, else 0."""
    groups: int
    """Query heads that share a key head."""

    def mix(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return pairs(p, self._apart)

    def mix_rates(self, p: Tensor) -> Tensor:
        """See :class:`Values`."""
        return pairs(p, self.dv)

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        return pairs(g, self._apart.transpose(-1, -2)), pairs(g, self.dv.transpose(-1, -2))

    def pairs(self) -> tuple[Tensor, Tensor]:
        """See :class:`Values`."""
        return (
            self._apart.repeat_interleave(self.groups, 2),
            self.dv.repeat_interleave(self.groups, 2),
        )

    @property
    def reference(self) -> Tensor:
        """The target's own value where the path does not move it."""
        return self.own.repeat_interleave(self.groups, 2)

    @property
    def _apart(self) -> Tensor:
        return self.v - self.own.unsqueeze(-2)
