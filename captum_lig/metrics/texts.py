"""Erasing a text's tokens in order of relevance: comprehensiveness, sufficiency, AOPC.

DeYoung et al., "ERASER: A Benchmark to Evaluate Rationalized NLP Models" (2020), section 4.2;
Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned" (2017).
F is a number of the model; tokens are not deleted but put to those of a baseline, so that positions
stay what they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief, whole_number
from captum_lig._restore import restoring
from captum_lig.errors import LigError
from captum_lig.metrics.statistics import OverTexts
from captum_lig.model.inputs import ModelCall
from captum_lig.patching.two_runs import number_of_texts
from captum_lig.prediction.baselines import input_baseline
from captum_lig.prediction.bound_target import BoundTarget
from captum_lig.prediction.targets import Target, TargetLike, read_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FRACTIONS", "Erasure", "ErasureOverTexts", "erasure"]

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Parts of the tokens, those of ERASER."""


@dataclass(frozen=True)
class Erasure:
    """What a text's number is with some of its tokens erased. All in the units of the target."""

    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    """How many tokens each is."""
    value: float
    """``F(text)``"""
    baseline_value: float
    """``F(baseline)``"""
    without: Tensor
    """``(K,)`` F with the most relevant tokens put to the baseline."""
    only: Tensor
    """``(K,)`` F with all others put there."""

    @property
    def comprehensiveness(self) -> Tensor:
        """``(K,)`` ``F(text) - F(text without them)``: the larger, the better the order."""
        return self.value - self.without

    @property
    def sufficiency(self) -> Tensor:
        """``(K,)`` ``F(text) - F(them alone)``: the smaller, the better the order."""
        return self.value - self.only

    @property
    def aopc_comprehensiveness(self) -> float:
        """``1 / (K + 1)`` times the sum of ``F(text) - F(text without)`` over no token and all K.

        Without a token erased nothing is lost, so the first term is 0.
        """
        return float(self.comprehensiveness.sum()) / (len(self.fractions) + 1)

    @property
    def aopc_sufficiency(self) -> float:
        """The same of ``F(text) - F(them alone)``; of no token alone it is the whole change."""
        nothing = self.value - self.baseline_value
        return (nothing + float(self.sufficiency.sum())) / (len(self.fractions) + 1)


@restoring
@torch.no_grad()
def erasure(
    model: nn.Module,
    inputs: Any,
    relevance: Tensor | Sequence[Tensor],
    target: TargetLike,
    baselines: Any = None,
    additional_forward_args: object = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 32,
) -> list[Erasure]:
    """Erase tokens in order of relevance, the largest number first, and see what the model says.

    Only tokens that differ from the baseline can be erased; fractions are of their number, rounded
    up. To ask which tokens are decisive in either way, give the size of the relevances.

    Args:
        model: the model.
        inputs: token ids or vectors, ``(B, S)`` or ``(B, S, D)``, in any form that
            :meth:`LayerFlowIG.attribute` takes.
        relevance: ``(B, S)`` of each token, or one ``(S,)`` each text.
        target: the number, as :meth:`LayerFlowIG.attribute` takes it.
        baselines: what tokens are put to, as :meth:`LayerFlowIG.attribute` takes it with a target;
            None: padding.
        additional_forward_args: further arguments of the model after ``inputs``.
        fractions: parts of the tokens, each above 0, at most 1.
        tokenizer: for what is given as a string; None: the model's own.
        batch_size: how many erased copies run at once.

    Returns:
        One for each text.

    Raises:
        LigError: for relevances or fractions that do not fit, or if no token differs.
    """
    if not fractions or any(not 0 < part <= 1 for part in fractions):
        raise LigError(f"fractions={brief(fractions)}: give numbers above 0, at most 1.")
    whole_number("batch_size", batch_size, 1)
    batch = number_of_texts(inputs)
    if len(relevance) != batch:
        raise LigError(f"relevance is of {len(relevance)} texts, inputs hold {batch}.")
    more = additional_forward_args
    call = ModelCall.of(model, inputs, more)
    if isinstance(target, Target):
        target = target.placed(call, tokenizer)
    bound = read_target(target, model, batch, tokenizer)
    other = input_baseline(model, inputs, baselines, more, tokenizer, fixed=bound.fixed)
    baseline = ModelCall.of(model, other, more)
    return [
        _of_text(
            call.for_text(text, batch),
            baseline.for_text(text, batch),
            bound.for_text(text),
            torch.as_tensor(relevance[text]),
            tuple(fractions),
            batch_size,
        )
        for text in range(batch)
    ]


