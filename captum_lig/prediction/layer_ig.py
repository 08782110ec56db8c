"""What each token of a layer has to do with a target: Captum's ``LayerIntegratedGradients``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import TypedDict, Unpack

from captum_lig._arguments import brief, index_list, whole_number
from captum_lig._captum import format_additional_forward_args
from captum_lig._restore import restoring
from captum_lig.errors import LigError
from captum_lig.flow.shown import Short
from captum_lig.integrals import quadrature
from captum_lig.model.call import BlockCall
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.prediction.baselines import InputBaseline, Inputs, input_baseline, main_input
from captum_lig.prediction.residual_stream import ResidualStream
from captum_lig.prediction.targets import Target, TargetLike, read_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DirectRelevance", "direct_relevance", "last_layer_relevance", "layer_baselines"]

METHODS = tuple(name for name in quadrature.METHODS if name != "gausslegendre_graded")
"""Of Captum, which integrates."""


@dataclass(frozen=True, repr=False)
class DirectRelevance(Short):
    """``LayerIntegratedGradients`` of a target at ``R`` depths of a model.

    ``N`` tokens, padding left out. Units are the target's.
    """

    layers: tuple[int, ...]
    """``R`` indices: the input of this layer; the last one is the output of the last layer (its
    index plus 1)."""
    tokens: Tensor
    """``(R, N)`` float64: attributions of a token, added up over the width."""
    delta: Tensor
    """``(R,)`` Captum's convergence delta: sum of attributions minus ``change``."""
    change: float
    """Target of the inputs minus that of the baselines: what each row should add up to."""
    positions: Tensor
    """``(N,)`` positions of the tokens in the text as the model got it."""
    target: str
    """What the target is."""


class Integration(TypedDict, total=False):
    """Captum's settings of an integral."""

    n_steps: int
    """Number of nodes, 50."""
    method: str
    """One of Captum's quadratures, ``"gausslegendre"``."""
    internal_batch_size: int | None
    """At most so many path points at once; None for all."""


@overload
def last_layer_relevance(
    model: nn.Module,
    target: TargetLike,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layer: nn.Module | str | int | None = None,
    return_convergence_delta: Literal[False] = False,
    **settings: Unpack[Integration],
) -> Tensor: ...


@overload
def last_layer_relevance(
    model: nn.Module,
    target: TargetLike,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layer: nn.Module | str | int | None = None,
    return_convergence_delta: Literal[True],
    **settings: Unpack[Integration],
) -> tuple[Tensor, Tensor]: ...


@restoring
def last_layer_relevance(
    model: nn.Module,
    target: TargetLike,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layer: nn.Module | str | int | None = None,
    return_convergence_delta: bool = False,
    **settings: Unpack[Integration],
) -> Tensor | tuple[Tensor, Tensor]:
    """Relevance of the tokens leaving the last block to a target of the model.

    Captum's ``LayerIntegratedGradients`` at the block's output, added up over the width: what
    :meth:`FlowGraph.relevance` hands further down, as its ``start``.

    Args:
        model: the Transformer that the target is of.
        target: the number to explain, see :func:`~captum_lig.prediction.targets.read_target`.
        inputs: one text, as :meth:`LayerFlowIG.attribute` takes it.
        baselines: where the path starts, see
            :func:`~captum_lig.prediction.baselines.input_baseline`.
        additional_forward_args: further arguments after ``inputs``, without baselines.
        tokenizer: of the text, for strings; None is the one beside the model.
        layer: another block, at whose output to attribute, for a graph that ends there.
        return_convergence_delta: also return Captum's convergence delta.
        settings: of the integral, as in Captum: ``n_steps`` (50), ``method``
            (``"gausslegendre"``) and ``internal_batch_size`` (None: all points at once).

    Returns:
        ``(N,)`` float64, padding left out, as the tokens of a graph; with
        ``return_convergence_delta`` a pair of that and the delta ``(1,)``.

    Raises:
        LigError: for inputs, baselines, a layer or a target that cannot be worked with.
    """
    question = _Question(model, target, inputs, baselines, additional_forward_args, tokenizer)
    number = -1 if layer is None else _chosen(model, layer, question.stream.blocks)
    tokens, delta = question.attribute(question.stream.leaving[number], **settings)
    return (tokens, delta) if return_convergence_delta else tokens


