"""Numbers that a model says about a text, as forward functions in Captum's way.

A scalar is called as its model is called, with token ids, a tuple of tensors or a tokenizer's
mapping by name, and gives one number a text, ``(B,)``. Anything else that does so, such as a
function of your own, is a scalar as well. It runs the model once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.model.inputs import ModelCall

__all__ = ["Scalar", "class_logit", "cosine", "logit", "logit_difference"]

Scalar = Callable[..., Tensor]
"""Called as the model is called; gives ``(B,)``."""

POOLINGS = ("mean", "cls")


def logit(model: nn.Module, token: int, position: int = -1) -> Scalar:
    """The logit of a token at one position: of a decoder, that of the token that comes next.

    Args:
        model: a model that gives ``logits (B, S, V)``, such as an ``AutoModelForCausalLM``.
        token: id of the token.
        position: where its logits are read, padding is not counted.
            Negative numbers count from the end.
    """
    return lambda *args, **kwargs: _of_token(_logits_at(model, position, args, kwargs), token)


def logit_difference(model: nn.Module, token: int, other: int, position: int = -1) -> Scalar:
    """The logit of a token less that of another one, both as in :func:`logit`.

    It is what decides between the two.
    """

    def difference(*args: Any, **kwargs: Any) -> Tensor:
        logits = _logits_at(model, position, args, kwargs)
        return _of_token(logits, token) - _of_token(logits, other)

    return difference


def class_logit(model: nn.Module, label: int | str) -> Scalar:
    """The logit of a class of a text.

    Args:
        model: a model that gives ``logits (B, C)``, such as an
            ``AutoModelForSequenceClassification``.
        label: number of the class, or its name in the model's configuration (``label2id``).

    Raises:
        LigError: for a name that the model does not know.
    """
    names = getattr(getattr(model, "config", None), "label2id", None) or {}
    if isinstance(label, str) and label not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise LigError(f"label {label!r} is no class of {type(model).__name__}: it knows {known}.")
    number = names[label] if isinstance(label, str) else label

    def value(*args: Any, **kwargs: Any) -> Tensor:
        logits = _output(model, "logits", args, kwargs)
        if logits.dim() != 2:
            raise LigError(
                f"{type(model).__name__} gives logits of shape {tuple(logits.shape)}, and a class "
                "is read from (B, C): use logit(model, token, position) for logits at each token."
            )
        return _of_token(logits, number, "label", "classes")

    return value


def cosine(
    model: nn.Module,
    other_inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
    pooling: str = "mean",
) -> Scalar:
    """The cosine of a text's embedding with that of another text, of a sentence encoder.

    Args:
        model: a model that gives ``last_hidden_state (B, S, D)``.
        other_inputs: the other text, what the model is called with. It is embedded once, by
            this call, and is a constant afterwards.
        pooling: ``"mean"`` over the text without padding, or ``"cls"``, the first token.

    Raises:
        LigError: for another pooling, or other inputs that are not one text.
    """
    if pooling not in POOLINGS:
        raise LigError(f"pooling {brief(pooling)} is unknown: use {' or '.join(POOLINGS)}.")
    call = ModelCall.of(model, other_inputs)
    with torch.no_grad():
        other = _embedding(model, pooling, call.args, call.kwargs)
    if len(other) != 1:
        raise LigError(f"other_inputs hold {len(other)} texts: give one.")

    def value(*args: Any, **kwargs: Any) -> Tensor:
        return torch.cosine_similarity(_embedding(model, pooling, args, kwargs), other)

    return value


def _embedding(
    model: nn.Module, pooling: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """One vector a text, ``(B, D)``."""
    hidden = _output(model, "last_hidden_state", args, kwargs)
    kept = _not_padding(model, args, kwargs)
    if pooling == "cls":
        kept = kept & (kept.cumsum(-1) == 1)
    weight = kept.to(hidden)
    return torch.einsum("bs,bsd->bd", weight, hidden) / weight.sum(-1, keepdim=True)


def _logits_at(
    model: nn.Module, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Logits ``(B, V)`` at one token of each text, padding not counted."""
    if isinstance(position, bool) or not isinstance(position, int):
        raise LigError(f"position={brief(position)}: give a whole number.")
    kept = _not_padding(model, args, kwargs)
    rank = kept.sum(-1) + position if position < 0 else torch.full_like(kept.sum(-1), position)
    found = kept & (kept.cumsum(-1) - 1 == rank[:, None])
    if not bool(found.any(-1).all()):
        raise LigError(
            f"position {position} does not exist: the text has {int(kept.sum(-1).min())} tokens."
        )
    positions, index = found.int().argmax(-1).unique(return_inverse=True)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        # The vocabulary is wide: logits at the other tokens would be most of the work.
        logits = _output(model, "logits", args, {**kwargs, "logits_to_keep": positions})
    else:
        logits = _output(model, "logits", args, kwargs)[:, positions]
    return logits[torch.arange(len(index), device=index.device), index]


def _of_token(logits: Tensor, number: int, name: str = "token", what: str = "tokens") -> Tensor:
    count = logits.shape[-1]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise LigError(
            f"{name}={brief(number)}: give a number from 0 to {count - 1}, the model has {count} "
            f"{what}."
        )
    return logits[:, number]


def _output(model: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs = {**kwargs, "use_cache": False}
    value = getattr(model(*args, **kwargs), name, None)
    if not isinstance(value, Tensor):
        raise LigError(
            f"{type(model).__name__} gives no {name}: load the model with the head that does "
            "(AutoModelForCausalLM, AutoModelForSequenceClassification, or AutoModel for "
            "embeddings), or write the scalar as a function of your own."
        )
    return value


def _not_padding(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """``(B, S)`` False at padding."""
    named = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    mask = named.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(named.get(name), Tensor):
            tokens: Tensor = named[name]
            return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    raise LigError(
        f"{type(model).__name__} is called without input_ids and inputs_embeds, so its tokens "
        "cannot be told from the inputs: write the scalar as a function of your own."
    )
