"""Circuits of a model on one text, in one call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_lig._restore import restoring_context
from captum_lig.circuits.edges import EdgeCircuits
from captum_lig.circuits.nodes import NodeCircuits
from captum_lig.patching.runs import Layers
from captum_lig.patching.two_runs import two_runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["of_edges", "of_nodes"]


@restoring_context
def of_edges(
    model: nn.Module,
    inputs: Any,
    baselines: Any,
    target: Any,
    additional_forward_args: object = None,
    *,
    by_position: bool = False,
    text: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    internal_batch_size: int | None = None,
) -> Iterator[EdgeCircuits]:
    """Circuits of direct edges of a pre-norm model, to be run inside the context.

    Args:
        model: the model.
        inputs: as in :func:`captum_lig.patching.effects`.
        baselines: the counterfactual, as there.
        target: the number, as there.
        additional_forward_args: as there.
        by_position: whether an edge is one at each token; False: one at all tokens at once.
        text: as there.
        tokenizer: as there.
        internal_batch_size: how many circuits run in one pass; None: as there is room for.

    Raises:
        LigError: as there, and for a model whose residual stream is not a sum (post-norm).
    """
    with two_runs(
        model,
        inputs,
        baselines,
        target,
        additional_forward_args,
        text=text,
        tokenizer=tokenizer,
        internal_batch_size=internal_batch_size,
    ) as question:
        yield EdgeCircuits(question, by_position, internal_batch_size)


@restoring_context
def of_nodes(
    model: nn.Module,
    inputs: Any,
    baselines: Any,
    target: Any,
    additional_forward_args: object = None,
    *,
    by_position: bool = True,
    text: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layers: Layers = None,
    internal_batch_size: int | None = None,
) -> Iterator[NodeCircuits]:
    """Circuits of heads and MLPs of any model, to be run inside the context.

    Args:
        model: the model.
        inputs: as in :func:`captum_lig.patching.effects`.
        baselines: the counterfactual, as there.
        target: the number, as there.
        additional_forward_args: as there.
        by_position: whether a head or MLP is a node at each token; False: one at all tokens.
        text: as there.
        tokenizer: as there.
        layers: as there; the nodes of other layers are always kept.
        internal_batch_size: how many circuits run in one pass; None: as there is room for.

    Raises:
        LigError: as there.

    Example::

        >>> from captum_lig import FlowGraph, LayerFlowIG, circuits
        >>> other = "The dog sat on the mat."
        >>> def target(output):  # a number of the model
        ...     return output.last_hidden_state[:, 0, 0]
        >>> graph = FlowGraph(LayerFlowIG(model).attribute(inputs, other, target))
        >>> with circuits.of_nodes(model, inputs, other, target) as found:
        ...     curve = found.curve(graph)
        >>> curve.count, curve.kept[:4]
        (702, (1, 1, 4, 7))
    """
    with two_runs(
        model,
        inputs,
        baselines,
        target,
        additional_forward_args,
        text=text,
        tokenizer=tokenizer,
        layers=layers,
        internal_batch_size=internal_batch_size,
    ) as question:
        yield NodeCircuits(question, by_position, internal_batch_size)
