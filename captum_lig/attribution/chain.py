"""The chain of stages from a number of a model down to its tokens.

A number ``F`` of the model's output, an input and a baseline input of the same shape. Both are run
once. From ``F`` downward each node ``n`` gets a multiplier ``g_n``, in the space of its values, and
a relevance ``R_n = <g_n, D_n>`` with ``D_n`` its change between the two runs:

- the tokens leaving the last block: ``g`` is the integral of ``grad F`` along the straight line
  between the two runs;
- a block hands the multiplier down through its stages, see :mod:`captum_lig.attribution.block`;
- what a model does to the tokens between two blocks, or to an encoder's before a decoder reads
  them, is a stage, too.

So the relevances of every cut through the graph add up to ``F(input) - F(baseline)``, up to the
quadrature, whose errors are known stage by stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_lig._types import Parts
from captum_lig.attribution.block import ChainBlock, relevance, still
from captum_lig.cost import Cost, Meter
from captum_lig.errors import LigError
from captum_lig.integrals.settings import Settings
from captum_lig.integrals.stage import Budget, Ends, Stage, multipliers
from captum_lig.model.call import BlockCall
from captum_lig.model.compare import nearly_equal
from captum_lig.model.cross_attention import Cross, find_cross
from captum_lig.model.inputs import ModelCall
from captum_lig.model.rest import Rest
from captum_lig.model.select import Finder, check_finite
from captum_lig.prediction.bound_target import BoundTarget
from captum_lig.prediction.vector_targets import State

__all__ = ["Chain", "LayerParts", "TextParts", "Top", "attribute_number", "check_runs"]

CANCELLED = 0.1
"""Errors are relative to the change, unless it is less than this part of the sum of the sizes of
what adds up to it."""


@dataclass(frozen=True)
class LayerParts:
    """What the chain gives of one layer, for one text."""

    block: BlockCall
    parts: Parts
    """Fields of a flow by name, without the axis of texts."""
    cost: Cost


@dataclass(frozen=True)
class TextParts:
    """What the chain gives of one text."""

    layers: list[LayerParts]
    """Those that were asked for, first layer first."""
    change: float
    """The number of the input less that of the baseline."""


def attribute_number(
    finder: Finder,
    call: ModelCall,
    baseline: ModelCall,
    target: BoundTarget | State,
    settings: Settings,
    asked: Callable[[list[BlockCall]], set[int]],
    boundaries: frozenset[str],
    show_progress: bool = False,
) -> TextParts:
    """Attribute a number of one text.

    Args:
        finder: finds the blocks of the chain.
        call: the model's call on the text.
        baseline: its call on the baseline.
        target: the number, of one text.
        settings: how to integrate.
        asked: from the blocks to the indices of those whose flows are wanted.
        boundaries: ``"attention"`` if edges into the heads are wanted.
        show_progress: show a bar over layers.

    Raises:
        LigError: if the number cannot be handed down; the message says why.
    """
    with finder.blocks(call) as blocks:
        wanted = asked(blocks)
        others = finder.another(baseline)
        crosses = check_runs(blocks, others)
        top = Top.of(blocks, others, call, baseline, target, settings)
        chain = Chain(finder, blocks, others, crosses, top, settings, "attention" in boundaries)
        found = chain.down_to(wanted, show_progress)
    return TextParts(found, top.change)


@dataclass(frozen=True)
class Top:
    """The number in both runs, and its multiplier."""

    rest: Rest
    ends: Ends
    """Tokens leaving the last block."""
    target: BoundTarget | State
    values: tuple[float, float]
    """Of the baseline and of the input."""
    settings: Settings

    @classmethod
    def of(
        cls,
        blocks: list[BlockCall],
        others: list[BlockCall],
        call: ModelCall,
        baseline: ModelCall,
        target: BoundTarget | State,
        settings: Settings,
    ) -> Top:
        """The number of a call and of its baseline."""
        rest, last = Rest(call, blocks), blocks[-1]
        ends = still(Ends(others[-1].output[0].detach(), last.output[0].detach()), last.valid[0])
        if isinstance(target, State):
            token = int(target.where(last.valid)[0])
            e = target.along(ends.step[token]).double()
            values = float(ends.start[token].double() @ e), float(ends.end[token].double() @ e)
            rest.record(call.few_logits())
        else:
            start = Rest(baseline, others).record(target.arguments(baseline))
            own = rest.record(target.arguments(call))
            values = float(target(start, baseline)), float(target(own, call))
        return cls(rest, ends, target, values, settings)

    @property
    def change(self) -> float:
        """The number of the input less that of the baseline."""
        return self.values[1] - self.values[0]

    def scale(self, *relevances: Tensor) -> Tensor:
        """What errors are relative to, where relevances add up to the change."""
        size, change = torch.cat(relevances).abs().sum(), abs(self.change)
        return size if change < CANCELLED * size else size.new_tensor(change)

    def finest(self, *relevances: Tensor) -> Tensor:
        """What errors of the stages below are relative to.

        What cancels here may not cancel there, and then it is measured against the change.
        """
        size = torch.cat(relevances).abs().sum()
        return (CANCELLED * size).clamp_min(abs(self.change))

    def multiplier(self, budget: Budget) -> Tensor:
        """Of the tokens leaving the last block, ``(S, D)``."""
        if isinstance(self.target, State):
            g = torch.zeros_like(self.ends.end)
            token = int(self.target.where(self.rest.blocks[-1].valid)[0])
            g[token] = self.target.along(self.ends.step[token])
            return g
        last = len(self.rest.blocks) - 1
        with torch.no_grad():
            found = self._number(torch.stack([self.ends.start, self.ends.end])).double().tolist()
        for (there,), own in zip(found, self.values, strict=True):
            if not self._near(there, own):
                self._check_repeats()
                raise LigError(
                    f"the target, {self.target.words}, reads more than the tokens leaving "
                    f"{self.rest.blocks[last].describe()}: with those of one run put into the "
                    f"other it is {there:.6g}, and in the run itself {own:.6g}. It may read "
                    "padding, other blocks' outputs, or the inputs themselves, as models do that "
                    "look for the last token that is no padding: give a baseline with padding at "
                    "the same places."
                )
        value = torch.tensor(self.values, dtype=torch.float64, device=self.ends.end.device)
        stage = Stage(
            function=lambda z: self._number(z),
            arguments={"z": self.ends},
            output=Ends(*value[:, None]),
            g=torch.ones_like(value[:1]),
            relative_to=value.new_tensor(abs(self.change)),
            points_at_once=self._points(),
            meter=Meter(),
            by_token=False,
        )

        def scale(found: Parts) -> Tensor:
            return self.finest(relevance(found["z"], self.ends))

        return multipliers(stage, self.settings, budget, "number", scale)["z"]

    def _near(self, there: float, own: float) -> bool:
        return abs(there - own) <= 1e-3 * abs(self.change) + 1e-5 * max(map(abs, self.values))

    def _check_repeats(self) -> None:
        """Refuse a number that is another one each time."""
        assert isinstance(self.target, BoundTarget)
        call = self.rest.call
        again = float(self.target(self.rest.record(self.target.arguments(call)), call))
        if not self._near(again, self.values[1]):
            raise LigError(
                f"the target, {self.target.words}, is {self.values[1]:.6g} of the input, and "
                f"{again:.6g} when the model runs on it again: the model is random (dropout that "
                "does not ask for the mode?), or keeps a state. Switch that off."
            )

    def _number(self, z: Tensor) -> Tensor:
        """``(P, 1)`` of ``z (P, S, D)`` leaving the last block."""
        if self.rest.takes_copies:
            try:
                return self._of_copies(z)
            except ValueError as error:
                if len(z) == 1 or isinstance(error, LigError):
                    raise
            # It may take one: classifiers without a padding token refuse several texts.
            self.rest.takes_copies = False
        return torch.cat([self._of_copies(one) for one in z.split(1)])

    def _of_copies(self, z: Tensor) -> Tensor:
        """The same, in one run of the model."""
        assert isinstance(self.target, BoundTarget)
        blocks = self.rest.blocks
        last = len(blocks) - 1
        outputs = {n: blocks[n].output.expand(len(z), -1, -1) for n in range(last)}
        further = self.target.arguments(self.rest.call)
        output, call = self.rest.run(outputs | {last: z}, further)
        return self.target(output, call)[:, None]

    def _points(self) -> int:
        # A model may work out the logits of its whole vocabulary at every token.
        config = getattr(self.rest.call.model, "config", None)
        words = int(getattr(config, "vocab_size", 0) or 0)
        z = self.ends.end
        return self.settings.points_at_once(10 * z.numel() + 4 * words * len(z), len(z), z)


@dataclass
class Chain:
    """The two runs of one text, and what has been handed down so far."""

    finder: Finder
    blocks: list[BlockCall]
    others: list[BlockCall]
    crosses: list[Cross | None]
    top: Top
    settings: Settings
    edges: bool
    budget: Budget = field(default_factory=Budget)
    waiting: list[tuple[Cross, Tensor]] = field(default_factory=list)
    """Multipliers that decoder blocks handed to the encoder's states."""

    def down_to(self, wanted: set[int], show_progress: bool) -> list[LayerParts]:
        """Hand the multiplier down to the lowest of the blocks that are wanted."""
        g = self.top.multiplier(self.budget)
        words = "the target, " + self.top.target.words
        _check_finite(g, f"{words}, and of what follows {self.blocks[-1].describe()}")
        found = []
        numbers = range(len(self.blocks) - 1, min(wanted) - 1, -1)
        elsewhere: list[Tensor] = []
        for number in tqdm(numbers, desc="layers", unit="layer", disable=not show_progress):
            began, meter = time.perf_counter(), Meter()
            block, call = self._block(number, number in wanted, meter), self.blocks[number]
            scale = self.top.finest(relevance(g, block.y), *elsewhere)
            handed = block.down(g, scale)
            _check_finite(handed.z, call.describe(), handed.stages)
            cross = self.crosses[number]
            if handed.e is not None and cross is not None:
                self.waiting.append((cross, handed.e))
                elsewhere.append(relevance(handed.e, block.nodes["e"]))
            g = handed.z
            if number in wanted:
                entering = handed.parts["entering"]
                facts = {
                    "change": entering.new_tensor(self.top.change),
                    "scale": self.top.scale(entering, *elsewhere),
                }
                if elsewhere:
                    facts["elsewhere"] = torch.cat(elsewhere).sum()
                length = call.hidden.shape[1]
                cost = Cost(
                    path_points=meter.pairs / length,
                    forward_equivalents=meter.passed / length,
                    seconds=time.perf_counter() - began,
                    path=meter.path,
                )
                found.append(LayerParts(call, handed.parts | facts, cost))
            if number > min(wanted):
                g, elsewhere = self._between(number, g, block.z, elsewhere, scale)
        return found[::-1]

    def _block(self, number: int, wanted: bool, meter: Meter) -> ChainBlock:
        call = self.blocks[number]
        return ChainBlock(
            call,
            self.others[number],
            self.finder.feed_forward(call),
            self.crosses[number],
            self.settings,
            self.edges and wanted,
            self.budget,
            meter,
        )

    # --- between blocks ---

    def _between(
        self, number: int, g: Tensor, entering: Ends, elsewhere: list[Tensor], scale: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The multiplier of what leaves the block below, and relevances that went elsewhere."""
        below = self._leaving(number - 1)
        same = below.end.shape == entering.end.shape and all(
            nearly_equal(x, y)
            for x, y in ((below.start, entering.start), (below.end, entering.end))
        )
        if same:
            return g, elsewhere
        if not below.step.any():
            # An encoder whose text is the same in both runs: all is the decoder's.
            return torch.zeros_like(below.end), [*elsewhere, relevance(g, entering)]
        if self.waiting and all(cross is None for cross in self.crosses[:number]):
            # The first block of a decoder: below it stands the encoder.
            total = torch.stack([e for _, e in self.waiting]).sum(0)
            gone = relevance(g, entering)
            self.waiting.clear()
            return self._joined(number, total, below, scale, self.crosses[number]), [gone]
        return self._joined(number, g, below, scale, None), elsewhere

    def _leaving(self, number: int) -> Ends:
        call, other = self.blocks[number], self.others[number]
        return still(Ends(other.output[0].detach(), call.output[0].detach()), call.valid[0])

    def _joined(
        self, number: int, g: Tensor, below: Ends, scale: Tensor, cross: Cross | None
    ) -> Tensor:
        """The multiplier of the tokens leaving a block, from that of what the next one reads.

        What it reads are its tokens, or an encoder's states.
        """
        call, other = self.blocks[number], self.others[number]
        if cross is None:
            read, valid = [run.hidden[0].detach() for run in (other, call)], call.valid[0]
        else:
            read = [cross.states(run)[0].detach() for run in (other, call)]
            valid = self.blocks[number - 1].valid[0]
        ends = still(Ends(*read), valid) if len(valid) == len(read[0]) else Ends(*read)

        def function(z: Tensor) -> Tensor:
            earlier = {n: self.blocks[n].output.expand(len(z), -1, -1) for n in range(number - 1)}
            return self.top.rest.entering(number, earlier | {number - 1: z}, cross)

        with torch.no_grad():
            found = function(torch.stack([below.start, below.end]))
        for ours, theirs in zip(found, (ends.start, ends.end), strict=True):
            if ours.shape != theirs.shape or not nearly_equal(ours, theirs):
                raise LigError(
                    f"{self.blocks[number].describe()} reads something else than what leaves "
                    f"{self.blocks[number - 1].describe()}, and it does not follow from that "
                    "alone: blocks that also read the outputs of earlier ones, or the inputs, have "
                    "no chain."
                )
        stage = Stage(
            function=function,
            arguments={"z": below},
            output=ends,
            g=g,
            relative_to=scale,
            points_at_once=self.settings.points_at_once(
                40 * below.end.numel(), len(below.end), below.end
            ),
            meter=Meter(),
            by_token=False,
        )
        return multipliers(stage, self.settings, self.budget, "between")["z"]


def _check_finite(g: Tensor, of: str, stages: Mapping[str, Parts] | None = None) -> None:
    """A gradient somewhere on the line; both runs themselves are finite.

    Args:
        g: ``(S, D)`` the multiplier.
        of: what it is of.
        stages: what each stage handed down, the uppermost first.
    """
    if bool(torch.isfinite(g).all()):
        return
    by_token = (~torch.isfinite(g)).flatten(1).any(-1)
    for name, parts in (stages or {}).items():
        wrong = [~torch.isfinite(x).flatten(1).all(-1) for x in parts.values() if len(x) == len(g)]
        if any(bool(one.any()) for one in wrong):
            of, by_token = f"{of}, stage {name!r}", torch.stack(wrong).any(0)
            break
    raise LigError(
        f"the gradient of {of} is not finite between baseline and input, at token "
        f"{int(by_token.nonzero()[0])} first: there may be a root or a norm of 0, or numbers too "
        "large for the precision. Give another baseline or target, or dtype=torch.float64."
    )


def check_runs(blocks: Sequence[BlockCall], others: Sequence[BlockCall]) -> list[Cross | None]:
    """Both runs have the same blocks, on as many tokens, with the same other arguments.

    Returns where blocks read an encoder's states.
    """
    if [block.module for block in blocks] != [other.module for other in others]:
        raise LigError(
            f"the input ran through {len(blocks)} blocks and the baseline through {len(others)}, "
            "or others: both have to take the same way through the model."
        )
    crosses = []
    for block, other in zip(blocks, others, strict=True):
        if block.hidden.shape != other.hidden.shape:
            raise LigError(
                f"{block.describe()} gets {tuple(block.hidden.shape)} of the input and "
                f"{tuple(other.hidden.shape)} of the baseline: give a baseline of as many tokens."
            )
        check_finite(replace(other, padding=block.padding), "the baseline")
        differ = [
            ours
            for ours, theirs in zip(block.tensors(), other.tensors(), strict=True)
            if not block.is_hidden(ours)
            and (ours.shape != theirs.shape or not torch.equal(ours, theirs))
        ]
        cross = find_cross(block) if differ else None
        states = None if cross is None else cross.states(block)
        beside = [ours for ours in differ if ours is not states]
        for ours in beside[:1]:
            if _reads_beside(block, other) or _reads_beside(other, block):
                raise LigError(
                    f"{block.describe()} gets another argument, of shape {tuple(ours.shape)}, that "
                    "depends on the input beside its tokens: what comes through it has no node in "
                    "the graph. If it is a mask, give input and baseline the same attention_mask."
                )
        crosses.append(cross)
    return crosses


def _reads_beside(block: BlockCall, other: BlockCall) -> bool:
    """Whether a block gives something else with its other arguments those of another run.

    It may be handed what it does not read: the keys and values that blocks before it have kept.
    """
    z = block.hidden
    return not torch.equal(block.for_text(0).on(z), other.for_text(0).on(z))
