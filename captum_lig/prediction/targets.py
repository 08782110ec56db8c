"""Targets: the number F of a model that an attribution is about, one of each text.

A target is read from what the model gave, never by running the model. Captum's own (a class, a
tuple of indices, one of them for each text of a batch), those made here, and any function of the
model's output are read by :func:`read_target`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig._captum import select_targets
from captum_lig._restore import restoring
from captum_lig.errors import LigError, out_of_memory
from captum_lig.model.inputs import ModelCall
from captum_lig.prediction.bound_target import (
    BoundTarget,
    Target,
    first_tensor_of_texts,
    named_output,
)
from captum_lig.prediction.logit_targets import (
    ClassLogit,
    Logit,
    LogProbability,
    class_logit,
    log_probability,
    logit,
)
from captum_lig.prediction.vector_targets import Cosine, State, cosine, state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BoundTarget",
    "ClassLogit",
    "Cosine",
    "LogProbability",
    "Logit",
    "State",
    "Target",
    "TargetLike",
    "class_logit",
    "cosine",
    "log_probability",
    "logit",
    "read_target",
    "state",
    "target_value",
]

Indices = int | tuple[int, ...]
TargetLike = Indices | list[int] | list[tuple[int, ...]] | Tensor | Target | Callable[[Any], Tensor]
"""What :func:`read_target` takes."""


def read_target(
    target: TargetLike,
    model: nn.Module,
    batch: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> BoundTarget:
    """A target of a model, for a batch of so many texts.

    Args:
        target: one of this module's; as in Captum an int or a tuple of indices into the output
            behind its first axis, or a list or tensor of those, one for each text (of a record
            the ``logits`` are read, of a model without logits its first tensor); or a function
            of the model's output that gives ``(B,)``.
        model: the model.
        batch: number of texts.
        tokenizer: for tokens and texts given as strings; None is the one beside the model.

    Raises:
        LigError: for a target that the model does not have.
    """
    if isinstance(target, Target):
        return target.bind(model, tokenizer)
    if isinstance(target, (int, tuple, list, Tensor)) and not isinstance(target, bool):
        return _captums(target, batch)
    if callable(target):
        function = target
        name = getattr(function, "__name__", type(function).__name__)
        return BoundTarget(f"{name}(output)", lambda output, call: function(output))
    hint = f" For a token or a class: logit({target!r}), class_logit({target!r})."
    raise LigError(
        f"target={brief(target)}: give an int, a tuple, a list or a tensor as in Captum, a target "
        "of captum_lig.prediction, or a function of the model's output that gives (B,)."
        + (hint if isinstance(target, str) else "")
    )


@restoring
def target_value(
    model: nn.Module,
    target: TargetLike,
    inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Any],
    additional_forward_args: object = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Tensor:
    """What the model says of each text, ``(B,)``: runs it once.

    Gradients reach the model's parameters, unless ``torch.no_grad()`` is on.

    Raises:
        LigError: for inputs or a target that cannot be worked with.
    """
    call = ModelCall.of(model, inputs, additional_forward_args)
    values = (*call.args, *call.kwargs.values())
    batch = next(len(x) for x in values if isinstance(x, Tensor) and x.dim())
    if isinstance(target, Target):
        target = target.placed(call, tokenizer)
    bound = read_target(target, model, batch, tokenizer)
    args, kwargs = call.arguments()
    with call.explained():
        output = model(*args, **kwargs, **bound.arguments(call))
    return bound(output, call)


def _captums(target: Any, batch: int) -> BoundTarget:
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.dtype == torch.bool or target.dim() > 1:
            raise LigError(f"target={brief(target)}: a tensor holds whole numbers, one a text.")
        target = target.tolist()
    if not isinstance(target, list):
        return _captum(target)
    if len(target) == 1:
        return _captum(target[0])  # one for all, as Captum reads it
    if len(target) != batch:
        raise LigError(f"target={brief(target)}: {len(target)} targets for {batch} texts.")
    texts = tuple(map(_captum, target))
    return BoundTarget(
        f"target {brief(target)}", lambda output, call: _selected(output, target), texts=texts
    )


def _captum(target: Any) -> BoundTarget:
    indices = target if isinstance(target, tuple) else (target,)
    if not indices or any(isinstance(i, bool) or not isinstance(i, int) for i in indices):
        raise LigError(f"target={brief(target)}: give whole numbers, one or a tuple of them.")
    words = f"target {target}"
    return BoundTarget(words, lambda output, call: _selected(output, target))


def _selected(output: Any, target: Any) -> Tensor:
    logits = named_output(output, "logits")
    values = logits if isinstance(logits, Tensor) else first_tensor_of_texts(output)
    shown = f"target={brief(target)}"
    if values is None:
        raise LigError(f"{shown}, and the model's output holds no tensor to read it from.")
    shape = tuple(values.shape)
    several = isinstance(target, list)
    first = target[0] if several else target
    if len(shape) == 3 and not isinstance(first, tuple):
        raise LigError(
            f"{shown} is not clear, the output has the shape {shape}: give (position, token), or "
            "logit(token) of captum_lig.prediction."
        )
    try:
        selected: Tensor = select_targets(values, target)
    except (AssertionError, IndexError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise LigError(f"{shown} is not in the output, of shape {shape}: {reason}") from error
    return selected
