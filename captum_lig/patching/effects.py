"""What single nodes do to a number: each is given another value, and the rest runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_lig._arguments import brief, whole_number
from captum_lig.errors import LigError
from captum_lig.model.compare import tolerance
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.patching.nodes import KINDS, Kind, Node, NodeValues, checked_kinds, node_values
from captum_lig.patching.runs import Edits, Place, Run, Runner, one_text, runner
from captum_lig.prediction.baselines import input_baseline
from captum_lig.prediction.targets import read_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Effects", "Means", "TwoRuns", "effects", "means", "two_runs"]

TOKENS_AT_ONCE = 2048
"""Tokens of all patched copies in one call of the model, by default."""

PLACES: dict[Kind, Place] = {
    "tokens": "entering",
    "heads": "heads",
    "attention": "heads",
    "feed_forward": "feed_forward",
}


@dataclass(frozen=True)
class Effects:
    """What nodes of one text do to a number ``F``, two ways, in its units and float64."""

    nodes: tuple[Node, ...]
    """``M`` of them."""
    taken_out: Tensor
    """``(M,)`` ``F(input)`` less F of the input run with the node at its baseline value."""
    put_in: Tensor | None
    """``(M,)`` F of the baseline run with the node at its value of the input run, less
    ``F(baseline)``. None if nodes were put to means: there is no run that has them."""
    value: float
    """``F(input)``"""
    baseline_value: float | None
    """``F(baseline)``"""
    layers: tuple[int, ...]
    positions: Tensor
    """``(N,)`` positions of the tokens in the text as the model got it, padding left out."""
    target: str
    """What the number is, in words."""

    @property
    def out(self) -> NodeValues:
        """Effects of taking nodes out of the input run."""
        return self._shaped(self.taken_out)

    @property
    def into(self) -> NodeValues:
        """Effects of putting nodes into the baseline run.

        Raises:
            LigError: if nodes were put to means.
        """
        return self._shaped(self._put_in())

    @property
    def mean(self) -> NodeValues:
        """The mean of both.

        Raises:
            LigError: if nodes were put to means.
        """
        return self._shaped((self.taken_out + self._put_in()) / 2)

    def rows(self) -> list[dict[str, Any]]:
        """One a node: plain numbers and names."""
        found = []
        for number, node in enumerate(self.nodes):
            row = vars(node) | {"out": float(self.taken_out[number])}
            if self.put_in is not None:
                into = float(self.put_in[number])
                row |= {"into": into, "mean": (row["out"] + into) / 2}
            found.append(row)
        return found

    def _put_in(self) -> Tensor:
        if self.put_in is None:
            raise LigError(
                "nodes were put to means, so there is no baseline run that they could be put into: "
                "read out alone, or give baselines."
            )
        return self.put_in

    def _shaped(self, numbers: Tensor) -> NodeValues:
        each = dict(zip(self.nodes, numbers.tolist(), strict=True))
        return node_values(self.layers, len(self.positions), each)


@dataclass(frozen=True)
class Means:
    """Mean vectors of nodes, over the tokens of some texts; by layer and place."""

    values: dict[tuple[int, Place], Tensor]
    """``(D,)``, or ``(H, e)`` of heads; by the index of the layer."""


class TwoRuns:
    """Two runs of a model on a text, and runs between them; in the context of :func:`two_runs`.

    Args:
        run: runs the model.
        read: the number, of what the model gave for a call.
        calls: of the input and of its baseline, or None in its place.
        further: further keyword arguments of the model.
        at_once: patched copies in one call.
        target: what the number is, in words.
    """

    def __init__(
        self,
        run: Runner,
        read: Callable[[Any, ModelCall], Tensor],
        calls: tuple[ModelCall, ModelCall | None],
        further: dict[str, Any],
        at_once: int | None,
        target: str,
    ) -> None:
        self.runner, self.read, self.target = run, read, target
        self.further = further
        self.at_once = at_once or max(1, TOKENS_AT_ONCE // run.length)
        self.input = run.record(calls[0], further)
        self.baseline = None if calls[1] is None else run.record(calls[1], further)
        self.value = self._number(self.input)
        self.baseline_value = None if self.baseline is None else self._number(self.baseline)
        self._skips = True
        self._skips = self._may_skip()

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers."""
        return self.runner.layers

    @property
    def count(self) -> int:
        """Number of tokens ``N``."""
        return len(self.runner.positions)

    def nodes(self, kinds: Sequence[Kind], by_position: bool) -> list[Node]:
        """All nodes of some kinds.

        Args:
            kinds: names of kinds.
            by_position: whether heads, attention and MLPs are a node at each token, or one. The
                residual stream always is a node at each token.
        """
        tokens = range(self.count)
        each: Sequence[int | None] = tokens if by_position else [None]
        found: list[Node] = []
        for number, layer in zip(self.runner.chosen, self.layers, strict=True):
            places = self.runner.places(number)
            if "tokens" in kinds:
                found += [Node("tokens", layer, i) for i in tokens]
            if "heads" in places:
                attention = self.runner.blocks[number].attention
                heads = range(0 if attention is None else attention.heads)
                if "heads" in kinds:
                    found += [Node("heads", layer, i, h) for h in heads for i in each]
                if "attention" in kinds:
                    found += [Node("attention", layer, i) for i in each]
            if "feed_forward" in kinds and "feed_forward" in places:
                found += [Node("feed_forward", layer, i) for i in each]
        if "tokens" in kinds:
            found += [Node("tokens", self.layers[-1] + 1, i) for i in tokens]
        return found

    def changes(self, node: Node) -> bool:
        """Whether a node has another value in the two runs."""
        assert self.baseline is not None
        key = self._place(node)
        own, other = self.input.values[key], self.baseline.values[key]
        return bool(((own != other) & self._mask(node, own)).any())

    def effects(
        self, nodes: Sequence[Node], instead: Means | None = None, show_progress: bool = False
    ) -> Effects:
        """The effects of nodes.

        Args:
            nodes: which, as :meth:`nodes` gives them.
            instead: what nodes are put to when they are taken out, in place of the baseline's.
            show_progress: show a bar over nodes and runs.
        """
        ways = 1 if instead is not None else 2
        out, into = (torch.zeros(len(nodes), dtype=torch.float64) for _ in range(2))
        # A node that is the same in both runs does nothing, and so need not run.
        moved = [n for n, node in enumerate(nodes) if instead is not None or self.changes(node)]
        with tqdm(
            total=ways * len(moved), desc="patching", unit="run", disable=not show_progress
        ) as bar:
            for batch in self._batches(nodes, moved):
                some = [nodes[n] for n in batch]
                where = torch.tensor(batch)
                values = self._values(some[0], self.baseline, instead)
                out[where] = self.value - self._patched(some, self.input, values)
                if ways == 2:
                    assert self.baseline is not None
                    assert self.baseline_value is not None
                    values = self._values(some[0], self.input, None)
                    patched = self._patched(some, self.baseline, values)
                    into[where] = patched - self.baseline_value
                bar.update(ways * len(batch))
        return Effects(
            tuple(nodes),
            out,
            into if ways == 2 else None,
            self.value,
            self.baseline_value,
            self.layers,
            self.runner.positions,
            self.target,
        )

    def _batches(self, nodes: Sequence[Node], some: Iterable[int]) -> Iterator[list[int]]:
        """Numbers of nodes at one place of one block, of some, to be patched in one call."""
        order = sorted(some, key=lambda n: self._place(nodes[n]))
        for _, group in groupby(order, key=lambda n: self._place(nodes[n])):
            numbers = list(group)
            for first in range(0, len(numbers), self.at_once):
                yield numbers[first : first + self.at_once]

    def _place(self, node: Node) -> tuple[int, Place]:
        """The number of the block that a node is in, and where."""
        leaving = node.kind == "tokens" and node.layer == self.layers[-1] + 1
        if leaving:
            return self.runner.chosen[-1], "leaving"
        number = self.runner.chosen[self.layers.index(node.layer)]
        return number, PLACES[node.kind]

    def _values(self, node: Node, run: Run | None, instead: Means | None) -> Tensor:
        """What is put where a node is: ``(1, S, ...)``, or what broadcasts with it."""
        key = number, place = self._place(node)
        if instead is None:
            assert run is not None
            return run.values[key]
        layer = self.runner.blocks[number].index
        return instead.values[layer, place].to(self.input.values[key])

    def _mask(self, node: Node, like: Tensor) -> Tensor:
        """Where a node is in ``(1, S, D)`` or ``(1, S, H, e)``: ``(S, 1)`` or ``(S, H, 1)``."""
        mask = torch.zeros(*like.shape[1:-1], 1, dtype=torch.bool, device=like.device)
        where = self.runner.positions
        where = where if node.position is None else where[node.position]
        if node.kind == "heads":
            mask[where, node.head] = True
        else:
            mask[where] = True
        return mask

    def _patched(self, nodes: Sequence[Node], background: Run, values: Tensor) -> Tensor:
        """The number in a run with each of some nodes, at one place, at other values ``(P,)``."""
        number, place = self._place(nodes[0])
        like = background.values[number, place]
        mask = torch.stack([self._mask(node, like) for node in nodes])

        def edit(own: Tensor) -> Tensor:
            return torch.where(mask, values.to(own), own)

        return self._run(background, number, place, {(number, place): edit}, len(nodes))

    def _run(self, background: Run, number: int, place: Place, edits: Edits, copies: int) -> Tensor:
        """The number in runs whose edits are all in or after a block, ``(P,)`` float64."""
        skipped = background.before(number) if self._skips else []
        if self._skips and place == "leaving":
            skipped.append(number)
        given = {n: background.returned[n] for n in skipped}
        call = background.call
        output = self.runner.run(call, self.further, edits, copies, given)
        return self.read(output, call).double().cpu()

    def _number(self, run: Run) -> float:
        return float(self.read(run.output, run.call).double())

    def _may_skip(self) -> bool:
        """Whether the model gives the same if blocks return what they returned, without running.

        They may leave something behind for later ones in another way than by what they return.
        """
        found = self._run(self.input, self.runner.chosen[-1], "entering", {}, 1)
        gap = abs(float(found) - self.value)
        return gap <= tolerance(torch.float32) * max(abs(self.value), 1e-30)


