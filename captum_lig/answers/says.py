"""What a model says of a text: its most likely next tokens, or classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from captum_lig.answers.wanted import Kind
from captum_lig.answers.words import quoted
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.flow.shown import Short
from captum_lig.model.inputs import ModelCall
from captum_lig.prediction.bound_target import tensor_called
from captum_lig.prediction.positions import at_positions, only_logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AMONG", "Option", "Said", "both_said", "both_scores", "is_likeliest", "most_changed"]

MOST = 5
"""So many of the most likely are kept."""
AMONG = 50
"""Among so many of the likeliest of each text is what a text changes most."""


@dataclass(frozen=True)
class Option:
    """One thing that a model may say."""

    words: str
    """A token in quotation marks, or the name of a class."""
    number: int
    """Id of the token, or number of the class."""
    probability: float | None
    """None where the model's numbers are no logits of probabilities: a regression's."""
    logit: float


@dataclass(frozen=True, repr=False)
class Said(Short):
    """What a model says of one text."""

    options: tuple[Option, ...]
    """The most likely tokens or classes, largest logit first, and others that are asked about.
    None of a model that gives vectors."""
    value: float
    """The number that is explained."""

    def of(self, number: int) -> Option | None:
        """The option of this number, if it is among those kept."""
        return next((one for one in self.options if one.number == number), None)


def is_likeliest(says: Said, target: str, favours: tuple[str, str] | None) -> bool:
    """Whether what is explained is what the model says of the text, as far as it says anything."""
    if not says.options:
        return True
    likeliest = says.options[0].words
    if favours is not None:
        return favours[0] == likeliest
    return not target.startswith("logit of the class ") or target.endswith(f' "{likeliest}"')


def both_scores(
    model: nn.Module, kind: Kind, inputs: Mapping[str, Tensor], other: Tensor, position: int
) -> Tensor:
    """Logits of a text and the other, ``(2, V)`` or ``(2, C)``, float64, in one run if it may be.

    Raises:
        LigError: if the model gives none.
    """
    both = {name: torch.cat([x, other if name == "input_ids" else x]) for name, x in inputs.items()}
    call = ModelCall.of(model, both)
    try:
        return _scores(call, kind, position)
    except ValueError as error:
        if isinstance(error, LigError):
            raise
    # It may take one: classifiers without a padding token refuse several texts.
    return torch.cat([_scores(call.for_text(text, 2), kind, position) for text in range(2)])


@torch.no_grad()
def _scores(call: ModelCall, kind: Kind, position: int) -> Tensor:
    args, kwargs = call.arguments()
    if kind == "classes":
        scores = tensor_called(call.model(*args, **kwargs), "logits", call)
    else:
        output = call.model(*args, **kwargs, **only_logits_at(call, (position,)))
        scores = at_positions(tensor_called(output, "logits", call), call, (position,))[:, 0]
    return scores.double().cpu()


def most_changed(scores: Tensor, among: int = AMONG) -> tuple[int, int, float]:
    """What gains on what most from the other text to the text, and by how much.

    Of the likeliest tokens of either; the change is that of the difference of their logits.

    Args:
        scores: see :func:`both_scores`.
        among: so many of the likeliest of each text.
    """
    likely = scores.topk(min(among, scores.shape[1])).indices.unique()
    gained = (scores[0] - scores[1])[likely]
    up, down = int(gained.argmax()), int(gained.argmin())
    return int(likely[up]), int(likely[down]), float(gained[up] - gained[down])


def probabilities(model: nn.Module, kind: Kind, scores: Tensor) -> Tensor | None:
    """What the logits ``(..., V)`` or ``(..., C)`` of a model stand for; None if for nothing.

    Of classes as the configuration has them (``problem_type``): each by itself where a text may
    have several. A regression has none, nor has a single number.
    """
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if kind == "classes" and problem == "multi_label_classification":
        return scores.sigmoid()
    if kind == "classes" and (problem == "regression" or scores.shape[-1] == 1):
        return None
    return scores.softmax(-1)


def both_said(
    model: nn.Module,
    scores: Tensor,
    kind: Kind,
    more: list[int],
    values: list[float],
    names: Mapping[int, str],
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Said]:
    """The most likely of each text, of those of both texts and of ``more``.

    Args:
        model: that says it.
        scores: see :func:`both_scores`.
        kind: of the model.
        more: further options.
        values: the number that is explained, of each text.
        names: of classes.
        tokenizer: of tokens.
    """
    top = scores.topk(min(MOST, scores.shape[1])).indices.tolist()
    kept = list(dict.fromkeys([*top[0], *top[1], *more]))

    def words(number: int) -> str:
        if kind == "classes" or tokenizer is None:
            return str(names.get(number, number))
        return quoted(token_texts(tokenizer, [number])[0])

    found = []
    for row, value in zip(scores, values, strict=True):
        likely = probabilities(model, kind, row)
        each = [
            Option(words(i), i, None if likely is None else float(likely[i]), float(row[i]))
            for i in kept
        ]
        each.sort(key=lambda one: -one.logit)
        found.append(Said(tuple(each), value))
    return found
