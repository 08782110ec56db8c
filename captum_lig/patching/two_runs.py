"""Two runs of a model on a text, and runs in which single nodes are those of the other one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_lig._arguments import brief, users_line, whole_number
from captum_lig.errors import LigError, out_of_memory
from captum_lig.model.compare import tolerance
from captum_lig.model.inputs import ModelCall
from captum_lig.model.unchanged import MadeOf
from captum_lig.patching.effects import Effects, Means
from captum_lig.patching.nodes import Kind, Node
from captum_lig.patching.runs import Layers, Place, Run, Runner, blocks_of, runner
from captum_lig.paths.memory import in_halves
from captum_lig.prediction.baselines import input_baseline
from captum_lig.prediction.positions import own_tokens
from captum_lig.prediction.targets import Target, read_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TwoRuns", "number_of_texts", "two_runs"]

TOKENS_AT_ONCE = 2048
"""Tokens of all patched copies in one call of the model, by default."""

PLACES: dict[Kind, Place] = {
    "tokens": "entering",
    "heads": "heads",
    "attention": "heads",
    "feed_forward": "feed_forward",
}


class TwoRuns:
    """Two runs of a model on a text, and runs between them; in the context of :func:`two_runs`.

    Args:
        run: runs the model.
        read: the number, of what the model gave for a call.
        calls: of the input and of its baseline, or None in its place.
        further: further keyword arguments of the model.
        at_once: patched copies in one call.
        target: what the number is, in words.
        labels: the tokens, if they are known.
    """

    def __init__(
        self,
        run: Runner,
        read: Callable[[Any, ModelCall], Tensor],
        calls: tuple[ModelCall, ModelCall | None],
        further: dict[str, Any],
        at_once: int | None,
        target: str,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.runner, self.read, self.target = run, read, target
        self.open = True
        self._made = MadeOf(calls[0].model)
        # Of an encoder-decoder the blocks may be of the other side.
        self.labels = labels if labels is not None and len(labels) == self.count else None
        self.further = further
        self.at_once = at_once or max(1, TOKENS_AT_ONCE // run.length)
        self.input = run.record(calls[0], further)
        self.baseline = None if calls[1] is None else run.record(calls[1], further)
        self.value = self._number(self.input)
        self.baseline_value = None if self.baseline is None else self._number(self.baseline)
        if (dtype := self.read(self.input.output, calls[0]).dtype) in (torch.half, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"the number, {target}, comes in {name}, and effects are differences of it: they "
                f"are rounded to steps of {abs(self.value) * torch.finfo(dtype).eps:.1g}. Load "
                "the model with dtype=torch.float32.",
                stacklevel=users_line(),
            )
        self._moved: dict[tuple[int, Place], Tensor] = {}
        self._skips = True
        self._skips = self._may_skip()
        if self.at_once > 1:
            self._check_apart()
        if self.count < run.length:
            self._check_no_padding()

    def check_open(self) -> None:
        """Refuse runs outside of the context, and of a model that was changed in it.

        Raises:
            LigError: if it is so.
        """
        if not self.open:
            raise LigError(
                "the context is left, and with it what was put on the model: ask inside of "
                "`with ...:`."
            )
        self._made.check("between its runs")

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
        key = self.place(node)
        if key not in self._moved:
            own, other = self.input.values[key][0], self.baseline.values[key][0]
            self._moved[key] = (own != other).any(-1)[self.runner.positions].cpu()
        moved = self._moved[key]
        if node.kind == "heads":
            moved = moved[:, node.head]
        return bool((moved if node.token is None else moved[node.token]).any())

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
        self.check_open()
        with tqdm(
            total=ways * len(moved), desc="patching", unit="run", disable=not show_progress
        ) as bar:

            def measure(where: Tensor) -> None:
                some = [nodes[n] for n in where.tolist()]
                values = self._values(some[0], self.baseline, instead)
                out[where] = self.value - self._patched(some, self.input, values)
                if ways == 2:
                    assert self.baseline is not None
                    assert self.baseline_value is not None
                    values = self._values(some[0], self.input, None)
                    patched = self._patched(some, self.baseline, values)
                    into[where] = patched - self.baseline_value
                bar.update(ways * len(where))

            for batch in self._batches(nodes, moved):
                in_halves(measure, torch.tensor(batch))
        self.check_open()
        return Effects(
            tuple(nodes),
            out,
            into if ways == 2 else None,
            self.value,
            self.baseline_value,
            self.layers,
            self.runner.positions,
            self.target,
            None if self.labels is None else tuple(self.labels),
        )

    def _batches(self, nodes: Sequence[Node], some: Iterable[int]) -> Iterator[list[int]]:
        """Numbers of nodes at one place of one block, of some, to be patched in one call."""
        order = sorted(some, key=lambda n: self.place(nodes[n]))
        for _, group in groupby(order, key=lambda n: self.place(nodes[n])):
            numbers = list(group)
            for first in range(0, len(numbers), self.at_once):
                yield numbers[first : first + self.at_once]

    def place(self, node: Node) -> tuple[int, Place]:
        """The number of the block that a node is in, and where."""
        leaving = node.kind == "tokens" and node.layer == self.layers[-1] + 1
        if leaving:
            return self.runner.chosen[-1], "leaving"
        number = self.runner.chosen[self.layers.index(node.layer)]
        return number, PLACES[node.kind]

    def _values(self, node: Node, run: Run | None, instead: Means | None) -> Tensor:
        """What is put where a node is: ``(1, S, ...)``, or what broadcasts with it."""
        key = number, place = self.place(node)
        if instead is None:
            assert run is not None
            return run.values[key]
        layer = self.runner.blocks[number].index
        return instead.values[layer, place].to(self.input.values[key])

    def _mask(self, node: Node, like: Tensor) -> Tensor:
        """Where a node is in ``(1, S, D)`` or ``(1, S, H, e)``: ``(S, 1)`` or ``(S, H, 1)``."""
        mask = torch.zeros(*like.shape[1:-1], 1, dtype=torch.bool, device=like.device)
        where = self.runner.positions
        where = where if node.token is None else where[node.token]
        if node.kind == "heads":
            mask[where, node.head] = True
        else:
            mask[where] = True
        return mask

    def _patched(self, nodes: Sequence[Node], background: Run, values: Tensor) -> Tensor:
        """The number in a run with each of some nodes, at one place, at other values ``(P,)``."""
        number, place = self.place(nodes[0])
        like = background.values[number, place]
        mask = torch.stack([self._mask(node, like) for node in nodes])

        def edit(own: Tensor) -> Tensor:
            return torch.where(mask, values.to(own), own)

        return self.put(background, number, place, edit, len(nodes))

    def put(
        self,
        background: Run,
        number: int,
        place: Place,
        edit: Callable[[Tensor], Tensor],
        copies: int,
    ) -> Tensor:
        """The number in copies of a run, with what there is at a place edited, ``(copies,)``.

        Args:
            background: the run.
            number: the number of the block that the place is in.
            place: where.
            edit: what is there ``(copies, S, ...)`` to what is to be there.
            copies: how many.
        """
        skipped = background.before(number) if self._skips else []
        if self._skips and place == "leaving":
            skipped.append(number)
        given = {n: background.returned[n] for n in skipped}
        call, edits = background.call, {(number, place): edit}
        output = self.runner.run(call, self.further, edits, copies, given)
        return self.read(output, call).cpu().double()

    def _number(self, run: Run) -> float:
        return float(self.read(run.output, run.call))

    def _may_skip(self) -> bool:
        """Whether the model gives the same if blocks return what they returned, without running.

        They may leave something behind for later ones in another way than by what they return.

        Raises:
            LigError: if it gives something else each time.
        """
        if self._same_again():
            return True
        self._skips = False
        if not self._same_again():
            raise LigError(
                f"the number, {self.target}, is {self.value:.6g}, and another one when the model "
                "runs on the same text again: it is random (dropout that does not ask for the "
                "mode?), or keeps a state. Switch that off."
            )
        return False

    def _same_again(self) -> bool:
        found = self.put(self.input, self.runner.chosen[-1], "entering", lambda z: z, 1)
        gap = abs(float(found) - self.value)
        return gap <= tolerance(torch.float32) * max(abs(self.value), 1e-30)

    def _check_apart(self) -> None:
        """Refuse a number of which copies of the text, that run together, reach each other.

        A model that refuses several texts (classifiers do, without a padding token) gets one copy
        at a time from then on.

        Raises:
            LigError: if one's number has a gradient to another's tokens.
        """
        number = self.runner.chosen[-1]
        own = self.input.values[number, "entering"]
        other = own if self.baseline is None else self.baseline.values[number, "entering"]

        def check(copies: Tensor) -> None:
            if len(copies) < 2:
                return  # there is no memory for two
            z = torch.cat([own, other]).requires_grad_()
            try:
                with torch.enable_grad():
                    found = self.put(self.input, number, "entering", lambda _: z, 2).unbind()
            except (RuntimeError, LigError) as error:
                if out_of_memory(error):
                    raise
                return  # a number or a kernel without gradients does not tell
            except ValueError:
                self.at_once = 1
                return
            for n, value in enumerate(found):
                if not value.requires_grad:
                    continue
                (grad,) = torch.autograd.grad(value, z, retain_graph=True, allow_unused=True)
                if grad is not None and bool(grad[1 - n].nan_to_num().any()):
                    raise LigError(
                        f"the number, {self.target}, of a text depends on the texts beside it, "
                        "and patched copies run together: give one that reads each text alone, or "
                        "internal_batch_size=1."
                    )

        in_halves(check, torch.arange(2))

    def _check_no_padding(self) -> None:
        """Refuse a number that reads padding, of which there are no nodes.

        Raises:
            LigError: if it is another one with the padding of the other run.
        """
        if self.baseline is None or self.baseline_value is None:
            return
        number = self.runner.chosen[-1]
        other = self.baseline.values[number, "leaving"].clone()
        where = self.runner.positions

        def edit(own: Tensor) -> Tensor:
            other[:, where] = own[:, where]
            return other

        found = float(self.put(self.input, number, "leaving", edit, 1))
        change = abs(self.value - self.baseline_value)
        size = max(abs(self.value), abs(self.baseline_value))
        if not abs(found - self.value) <= 1e-3 * change + 1e-5 * size:
            raise LigError(
                f"the number, {self.target}, reads tokens that are padding: with theirs of the "
                f"baseline it is {found:.6g}, and {self.value:.6g} without. Read it at the text's "
                "own tokens, as logit(token) of captum_lig.prediction does, or give the text alone."
            )


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
    layers: Layers = None,
    internal_batch_size: int | None = None,
    without_baseline: bool = False,
) -> Iterator[TwoRuns]:
    """The two runs of :func:`effects`, for several questions about them; arguments as there."""
    if internal_batch_size is not None:
        whole_number("internal_batch_size", internal_batch_size, 1)
    batch = number_of_texts(inputs)
    if text is None and batch > 1:
        raise LigError(f"inputs hold {batch} texts: say which one is meant, with text=.")
    chosen = 0 if text is None else text
    if not -batch <= chosen < batch:
        raise LigError(f"text={brief(text)}: inputs hold {batch} texts.")
    more, chosen = additional_forward_args, chosen % batch
    calls = [ModelCall.of(model, inputs, more).for_text(chosen, batch)]
    if isinstance(target, Target):
        target = target.placed(calls[0], tokenizer)
    bound = read_target(target, model, batch, tokenizer)
    if not without_baseline:
        other = input_baseline(model, inputs, baselines, more, tokenizer, bound.fixed)
        calls.append(ModelCall.of(model, other, more).for_text(chosen, batch))
    labels = own_tokens(calls[0], tokenizer)
    with runner(calls[0], *blocks_of(model, layers)) as run:
        question = TwoRuns(
            run,
            bound.for_text(chosen),
            (calls[0], None if without_baseline else calls[1]),
            bound.arguments(calls[0]),
            internal_batch_size,
            bound.words,
            None if labels is None else labels[0],
        )
        try:
            yield question
        finally:
            question.open = False


def number_of_texts(inputs: Any) -> int:
    """How many texts inputs hold: what the first axis of their first tensor counts."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    first = next((x for x in values if isinstance(x, Tensor)), None)
    if first is None:
        raise LigError(f"inputs={brief(inputs)} hold no tensor: give token ids or vectors.")
    return len(first)
