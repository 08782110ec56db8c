"""Tokens of a text by their positions, padding not counted."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.flow.tokens import TokenIndex, find_token
from captum_lig.model.inputs import KEEP, ModelCall, left_out
from captum_lig.pretrained.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "at_positions",
    "named_arguments",
    "named_tokens",
    "number_of",
    "only_logits_at",
    "own_tokens",
    "position_in",
    "positions_in",
    "positions_of",
    "tokens_of",
    "whole_position",
]


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


def whole_position(position: Any) -> TokenIndex:
    """``position`` if it is a whole number, or what a token says."""
    if isinstance(position, bool) or not isinstance(position, (int, str)):
        raise LigError(f"position={brief(position)}: give a whole number, or what the token says.")
    return position


def number_of(position: TokenIndex) -> int:
    """``position`` if it is a number by now.

    Raises:
        LigError: for what a token says, where the text is not known.
    """
    if isinstance(position, str):
        raise LigError(
            f"position={brief(position)} is what a token says, and the text is not known here: "
            "give a number."
        )
    return position


def named_tokens(
    call: ModelCall, tokenizer: PreTrainedTokenizerBase | None, shape: tuple[int, ...]
) -> tuple[tuple[str, ...], ...] | None:
    """What the tokens of each text are called, of ids ``(B, S)`` of this shape, padding included.

    None if the model is called without such ids, if those of an encoder and of a decoder cannot be
    told apart, or if there is no tokenizer (None is the one beside the model).
    """
    named = named_arguments(call)
    given = [named.get(name) for name in ("input_ids", "decoder_input_ids")]
    fit = [x for x in given if isinstance(x, Tensor) and x.shape == shape]
    fit = [x for x in fit if not x.is_floating_point()]
    if len(fit) != 1:
        return None
    try:
        tokenizer = tokenizer or tokenizer_of(call.model)
    except LigError:
        return None
    return tuple(tuple(token_texts(tokenizer, ids)) for ids in fit[0].tolist())


def positions_in(
    call: ModelCall,
    given: Sequence[TokenIndex] | Tensor | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Sequence[int] | Tensor | None:
    """Positions among all tokens of the texts, padding counted, with strings as numbers.

    Raises:
        LigError: as :func:`position_in` does.
    """
    listed: Any = [given] if isinstance(given, str) else given
    if not isinstance(listed, (list, tuple)) or not any(isinstance(x, str) for x in listed):
        return listed  # type: ignore[no-any-return]
    found = []
    for one in listed:
        if isinstance(one, str):
            kept = tokens_of(call)
            own = position_in(call, one, tokenizer, "output_indices")
            assert kept is not None
            places = positions_of(kept, own).unique()
            if len(places) > 1:
                raise LigError(
                    f"output_indices={brief(given)}: {brief(one)} stands at {places.tolist()} "
                    "of the texts, padding counted. Give one text at a time, or numbers."
                )
            one = int(places)
        found.append(one)
    return found


def own_tokens(
    call: ModelCall, tokenizer: PreTrainedTokenizerBase | None
) -> list[list[str]] | None:
    """The same of the tokens that the model's output is about, without padding."""
    kept = tokens_of(call)
    names = None if kept is None else named_tokens(call, tokenizer, tuple(kept.shape))
    if kept is None or names is None:
        return None
    return [
        [token for token, there in zip(text, own, strict=True) if there]
        for text, own in zip(names, kept.tolist(), strict=True)
    ]


def position_in(
    call: ModelCall,
    position: TokenIndex,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str = "position",
) -> int:
    """The position of the token that a string names in all texts of a call; a number stays.

    Raises:
        LigError: if a text has no such token or several, if they stand at different positions, or
            if the tokens cannot be told.
    """
    if isinstance(position, int):
        return position
    texts = own_tokens(call, tokenizer)
    if texts is None:
        raise LigError(
            f"{name}={brief(position)}: the model is not called with ids of a tokenizer that is "
            "known, so what its tokens say is not. Give a number, or tokenizer=."
        )
    found = sorted({find_token(position, text, name) for text in texts})
    if len(found) > 1:
        raise LigError(
            f"{name}={brief(position)}: the texts have it at {found}. Give one text at a time, "
            "or a number."
        )
    return int(found[0])


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
