"""What a target is: a number of each text, read from what a model gave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.shown import Short
from captum_lig.model.inputs import ModelCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BoundTarget", "Target", "first_tensor_of_texts", "named_output", "tensor_called"]


def _nothing(call: ModelCall) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, repr=False)
class BoundTarget(Short):
    """A target of one model: reads its number from what the model gives."""

    words: str
    """What the number is."""
    read: Callable[[Any, ModelCall], Tensor]
    """The number ``(P,)``, unchecked."""
    cheaper: Callable[[ModelCall], dict[str, Any]] = _nothing
    """What :meth:`arguments` gives."""
    texts: tuple[BoundTarget, ...] = ()
    """One for each text of a batch, if they differ."""
    fixed: int = 0
    """So many of a text's last tokens the number is about: those of a baseline are the same."""

    def __call__(self, output: Any, call: ModelCall) -> Tensor:
        """The number of each text, ``(P,)``.

        Args:
            output: what the model gave: a transformers ``ModelOutput``, a tensor or a tuple.
            call: the call that gave it, without :meth:`arguments`; of ``P`` texts, or of the one
                text that all ``P`` are copies of (the points of a path).

        Raises:
            LigError: if what comes out is not one finite number a text, or does not depend on the
                output.
        """
        value, given = self.read(output, call), first_tensor_of_texts(output)
        if not isinstance(value, Tensor):
            raise LigError(
                f"the target, {self.words}, gives {brief(value)}: it has to give a tensor (B,), "
                "one number a text."
            )
        count = given.shape[0] if given is not None else value.numel()
        if value.shape != (count,):
            all_of_them = (
                " The model runs on copies of a text together, and each is a text here: a loss or "
                "a mean is one number for all of them, so write it for each by itself."
            )
            raise LigError(
                f"the target, {self.words}, gives a tensor of shape {tuple(value.shape)} for "
                f"{count} text{'' if count == 1 else 's'}: it has to be ({count},), one number a "
                f"text.{all_of_them if value.numel() == 1 else ''}"
            )
        if not value.is_floating_point():
            raise LigError(
                f"the target, {self.words}, gives a tensor of {value.dtype}: it has to be "
                "floating point."
            )
        if not bool(torch.isfinite(value).all()):
            raise LigError(f"the target, {self.words}, is {brief(value)}: it has to be finite.")
        depends = given is None or not given.requires_grad or value.requires_grad
        if torch.is_grad_enabled() and not depends:
            raise LigError(
                f"the target, {self.words}, does not depend on the model's output: read it from "
                "the output, without detach() and torch.no_grad()."
            )
        return value

    def arguments(self, call: ModelCall) -> dict[str, Any]:
        """Further keyword arguments of the call, with which it is cheaper; ``{}`` as a rule."""
        return self.cheaper(call)

    def for_text(self, text: int) -> BoundTarget:
        """The target of one text of the batch."""
        return self.texts[text] if self.texts else self


class Target(ABC):
    """A number that models say about a text."""

    @abstractmethod
    def bind(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> BoundTarget:
        """The number of this model; ``tokenizer`` None is the one beside the model.

        Raises:
            LigError: if the model has no such number.
        """

    def placed(self, call: ModelCall, tokenizer: PreTrainedTokenizerBase | None = None) -> Target:
        """The same, with a position that is given by what its token says as a number.

        Args:
            call: of the texts, not of their baseline.
            tokenizer: None is the one beside the model.

        Raises:
            LigError: if there is no such token, or several.
        """
        return self


def first_tensor_of_texts(output: Any) -> Tensor | None:
    """The first tensor of an output that has an axis of texts; a loss has none."""
    if isinstance(output, Tensor):
        return output if output.dim() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    found = map(first_tensor_of_texts, output) if isinstance(output, (tuple, list)) else iter(())
    return next((x for x in found if x is not None), None)


def named_output(output: Any, name: str) -> Any:
    """What a record holds under this name, or None."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def tensor_called(output: Any, name: str, call: ModelCall) -> Tensor:
    """A record's tensor of this name; of a model that gives no record, its first tensor."""
    plain = isinstance(output, (Tensor, tuple, list)) and not isinstance(output, Mapping)
    value = first_tensor_of_texts(output) if plain else named_output(output, name)
    if not isinstance(value, Tensor):
        load = {
            "logits": "load the model with the head that does (AutoModelForCausalLM, "
            "AutoModelForMaskedLM, AutoModelForSequenceClassification)",
            "last_hidden_state": "load the model without its head (AutoModel)",
        }
        raise LigError(
            f"{type(call.model).__name__} gives no {name}: {load.get(name, 'load another model')}, "
            "or give a function of the model's output."
        )
    return value
