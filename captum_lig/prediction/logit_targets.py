"""Targets that are logits, or read from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.tokens import TokenIndex
from captum_lig.model.inputs import ModelCall
from captum_lig.prediction.bound_target import BoundTarget, Target, tensor_called
from captum_lig.prediction.positions import (
    at_positions,
    named_arguments,
    number_of,
    only_logits_at,
    position_in,
    tokens_of,
    whole_position,
)
from captum_lig.prediction.words import of_one_token, pieces, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ClassLogit", "LogProbability", "Logit", "class_logit", "log_probability", "logit"]

Token = int | str


@dataclass(frozen=True)
class Logit(Target):
    """See :func:`logit`."""

    token: Token | Sequence[Token]
    minus: Token | Sequence[Token] | None = None
    position: TokenIndex = -1

    def __post_init__(self) -> None:
        whole_position(self.position)
        for tokens in (self.token, self.minus):
            if isinstance(tokens, (list, tuple)) and not tokens:
                raise LigError("logit is given an empty list: give one or more tokens.")

    def placed(self, call: ModelCall, tokenizer: PreTrainedTokenizerBase | None = None) -> Logit:
        """The same at a position that is a number."""
        return replace(self, position=position_in(call, self.position, tokenizer))

    def bind(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> BoundTarget:
        """The logits of tokens of this model's."""
        position = number_of(self.position)
        sides = [self.token] if self.minus is None else [self.token, self.minus]
        tokens = [[x] if isinstance(x, (int, str)) else list(x) for x in sides]
        ids = [[of_one_token(t, model, tokenizer) for t in side] for side in tokens]
        if self.minus is not None and _same_mean(*ids):
            raise LigError(
                f"logit({self.token!r}, minus={self.minus!r}) is 0 whatever the text: give another "
                "token as minus, or none."
            )
        words = " - ".join(map(_mean_in_words, tokens))

        def read(output: Any, call: ModelCall) -> Tensor:
            row = at_positions(_logits(output, call, 3), call, (position,))[:, 0]
            values = [torch.stack([_entry(row, i) for i in side]).mean(0) for side in ids]
            return values[0] if self.minus is None else values[0] - values[1]

        return BoundTarget(
            f"{words} at position {position}",
            read,
            lambda call: only_logits_at(call, (position,)),
        )


def logit(
    token: Token | Sequence[Token],
    minus: Token | Sequence[Token] | None = None,
    position: TokenIndex = -1,
) -> Logit:
    """The logit of a token at one position: of a decoder, that of the token that comes next.

    Args:
        token: id of the token, or a string that is exactly one token, such as ``" are"``. Of
            several in a list it is the mean of their logits.
        minus: less the logit of this one (or the mean of these): what decides between the two.
        position: where the logits are read, padding not counted: a number, negative ones from the
            end, or what the token there says.
    """
    return Logit(token, minus, position)


def _same_mean(ids: list[int], others: list[int]) -> bool:
    """Whether the mean over some tokens is that over others, whatever they are."""
    return sorted(ids * len(others)) == sorted(others * len(ids))


def _mean_in_words(tokens: Sequence[Token]) -> str:
    each = [f"logit({token!r})" for token in tokens]
    return each[0] if len(each) == 1 else f"mean({', '.join(each)})"