@contextmanager
def two_runs(
    model: nn.Module,
    inputs: Any,
    baselines: Any,
    target: Any,
    additional_forward_args: object = None,
    *,
    text: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layers: Sequence[int] | None = None,
    internal_batch_size: int | None = None,
    without_baseline: bool = False,
) -> Iterator[TwoRuns]:
    """The two runs of :func:`effects`, for several questions about them; arguments as there."""
    if internal_batch_size is not None:
        whole_number("internal_batch_size", internal_batch_size, 1)
    first = next(x for x in _values_of(inputs) if isinstance(x, Tensor))
    batch = len(first)
    if text is None and batch > 1:
        raise LigError(f"inputs hold {batch} texts: say which one is meant, with text=.")
    chosen = 0 if text is None else text
    if not -batch <= chosen < batch:
        raise LigError(f"text={brief(text)}: inputs hold {batch} texts.")
    bound = read_target(target, model, batch, tokenizer)
    given = [inputs]
    if not without_baseline:
        given.append(input_baseline(model, inputs, baselines, additional_forward_args, tokenizer))
    further = one_text(additional_forward_args, chosen % batch, batch)
    calls = [ModelCall.of(model, one_text(one, chosen % batch, batch), further) for one in given]
    with runner(calls[0], Finder(model), layers) as run:
        yield TwoRuns(
            run,
            bound.for_text(chosen % batch),
            (calls[0], None if without_baseline else calls[1]),
            bound.arguments(calls[0]),
            internal_batch_size,
            bound.words,
        )


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
    layers: Sequence[int] | None = None,
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
        layers: which layers, by their indices; None for all.
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