@restoring
def direct_relevance(
    model: nn.Module,
    target: TargetLike,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layers: Sequence[int] | None = None,
    last: int | None = None,
    show_progress: bool = False,
    **settings: Unpack[Integration],
) -> DirectRelevance:
    """``LayerIntegratedGradients`` where tokens enter each layer, and where they leave the last.

    ``layers`` are the indices of the layers at whose input to attribute, None for all, and ``last``
    is that of the layer at whose output to attribute, None for the model's last.
    ``show_progress`` shows a bar over layers. All else is as in :func:`last_layer_relevance`,
    errors too.
    """
    question = _Question(model, target, inputs, baselines, additional_forward_args, tokenizer)
    stream = question.stream
    count, cpu = len(stream.blocks), torch.device("cpu")
    end = count - 1 if last is None else int(index_list([last], count, cpu, "layers", "last")[0])
    chosen = range(end + 1) if layers is None else layers
    numbers = sorted(set(index_list(chosen, count, cpu, "layers", "layers").tolist()))
    if numbers[-1] > end:
        raise LigError(f"layer {numbers[-1]} comes after the last one, last={end}.")
    ends = [stream.entering[number] for number in numbers] + [stream.leaving[end]]
    shown = tqdm(ends, desc="layers", unit="layer", disable=not show_progress)
    tokens, delta = zip(*(question.attribute(point, **settings) for point in shown), strict=True)
    return DirectRelevance(
        layers=(*numbers, end + 1),
        tokens=torch.stack(tokens),
        delta=torch.cat(delta),
        change=question.change,
        positions=question.positions,
        target=question.bound.words,
    )


@restoring
def layer_baselines(
    model: nn.Module,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Tensor]:
    """The residual stream entering each block when the model is called with the baselines.

    As ``baselines`` of :meth:`LayerFlowIG.attribute` they start each layer's path where that of
    ``LayerIntegratedGradients`` starts: both then explain the same change of the tokens. The
    arguments are those of :func:`last_layer_relevance`.

    Returns:
        ``(1, S, D)``, one a block, in the order they run.
    """
    start = input_baseline(model, inputs, baselines, additional_forward_args, tokenizer)
    _one_text(inputs)
    call = ModelCall.of(model, start, additional_forward_args)
    return [block.hidden.detach() for block in _blocks(call)]


def _one_text(inputs: Inputs) -> None:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    first = next(x for x in (inputs, *values) if isinstance(x, Tensor))
    if len(first) != 1:
        raise LigError(f"inputs hold {len(first)} texts: give one, as a batch of one.")


@dataclass(frozen=True)
class _Given:
    """A text and its baseline as Captum wants them: what has a baseline, and what has none."""

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    further: tuple[Any, ...]
    names: tuple[str, ...]
    """Names of ``inputs`` and ``further``, if the caller gave a mapping."""

    @classmethod
    def of(cls, inputs: Inputs, start: Inputs, additional: object, main: str) -> _Given:
        if isinstance(inputs, Mapping):
            assert isinstance(start, Mapping)
            moving = [n for n in inputs if n == main or start[n] is not inputs[n]]
            rest = [name for name in inputs if name not in moving]
            return cls(
                tuple(inputs[name] for name in moving),
                tuple(start[name] for name in moving),
                tuple(inputs[name] for name in rest),
                (*moving, *rest),
            )
        assert not isinstance(start, Mapping)
        values = inputs if isinstance(inputs, tuple) else (inputs,)
        starts = start if isinstance(start, tuple) else (start,)
        return cls(values, starts, format_additional_forward_args(additional) or (), ())

    def call(self, call: ModelCall, values: tuple[Any, ...]) -> ModelCall:
        """The model's call with these values instead, which Captum made of the given ones."""
        if not self.names:
            return replace(call, args=values)
        return replace(call, kwargs={**call.kwargs, **dict(zip(self.names, values, strict=True))})