@dataclass(frozen=True)
class ClassLogit(Target):
    """See :func:`class_logit`."""

    label: int | str

    def bind(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> BoundTarget:
        """The logit of a class of this model's."""
        names = getattr(getattr(model, "config", None), "label2id", None) or {}
        label = self.label
        if isinstance(label, str) and label not in names:
            # A configuration has names such as LABEL_0 also of models that are no classifiers.
            own = any(not re.fullmatch(r"LABEL_\d+", str(name)) for name in names)
            if not own and "Classif" not in type(model).__name__:
                raise LigError(
                    f"label {label!r}: {type(model).__name__} is no classifier with names for its "
                    "classes. Use logit(token, position=...) for tokens, or the number of a class."
                )
            known = ", ".join(map(repr, list(names)[:20])) or "none"
            raise LigError(
                f"label {label!r} is no class of {type(model).__name__}: it knows {known}"
                f"{', ...' if len(names) > 20 else ''}."
            )
        number = names[label] if isinstance(label, str) else label
        return BoundTarget(
            f"logit of class {label!r}",
            lambda output, call: _entry(_logits(output, call, 2), number, "label", "classes"),
        )


def class_logit(label: int | str) -> ClassLogit:
    """The logit of a class of a text or an image, of a model that gives ``logits (B, C)``.

    Args:
        label: number of the class, or its name in the model's configuration (``label2id``).
    """
    return ClassLogit(label)


@dataclass(frozen=True)
class LogProbability(Target):
    """See :func:`log_probability`."""

    continuation: str | Sequence[int]

    def bind(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> BoundTarget:
        """The log-probability of these tokens of this model's."""
        ids = token_ids(self.continuation, model, tokenizer)
        count = len(ids)
        positions = tuple(range(-count - 1, -1))  # each token's logits stand before it

        def read(output: Any, call: ModelCall) -> Tensor:
            _check_end(ids, call, tokenizer)
            logits = at_positions(_logits(output, call, 3), call, positions)
            for i in ids:
                _entry(logits[:, 0], i)
            chosen = torch.tensor(ids, device=logits.device).expand(len(logits), -1)
            return logits.log_softmax(-1).gather(-1, chosen[..., None]).sum((-1, -2))

        def cheaper(call: ModelCall) -> dict[str, Any]:
            _check_end(ids, call, tokenizer)
            return only_logits_at(call, positions)

        words = f"log-probability of {self.continuation!r} at the end"
        return BoundTarget(words, read, cheaper, fixed=count)


def log_probability(continuation: str | Sequence[int]) -> LogProbability:
    """The log-probability of the last tokens of a text, given what stands before them.

    The sum over these tokens, each given all before it. The text has to end with them, and so
    has its baseline, which differs before them.

    Args:
        continuation: the tokens as a string, such as ``" Paris"``, or their ids.
    """
    return LogProbability(continuation)


def _check_end(
    ids: Sequence[int], call: ModelCall, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Whether all texts of a call end with these tokens."""
    named, kept = named_arguments(call), tokens_of(call)
    given = named.get("decoder_input_ids", named.get("input_ids"))
    if kept is None or not isinstance(given, Tensor) or given.shape != kept.shape:
        raise LigError(
            f"{type(call.model).__name__} is called without token ids, so it is not known whether "
            "the text ends with the continuation: give input_ids."
        )
    for text, valid in zip(given, kept, strict=True):
        end = text[valid][-len(ids) :].tolist()
        if len(text[valid]) <= len(ids):
            raise LigError(
                f"the text has {len(text[valid])} tokens, and {len(ids)} of them are the "
                "continuation: give one that begins before it."
            )
        if end != list(ids):
            raise LigError(
                f"a text (or its baseline) ends with {pieces(end, call.model, tokenizer)}, and "
                f"log_probability is of {pieces(ids, call.model, tokenizer)}: give texts and "
                "baselines that end with these tokens and differ before them."
            )


def _logits(output: Any, call: ModelCall, dims: int) -> Tensor:
    """The model's logits, ``(B, S, V)`` or ``(B, C)``."""
    logits = tensor_called(output, "logits", call)
    if logits.dim() != dims:
        wanted = {
            2: "a class is read from (B, C): use logit(token, position=...) for tokens.",
            3: "a token is read from (B, S, V): use class_logit(label) for classes.",
        }
        raise LigError(
            f"{type(call.model).__name__} gives logits of shape {tuple(logits.shape)}, and "
            f"{wanted[dims]}"
        )
    return logits


def _entry(logits: Tensor, number: Any, name: str = "token", what: str = "tokens") -> Tensor:
    """One column of ``(P, V)``."""
    count = logits.shape[-1]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise LigError(
            f"{name}={brief(number)}: give a number from 0 to {count - 1}, the model has {count} "
            f"{what}."
        )
    return logits[:, number]
