"""Flows towards a number of a model: the chain of every text, as one flow a layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from captum_lig._arguments import brief, users_line
from captum_lig.attribution.chain import TextParts, attribute_number
from captum_lig.cost import Cost
from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.integrals.settings import Settings
from captum_lig.model.call import BlockCall
from captum_lig.model.few_bits import check_no_rounding, few_bit_layers, in_full
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder, Layer, chosen
from captum_lig.model.user_block import Block
from captum_lig.prediction.baselines import InputBaseline, Inputs, input_baseline
from captum_lig.prediction.bound_target import BoundTarget, Target
from captum_lig.prediction.targets import State, TargetLike, read_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BOUNDARIES", "Finders", "Prepared", "Question", "flows_towards", "only_without_target"]

BOUNDARIES = ("attention", "mlp", "feed_forward", "cross")
"""What can be asked for. Without ``attention`` there are no edges into the heads, only sums."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model."""

    inputs: Inputs
    baselines: InputBaseline
    additional: object
    target: TargetLike
    tokenizer: PreTrainedTokenizerBase | None
    boundaries: Sequence[str] | str | None
    dtype: torch.dtype | None
    settings: Settings
    show_progress: bool

    def names(self) -> frozenset[str]:
        """The boundaries.

        Raises:
            LigError: for one that is not there with a target.
        """
        given = BOUNDARIES if self.boundaries is None else self.boundaries
        names = frozenset((given,) if isinstance(given, str) else given)
        if not names or not names <= set(BOUNDARIES):
            raise LigError(
                f"boundaries={brief(self.boundaries)}: with a target there are "
                f"{', '.join(map(repr, BOUNDARIES))}."
            )
        return names


class Finders:
    """The finder of a model's blocks, and of its copy in another precision.

    Half precision is too coarse for sums over all layers, so the whole model is copied.
    """

    def __init__(self, model: nn.Module, layer: Layer | Sequence[Layer] | None) -> None:
        self._model, self._layer = model, layer
        described = isinstance(layer, Block) or (
            isinstance(layer, (list, tuple)) and any(isinstance(one, Block) for one in layer)
        )
        self._given = layer if described else None
        self._found: Finder | None = None

    def finder(self, dtype: torch.dtype | None) -> Finder:
        """The finder of the blocks of the chain.

        Raises:
            LigError: for a model that cannot be copied, or without gradients.
        """
        if any(p.is_inference() for p in self._model.parameters()):
            raise LigError(
                "the model was made under torch.inference_mode(), so nothing that it computes has "
                "gradients: make it outside, and attribute outside or inside."
            )
        own = next((p.dtype for p in self._model.parameters() if p.is_floating_point()), None)
        wide = own in (None, torch.float32, torch.float64)
        wanted = dtype or (own if wide else torch.float32)
        few = next((name for name, _ in few_bit_layers(self._model)), None)
        if own is not None and wanted is not None and (wanted != own or few is not None):
            kept = f"in {own}" if few is None else f"quantised ({few})"
            if self._given is not None:
                raise LigError(
                    f"the model is {kept}, and layer= describes blocks of it: load it in "
                    f"{wanted}, it cannot be copied together with the descriptions."
                )
            if any(p.is_meta for p in self._model.parameters()):
                raise LigError(
                    f"the model is offloaded, so it cannot be copied in {wanted}: load it with "
                    f"dtype={wanted}, or without offloading."
                )
            check_no_rounding(
                self._model.named_modules(), f"the model {type(self._model).__name__}", own
            )
            return Finder(in_full(self._model, wanted, own))
        if self._found is None:
            self._found = Finder(self._model, self._given)
        return self._found

    def check_all(self) -> None:
        """Refuse a question about all layers where some are named, and not described.

        Raises:
            LigError: if there are some.
        """
        if self._layer is not None and self._given is None:
            raise LigError(
                f"layer={brief(self._layer)}: direct edges go through all layers, so leave it out."
            )

    def asked(self, blocks: list[BlockCall]) -> set[int]:
        """Which of the chain's blocks are meant."""
        if self._layer is None or self._given is not None:
            return set(range(len(blocks)))
        layers: list[Any] = (
            list(self._layer) if isinstance(self._layer, (list, tuple)) else [self._layer]
        )
        names = dict(self._model.named_modules())
        return {block.index for one in layers for block in chosen(blocks, _name(one, names))}


def _name(layer: Layer, names: Mapping[str, nn.Module]) -> Layer:
    """A module by its name: the blocks may be those of a copy."""
    if not isinstance(layer, nn.Module):
        return layer
    return next((name for name, module in names.items() if module is layer), layer)


