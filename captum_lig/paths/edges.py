"""What each source contributes to each head's output along a straight line of the tokens.

For a given cotangent of the attention outputs, at some points of the line: in closed form, from
queries, keys and values; or by moving one source at a time through the block, where these are hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_lig._types import Attend
from captum_lig.paths.jvp import jvp
from captum_lig.paths.shared import SharedPath

__all__ = ["Edges", "edges_by_moving", "edges_in_closed_form"]

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
    at_once = max(1, AT_ONCE // len(step))

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
