"""Queries, keys and values along a path: from tables at its ends, or by running the block."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_lig._types import QKV, Pre
from captum_lig.paths.jvp import jvp
from captum_lig.paths.norm import Norm

__all__ = ["QKVByRunning", "QKVClosedForm", "QKVPoints"]


@dataclass(frozen=True)
class QKVPoints:
    """Queries, keys, values and their derivatives at ``P`` points, ``(P, heads, S, d)`` each."""

    q: Tensor
    k: Tensor
    v: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


@dataclass(frozen=True)
class QKVClosedForm:
    """``pre`` along a path from tables at its two ends, without running the block."""

    norm: Norm
    tables: QKV
    """Of the zero vector, the start and the end, ``(3, heads, S, d)`` each."""
    moments: tuple[Tensor, Tensor, Tensor]
    """``(S,)`` mean squares of the start and of the end, and their mean product."""

    @classmethod
    def between(
        cls, norm: Norm, pre: Pre, start: Tensor, end: Tensor, tables: QKV | None = None
    ) -> QKVClosedForm:
        """From ``start`` to ``end``, both ``(S, D)``.

        ``tables`` are those of the zero vector and of ``end``, ``(2, heads, S, d)`` each, if they
        are known.
        """
        c0, c1 = norm.center(start), norm.center(end)
        moments = (c0 * c0).mean(-1), (c1 * c1).mean(-1), (c0 * c1).mean(-1)
        if tables is None:
            return cls(norm, pre(torch.stack([torch.zeros_like(end), start, end])), moments)
        bias, at_end = zip(*(table.split(1) for table in tables), strict=True)
        at_start = pre(start[None]) if bool(start.any()) else bias
        q, k, v = (torch.cat(three) for three in zip(bias, at_start, at_end, strict=True))
        return cls(norm, (q, k, v), moments)

    def double(self) -> QKVClosedForm:
        """The same in float64."""
        q, k, v = self.tables
        return QKVClosedForm(self.norm, (q.double(), k.double(), v.double()), self.moments)

    def weights(self, alphas: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of the bias, the start and the end at ``alphas (P,)``, and their derivatives.

        Three of ``(P, S or 1)`` each; start and end count without the bias.
        """
        w = self.norm.mixture(*self.moments, alphas).to(self.tables[0].dtype)
        one = torch.ones_like(w.end[:, :1])
        return [one, w.start, w.end], [torch.zeros_like(one), w.d_start, w.d_end]

    def __call__(self, alphas: Tensor) -> QKVPoints:
        """At ``alphas (P,)``."""
        (_, *weights), (_, *rates) = self.weights(alphas)
        values, changes = [], []
        for bias, at_start, at_end in self.tables:
            ends = at_start - bias, at_end - bias
            start, end = map(_weigh, weights, ends)
            values.append(bias + start + end)
            start, end = map(_weigh, rates, ends)
            changes.append(start + end)
        return QKVPoints(*values, *changes)


def _weigh(weights: Tensor, table: Tensor) -> Tensor:
    """``(P, S or 1)`` times ``(heads, S, d)`` to ``(P, heads, S, d)``."""
    return weights[:, None, :, None] * table


@dataclass(frozen=True)
class QKVByRunning:
    """``pre`` from ``start (..., S or 1, D)`` to ``end (S, D)`` by running the block: always right.

    The points' axis comes out as ``P`` times the leading axes of the path.
    """

    pre: Pre
    start: Tensor
    end: Tensor
    in_double: bool = False
    """Whether what follows is to be computed in float64; the block runs as it is."""

    def double(self) -> QKVByRunning:
        """What follows in float64."""
        return replace(self, in_double=True)

    def __call__(self, alphas: Tensor) -> QKVPoints:
        """At ``alphas (P,)``."""
        step = self.end - self.start
        a = alphas.to(step.dtype).view(-1, *[1] * step.dim())
        points = (self.start + a * step).reshape(-1, *step.shape[-2:])
        tangents = step.expand(len(alphas), *step.shape).reshape(points.shape)
        values, rates = jvp(self.pre, (points,), (tangents,))
        found = (*values, *rates)
        return QKVPoints(*(x.double() for x in found)) if self.in_double else QKVPoints(*found)