def means(
    model: nn.Module,
    texts: Iterable[Any],
    additional_forward_args: object = None,
    *,
    layers: Sequence[int] | None = None,
) -> Means:
    """Mean vectors of all nodes over the tokens of texts, for ``instead`` of :func:`effects`.

    Args:
        model: the model.
        texts: inputs of the model, each a text or a batch; padding is not counted.
        additional_forward_args: further arguments of the model after each.
        layers: which layers, by their indices; None for all.

    Raises:
        LigError: if there is no text, or one cannot be worked with.
    """
    finder = Finder(model)
    sums: dict[tuple[int, Place], Tensor] = {}
    count = 0
    for inputs in texts:
        batch = len(next(x for x in _values_of(inputs) if isinstance(x, Tensor)))
        for text in range(batch):
            further = one_text(additional_forward_args, text, batch)
            call = ModelCall.of(model, one_text(inputs, text, batch), further)
            with runner(call, finder, layers) as run:
                recorded = run.record(call, {})
                for (number, place), x in recorded.values.items():
                    key = run.blocks[number].index, place
                    total = x[0, run.positions].double().sum(0)
                    sums[key] = sums[key] + total if key in sums else total
                count += len(run.positions)
    if not count:
        raise LigError("texts are empty: give some, to take means over.")
    return Means({key: total / count for key, total in sums.items()})


def _values_of(inputs: Any) -> list[Any]:
    if hasattr(inputs, "values"):
        return list(inputs.values()) if not isinstance(inputs, Tensor) else [inputs]
    return list(inputs) if isinstance(inputs, tuple) else [inputs]