def _of_text(
    call: ModelCall,
    baseline: ModelCall,
    target: BoundTarget,
    relevance: Tensor,
    fractions: tuple[float, ...],
    batch_size: int,
) -> Erasure:
    given, start = _what_differs(call, baseline)
    length = given.shape[1] if given.dim() > 1 else 0
    if relevance.shape != (length,):
        raise LigError(
            f"relevance of shape {tuple(relevance.shape)} for an input of shape "
            f"{tuple(given.shape[1:])}: give one number for each of its tokens."
        )
    if not bool(torch.isfinite(relevance).all()):
        raise LigError("relevance holds numbers that are not finite, which have no order.")
    changed = (given != start)[0].flatten(1).any(1) if given.dim() > 2 else (given != start)[0]
    order = relevance.double().argsort(descending=True, stable=True).to(given.device)
    order = order[changed[order]]
    counts = tuple(math.ceil(part * len(order) - 1e-9) for part in fractions)
    erased = torch.zeros(2 + 2 * len(counts), length, dtype=torch.bool, device=given.device)
    erased[1] = True
    for n, count in enumerate(counts):
        erased[2 + n, order[:count]] = True
        erased[2 + len(counts) + n, order[count:]] = True
    values = []
    for rows in erased.split(batch_size):
        shape = rows.view(*rows.shape, *[1] * (given.dim() - 2))
        tokens = torch.where(shape, start, given)
        values += _values(call.with_instead(given, tokens).repeated(len(rows)), target)
    found = torch.stack(values)
    _check_repeats(call, target, found)
    return Erasure(
        fractions,
        counts,
        float(found[0]),
        float(found[1]),
        found[2 : 2 + len(counts)],
        found[2 + len(counts) :],
    )


def _values(call: ModelCall, target: BoundTarget) -> list[Tensor]:
    """The number of each of the texts."""
    try:
        return [*_value(call, target)]
    except LigError:
        if call.batch == 1:
            raise
        # It may take one: classifiers without a padding token refuse several texts.
        each = [call.for_text(n, call.batch) for n in range(call.batch)]
    return [_value(one, target)[0] for one in each]


def _value(call: ModelCall, target: BoundTarget) -> Tensor:
    args, kwargs = call.arguments()
    with call.explained():
        output = call.model(*args, **kwargs, **target.arguments(call))
    return target(output, call).double().cpu()


def _check_repeats(call: ModelCall, target: BoundTarget, found: Tensor) -> None:
    """Refuse a model that gives another number each time, or with other texts beside one."""
    args = (*call.args, *call.kwargs.values(), *call.model.parameters())
    half = any(isinstance(x, Tensor) and x.dtype in (torch.half, torch.bfloat16) for x in args)
    again = float(_value(call, target)[0])
    if not abs(again - float(found[0])) <= (5e-2 if half else 1e-3) * float(found.abs().max()):
        raise LigError(
            f"the number, {target.words}, is {float(found[0]):.6g} of the text, and {again:.6g} "
            "when it runs alone: the model is random (dropout that does not ask for the mode?), "
            "keeps a state, or mixes texts. Switch that off."
        )


def _what_differs(call: ModelCall, baseline: ModelCall) -> tuple[Tensor, Tensor]:
    """The one input that the baseline puts others in place of, and those."""
    pairs = [*zip(call.args, baseline.args, strict=True)]
    pairs += [(value, baseline.kwargs.get(name)) for name, value in call.kwargs.items()]
    found = [
        (given, start.to(given))
        for given, start in pairs
        if isinstance(given, Tensor)
        and isinstance(start, Tensor)
        and not torch.equal(given, start.to(given))
    ]
    if len(found) != 1:
        raise LigError(
            f"{len(found)} of the inputs differ from their baseline: erasing tokens takes one, of "
            "token ids or vectors."
        )
    return found[0]


class ErasureOverTexts(OverTexts):
    """Comprehensiveness and sufficiency over texts, at each fraction and in all (AOPC)."""

    def update(self, erased: Erasure | Sequence[Erasure]) -> None:
        """Add one text, or several."""
        for one in [erased] if isinstance(erased, Erasure) else erased:
            numbers = {
                "aopc comprehensiveness": one.aopc_comprehensiveness,
                "aopc sufficiency": one.aopc_sufficiency,
            }
            for n, part in enumerate(one.fractions):
                numbers[f"comprehensiveness {part:g}"] = float(one.comprehensiveness[n])
                numbers[f"sufficiency {part:g}"] = float(one.sufficiency[n])
            self.add(numbers)
