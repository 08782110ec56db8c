"""Patching in one call: the effects of nodes, and the means that they can be put to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig._restore import restoring
from captum_lig.errors import LigError
from captum_lig.graph.direct_edges import Edge
from captum_lig.model.inputs import ModelCall
from captum_lig.patching.edges import EdgeEffects, Streams
from captum_lig.patching.effects import Effects, Means
from captum_lig.patching.nodes import KINDS, Node, checked_kinds
from captum_lig.patching.runs import Layers, Place, blocks_of, runner
from captum_lig.patching.two_runs import TwoRuns, number_of_texts, two_runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["edge_effects", "effects", "means"]


@restoring
def effects(
    model: nn.Module,
    inputs: Any,
    baselines: Any,
    target: Any,
    nodes: str | Sequence[str] | Sequence[Node] = ("tokens", "heads", "feed_forward"),
    additional_forward_args: object = None,
    *,
    by_position: bool = True,
    instead: Means | None = None,
    text: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layers: Layers = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> Effects:
    """What single nodes do to a number of the model.

    For each node alone: what the number loses when it is put back to its value in the baseline run
    (``out``), and what it gains when its value in the input run is put into the baseline run
    (``into``). All that comes after the node runs on.

    Args:
        model: the model.
        inputs: one text, or a batch of which ``text`` says the one that is meant, as
            :meth:`LayerFlowIG.attribute` takes it.
        baselines: the input of the baseline run, as :meth:`LayerFlowIG.attribute` takes it with a
            ``target``.
        target: the number, as :meth:`LayerFlowIG.attribute` takes it.
        nodes: kinds of nodes: ``"tokens"``, the residual stream entering each layer and leaving the
            last; ``"heads"``, ``"attention"`` (all heads of a layer), ``"feed_forward"``; or single
            :class:`Node` s.
        additional_forward_args: further arguments of the model after ``inputs``.
        by_position: heads, attention and MLPs one token at a time; False: at all tokens at once.
        instead: what nodes are put to when they are taken out, from :func:`means`, in place of
            their values in a baseline run. ``baselines`` is not read then, and there is no
            ``into``.
        text: which text of a batch.
        tokenizer: for a target and baselines that are given as text; None: the model's own.
        layers: which layers: their indices, or blocks as ``layer`` of :class:`LayerFlowIG` takes
            them, also those of one's own; None for all.
        internal_batch_size: how many patched copies of the text run in one call of the model; None:
            as many as have 2,048 tokens.
        show_progress: show a bar.

    Raises:
        LigError: for inputs, baselines, a target, layers or nodes that do not exist or go together.
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
        without_baseline=instead is not None,
    ) as question:
        return question.effects(_asked(question, nodes, by_position), instead, show_progress)


def _asked(
    question: TwoRuns, nodes: str | Sequence[str] | Sequence[Node], by_position: bool
) -> list[Node]:
    """The nodes that are meant.

    Raises:
        LigError: for nodes that do not exist, or of one kind at one and at all tokens.
    """
    if not isinstance(nodes, str):
        placed = [one.placed(question.labels) if isinstance(one, Node) else one for one in nodes]
        nodes = cast("Sequence[str] | Sequence[Node]", placed)
    single = [] if isinstance(nodes, str) else [node for node in nodes if isinstance(node, Node)]
    if not single:
        kinds = checked_kinds(nodes)  # type: ignore[arg-type]
        found = question.nodes(kinds, by_position)
        for kind in kinds:
            if not any(node.kind == kind for node in found):
                raise LigError(
                    f"there are no nodes {kind!r} in the layers {brief(question.layers)}: none has "
                    "an attention or an MLP that is found."
                )
        return found
    known = {*question.nodes(KINDS, True), *question.nodes(KINDS, False)}
    for node in nodes:
        if node not in known:
            raise LigError(
                f"nodes hold {brief(node)}, which does not exist: layers are "
                f"{brief(question.layers)}, tokens 0 to {question.count - 1}."
            )
    if len(set(single)) < len(single):
        raise LigError("nodes hold one twice.")
    for kind in KINDS:
        if len({node.position is None for node in single if node.kind == kind}) > 1:
            raise LigError(f"nodes hold {kind!r} at one token and at all: ask for them apart.")
    return single


@restoring
def edge_effects(
    model: nn.Module,
    inputs: Any,
    baselines: Any,
    target: Any,
    edges: Sequence[Edge],
    additional_forward_args: object = None,
    *,
    text: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> EdgeEffects:
    """What direct edges do to a number of a pre-norm model: path patching.

    For each edge alone: the reader gets its input without what the writer changed (``out``), or in
    the baseline run with it (``into``); every other reader gets it as it was, and what this reader
    then gives runs on.

    Args:
        model: the model.
        inputs: as in :func:`effects`.
        baselines: as in :func:`effects`.
        target: as in :func:`effects`.
        edges: which.
        additional_forward_args: as in :func:`effects`.
        text: as in :func:`effects`.
        tokenizer: as in :func:`effects`.
        internal_batch_size: as in :func:`effects`.
        show_progress: show a bar.

    Raises:
        LigError: as :func:`effects`; for edges that do not exist, and for a model whose residual
            stream is not a sum (post-norm).
    """
    if not edges:
        raise LigError("edges are empty: give some.")
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
        return Streams(question).effects(edges, show_progress)


@restoring
def means(
    model: nn.Module,
    texts: Iterable[Any],
    additional_forward_args: object = None,
    *,
    layers: Layers = None,
) -> Means:
    """Mean vectors of all nodes over the tokens of texts, for ``instead`` of :func:`effects`.

    Args:
        model: the model.
        texts: inputs of the model, each a text or a batch; padding is not counted.
        additional_forward_args: further arguments of the model after each.
        layers: as in :func:`effects`.

    Raises:
        LigError: if there is no text, or one cannot be worked with.
    """
    finder, numbers = blocks_of(model, layers)
    sums: dict[tuple[int, Place], Tensor] = {}
    count = 0
    for inputs in texts:
        texts_of = ModelCall.of(model, inputs, additional_forward_args)
        batch = number_of_texts(inputs)
        for text in range(batch):
            call = texts_of.for_text(text, batch)
            with runner(call, finder, numbers) as run:
                recorded = run.record(call, {})
                for (number, place), x in recorded.values.items():
                    key = run.blocks[number].index, place
                    total = x[0, run.positions].double().sum(0)
                    sums[key] = sums[key] + total if key in sums else total
                count += len(run.positions)
    if not count:
        raise LigError("texts are empty: give some, to take means over.")
    return Means({key: total / count for key, total in sums.items()})
