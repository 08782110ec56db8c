"""What each token of a layer has to do with a scalar: Captum's ``LayerIntegratedGradients``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import TypedDict, Unpack

from captum_lig._arguments import brief, index_list, whole_number
from captum_lig._captum import format_additional_forward_args
from captum_lig.errors import LigError
from captum_lig.integrals import quadrature
from captum_lig.model.call import BlockCall
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.prediction.residual_stream import ResidualStream
from captum_lig.prediction.targets import Scalar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DirectRelevance",
    "direct_relevance",
    "last_layer_relevance",
    "layer_baselines",
    "token_baseline",
]

METHODS = tuple(name for name in quadrature.METHODS if name != "gausslegendre_graded")
"""Of Captum, which integrates."""
Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Any]
InputBaseline = float | Tensor | tuple[float | Tensor, ...] | None
"""As in Captum: a number, a tensor ``(1, S, ...)``, a tuple of those, or None for 0."""


@dataclass(frozen=True)
class DirectRelevance:
    """``LayerIntegratedGradients`` of a scalar at ``R`` depths of a model.

    ``N`` tokens, padding left out. Units are the scalar's.
    """

    layers: tuple[int, ...]
    """``R`` indices: the input of this layer; the last one is the output of the last layer (its
    index plus 1)."""
    tokens: Tensor
    """``(R, N)`` float64: attributions of a token, added up over the width."""
    delta: Tensor
    """``(R,)`` Captum's convergence delta: sum of attributions minus ``change``."""
    change: float
    """Scalar of the inputs minus that of the baselines: what each row should add up to."""
    positions: Tensor
    """``(N,)`` positions of the tokens in the text as the model got it."""


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
    scalar: Scalar,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    layer: nn.Module | str | int | None = None,
    return_convergence_delta: Literal[False] = False,
    **settings: Unpack[Integration],
) -> Tensor: ...


@overload
def last_layer_relevance(
    model: nn.Module,
    scalar: Scalar,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    layer: nn.Module | str | int | None = None,
    return_convergence_delta: Literal[True],
    **settings: Unpack[Integration],
) -> tuple[Tensor, Tensor]: ...


def last_layer_relevance(
    model: nn.Module,
    scalar: Scalar,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    layer: nn.Module | str | int | None = None,
    return_convergence_delta: bool = False,
    **settings: Unpack[Integration],
) -> Tensor | tuple[Tensor, Tensor]:
    """Relevance of the tokens leaving the last block to a scalar of the model.

    Captum's ``LayerIntegratedGradients`` at the block's output, added up over the width: what
    :meth:`FlowGraph.relevance` hands further down, as its ``start``.

    Args:
        model: the Transformer that the scalar is of.
        scalar: called as the model is, gives ``(B,)``: see :mod:`captum_lig.prediction.targets`.
        inputs: one text, as :meth:`LayerFlowIG.attribute` takes it.
        baselines: where the path starts, as in Captum: token ids, or vectors if the model gets
            those. None: 0, as in Captum, for every token; :func:`token_baseline` gives better
            ones. Of a tokenizer's mapping only the ids (or vectors) have a baseline.
        additional_forward_args: further arguments after ``inputs``, without baselines.
        layer: another block, at whose output to attribute, for a graph that ends there.
        return_convergence_delta: also return Captum's convergence delta.
        settings: of the integral, as in Captum: ``n_steps`` (50), ``method``
            (``"gausslegendre"``) and ``internal_batch_size`` (None: all points at once).

    Returns:
        ``(N,)`` float64, padding left out, as the tokens of a graph; with
        ``return_convergence_delta`` a pair of that and the delta ``(1,)``.

    Raises:
        LigError: for inputs, baselines, a layer or a scalar that cannot be worked with.
    """
    question = _Question(model, scalar, inputs, baselines, additional_forward_args)
    number = -1 if layer is None else _chosen(model, layer, question.stream.blocks)
    tokens, delta = question.attribute(question.stream.leaving[number], **settings)
    return (tokens, delta) if return_convergence_delta else tokens


def direct_relevance(
    model: nn.Module,
    scalar: Scalar,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
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
    question = _Question(model, scalar, inputs, baselines, additional_forward_args)
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
    )


def token_baseline(
    inputs: Mapping[str, Any] | Tensor,
    tokenizer: PreTrainedTokenizerBase,
    token: int | None = None,
    keep_special: bool = True,
) -> Tensor:
    """The text with its tokens replaced by padding.

    Captum's default, 0 at every token, is no such text for a decoder: tokens that are all the
    same get all the same vectors, each as large as that of the first token (an attention sink),
    and the integral from there does not converge.

    Args:
        inputs: what the tokenizer returned, or its ``input_ids``.
        tokenizer: of the text.
        token: id of the token to put in; None for the padding token, or the end-of-text token of
            a tokenizer that has none.
        keep_special: leave the special tokens of the text where they are (``[CLS]``, ``[SEP]``),
            and the first token of a text that begins with none. They do not
            move on the path, so that their relevance at layer 0 is 0.

    Returns:
        Token ids, like the text's: ``baselines`` of :func:`last_layer_relevance`.

    Raises:
        LigError: if the tokenizer has neither token and none was given.
    """
    ids: Tensor = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if token is None:
        token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if token is None:
        raise LigError("the tokenizer has no padding and no end-of-text token: give token=.")
    filled = torch.full_like(ids, token)
    if not keep_special:
        return filled
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    first = kept & (kept.cumsum(-1) == 1)
    return torch.where(special | first, ids, filled)