def only_without_target(**given: Any) -> None:
    """Refuse settings that mean nothing with a target.

    Raises:
        LigError: for one that is not None.
    """
    for name, value in given.items():
        if value is not None:
            raise LigError(
                f"{name}={brief(value)} goes with flows without a target: leave it out, or target=."
            )


@dataclass(frozen=True)
class Prepared:
    """The two calls of a model, of all texts, and the number."""

    finder: Finder
    call: ModelCall
    baseline: ModelCall
    batch: int
    target: BoundTarget | State

    @classmethod
    def of(cls, finders: Finders, question: Question) -> Prepared:
        """From what was asked.

        Raises:
            LigError: for inputs, baselines or a target that do not exist or go together.
        """
        finder, target = finders.finder(question.dtype), question.target
        model, tokenizer = finder.model, question.tokenizer
        inputs, more = (_in_dtype(x, model) for x in (question.inputs, question.additional))
        call = ModelCall.of(model, inputs, more)
        batch = call.batch
        if isinstance(target, Target):
            target = target.placed(call, tokenizer)
        bound = (
            target if isinstance(target, State) else read_target(target, model, batch, tokenizer)
        )
        fixed = 0 if isinstance(bound, State) else bound.fixed
        start = input_baseline(model, inputs, question.baselines, more, tokenizer, fixed)
        return cls(finder, call, ModelCall.of(model, start, more), batch, bound)

    def warn_of_the_same(self) -> None:
        """Warn of texts whose baseline is the text itself."""
        calls = self.call, self.baseline
        for text in range(self.batch):
            own, start = (tree_leaves(x.for_text(text, self.batch).arguments()) for x in calls)
            pairs = zip(own, start, strict=False)
            if all(torch.equal(x, y) for x, y in pairs if isinstance(x, Tensor)):
                warnings.warn(
                    f"the baseline of text {text} is the text itself: nothing changes, and what "
                    "is attributed to it is 0. Give another text as baselines, or leave it out for "
                    "padding.",
                    stacklevel=users_line(),
                )
                return

    def for_text(self, text: int) -> BoundTarget | State:
        """The number of one text."""
        return self.target if isinstance(self.target, State) else self.target.for_text(text)


def flows_towards(finders: Finders, question: Question) -> list[LayerFlow]:
    """One flow for each layer that is asked for, first layer first.

    Raises:
        LigError: for anything that cannot be worked with; the message says what to do.
    """
    names = question.names()
    prepared = Prepared.of(finders, question)
    texts = []
    prepared.warn_of_the_same()
    for text in range(prepared.batch):
        with _naming(text, prepared.batch):
            found = attribute_number(
                prepared.finder,
                prepared.call.for_text(text, prepared.batch),
                prepared.baseline.for_text(text, prepared.batch),
                prepared.for_text(text),
                question.settings,
                finders.asked,
                names,
                question.show_progress,
            )
        texts.append(found)
    words = prepared.target.words
    return [
        _flow(texts, number, words, _describe(question.baselines), question.settings.tolerance)
        for number in range(len(texts[0].layers))
    ]


@contextmanager
def _naming(text: int, batch: int) -> Iterator[None]:
    """Say of which text of a batch an error is: each runs alone."""
    try:
        yield
    except LigError as error:
        if batch == 1:
            raise
        raise LigError(f"text {text} of the batch: {error}") from error


def _flow(
    texts: list[TextParts], number: int, words: str, baseline: str, tolerance: float | None
) -> LayerFlow:
    layers = [text.layers[number] for text in texts]
    first = layers[0].block
    valid = torch.cat([layer.block.valid for layer in layers])
    cost = layers[0].cost
    for layer in layers[1:]:
        cost = cost + layer.cost
    return LayerFlow(
        name=first.name,
        index=first.index,
        targets=torch.arange(valid.shape[1], device=valid.device),
        valid=valid,
        scalarization="target",
        baseline=baseline,
        tolerance=tolerance,
        cost=Cost(
            cost.path_points / len(texts),
            cost.forward_equivalents / len(texts),
            cost.seconds,
            cost.path,
        ),
        target=words,
        tensors={
            name: torch.stack([layer.parts[name] for layer in layers])
            for name in FIELDS
            if all(name in layer.parts for layer in layers)
        },
    )


def _describe(baselines: Any) -> str:
    if baselines is None:
        return "padding"
    return str(baselines) if isinstance(baselines, (str, int, float)) else "input"


def _in_dtype(value: Any, model: nn.Module) -> Any:
    """Floating inputs in the precision of the model that they go into."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if isinstance(value, Tensor):
        return value.to(own) if own is not None and value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_in_dtype(one, model) for one in value)
    if isinstance(value, Mapping):
        cast = {name: _in_dtype(one, model) for name, one in value.items()}
        return type(value)(cast) if isinstance(value, dict) else cast
    return value
