"""Tokens of a text by their positions, padding not counted."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.model.inputs import ModelCall, left_out

__all__ = [
    "at_positions",
    "named_arguments",
    "only_logits_at",
    "positions_of",
    "tokens_of",
    "whole_position",
]

KEEP = "logits_to_keep"
"""Argument of transformers' decoders: positions ``(K,)`` whose logits are worked out."""


def named_arguments(call: ModelCall) -> dict[str, Any]:
    """What the model is called with, by the names of its parameters."""
    signature = inspect.signature(call.model.forward)
    named = signature.bind_partial(*call.args, **call.kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named


def tokens_of(call: ModelCall) -> Tensor | None:
    """``(B, S)`` False at padding, of the tokens that the model's output is about.

    Of an encoder-decoder these are the decoder's. None if the arguments do not say what the tokens
    are: then none is padding.

    Raises:
        LigError: for an encoder-decoder that is called without decoder_input_ids.
    """
    named = named_arguments(call)
    decoder = "decoder_input_ids" in inspect.signature(call.model.forward).parameters
    prefix = "decoder_" if decoder else ""
    names = [f"{prefix}{name}" for name in ("attention_mask", "input_ids", "inputs_embeds")]
    mask, *tokens = (named.get(name) for name in names)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return ~left_out(mask)
    for x in tokens:
        if isinstance(x, Tensor):
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if decoder:
        raise LigError(
            f"{type(call.model).__name__} is called without decoder_input_ids, so the tokens of "
            "its output are not known: give them."
        )
    return None


def positions_of(kept: Tensor, position: int) -> Tensor:
    """Where a text's token of this number stands.

    Args:
        kept: ``(B, S)`` False at padding.
        position: number of the token among a text's own; negative ones count from the end.

    Returns:
        ``(B,)`` positions among the ``S``.

    Raises:
        LigError: if a text has no such token.
    """
    counts = kept.sum(-1)
    rank = counts + position if position < 0 else torch.full_like(counts, position)
    found = kept & (kept.cumsum(-1) - 1 == rank[:, None])
    missing = ~found.any(-1)
    if bool(missing.any()):
        text = int(missing.nonzero()[0])
        raise LigError(
            f"position {position} does not exist: text {text} has {int(counts[text])} tokens."
        )
    return found.int().argmax(-1)


def whole_position(position: Any) -> int:
    """``position`` if it is a whole number."""
    if isinstance(position, bool) or not isinstance(position, int):
        raise LigError(f"position={brief(position)}: give a whole number.")
    return position


def only_logits_at(call: ModelCall, positions: tuple[int, ...]) -> dict[str, Tensor]:
    """Argument with which the model works out the logits at these positions alone, if it has one.

    The vocabulary is wide: the logits of all tokens are a large part of the work.
    """
    if KEEP not in inspect.signature(call.model.forward).parameters:
        return {}
    if KEEP in named_arguments(call):
        raise LigError(f"inputs hold {KEEP}: leave it out, the target keeps what it reads.")
    kept = tokens_of(call)
    return {} if kept is None else {KEEP: _indices(kept, positions).unique()}


def at_positions(logits: Tensor, call: ModelCall, positions: tuple[int, ...]) -> Tensor:
    """Logits at ``K`` positions of each text.

    Args:
        logits: ``(P, S, V)`` of all tokens, or of those that :func:`only_logits_at` keeps.
        call: what they come from: of as many texts, or of one text that ``P`` are copies of.
        positions: see :func:`positions_of`.

    Returns:
        ``(P, K, V)``

    Raises:
        LigError: for logits of other tokens.
    """
    kept = tokens_of(call)
    if kept is None:
        kept = torch.ones(logits.shape[:2], dtype=torch.bool)
    indices = _indices(kept, positions)
    if logits.shape[1] != kept.shape[1]:
        there, indices = indices.unique(return_inverse=True)
        if len(there) != logits.shape[1]:
            raise LigError(
                f"{type(call.model).__name__} gives logits of shape {tuple(logits.shape)} for "
                f"{kept.shape[1]} tokens: they have to be of each token, (B, S, V)."
            )
    if len(indices) not in (1, len(logits)):
        raise LigError(f"logits of {len(logits)} texts, and the call is of {len(indices)}.")
    indices = indices.to(logits.device).expand(len(logits), -1)
    return logits[torch.arange(len(logits), device=logits.device)[:, None], indices]


def _indices(kept: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Positions ``(B, K)``."""
    return torch.stack([positions_of(kept, position) for position in positions], -1)
