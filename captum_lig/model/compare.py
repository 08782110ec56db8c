"""Whether two computations of the same tokens agree, up to what models round inside.

Transformers have massive activations, single entries thousands of times larger than the rest. Held
against the largest entry, a difference in all the others is nothing. So every entry has a size of
its own: by how much it differs from the same feature of other tokens, or by how much that feature
or that token usually does.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["deviation", "deviations", "nearly_equal", "sizes", "tolerance"]

ROUNDING = 4 * torch.finfo(torch.float32).eps
"""What sums of a token's features round to, as part of the largest of them. Families take norms and
softmax in float32, whatever the dtype of the model."""


def tolerance(dtype: torch.dtype) -> float:
    """Largest deviation of what is nearly equal."""
    return 1e-5 if dtype == torch.float64 else 1e-3


def sizes(x: Tensor, among: Tensor | None = None) -> Tensor:
    """The size of each entry of ``x (M, D)``, from how tokens ``among (S, D)`` differ.

    Without ``among`` the tokens of ``x`` are compared with each other.
    """
    among = _some(x if among is None else among, 0)
    # One or two tokens do not show what is usual.
    center = among.nanmedian(0).values if len(among) > 2 else torch.zeros_like(among[0])
    usual = (among - center).abs().nanmedian(0).values
    apart = (x - center).abs()
    of_token = _some(apart, 1).nanmedian(1, keepdim=True).values
    # Where tokens repeat they do not differ at all: a tenth of a token's usual entry is something.
    entry = _some(x.abs(), 1).nanmedian(1, keepdim=True).values / 10
    return apart.maximum(usual).maximum(of_token).maximum(entry)


def _some(x: Tensor, dim: int) -> Tensor:
    """At most 64 of the entries along a dimension: enough to say what is usual."""
    step = -(-x.shape[dim] // 64)
    return x[::step] if dim == 0 else x[:, ::step]


def deviations(
    a: Tensor, b: Tensor, among: Tensor | None = None, rounding: float = ROUNDING
) -> Tensor:
    """The largest difference of each token, relative to the size of the entry, ``(M,)``.

    Args:
        a: ``(M, ...)`` tokens first.
        b: ``(M, ...)`` what they are compared with.
        among: ``(S, ...)`` tokens whose differences say what is small; None: those of ``b``.
        rounding: differences up to this part of a token's largest entry are none.
    """
    if b.numel() == 0:
        return b.new_zeros(len(b))
    a, b = a.flatten(1), b.flatten(1)
    gap, entries = (a - b).abs(), b.abs()
    beyond = (gap - rounding * entries.amax(-1, keepdim=True)).clamp_min(0)
    relative = gap / entries.max().clamp_min(1e-30)
    if bool(beyond.any()):  # sizes are medians, which take time; NaN is any
        size = sizes(b, None if among is None else among.flatten(1))
        relative = relative.maximum(beyond / size.clamp_min(1e-30))
    return relative.amax(-1)


def deviation(a: Tensor, b: Tensor, among: Tensor | None = None) -> float:
    """The largest of the :func:`deviations`; infinite where something is not a number."""
    found = deviations(a, b, among)
    return float(found.nan_to_num(torch.inf).max()) if len(found) else 0.0


def nearly_equal(a: Tensor, b: Tensor, among: Tensor | None = None) -> bool:
    """Whether two tensors, tokens first, are the same up to what models round inside."""
    return deviation(a, b, among) <= tolerance(a.dtype)
