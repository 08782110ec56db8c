"""The chain of stages from a number of a model down to its tokens.

A number ``F`` of the model's output, an input and a baseline input of the same shape. Both are run
once. From ``F`` downward each node ``n`` gets a multiplier ``g_n``, in the space of its values, and a
relevance ``R_n = <g_n, D_n>`` with ``D_n`` its change between the two runs:

- the tokens leaving the last block: ``g`` is the integral of ``grad F`` along the straight line
  between the two runs;
- a block: its stages ``(z, u, m) -> z'``, ``(z, u) -> m`` and ``z -> u`` (:mod:`captum_lig.model.stages`)
  hand down the multiplier of what they give, see :mod:`captum_lig.integrals.stage`.

So the relevances of every cut through the graph add up to ``F(input) - F(baseline)``, up to the
quadrature, whose errors are known stage by stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_lig._types import Parts
from captum_lig.cost import Cost, Meter
from captum_lig.errors import LigError
from captum_lig.integrals.settings import Settings
from captum_lig.integrals.stage import EDGES, VALUES, AttentionStage, Ends, Stage, multipliers
from captum_lig.model.call import BlockCall
from captum_lig.model.compare import nearly_equal
from captum_lig.model.feed_forward import find_feed_forward
from captum_lig.model.inputs import ModelCall
from captum_lig.model.rest import Rest
from captum_lig.model.select import Finder
from captum_lig.model.stages import Stages
from captum_lig.paths.edges import edges_by_moving, edges_in_closed_form
from captum_lig.paths.qkv import QKVByRunning
from captum_lig.paths.shared import SharedPath
from captum_lig.paths.softmax import RowFunction

__all__ = ["LayerParts", "TextParts", "attribute_number"]

CANCELLED = 0.1
"""Errors are relative to the change, unless it is less than this part of the sum of the sizes of
what adds up to it."""

Number = Callable[[object, ModelCall], Tensor]
"""The model's output and the call that gave it, on ``P`` copies of the text, to ``(P,)``."""


@dataclass(frozen=True)
class LayerParts:
    """What the chain gives of one layer, for one text."""

    block: BlockCall
    parts: Parts
    """Fields of a flow by name, of the text's ``S`` tokens, without the axis of texts."""
    cost: Cost


@dataclass(frozen=True)
class TextParts:
    """What the chain gives of one text."""

    layers: list[LayerParts]
    """Those that were asked for, first layer first."""
    change: float


