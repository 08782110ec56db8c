"""What each source contributes to each head's output along a straight line of the tokens.

For a given cotangent of the attention outputs, at some points of the line: in closed form, from
queries, keys and values; or by moving one source at a time through the block, where these are
hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_lig._types import QKV, Attend
from captum_lig.paths.jvp import jvp
from captum_lig.paths.memory import shares
from captum_lig.paths.shared import SharedPath
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.values import grouped

__all__ = ["Edges", "cross_edges", "edges_by_moving", "edges_in_closed_form"]

Edges = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Points ``a (P,)`` and cotangents ``(P, T, H, d)`` to edges ``(H, T, S)``, summed over the points,
and their part through the values, None if that is hidden."""

AT_ONCE = 4096
"""Tokens that go through the block at once."""


def edges_in_closed_form(path: SharedPath) -> Edges:
    """Edges from queries, keys and values along the line."""

    def edges(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return path.at(a).edges(g)

    return edges


def edges_by_moving(attend: Attend, start: Tensor, end: Tensor) -> Edges:
    """Edges by one Jacobian-vector product per source and point.

    Args:
        attend: ``(N, S, D)`` to ``(N, T, H, d)``.
        start: ``(S, D)`` where the line starts.
        end: ``(S, D)`` where it ends.
    """
    step = end - start
    moving = (step != 0).any(-1).nonzero().squeeze(-1)
    at_once = max(1, AT_ONCE // len(step) // shares())

    def edges(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor | None]:
        found = g.new_zeros(g.shape[2], g.shape[1], len(step))
        for point, own in zip(a.to(step), g, strict=True):
            z = start + point * step
            for sources in moving.split(at_once):
                tangent = step.new_zeros(len(sources), *step.shape)
                tangent[torch.arange(len(sources), device=step.device), sources] = step[sources]
                rate = jvp(attend, (z.expand_as(tangent),), (tangent,))[1]
                found[:, :, sources] += torch.einsum("sthd,thd->hts", rate.to(own), own)
        return found, None

    return edges


def cross_edges(
    core: Callable[..., QKV],
    starts: Sequence[Tensor],
    ends: Sequence[Tensor],
    scaling: float,
    mask: Tensor | None,
    row: RowFunction,
) -> Edges:
    """Edges of a cross-attention along the straight line of all that it reads.

    Args:
        core: those arguments ``(N, ...)`` to queries ``(N, H, T, d)``, keys and values of the
            encoder's tokens ``(N, Hkv, S, d)``.
        starts: where the lines of the arguments start, without the axis of points.
        ends: where they end.
        scaling: of the logits.
        mask: ``(1 or H, T, S)`` to add to the logits, or None.
        row: from logits to weights.

    Returns:
        Edges ``(H, T, S + 1)``: what the queries bring stands last.
    """
    steps = [end - start for start, end in zip(starts, ends, strict=True)]

    def edges(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor | None]:
        points, tangents = [], []
        for start, step in zip(starts, steps, strict=True):
            at = a.to(step).view(-1, *[1] * step.dim())
            points.append(start + at * step)
            tangents.append(step.expand_as(points[-1]))
        (q, k, v), (dq, dk, dv) = jvp(core, tuple(points), tuple(tangents))
        weights = row(scaling * grouped(q, k.transpose(-1, -2)), mask, heads=1)
        g = g.transpose(1, 2)  # (P, H, T, d)
        p, gv = weights.p, grouped(g, v.transpose(-1, -2))
        reach = p * (gv - (p * gv).sum(-1, keepdim=True))
        values = p * grouped(g, dv.transpose(-1, -2))
        keys = reach * weights.capped(scaling * grouped(q, dk.transpose(-1, -2)))
        queries = reach * weights.capped(scaling * grouped(dq, k.transpose(-1, -2)))
        through = torch.cat([values + keys, queries.sum(-1, keepdim=True)], -1)
        return through.sum(0), None

    return edges
