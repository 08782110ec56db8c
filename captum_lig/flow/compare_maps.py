"""How far two maps ``[target, source]`` are apart, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig.errors import LigError, out_of_memory
from captum_lig.flow.shown import Short

__all__ = ["Comparison", "compare_maps"]


@dataclass(frozen=True, repr=False)
class Comparison(Short):
    """Measures of each row, ``(..., T)``, in float64."""

    l2: Tensor
    """``||direct - composed||``, in the units of the maps."""
    relative_l2: Tensor
    """``||direct - composed|| / ||direct||``; NaN where the direct row is all 0."""
    pearson: Tensor
    """Correlation over the visible sources; NaN where either row is constant on them."""
    spearman: Tensor
    """Correlation of ranks, ties sharing their mean rank; NaN where ``pearson`` is."""


def compare_maps(direct: Tensor, composed: Tensor, visible: Tensor | None = None) -> Comparison:
    """Compare the rows of two maps.

    Args:
        direct: ``(..., T, S)`` the reference.
        composed: the same shape, or one that broadcasts with it.
        visible: ``(T, S)`` which sources a target can see; both maps are 0 elsewhere, which says
            nothing about their likeness and so does not enter correlations. None: all.

    Raises:
        LigError: if the shapes do not fit.
    """
    try:
        direct, composed = torch.broadcast_tensors(direct.double(), composed.double())
        seen = torch.ones_like(direct, dtype=torch.bool)
        if visible is not None:
            seen = seen & visible.expand(direct.shape)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        shapes = [tuple(x.shape) for x in (direct, composed)]
        raise LigError(
            f"maps of shapes {shapes[0]} and {shapes[1]} "
            + ("" if visible is None else f"(visible: {tuple(visible.shape)}) ")
            + "cannot be compared: give (..., T, S) each."
        ) from error
    l2 = torch.linalg.vector_norm(direct - composed, dim=-1)
    size = torch.linalg.vector_norm(direct, dim=-1)
    varied = _varies(direct, seen) & _varies(composed, seen)
    ranks = _ranks(direct, seen), _ranks(composed, seen)
    return Comparison(
        l2=l2,
        relative_l2=torch.where(size > 0, l2 / size, torch.nan),
        pearson=torch.where(varied, _correlation(direct, composed, seen), torch.nan),
        spearman=torch.where(varied, _correlation(*ranks, seen), torch.nan),
    )


def _varies(x: Tensor, seen: Tensor) -> Tensor:
    highest = x.masked_fill(~seen, -torch.inf).amax(-1)
    lowest = x.masked_fill(~seen, torch.inf).amin(-1)
    return highest > lowest


def _ranks(x: Tensor, seen: Tensor) -> Tensor:
    """Ranks among the visible entries of a row; equal entries share their mean rank."""
    x = x.masked_fill(~seen, torch.inf).contiguous()
    ordered = x.sort(-1).values
    below = torch.searchsorted(ordered, x, right=False)
    not_above = torch.searchsorted(ordered, x, right=True)
    return (below + not_above + 1).double() / 2


def _correlation(x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    count = seen.sum(-1, keepdim=True)

    def centred(v: Tensor) -> Tensor:
        v = torch.where(seen, v, 0.0)
        v = torch.where(seen, v - v.sum(-1, keepdim=True) / count, 0.0)
        # Of unit length before they meet: products of small numbers would be lost.
        return v / v.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)

    x, y = centred(x), centred(y)
    length = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
    found: Tensor = (x * y).sum(-1) / length
    return found.clamp(-1, 1)
