"""From a row's logits to its weights: softmax, capped logits, sinks.

The weights are ``p = softmax(c(s) + mask)`` with ``c(s) = cap tanh(s / cap)`` (Gemma 2) or the
identity. A sink (GPT-OSS) is one more logit of each head that has no value: it takes a share of
the weights and gives nothing. In the rates a cap is the chain rule, ``c'(s) = 1 - (c / cap)^2``,
and a sink is one more source, with the value 0, that no path moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RowFunction", "RowWeights"]


@dataclass(frozen=True)
class RowWeights:
    """Weights of the sources, ``(..., S)``, and what else the rates need of the row function."""

    p: Tensor
    rest: Tensor | None
    """``(..., 1)`` the sink's weight; None if there is none."""
    slope: Tensor | None
    """``(..., S)`` derivative of the capped logits by the logits; None if it is 1."""

    def capped(self, ds: Tensor) -> Tensor:
        """Derivatives of the capped logits from those of the logits, ``(..., S)``."""
        return ds if self.slope is None else ds * self.slope


@dataclass(frozen=True)
class RowFunction:
    """What a family makes of a row's logits."""

    softcap: float | None = None
    sinks: Tensor | None = None
    """``(H,)``"""

    def folded(self, logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits with the mask in them, where it can be added once for all path points."""
        if mask is None or self.softcap is not None:
            return logits, mask
        return logits + mask, None

    def __call__(self, logits: Tensor, mask: Tensor | None, heads: int) -> RowWeights:
        """The weights of each row.

        Args:
            logits: ``(., ., ., S)`` scaled products of queries and keys.
            mask: to be added to them, broadcast, or None.
            heads: which of the logits' axes the heads are.
        """
        slope = None
        if self.softcap is not None:
            share = torch.tanh(logits / self.softcap)
            logits, slope = self.softcap * share, 1 - share.square()
        if mask is not None:
            logits = logits + mask
        p = torch.softmax(logits, -1)
        if self.sinks is None:
            return RowWeights(p, None, slope)
        shape = [-1 if axis == heads else 1 for axis in range(logits.dim())]
        lead = logits.logsumexp(-1, keepdim=True) - self.sinks.to(p).view(shape)
        return RowWeights(p * torch.sigmoid(lead), torch.sigmoid(-lead), slope)
