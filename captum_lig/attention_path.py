"""The attention boundary without autograd: tensors only, knows no model.

For one head and target ``j``: logits ``s_i = scale q.k_i + mask_i``, ``p = softmax(s)``,
``u = sum_i p_i v_i``. With dots for derivatives along the path and ``g`` a cotangent of ``u``:

    rate of source i as key and value:   p_i (g.v'_i) + r_i (scale q.k'_i)
    rate of the query, on i = j:         sum_i r_i (scale q'.k_i)
    with r_i = p_i (g.v_i - g.u).

A *path* holds what does not change along it, for some rows (targets); ``path.at(alphas)`` is a
:class:`PointSet`, the state of the attention core at ``P`` path points. Shapes: ``P`` path points,
``H`` heads, ``R`` rows, ``S`` sources, ``d`` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from captum_lig.closed_form import QKV, Mixture, Norm, Pre

__all__ = [
    "AttentionPath",
    "ByRunning",
    "ClosedForm",
    "PerTargetPath",
    "PointSet",
    "SharedPath",
    "TargetTokenPath",
]


class AttentionPath(Protocol):
    """A path of the residual stream as the attention core sees it."""

    def at(self, alphas: Tensor) -> PointSet:
        """The attention core at ``alphas (P,)``."""

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""

    def select(self, rows: Tensor) -> AttentionPath:
        """The same path for some of its rows: ``(R',)`` indices into them."""

    def double(self) -> AttentionPath:
        """The same path with the attention core in float64."""


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


@dataclass(frozen=True)
class PointSet:
    """The attention core at ``P`` points of a path.

    ``p`` and the derivatives of the logits are ``(..., S)``, with the first three axes in the
    order that suits the path; ``to_layout`` brings ``(P, R, H)`` there.
    """

    p: Tensor
    ds_key: Tensor
    """Derivative of the logits by the sources as keys."""
    ds_query: Tensor | None
    """Derivative of the logits by the target as query; None if the query is constant."""
    values: Values
    to_layout: tuple[int, int, int]
    rows: Tensor
    """``(R,)`` the rows' places among the sources."""
    frozen: Tensor | None
    """``(R, S)`` sources that the path does not move, or None if that is left to arithmetic."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_mixed", self.values.mix(self.p))

    def _in(self, x: Tensor) -> Tensor:
        return x.permute(*self.to_layout, 3)

    def _out(self, x: Tensor) -> Tensor:
        back = [self.to_layout.index(axis) for axis in range(3)]
        return x.permute(*back, 3)

    @property
    def u(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs."""
        return self._out(self._mixed + self.values.reference)  # type: ignore[attr-defined]

    @property
    def moved(self) -> Tensor:
        """``(P, R, H, d)`` attention outputs, up to a constant of the row."""
        return self._out(self._mixed)  # type: ignore[attr-defined]

    @property
    def self_weights(self) -> Tensor:
        """``(P, R, H)`` attention weights of the rows on themselves."""
        p = self._out(self.p)
        own = self.rows.view(1, -1, 1, 1).expand(*p.shape[:3], 1)
        return p.gather(-1, own).squeeze(-1)

    def velocity(self) -> Tensor:
        """``(P, R, H, d)`` derivative of ``u`` along the path."""
        ds = self.ds_key if self.ds_query is None else self.ds_key + self.ds_query
        dp = self.p * (ds - (self.p * ds).sum(-1, keepdim=True))
        return self._out(self.values.mix_rates(self.p) + self.values.mix(dp))

    def rates(self, g: Tensor) -> Tensor:
        """Contribution rates for cotangents ``g (P, R, H, d)``, summed over the points.

        Rates are linear in ``g``: to integrate, multiply it by the quadrature's weights.

        Returns:
            ``(H, R, S)``.
        """
        g = self._in(g)
        gv, gdv = self.values.dots(g)
        # In place: at hundreds of tokens these tensors are larger than any cache.
        gv -= (g * self._mixed).sum(-1, keepdim=True)  # type: ignore[attr-defined]
        query = None
        if self.ds_query is not None:
            query = torch.einsum("...s,...s,...s->...", self.p, gv, self.ds_query)
            query = self._sum(query.unsqueeze(-1)).squeeze(-1)
        rates = self._sum(gv.mul_(self.ds_key).add_(gdv).mul_(self.p))
        if query is not None:
            rates[:, torch.arange(len(self.rows), device=g.device), self.rows] += query
        return rates if self.frozen is None else rates.masked_fill_(self.frozen, 0.0)

    def vectors(self) -> Tensor:
        """Contribution rates of each source as vectors, ``(P, R, S, H, d)``.

        ``rates`` are their scalar products with ``g``: ``p_i v'_i + p_i s'_i (v_i - u)``, and for
        the target as query the sum of ``p_k s'_k (v_k - u)``.
        """
        mixed: Tensor = self._mixed  # type: ignore[attr-defined]
        v, dv = self.values.pairs()
        weight = (self.p * self.ds_key).unsqueeze(-1)
        rates = self.p.unsqueeze(-1) * dv + weight * (v - mixed.unsqueeze(-2))
        rates = rates.permute(*(self.to_layout.index(axis) for axis in range(3)), 3, 4)
        rates = rates.transpose(2, 3).contiguous()  # (P, R, S, H, d)
        if self.ds_query is not None:
            moved = self.p * self.ds_query
            query = self._out(self.values.mix(moved) - moved.sum(-1, keepdim=True) * mixed)
            rates[:, torch.arange(len(self.rows), device=rates.device), self.rows] += query
        if self.frozen is not None:
            rates.masked_fill_(self.frozen[:, :, None, None], 0.0)
        return rates

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over the points: layout ``(..., S)`` to ``(H, R, S)``."""
        axis = self.to_layout.index(0)
        summed = x.sum(axis)
        return (
            summed if self.to_layout.index(2) < self.to_layout.index(1) else summed.transpose(0, 1)
        )


# --- one path for all targets -----------------------------------------------------------------


@dataclass(frozen=True)
class Along:
    """Queries, keys, values and their derivatives at ``P`` points, ``(P, heads, S, d)`` each."""

    q: Tensor
    k: Tensor
    v: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


@dataclass(frozen=True)
class ClosedForm:
    """``pre`` along a path from tables at its two ends, without running the block."""

    norm: Norm
    tables: QKV
    """Of the zero vector, the start and the end, ``(3, heads, S, d)`` each."""
    moments: tuple[Tensor, Tensor, Tensor]
    """``(S,)`` mean squares of the start and of the end, and their mean product."""

    @classmethod
    def between(cls, norm: Norm, pre: Pre, start: Tensor, end: Tensor) -> ClosedForm:
        """From ``start`` to ``end``, both ``(S, D)``."""
        c0, c1 = norm.center(start), norm.center(end)
        moments = tuple(x.mean(-1) for x in (c0 * c0, c1 * c1, c0 * c1))
        return cls(norm, pre(torch.stack([torch.zeros_like(end), start, end])), moments)  # type: ignore[arg-type]

    def double(self) -> ClosedForm:
        """The same in float64."""
        q, k, v = self.tables
        return ClosedForm(self.norm, (q.double(), k.double(), v.double()), self.moments)

    def __call__(self, alphas: Tensor) -> Along:
        """At ``alphas (P,)``."""
        w = self.norm.mixture(*self.moments, alphas).to(self.tables[0].dtype)
        values, rates = [], []
        for bias, at_start, at_end in self.tables:
            from_start, from_end = at_start - bias, at_end - bias
            values.append(bias + _weigh(w.start, from_start) + _weigh(w.end, from_end))
            rates.append(_weigh(w.d_start, from_start) + _weigh(w.d_end, from_end))
        return Along(*values, *rates)


def _weigh(weights: Tensor, table: Tensor) -> Tensor:
    """``(P, S or 1)`` times ``(heads, S, d)`` to ``(P, heads, S, d)``."""
    return weights[:, None, :, None] * table


@dataclass(frozen=True)
class ByRunning:
    """``pre`` along ``start -> end`` (``(..., S, D)``) by running the block: always right.

    The points' axis comes out as ``P`` times the leading axes of the path.
    """

    pre: Pre
    start: Tensor
    end: Tensor
    in_double: bool = False
    """Whether what follows is to be computed in float64; the block runs as it is."""

    def double(self) -> ByRunning:
        """What follows in float64."""
        return replace(self, in_double=True)

    def __call__(self, alphas: Tensor) -> Along:
        """At ``alphas (P,)``."""
        step = self.end - self.start
        a = alphas.to(step.dtype).view(-1, *[1] * step.dim())
        points = (self.start + a * step).reshape(-1, *step.shape[-2:])
        tangents = step.expand(len(alphas), *step.shape).reshape(points.shape)
        values, rates = torch.func.jvp(self.pre, (points,), (tangents,))  # type: ignore[misc]
        found = [x.detach() for x in (*values, *rates)]
        return Along(*(x.double() for x in found)) if self.in_double else Along(*found)


@dataclass(frozen=True)
class SharedPath:
    """All targets share one path of the residual stream ``(S, D)``."""

    along: ClosedForm | ByRunning
    rows: Tensor
    scaling: float
    mask: Tensor | None
    """``(1 or H, T, S)``"""
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
        logits = _grouped(q, x.k.transpose(-1, -2))
        if self.mask is not None:
            logits = logits + self.mask[:, self.rows]
        return PointSet(
            p=torch.softmax(logits, -1),
            ds_key=_grouped(q, x.dk.transpose(-1, -2)),
            ds_query=_grouped(dq, x.k.transpose(-1, -2)),
            values=_SharedValues(x.v, x.dv, x.q.shape[1] // x.k.shape[1]),
            to_layout=(0, 2, 1),
            rows=self.rows,
            frozen=self.frozen,
        )


def _grouped(x: Tensor, y: Tensor) -> Tensor:
    """``x (..., H, R, m) @ y (..., Hkv, m, n)``: query heads share key heads in runs."""
    by_key_head = x.reshape(*x.shape[:-3], y.shape[-3], -1, x.shape[-1])
    return (by_key_head @ y).view(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True)
class _SharedValues:
    """``v``, ``v'``: ``(P, Hkv, S, d)``; rows ``(P, H, R, .)``."""

    v: Tensor
    dv: Tensor
    groups: int
    """Query heads that share a key head."""

    def mix(self, p: Tensor) -> Tensor:
        return _grouped(p, self.v)

    def mix_rates(self, p: Tensor) -> Tensor:
        return _grouped(p, self.dv)

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return (
            _grouped(g, self.v.transpose(-1, -2)),
            _grouped(g, self.dv.transpose(-1, -2)),
        )

    def pairs(self) -> tuple[Tensor, Tensor]:
        v, dv = (x.repeat_interleave(self.groups, 1).unsqueeze(2) for x in (self.v, self.dv))
        return v, dv

    @property
    def reference(self) -> float:
        return 0.0


# --- target_token: for target j every source starts as z_j ------------------------------------


@dataclass(frozen=True)
class TargetTokenPath:
    """Paths from ``z_j`` for each target ``j``, in closed form: no projection along the path.

    Logits and values are mixtures, with scalar weights, of tables made once; the query is
    constant. The values' bias is the same at each source.
    """

    rows: Tensor
    weights: Callable[[Tensor, Tensor | None], Mixture]
    bias_logits: Tensor
    """``scale q_j.b_i + mask_ji``, ``(H, R, S)``."""
    start_logits: Tensor
    """``scale q_j.(k_i(z_j) - b_i)``, ``(H, R, S or 1)``."""
    end_logits: Tensor
    """``scale q_j.(k_i(z_i) - b_i)``, ``(H, R, S)``."""
    start_values: Tensor
    """``v(z_j) - b``, ``(H, R, d)``."""
    end_values: Tensor
    """``v(z_i) - b``, ``(Hkv, S, d)``."""
    bias_values: Tensor
    """``b``, ``(H, d)``."""
    frozen: Tensor
    """``(R, S)`` where ``z_i`` is ``z_j``."""
    selected: Tensor | None = None

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""
        return self.frozen.shape[1]

    def select(self, rows: Tensor) -> TargetTokenPath:
        """The same paths for some of their rows."""
        return replace(
            self,
            rows=self.rows[rows],
            bias_logits=self.bias_logits[:, rows],
            start_logits=self.start_logits[:, rows],
            end_logits=self.end_logits[:, rows],
            start_values=self.start_values[:, rows],
            frozen=self.frozen[rows],
            selected=rows if self.selected is None else self.selected[rows],
        )

    def double(self) -> TargetTokenPath:
        """The same paths in float64."""
        tables = [f.name for f in fields(self) if f.name.endswith(("_logits", "_values"))]
        return replace(self, **{name: getattr(self, name).double() for name in tables})

    def at(self, alphas: Tensor) -> PointSet:
        """Layout ``(H, P, R, S)``."""
        w = self.weights(alphas, self.selected).to(self.end_logits.dtype)  # (P, R or 1, S or 1)
        start, end = self.start_logits[:, None], self.end_logits[:, None]
        logits = torch.addcmul(self.bias_logits[:, None], w.start, start).addcmul_(w.end, end)
        ds = (w.d_start * start).expand_as(logits).addcmul(w.d_end, end)
        return PointSet(
            p=torch.softmax(logits, -1),
            ds_key=ds.masked_fill_(self.frozen, 0.0),
            ds_query=None,
            values=_MixtureValues(
                w, self.start_values, self.end_values, self.bias_values, self.frozen
            ),
            to_layout=(2, 0, 1),
            rows=self.rows,
            frozen=self.frozen,
        )


def target_token_weights(
    norm: Norm, z: Tensor, rows: Tensor
) -> Callable[[Tensor, Tensor | None], Mixture]:
    """Weights ``(P, R, S)`` of the paths from ``z[rows]`` to each token of ``z (S, D)``."""
    c = norm.center(z)
    gram = c[rows] @ c.T / c.shape[-1]
    square = (c * c).mean(-1)

    def weights(alphas: Tensor, selected: Tensor | None) -> Mixture:
        start, dot = square[rows][:, None], gram
        if selected is not None:
            start, dot = start[selected], dot[selected]
        return norm.mixture(start, square[None], dot, alphas)

    return weights


@dataclass(frozen=True)
class _MixtureValues:
    """``v_ji = b + w0_ji start_j + w1_ji end_i``; rows ``(H, P, R, .)``, weights ``(P, R, S)``.

    Without ``b + start_j``, the target's own value: ``(w0_ji - 1) start_j + w1_ji end_i``.
    """

    w: Mixture
    start: Tensor
    """``(H, R, d)``"""
    end: Tensor
    """``(Hkv, S, d)``"""
    bias: Tensor
    """``(H, d)``"""
    frozen: Tensor
    """``(R, S)`` where the value is the target's own."""

    def _mix(self, from_start: Tensor, from_end: Tensor) -> Tensor:
        end = _grouped(from_end.flatten(1, 2), self.end).view(*from_end.shape[:3], -1)
        return from_start.sum(-1, keepdim=True) * self.start[:, None] + end

    def mix(self, p: Tensor) -> Tensor:
        p = p.masked_fill(self.frozen, 0.0)
        return self._mix(p * self.w.less_one, p * self.w.end)

    def mix_rates(self, p: Tensor) -> Tensor:
        p = p.masked_fill(self.frozen, 0.0)
        return self._mix(p * self.w.d_start, p * self.w.d_end)

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        start = (g * self.start[:, None]).sum(-1, keepdim=True)
        end = _grouped(g.flatten(1, 2), self.end.transpose(-1, -2)).view(*g.shape[:3], -1)
        w = self.w
        return (
            (w.less_one * start).expand_as(end).addcmul(w.end, end),
            (w.d_start * start).expand_as(end).addcmul(w.d_end, end),
        )

    def pairs(self) -> tuple[Tensor, Tensor]:
        start = self.start[:, None, :, None]
        end = self.end.repeat_interleave(len(self.start) // len(self.end), 0)[:, None, None]
        w = self.w
        return (
            w.less_one.unsqueeze(-1) * start + w.end.unsqueeze(-1) * end,
            w.d_start.unsqueeze(-1) * start + w.d_end.unsqueeze(-1) * end,
        )

    @property
    def reference(self) -> Tensor:
        return (self.bias[:, None] + self.start)[:, None]


# --- a path for each target, whatever it is ---------------------------------------------------


@dataclass(frozen=True)
class PerTargetPath:
    """Each target's own path ``(S, D)``, by running the block on it: slow, and always right."""

    along: ByRunning
    """From ``(R, S, D)``."""
    rows: Tensor
    scaling: float
    mask: Tensor | None
    frozen: Tensor

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
        logits = _pairs(q, k.transpose(-1, -2))
        if self.mask is not None:
            logits = logits + self.mask[:, self.rows].transpose(0, 1)
        return PointSet(
            p=torch.softmax(logits, -1),
            ds_key=_pairs(q, dk.transpose(-1, -2)),
            ds_query=_pairs(dq, k.transpose(-1, -2)),
            values=_PairValues(v, dv, self._own(v), q.shape[2] // k.shape[2]),
            to_layout=(0, 1, 2),
            rows=self.rows,
            frozen=self.frozen,
        )

    def _own(self, v: Tensor) -> Tensor:
        """``(P, R, Hkv, d)`` the value of the targets that the path does not move, else 0."""
        count = torch.arange(len(self.rows), device=v.device)
        own = v[:, count, :, self.rows].transpose(0, 1)
        return own * self.frozen[count, self.rows][:, None, None]


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    """``x (P, R, H, m)`` with ``y (P, R, Hkv, m, n)``: each row has keys of its own."""
    return _grouped(x.unsqueeze(-2), y).squeeze(-2)


@dataclass(frozen=True)
class _PairValues:
    """``v``, ``v'``: ``(P, R, Hkv, S, d)``; rows ``(P, R, H, .)``."""

    v: Tensor
    dv: Tensor
    own: Tensor
    """``(P, R, Hkv, d)``"""
    groups: int
    """Query heads that share a key head."""

    def mix(self, p: Tensor) -> Tensor:
        return _pairs(p, self._apart)

    def mix_rates(self, p: Tensor) -> Tensor:
        return _pairs(p, self.dv)

    def dots(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return _pairs(g, self._apart.transpose(-1, -2)), _pairs(g, self.dv.transpose(-1, -2))

    def pairs(self) -> tuple[Tensor, Tensor]:
        return (
            self._apart.repeat_interleave(self.groups, 2),
            self.dv.repeat_interleave(self.groups, 2),
        )

    @property
    def reference(self) -> Tensor:
        return self.own.repeat_interleave(self.groups, 2)

    @property
    def _apart(self) -> Tensor:
        return self.v - self.own.unsqueeze(-2)
