"""Which edges or nodes a circuit of some size keeps, by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = ["Order", "kept_by_score"]

Order = Literal["size", "signed"]


def kept_by_score(scores: Tensor, shares: Sequence[float], order: Order = "size") -> Tensor:
    """The circuits that keep the best shares of all.

    Args:
        scores: ``(M,)``; NaN comes last.
        shares: ``(K,)`` parts of all, from 0 to 1; their numbers are rounded.
        order: ``"size"``: the largest absolute values first. ``"signed"``: the largest first, so
            that what works against the number comes last. The benchmark of Mueller et al. (2025)
            offers both, and takes the first for distance (CMD) and the second for performance
            (CPR).

    Returns:
        ``(K, M)`` True for what is kept.

    Raises:
        LigError: for another order, or shares outside.
    """
    if order not in ("size", "signed"):
        raise LigError(f"order={brief(order)}: give 'size' or 'signed'.")
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise LigError(f"shares={brief(list(shares))}: give some from 0 to 1.")
    scores = scores.double()
    keys = (scores.abs() if order == "size" else scores).nan_to_num(-torch.inf)
    ranks = torch.empty(len(scores), dtype=torch.long)
    ranks[keys.argsort(descending=True, stable=True).cpu()] = torch.arange(len(scores))
    counts = torch.tensor([round(share * len(scores)) for share in shares])
    return ranks < counts[:, None]