class _Question:
    """A target of one text, and the stream of the model that it comes from."""

    def __init__(
        self,
        model: nn.Module,
        target: TargetLike,
        inputs: Inputs,
        baselines: InputBaseline,
        additional: object,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        call = ModelCall.of(model, inputs, additional)
        _one_text(inputs)
        if isinstance(target, Target):
            target = target.placed(call, tokenizer)
        self.bound = bound = read_target(target, model, 1, tokenizer)
        # As the model gets them, on its device.
        if isinstance(inputs, Mapping):
            inputs = {name: call.kwargs[name] for name in inputs}
        else:
            count = len(inputs) if isinstance(inputs, tuple) else 1
            additional = call.args[count:] or None
            inputs = call.args[:count]
        start = input_baseline(model, inputs, baselines, additional, tokenizer, bound.fixed)
        main = main_input(model, inputs) if isinstance(inputs, Mapping) else ""
        self.given = given = _Given.of(inputs, start, additional, main)

        def forward(*values: Any) -> Tensor:
            one = given.call(call, values)
            args, kwargs = one.arguments()
            return bound(model(*args, **kwargs, **bound.arguments(one)), one)

        self.stream = ResidualStream(_blocks(call))
        self.forward: Callable[..., Tensor] = self.stream.through(forward)
        with torch.enable_grad():  # so that a target that has no gradient is found out here
            ends = [self.forward(*x, *given.further) for x in (given.inputs, given.baselines)]
        self.change = float(ends[0].detach().double() - ends[1].detach().double())
        self.positions = self.stream.blocks[0].valid[0].nonzero().squeeze(-1)
        self.takes_copies = True
        """Whether points of the path run together, as copies of the text."""

    def attribute(
        self,
        end: nn.Module,
        *,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Relevances ``(N,)`` and convergence delta ``(1,)`` at one end of a block."""
        if method not in METHODS:
            raise LigError(f"method {brief(method)} is unknown: use one of {', '.join(METHODS)}.")
        whole_number("n_steps", n_steps, 2 if method == "riemann_trapezoid" else 1)
        if internal_batch_size is not None:
            whole_number("internal_batch_size", internal_batch_size, 1)

        def attributed(at_once: int | None) -> Any:
            return LayerIntegratedGradients(self.forward, end).attribute(
                self.given.inputs,
                self.given.baselines,
                additional_forward_args=self.given.further or None,
                n_steps=n_steps,
                method=method,
                internal_batch_size=at_once,
                return_convergence_delta=True,
            )

        at_once = internal_batch_size if self.takes_copies else 1
        try:
            attributions, delta = attributed(at_once)
        except ValueError as error:
            if at_once == 1 or isinstance(error, LigError):
                raise
            self.takes_copies = False
            # It may take one: classifiers without a padding token refuse several texts.
            attributions, delta = attributed(1)
        found = attributions[0].detach().double().sum(-1)
        kept = torch.zeros_like(found, dtype=torch.bool)
        kept[self.positions] = True
        if bool((found[~kept].abs() > 1e-3 * found.abs().sum()).any()):
            token = int((found.abs() * ~kept).argmax())
            raise LigError(
                f"the target, {self.bound.words}, reads token {token}, which is padding: read it "
                "at the text's own tokens, as logit(token) of captum_lig.prediction does, or give "
                "the text without padding."
            )
        return found[self.positions], delta.detach()


def _blocks(call: ModelCall) -> list[BlockCall]:
    with Finder(call.model).recorded(call) as blocks:
        return blocks


def _chosen(model: nn.Module, layer: nn.Module | str | int, blocks: Sequence[BlockCall]) -> int:
    """Which of the blocks ``layer`` is; the last time it runs."""
    if isinstance(layer, int):
        return int(index_list([layer], len(blocks), torch.device("cpu"), "layers", "layer")[0])
    found = [b.index for b in blocks if b.module is layer or b.name == layer]
    if not found:
        raise LigError(
            f"layer {brief(layer)} is no block of {type(model).__name__}: its blocks are "
            f"{blocks[0].name} to {blocks[-1].name}."
        )
    return found[-1]
