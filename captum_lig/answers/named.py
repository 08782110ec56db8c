"""The number that is explained, with words for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig.answers.wanted import Kind, Wanted
from captum_lig.answers.words import quoted
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.prediction.targets import (
    BoundTarget,
    Target,
    TargetLike,
    class_logit,
    cosine,
    log_probability,
    logit,
    read_target,
)
from captum_lig.prediction.words import of_one_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Asked", "Named", "asked", "class_number", "token_of"]


@dataclass(frozen=True, eq=False)
class Named(Target):
    """A target under another name."""

    target: TargetLike
    words: str

    def bind(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> BoundTarget:
        """The target of this model's, of one text."""
        return replace(read_target(self.target, model, 1, tokenizer), words=self.words)


@dataclass(frozen=True)
class Asked:
    """What is explained."""

    target: Named
    options: list[int]
    """Tokens or classes that it is about."""
    favours: tuple[str, str] | None = None
    """What speaks for it and what against, if it is of one thing less another."""


def asked(
    wanted: Wanted,
    kind: Kind,
    position: int,
    scores: Tensor | None,
    continuation: list[int] | None,
    names: Mapping[int, str],
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    mask: bool = True,
) -> Asked:
    """The number of a question.

    Args:
        wanted: the question.
        kind: how the model is used.
        position: where tokens are predicted.
        scores: what it says of both texts, see :func:`both_scores`.
        continuation: the tokens at the end that are explained.
        names: of classes.
        network: the model.
        tokenizer: its tokenizer.
        mask: of a model that fills in masks: whether there is one at the position.

    Raises:
        LigError: for a token or a class that the model does not have.
    """
    if continuation is not None:
        words = quoted(tokenizer.decode(continuation), 60)
        return Asked(
            Named(log_probability(continuation), f"log-probability of {words} after the text"), []
        )
    if kind == "sentence":
        if wanted.similar_to is None:
            return _given(wanted.target, network, tokenizer)
        inputs = dict(tokenizer(wanted.similar_to, return_tensors="pt"))
        device = next(network.parameters()).device
        similar = cosine({name: x.to(device) for name, x in inputs.items()})
        words = f"cosine with {quoted(wanted.similar_to, 60)} ({similar.pooling} pooling)"
        return Asked(Named(similar, words), [])
    whole = isinstance(wanted.target, int) and not isinstance(wanted.target, bool)
    if wanted.target is not None and not isinstance(wanted.target, str) and not whole:
        return _given(wanted.target, network, tokenizer)
    assert scores is not None
    if kind == "classes":
        label: Any = wanted.label if wanted.target is None else wanted.target
        count = scores.shape[1]
        number = int(scores[0].argmax()) if label is None else class_number(label, names, count)
        words = f'"{names.get(number, number)}"'
        return Asked(Named(class_logit(number), f"logit of the class {words}"), [number])
    first, second = _pair(wanted, scores, network, tokenizer)
    in_place = "in place of the mask" if mask else f"at position {position}"
    where = {"causal": "as the next token", "masked": in_place}[kind]
    if position != -1 and kind == "causal":
        where += f" after position {position}"
    one, other = (quoted(name) for name in token_texts(tokenizer, (first, second)))
    target = logit(first, minus=second, position=position)
    words = f"logit of {one} less logit of {other}, {where}"
    return Asked(Named(target, words), [first, second], (one, other))


def token_of(value: str | int, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a token, before a model is there.

    Raises:
        LigError: if it is not exactly one.
    """
    return of_one_token(value, nn.Identity(), tokenizer)


def _given(target: Any, network: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Asked:
    """A target as the library takes it, in its own words."""
    return Asked(Named(target, read_target(target, network, 1, tokenizer).words), [])


def class_number(label: str | int, names: Mapping[int, str], count: int) -> int:
    """The number of a class by its number or name; a text that is no name may be a number.

    Raises:
        LigError: if the model has no such class.
    """
    numbers = {name: number for number, name in names.items()}
    number: Any = label
    if isinstance(label, str):
        same = [number for number, name in names.items() if name == label]
        if len(same) > 1:
            raise LigError(
                f"label {label!r} is the name of {len(same)} classes of the model, "
                f"{', '.join(map(str, same))}: give the number of one."
            )
        number = numbers.get(label, int(label) if re.fullmatch("[0-9]{1,9}", label) else None)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        known = ", ".join(map(repr, list(numbers)[:20]))
        raise LigError(
            f"label {label!r} is no class of the model: it knows {known and known + ', '}numbers "
            f"0 to {count - 1}."
        )
    return number


def _pair(
    wanted: Wanted, scores: Tensor, network: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """The token that is explained, and the one that it is explained against.

    By default the most likely of the text, and the most likely other one: of the other text, or,
    if both have the same or there is none, the text's own second.
    """

    def token(value: Any) -> int | None:
        if value is None:
            return None
        number, count = of_one_token(value, network, tokenizer), scores.shape[1]
        if not 0 <= number < count:
            raise LigError(
                f"token={brief(number)}: give a number from 0 to {count - 1}, the model has "
                f"{count} tokens."
            )
        return number

    first, second = token(wanted.target), token(wanted.foil)
    ranked = [row.argsort(descending=True, stable=True).tolist() for row in scores]
    if first is None:
        first = next(i for i in ranked[0] if i != second)
    if second is None:
        likely = [*([ranked[1][0]] if wanted.against is not None else []), *ranked[0]]
        second = next(i for i in likely if i != first)
    if first == second:
        raise LigError(f"target and foil are the same token, {first}: give two different ones.")
    return first, second
