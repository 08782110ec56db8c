"""The attention core of a block, wherever it is reached: what it is called with, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from captum_lig._restore import holding, variable
from captum_lig.errors import LigError

__all__ = [
    "AttentionCall",
    "Handler",
    "added",
    "allowed",
    "current_handler",
    "forbidden",
    "handle_with",
    "lowest",
    "read_sources",
    "reads_nothing",
]

LARGE = 2**24
"""Weights of more entries than this are not held all at once where that can be helped."""

NO_WEIGHT = -1000.0
"""What is added to a logit to forbid its source is at or below this.

``exp`` of it is 0 in every dtype, with room for what logits differ by; the masks in use, -1e4, the
minimum of float16 and of wider dtypes and minus infinity, are all below, and biases are above.
"""


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function, after position encodings and q/k norms.

    It computes ``softmax(cap(q k^T * scaling) + mask) v``, the softmax with one more logit per head
    if there are sinks, and ``cap(s) = softcap * tanh(s / softcap)`` if there is a cap.
    """

    query: Tensor
    """``(B, H, T, d)``"""
    key: Tensor
    """``(B, Hkv, S, d)``, before key heads are repeated."""
    value: Tensor
    """``(B, Hkv, S, e)``; the width ``e`` of the values may be another one."""
    mask: Tensor | None
    """All that is added to the logits, ``(1 or B, 1 or H, T, S)``."""
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None
    """``(H,)`` a logit per head that has no value."""
    family: Callable[[AttentionCall], Tensor] | None = None
    """The model family's own function, or None if this arithmetic is all there is."""
    by_sdpa: bool = False
    """Whether it was made to torch's function, not to transformers' attention interface."""
    rows: Tensor | None = None
    """``(T,)`` which of the block's targets these are, if they are not all."""

    def eager(self) -> Tensor:
        """The attention output as the model's own code computes it, ``(B, T, H, e)``."""
        return self.softmax_attention() if self.family is None else self.family(self)

    def of_targets(self, rows: Tensor) -> AttentionCall:
        """The call for the targets ``rows (R,)`` alone."""
        mask = None if self.mask is None else self.mask[:, :, rows]
        return replace(self, query=self.query[:, :, rows], mask=mask, rows=rows)

    def of_last(self) -> AttentionCall:
        """The call for the last text of its batch."""
        mask = None if self.mask is None else self.mask[-1:]
        query, key, value = self.query[-1:], self.key[-1:], self.value[-1:]
        return replace(self, query=query, key=key, value=value, mask=mask)

    @property
    def is_large(self) -> bool:
        """Whether the weights of all heads are too many to hold, where that can be helped."""
        batch, heads, targets, _ = self.query.shape
        return batch * heads * targets * self.key.shape[2] > LARGE

    def fused(self) -> Tensor:
        """The same where the weights are many, without ever holding all of them.

        By torch's fused function, ``(B, T, H, e)``, or some targets after others where it has no
        such attention. What a family's own function does beside our formula is not in it. It has
        no derivative along a direction.
        """
        if not self.is_large:
            return self.eager()
        if self.softcap is not None or self.sinks is not None:
            return self._by_rows()
        heads = self.query.shape[1]
        key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (self.key, self.value))
        causal = self.mask is not None and is_causal(self.mask)
        mask = None if causal else self.mask
        attend = torch.ops.aten.scaled_dot_product_attention  # the other one leads back to us
        output: Tensor = attend(self.query, key, value, mask, 0.0, causal, scale=self.scaling)
        return output.transpose(1, 2)

    def _by_rows(self) -> Tensor:
        """Our formula, some targets after others; weights are had again for a backward pass."""
        batch, heads, targets, _ = self.query.shape
        at_once = max(1, LARGE // 4 // (batch * heads * self.key.shape[2]))

        def attend(rows: Tensor) -> Tensor:
            return self.of_targets(rows).softmax_attention()

        found: list[Tensor] = [
            checkpoint(attend, rows, use_reentrant=False, preserve_rng_state=False)
            for rows in torch.arange(targets, device=self.query.device).split(at_once)
        ]
        return torch.cat(found, 1)

    def softmax_attention(self) -> Tensor:
        """The attention output from its formula, ``(B, T, H, e)``."""
        groups = self.query.shape[1] // self.key.shape[1]
        key = self.key.repeat_interleave(groups, 1)
        logits = self.scaling * self.query @ key.transpose(-1, -2)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.mask is not None:
            logits = logits + self.mask
        if self.sinks is not None:
            sinks = self.sinks.to(logits).view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
            weights = torch.softmax(torch.cat([logits, sinks], -1), -1)[..., :-1]
        else:
            weights = torch.softmax(logits, -1)
        groups = self.query.shape[1] // self.value.shape[1]
        return (weights @ self.value.repeat_interleave(groups, 1)).transpose(1, 2)


Handler = Callable[[AttentionCall], Tensor]
"""Takes a call, returns the attention output ``(B, T, H, e)``."""

_handler: ContextVar[Handler] = variable("handler", AttentionCall.eager)


def current_handler() -> Handler:
    """What happens to an attention call in this context."""
    return _handler.get()


def handle_with(handler: Handler) -> AbstractContextManager[None]:
    """Send the attention calls made inside to ``handler``."""
    return holding(_handler, handler)


def lowest(dtype: torch.dtype) -> float:
    """What forbids a source in a mask.

    Not below what float32 can hold: some families take their softmax in float32, whatever the
    dtype of the model, and a row of infinities would be NaN there.
    """
    return max(torch.finfo(d).min for d in (dtype, torch.float32))


def added(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask in any of its forms as a float tensor ``(1 or B, 1 or H, T, S)`` to add to logits.

    Raises:
        LigError: if it holds integers: 0 and 1 would be added to the logits, or be refused.
    """
    if mask is None:
        return None
    least = lowest(query.dtype)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(
            ~mask, least
        )
    elif not mask.is_floating_point():
        raise LigError(
            f"the attention gets a mask of {mask.dtype} and shape {tuple(mask.shape)}: integers "
            "mask nothing there, they are added to the logits or refused. Give a mask (B, S), or "
            "a boolean or float one, attention_mask.bool() or 0 and a large negative number."
        )
    if bool((mask < least).any()):  # not a copy for every block that gets the same mask
        mask = mask.clamp_min(least)
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)
    return mask.expand(*mask.shape[:2], query.shape[-2], key.shape[-2])


def forbidden(mask: Tensor) -> Tensor:
    """Sources that a mask forbids: what is added to their logits leaves them no weight."""
    return mask <= NO_WEIGHT


def allowed(mask: Tensor) -> Tensor:
    """Sources that have a weight under a mask ``(..., T, S)``, beside the row's best one.

    In a row that is masked all through every source has: a constant added to all logits is none.
    """
    return mask - mask.amax(-1, keepdim=True) > NO_WEIGHT


def is_causal(mask: Tensor) -> bool:
    """Whether each target reads the sources up to itself, and nothing else is added."""
    length = mask.shape[-1]
    if tuple(mask.shape) != (1, 1, length, length):
        return False
    later = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1)
    # What it forbids is not 0, so if as many entries are not, all others are.
    most = length * (length - 1) // 2
    return int(mask.count_nonzero()) == most and torch.equal(forbidden(mask[0, 0]), later)


def read_sources(mask: Tensor) -> Tensor:
    """``(1 or B, S)`` sources that some target reads under ``(1 or B, 1 or H, T, S)``.

    Rows that are masked all through, those of padding, read nothing.
    """
    return (~forbidden(mask)).any(2).any(1)


def reads_nothing(mask: Tensor) -> Tensor:
    """``(1 or B, T)`` targets that a mask ``(1 or B, 1 or H, T, S)`` forbids every source.

    And by so large a number that the logits are lost in it: what is left is up to rounding.
    """
    best = mask.amax(-1)
    return ((best <= NO_WEIGHT) & (best + 1 == best)).any(1)
