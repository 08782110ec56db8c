"""Which axes of a block's arguments are its tokens, to run it on some of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_lig.errors import LigError

__all__ = ["of_tokens", "token_axes"]


def token_axes(shape: Sequence[int], length: int) -> list[int]:
    """The axes that are as long as the text: ``(1, S, d)``, ``(1, 1, S, S)``, ``(S,)``.

    Raises:
        LigError: where sizes do not tell, ``(1, S, D)`` with ``D = S``.
    """
    axes = [axis for axis, size in enumerate(shape) if size == length]
    if len(shape) == 3 and len(axes) > 1:
        raise LigError(f"of {tuple(shape)} more than one axis may be the {length} tokens.")
    return axes


def of_tokens(x: Tensor, length: int, index: Tensor) -> Tensor:
    """What ``x`` holds for the tokens ``index (n,)`` of a text of ``length``."""
    for axis in token_axes(x.shape, length):
        x = x.index_select(axis, index.to(x.device))
    return x
