"""What is wrong with the inputs of a model: looked at before the model is called."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from captum_lig._arguments import users_line
from captum_lig.errors import LigError

__all__ = ["check_mask", "check_not_packed", "check_tokens", "warn_of_padding"]


def check_mask(model: nn.Module, name: str, mask: Tensor) -> None:
    """Refuse a mask ``(B, S)`` that would be read as another one."""
    given = f"{name}, a {str(mask.dtype).removeprefix('torch.')} tensor of shape "
    given += str(tuple(mask.shape))
    if bool(mask.isnan().any()):
        raise LigError(f"{given}, holds NaN: give 1 for tokens and 0 for padding.")
    other = (mask != 0) & (mask != 1)
    # transformers turns it into booleans: whatever is not 0 is a token.
    if isinstance(model, PreTrainedModel) and bool(other.any()):
        raise LigError(
            f"{given}, holds {mask[other][0].item():g}, and {type(model).__name__} takes all that "
            "is not 0 for a token, what is to be added to logits the wrong way round: give 1 for "
            "tokens and 0 for padding; what is added has the shape (B, 1, S, S)."
        )


def check_tokens(model: nn.Module, named: dict[str, Any]) -> None:
    """Say what is wrong with token ids or vectors before the model does."""
    ids, vectors = named.get("input_ids"), named.get("inputs_embeds")
    wanted = {"input_ids": (ids, 2, "(B, S)"), "inputs_embeds": (vectors, 3, "(B, S, D)")}
    for name, (tokens, dimensions, shape) in wanted.items():
        if not isinstance(tokens, Tensor):
            continue
        given = f"{name} is a {str(tokens.dtype).removeprefix('torch.')} tensor of shape " + str(
            tuple(tokens.shape)
        )
        if tokens.dim() != dimensions:
            raise LigError(f"{given}: give {shape}, texts first.")
        if tokens.is_floating_point() == (name == "input_ids"):
            kind = "whole numbers" if name == "input_ids" else "floating point vectors"
            raise LigError(f"{given}: it has to hold {kind}.")
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() < 2:
            raise LigError(
                f"attention_mask has shape {tuple(mask.shape)}, and {given}: give (B, S), texts "
                "first, or (B, 1, S, S) to be added to the logits."
            )
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape != tokens.shape[:2]:
            raise LigError(
                f"attention_mask has shape {tuple(mask.shape)}, and {given}: they have to agree."
            )
    values = [
        value
        for given in named.values()
        for value in (given if isinstance(given, tuple) else (given,))
    ]
    if not any(isinstance(value, Tensor) for value in values):
        raise LigError(
            f"inputs hold no tensor that {type(model).__name__} could work on: give input_ids, or "
            "what its tokenizer returns with return_tensors='pt'."
        )


def check_not_packed(model: nn.Module, named: dict[str, Any]) -> None:
    """Refuse positions that transformers reads in one way with a cache, and in another without."""
    places, config = named.get("position_ids"), getattr(model, "config", None)
    if (
        not isinstance(places, Tensor)
        or places.dim() > 2
        or named.get("attention_mask") is not None
    ):
        return
    if getattr(config, "use_cache", False) and bool((places.diff(dim=-1) != 1).any()):
        raise LigError(
            "position_ids do not rise by one, and there is no attention_mask: without a cache, as "
            f"here, {type(model).__name__} takes them for texts packed one after the other, with "
            "one for a single text. Give an attention_mask (of ones), or use_cache=False for "
            "packed texts."
        )


def warn_of_padding(model: nn.Module, named: dict[str, Any]) -> None:
    """Say that texts begin or end with padding, where no mask says that it is padding.

    Only where the model's configuration has an id for padding that does not end texts, too.
    """
    ids, config = named.get("input_ids"), getattr(model, "config", None)
    fill, ends = (getattr(config, name, None) for name in ("pad_token_id", "eos_token_id"))
    masked = any(name.endswith("attention_mask") and x is not None for name, x in named.items())
    if masked or not isinstance(ids, Tensor) or not isinstance(fill, int):
        return
    if fill in (ends if isinstance(ends, list) else [ends]):
        return
    for text, row in enumerate(ids == fill):
        if bool(row[0] | row[-1]) and not bool(row.all()):
            warnings.warn(
                f"text {text} of the batch has {int(row.sum())} tokens of the id {fill}, which is "
                f"{type(model).__name__}'s padding, and there is no attention_mask: they are "
                "attributed to like words. Give what the tokenizer returns, its attention_mask "
                "included.",
                stacklevel=users_line(),
            )
            return
