"""What :class:`~captum_lig.SetToSetIG` may be given as inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_lig.errors import LigError

__all__ = ["checked_inputs", "usable"]

Tensors = tuple[Tensor, ...]


def checked_inputs(inputs: Tensor | Tensors) -> Tensors:
    """What is attributed to: floating point tensors ``(B, S, ...)``, out of their graphs.

    Raises:
        LigError: for anything else.
    """
    ends = inputs if isinstance(inputs, tuple) else (inputs,)
    if not ends:
        raise LigError("inputs are an empty tuple (): give a tensor or a tuple of tensors.")
    for x in ends:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = f"{x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
            raise LigError(
                f"inputs hold a {given}: give floating point tensors, the tokens' vectors and not "
                "their ids."
            )
        if x.numel() == 0 or x.dim() == 0:
            raise LigError(
                f"inputs hold a tensor of shape {tuple(x.shape)}: give (B, S, ...), not empty."
            )
        if not bool(torch.isfinite(x).all()):
            raise LigError("inputs hold values that are not finite (NaN or infinity): mend them.")
        if x.shape[0] != ends[0].shape[0]:
            raise LigError(
                f"inputs have {ends[0].shape[0]} and {x.shape[0]} examples: the first dimension "
                "has to be the same."
            )
    return tuple(usable(x) for x in ends)


def usable(x: Tensor) -> Tensor:
    """The tensor out of its graph; an inference tensor could not take part in a new one."""
    return x.clone() if x.is_inference() else x.detach()