def attribute_number(
    finder: Finder,
    call: ModelCall,
    baseline: ModelCall,
    number: Number,
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
        number: the number.
        settings: how to integrate.
        asked: from the blocks to the indices of those whose flows are wanted.
        boundaries: ``"attention"`` if edges into the heads are wanted.
        show_progress: show a bar over layers.

    Raises:
        LigError: if the number cannot be handed down; the message says why.
    """
    with finder.blocks(call) as blocks:
        others = finder.another(baseline)
        wanted = asked(blocks)
        chain = _Chain.of(blocks, others, call, baseline, number, settings, boundaries)
        found = chain.down_to(min(wanted), wanted, show_progress)
    return TextParts(found, chain.change)


@dataclass
class _Chain:
    """The two runs of one text, and what has been handed down so far."""

    blocks: list[BlockCall]
    others: list[BlockCall]
    rest: Rest
    number: Number
    settings: Settings
    boundaries: frozenset[str]
    values: tuple[float, float]
    """The number of the baseline and of the input."""
    meter: Meter

    @classmethod
    def of(
        cls,
        blocks: list[BlockCall],
        others: list[BlockCall],
        call: ModelCall,
        baseline: ModelCall,
        number: Number,
        settings: Settings,
        boundaries: frozenset[str],
    ) -> _Chain:
        _check_runs(blocks, others)
        values = tuple(float(number(Rest(one, runs).record(), one)) for one, runs in (
            (baseline, others), (call, blocks)))
        rest = Rest(call, blocks)
        rest.record()
        return cls(blocks, others, rest, number, settings, boundaries, values, Meter())

    @property
    def change(self) -> float:
        return self.values[1] - self.values[0]

    @property
    def valid(self) -> Tensor:
        return self.blocks[-1].valid[0]

    # --- between blocks ---

    def leaving(self, number: int) -> Ends:
        """The tokens leaving a block, ``(S, D)``; padding does not move."""
        return self._ends(self.others[number].output, self.blocks[number].output, number)

    def entering(self, number: int) -> Ends:
        """The tokens entering it."""
        return self._ends(self.others[number].hidden, self.blocks[number].hidden, number)

    def _ends(self, start: Tensor, end: Tensor, number: int) -> Ends:
        valid = self.blocks[number].valid[0]
        return _still(Ends(start[0].detach(), end[0].detach()), valid)

    def scale(self, relevance: Tensor) -> Tensor:
        """What errors are relative to, where relevances ``(N,)`` add up to the change."""
        size, change = relevance.abs().sum(), abs(self.change)
        return size if change < CANCELLED * size else size.new_tensor(change)

    def top(self) -> Tensor:
        """The multiplier of the tokens leaving the last block, ``(S, D)``."""
        last = len(self.blocks) - 1
        ends = self.leaving(last)

        def function(z: Tensor) -> Tensor:
            outputs = {n: self.blocks[n].output.expand(len(z), -1, -1) for n in range(last)}
            return self.number(*self.rest.run(outputs | {last: z})).unsqueeze(-1)

        found = function(torch.stack([ends.start, ends.end]))[:, 0].double().tolist()
        for there, own in zip(found, self.values, strict=True):
            if abs(there - own) > 1e-3 * abs(self.change) + 1e-5 * abs(own):
                raise LigError(
                    f"the target reads more than the tokens leaving {self.blocks[-1].describe()}: "
                    f"with them put in it is {there:.6g}, and in the run {own:.6g}. It may read "
                    "other blocks' outputs, or the inputs themselves."
                )
        value = torch.tensor(self.values, dtype=torch.float64, device=ends.end.device)[:, None]
        stage = Stage(
            function=function,
            arguments={"z": ends},
            output=Ends(value[0], value[1]),
            g=torch.ones_like(value[0]),
            relative_to=self._limit(value.new_tensor(abs(self.change))),
            points_at_once=self._points(10 * ends.end.numel() + 4 * self._vocabulary * len(ends.end)),
            by_token=False,
        )
        return multipliers(stage, self.settings)["z"]

    @property
    def _vocabulary(self) -> int:
        return int(getattr(getattr(self.rest.call.model, "config", None), "vocab_size", 0) or 0)

    def _limit(self, scale: Tensor) -> Tensor:
        """What errors of one stage are relative to: those of all of them add up."""
        return scale / (3 * len(self.blocks) + 1)

    def _points(self, floats: int) -> int:
        return self.settings.points_at_once(floats, len(self.valid), self.blocks[0].hidden)

    # --- down the blocks ---

    def down_to(self, first: int, wanted: set[int], show_progress: bool) -> list[LayerParts]:
        """Hand the multiplier down to the tokens entering a block."""
        g = self.top()
        found = []
        numbers = range(len(self.blocks) - 1, first - 1, -1)
        for number in tqdm(numbers, desc="layers", unit="layer", disable=not show_progress):
            began, meter = time.perf_counter(), Meter()
            g, parts = self._block(number, g, number in wanted, meter)
            if number in wanted:
                block = self.blocks[number]
                count, length = int(block.valid.sum()), block.hidden.shape[1]
                cost = Cost(
                    path_points=meter.pairs / count,
                    forward_equivalents=meter.passed / length,
                    seconds=time.perf_counter() - began,
                    path=meter.path,
                )
                found.append(LayerParts(block, parts, cost))
            if number > first:
                self._check_joined(number)
        return found[::-1]

    def _check_joined(self, number: int) -> None:
        below, here = self.leaving(number - 1), self.entering(number)
        for ours, theirs in ((below.start, here.start), (below.end, here.end)):
            if ours.shape != theirs.shape or not nearly_equal(ours, theirs):
                raise LigError(
                    f"what leaves {self.blocks[number - 1].describe()} is not what enters "
                    f"{self.blocks[number].describe()}."
                )

    def _block(
        self, number: int, g: Tensor, wanted: bool, meter: Meter
    ) -> tuple[Tensor, Parts]:
        """The multiplier of the tokens entering a block, and its part of the graph."""
        call, other = self.blocks[number], self.others[number]
        stages = Stages(call, find_feed_forward(call), meter)
        valid = call.valid[0]
        entering, leaving = self.entering(number), self.leaving(number)
        with torch.no_grad():
            both = stages.nodes(torch.cat([other.hidden, call.hidden]))
        nodes = {name: _still(Ends(x[0], x[1]), valid) for name, x in both.items() if name != "y"}
        nodes["z"] = entering
        limit = self._limit(self.scale(_relevance(g, leaving)))

        def stage(function: Callable[..., Tensor], names: str, output: Ends, g: Tensor) -> Parts:
            arguments = {name: nodes[name] for name in names.split()}
            floats = 12 * sum(x.end.numel() for x in arguments.values()) + 30 * g.numel()
            done = Stage(function, arguments, output, g, limit, self._points(floats))
            return multipliers(done, self.settings)

        past = stage(stages.output, "z u m" if "m" in nodes else "z u", leaving, g)
        g_u, g_z, found = past["u"], past["z"], {"residual": _relevance(past["z"], entering)}
        if "m" in nodes:
            inside = stage(stages.feed_forward, "z u", nodes["m"], past["m"])
            found["feed_forward"] = _relevance(past["m"], nodes["m"])
            found["feed_forward_heads"] = _by_head(inside["u"], nodes["u"])
            found["feed_forward_token"] = _relevance(inside["z"], entering)
            g_u, g_z = g_u + inside["u"], g_z + inside["z"]
        found["mlp"] = _by_head(g_u, nodes["u"])
        found["mlp_total"] = _relevance(g, leaving)
        heads = self._heads(stages, entering, nodes["u"], g_u, limit, wanted, meter)
        if EDGES in heads:
            found["attention"] = heads[EDGES]
            found["attention_total"] = found["mlp"].T.contiguous()
            if VALUES in heads:
                found["attention_value"] = heads[VALUES]
        g_z = g_z + heads["z"]
        found["entering"] = _relevance(g_z, entering)
        found["change"] = g_z.new_tensor(self.change)
        found["scale"] = self.scale(found["entering"])
        return g_z, found

    def _heads(
        self,
        stages: Stages,
        z: Ends,
        u: Ends,
        g: Tensor,
        limit: Tensor,
        wanted: bool,
        meter: Meter,
    ) -> Parts:
        """``z -> u``, with edges if they are wanted."""
        split, count = stages.split, len(z.end)
        edges = None
        if wanted and "attention" in self.boundaries:
            rows = torch.arange(count, device=z.end.device)
            frozen = (z.step == 0).all(-1).expand(count, -1)
            if split.opens:
                meter.takes("run_block")
                along = QKVByRunning(split.pre, z.start, z.end)
                row = RowFunction(split.softcap, split.sinks)
                path = SharedPath(along, rows, split.scaling, split.mask, row, frozen)
                edges = edges_in_closed_form(path)
            else:
                meter.takes("autograd")
                edges = edges_by_moving(stages.attend, z.start, z.end)
        attention = u.end.shape[1] * count * count
        floats = 20 * z.end.numel() + (9 if edges is not None else 3) * attention
        stage = AttentionStage(
            function=lambda z: stages.attend(z),
            arguments={"z": z},
            output=u,
            g=g,
            relative_to=limit,
            points_at_once=self._points(floats),
            by_token=edges is not None,
            edges=edges,
        )
        return multipliers(stage, self.settings)


def _still(ends: Ends, valid: Tensor) -> Ends:
    """Padding does not move."""
    where = valid.view(-1, *[1] * (ends.end.dim() - 1))
    return Ends(torch.where(where, ends.start, ends.end), ends.end)


def _relevance(g: Tensor, ends: Ends) -> Tensor:
    """``(S,)``"""
    return (g.double() * ends.step.double()).flatten(1).sum(-1)


def _by_head(g: Tensor, ends: Ends) -> Tensor:
    """``(S, H)``"""
    return (g.double() * ends.step.double()).sum(-1)


def _check_runs(blocks: Sequence[BlockCall], others: Sequence[BlockCall]) -> None:
    """Both runs have the same blocks, on as many tokens, with the same other arguments."""
    if [block.module for block in blocks] != [other.module for other in others]:
        raise LigError(
            f"the input ran through {len(blocks)} blocks and the baseline through {len(others)}, or "
            "others: both have to take the same way through the model."
        )
    for block, other in zip(blocks, others, strict=True):
        if block.hidden.shape != other.hidden.shape:
            raise LigError(
                f"{block.describe()} gets {tuple(block.hidden.shape)} of the input and "
                f"{tuple(other.hidden.shape)} of the baseline: give a baseline of as many tokens."
            )
        pairs = zip(block.tensors(), other.tensors(), strict=True)
        for ours, theirs in pairs:
            if ours is block.hidden:
                continue
            if ours.shape != theirs.shape or not torch.equal(ours, theirs):
                raise LigError(
                    f"{block.describe()} gets another argument of shape {tuple(ours.shape)} that "
                    "depends on the input, beside its tokens: what comes through that has no node "
                    "in the graph. If it is a mask, give input and baseline the same attention_mask."
                )