def layer_baselines(
    model: nn.Module,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
) -> list[Tensor]:
    """The residual stream entering each block when the model is called with the baselines.

    As ``baselines`` of :meth:`LayerFlowIG.attribute` they start each layer's path where that of
    ``LayerIntegratedGradients`` starts: both then explain the same change of the tokens. The
    arguments are those of :func:`last_layer_relevance`.

    Returns:
        ``(1, S, D)``, one a block, in the order they run.
    """
    given = _Given.of(model, inputs, baselines, additional_forward_args)
    start: Inputs = given.baselines
    if isinstance(inputs, Mapping):
        start = {**inputs, given.names[0]: given.baselines[0]}
        additional_forward_args = None
    return [block.hidden.detach() for block in _blocks(model, start, additional_forward_args)]


@dataclass(frozen=True)
class _Given:
    """A text and its baseline as Captum wants them: what has a baseline, and what has none."""

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    further: tuple[Any, ...]
    names: tuple[str, ...]
    """Names of the one input and of ``further``, if the caller gave a mapping."""

    @classmethod
    def of(
        cls, model: nn.Module, inputs: Inputs, baselines: InputBaseline, additional: object
    ) -> _Given:
        ModelCall.of(model, inputs, additional)  # checks them
        if isinstance(inputs, Mapping):
            main = _main_input(model, inputs)
            rest = {name: value for name, value in inputs.items() if name != main}
            names, further = (main, *rest), tuple(rest.values())
            values: tuple[Tensor, ...] = (inputs[main],)
        else:
            names, values = (), inputs if isinstance(inputs, tuple) else (inputs,)
            further = format_additional_forward_args(additional) or ()
        if len(values[0]) != 1:
            raise LigError(f"inputs hold {len(values[0])} texts: give one, as a batch of one.")
        starts = baselines if isinstance(baselines, tuple) else (baselines,) * len(values)
        if len(starts) != len(values):
            raise LigError(f"{len(starts)} baselines for {len(values)} inputs: give one for each.")
        filled = tuple(_baseline_like(x, start) for x, start in zip(values, starts, strict=True))
        return cls(values, filled, further, names)

    def forward(self, scalar: Scalar) -> Scalar:
        """``scalar`` as a function of positional arguments."""
        if not self.names:
            return scalar
        return lambda *values: scalar(**dict(zip(self.names, values, strict=True)))


class _Question:
    """A scalar of one text, and the stream of the model that it comes from."""

    def __init__(
        self,
        model: nn.Module,
        scalar: Scalar,
        inputs: Inputs,
        baselines: InputBaseline,
        additional: object,
    ) -> None:
        self.given = given = _Given.of(model, inputs, baselines, additional)
        self.stream = ResidualStream(_blocks(model, inputs, additional))
        self.forward = self.stream.through(given.forward(scalar))
        with torch.no_grad():
            ends = [self.forward(*x, *given.further) for x in (given.inputs, given.baselines)]
        for value in ends:
            if not isinstance(value, Tensor) or value.shape != (1,):
                shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise LigError(f"the scalar gives {shown} for one text: it has to give (B,), (1,).")
            if not bool(torch.isfinite(value).all()):
                raise LigError(f"the scalar is {float(value)}: it has to be finite.")
        self.change = float(ends[0].double() - ends[1].double())
        self.positions = self.stream.blocks[0].valid[0].nonzero().squeeze(-1)

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
        attributions, delta = LayerIntegratedGradients(self.forward, end).attribute(
            self.given.inputs,
            self.given.baselines,
            additional_forward_args=self.given.further or None,
            n_steps=n_steps,
            method=method,
            internal_batch_size=internal_batch_size,
            return_convergence_delta=True,
        )
        return attributions[0, self.positions].detach().double().sum(-1), delta.detach()


def _blocks(model: nn.Module, inputs: Inputs, additional: object) -> list[BlockCall]:
    with Finder(model).recorded(ModelCall.of(model, inputs, additional)) as blocks:
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


def _main_input(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """Name of what has a baseline in a tokenizer's mapping."""
    names = [getattr(model, "main_input_name", "input_ids"), "input_ids", "inputs_embeds"]
    for name in names:
        if isinstance(inputs.get(name), Tensor):
            return str(name)
    raise LigError(
        f"inputs hold {', '.join(map(repr, inputs))}, and none of {', '.join(map(repr, names))}: "
        "give what has a baseline as a tensor, and the rest as additional_forward_args."
    )


def _baseline_like(x: Tensor, baseline: float | Tensor | None) -> Tensor:
    if baseline is None or isinstance(baseline, (int, float)):
        if isinstance(baseline, float) and not x.is_floating_point():
            raise LigError(f"baseline={baseline}, and the input holds token ids: give a token id.")
        return torch.full_like(x, baseline or 0)
    if not isinstance(baseline, Tensor) or baseline.shape != x.shape:
        raise LigError(
            f"baseline {brief(baseline)} does not fit an input of shape {tuple(x.shape)}: give a "
            "number or a tensor of that shape."
        )
    if baseline.is_floating_point() and not x.is_floating_point():
        raise LigError(
            f"baseline is a {baseline.dtype} tensor, and the input holds token ids: give token ids."
        )
    return baseline.to(x)
