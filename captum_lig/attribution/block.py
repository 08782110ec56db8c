"""One block of the chain: from the multiplier of the tokens leaving it to that of those entering.

Nodes are those of :mod:`captum_lig.model.stages`. A node's multiplier is the sum of what the stages
that read it hand down; an edge is a stage's part of it times the node's change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._types import Parts
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.integrals.settings import Settings
from captum_lig.integrals.stage import (
    EDGES,
    VALUES,
    AttentionStage,
    Budget,
    Ends,
    Stage,
    multipliers,
)
from captum_lig.model.call import BlockCall, FeedForward
from captum_lig.model.cross_attention import Cross
from captum_lig.model.stages import Stages
from captum_lig.paths.edges import (
    Edges,
    cross_edges,
    edges_by_moving,
    edges_in_closed_form,
)
from captum_lig.paths.qkv import QKVByRunning
from captum_lig.paths.shared import SharedPath
from captum_lig.paths.softmax import RowFunction

__all__ = ["ChainBlock", "Handed", "by_head", "relevance", "still"]


@dataclass(frozen=True)
class Handed:
    """What a block hands down."""

    z: Tensor
    """``(S, D)`` multiplier of the tokens entering."""
    e: Tensor | None
    """``(S_enc, D)`` of the encoder's states, if the block attends to them."""
    parts: Parts
    """Fields of a flow, of one text."""
    stages: dict[str, Parts]
    """What each stage handed down: ``"output"``, ``"feed_forward"``, ``"attention"``."""


class ChainBlock:
    """A block between two runs of one text.

    Args:
        call: the block in the run on the input.
        other: the same in the run on the baseline.
        feed_forward: where its MLP gives its output, or None.
        cross: where it attends to an encoder's states, or None.
        settings: how to integrate.
        edges: whether edges into the heads are wanted.
        budget: what of the tolerance is left.
        meter: counts the work.

    Raises:
        LigError: an MLP that is named in a block that is left whole.
    """

    def __init__(
        self,
        call: BlockCall,
        other: BlockCall,
        feed_forward: FeedForward | None,
        cross: Cross | None,
        settings: Settings,
        edges: bool,
        budget: Budget,
        meter: Meter,
    ) -> None:
        self.stages = Stages(call, feed_forward, cross, meter)
        if self.stages.is_whole and call.feed_forward is not None:
            raise LigError(
                f"{call.describe()} is left whole, so that the feed_forward that its Block names "
                "can be no node: name its attention, too, Block(module, attention=..., heads=..., "
                "feed_forward=...), or leave feed_forward out."
            )
        self.settings, self.edges, self.meter = settings, edges, meter
        self.budget = budget
        self.valid = call.valid[0]
        self.z = still(Ends(other.hidden[0].detach(), call.hidden[0].detach()), self.valid)
        self.y = still(Ends(other.output[0].detach(), call.output[0].detach()), self.valid)
        self.nodes = {"z": self.z}
        states: list[Tensor | None] = [None, None]
        if cross is not None:
            states = [cross.states(run).detach() for run in (other, call)]
            self.nodes["e"] = Ends(*(e[0] for e in states if e is not None))
        with torch.no_grad():
            # One by one: in a batch, runs on the same tokens differ by rounding.
            runs = [
                self.stages.nodes(run.hidden, e)
                for run, e in zip((other, call), states, strict=True)
            ]
        for name, start in runs[0].items():
            if name != "y":
                self.nodes[name] = still(Ends(start[0], runs[1][name][0]), self.valid)

    def down(self, g: Tensor, relative_to: Tensor) -> Handed:
        """Hand a multiplier ``(S, D)`` of the tokens leaving down through the stages."""
        nodes, found = self.nodes, {"mlp_total": relevance(g, self.y)}
        handed: dict[str, Tensor] = {}

        def take(parts: Parts) -> Parts:
            for name, part in parts.items():
                if name in nodes:
                    handed[name] = handed[name] + part if name in handed else part
            return parts

        names = [name for name in ("z", "u", "m", "c") if name in nodes]
        past = take(self._stage("output", names, self.y, g, relative_to))
        found["residual"] = relevance(past["z"], self.z)
        stages = {"output": past}
        if "m" in nodes:
            names = [name for name in ("z", "u", "c") if name in nodes]
            inside = take(self._stage("feed_forward", names, nodes["m"], handed["m"], relative_to))
            stages["feed_forward"] = inside
            found["feed_forward"] = relevance(handed["m"], nodes["m"])
            found["feed_forward_heads"] = by_head(inside["u"], nodes["u"])
            found["feed_forward_token"] = relevance(inside["z"], self.z)
            if "c" in nodes:
                found["feed_forward_cross"] = relevance(inside["c"], nodes["c"])
        if "c" in nodes:
            crossed = take(self._cross(handed["c"], relative_to))
            found |= self._cross_fields(crossed, handed["c"])
        found["mlp"] = by_head(handed["u"], nodes["u"])
        if nodes["u"].end.shape[1]:
            heads = stages["attention"] = take(self._heads(handed["u"], relative_to))
            if EDGES in heads:
                found["attention"] = heads[EDGES]
                found["attention_total"] = found["mlp"].T.contiguous()
                if VALUES in heads:
                    found["attention_value"] = heads[VALUES]
        found["entering"] = relevance(handed["z"], self.z)
        return Handed(handed["z"], handed.get("e"), found, stages)

    def _stage(
        self,
        kind: str,
        names: Sequence[str],
        output: Ends,
        g: Tensor,
        relative_to: Tensor,
    ) -> Parts:
        arguments = {name: self.nodes[name] for name in names}
        floats = 12 * sum(x.end.numel() for x in arguments.values()) + 30 * g.numel()
        points = self._points(floats)
        function: Callable[..., Tensor] = getattr(self.stages, kind)
        stage = Stage(function, arguments, output, g, relative_to, points, self.meter)
        return multipliers(stage, self.settings, self.budget, kind)

    def _points(self, floats: int) -> int:
        return self.settings.points_at_once(floats, len(self.valid), self.z.end)

    # --- attention ---

    def _heads(self, g: Tensor, relative_to: Tensor) -> Parts:
        """``z -> u``."""
        edges = self._edges() if self.edges else None
        found = self._attention(g, relative_to, edges)
        if edges is None or self._columns_agree(found):
            return found
        # Queries, keys or values of a token read other tokens: then they are not that token's.
        self.meter.takes("autograd")
        moving = edges_by_moving(self.stages.attend, self.z.start, self.z.end)
        return self._attention(g, relative_to, moving)

    def _columns_agree(self, found: Parts) -> bool:
        """Whether edges out of each token add up to what its multiplier says."""
        columns = found[EDGES].double().sum((0, 1))
        gap = (columns - relevance(found["z"], self.z)).abs().sum()
        return bool(gap <= 1e-3 * found[EDGES].double().abs().sum())

    def _attention(self, g: Tensor, relative_to: Tensor, edges: Edges | None) -> Parts:
        u, count = self.nodes["u"], len(self.valid)
        held = 9 if edges else 0 if self.stages.split.plain else 3
        floats = 20 * self.z.end.numel() + held * u.end.shape[1] * count * count
        stage = AttentionStage(
            function=lambda z: self.stages.attend(z, fused=True),
            arguments={"z": self.z},
            output=u,
            g=g,
            relative_to=relative_to,
            points_at_once=self._points(floats),
            meter=self.meter,
            by_token=edges is not None,
            edges=edges,
        )
        return multipliers(stage, self.settings, self.budget, "attention")

    def _edges(self) -> Edges:
        split, z = self.stages.split, self.z
        if not split.opens:
            self.meter.takes("autograd")
            return edges_by_moving(self.stages.attend, z.start, z.end)
        self.meter.takes("run_block")
        rows = torch.arange(len(z.end), device=z.end.device)
        frozen = (z.step == 0).all(-1).expand(len(rows), -1)
        along = QKVByRunning(split.pre, z.start, z.end)
        row = RowFunction(split.softcap, split.sinks)
        path = SharedPath(along, rows, split.scaling, split.mask, row, frozen)
        return edges_in_closed_form(path)

    # --- cross-attention ---

    def _cross(self, g: Tensor, relative_to: Tensor) -> Parts:
        """``(z, u, e) -> c``."""
        arguments = {name: self.nodes[name] for name in ("z", "u", "e")}
        edges = None
        if self.edges:
            call = self.stages.cross_call()
            mask = None if call.mask is None else call.mask[0]
            row = RowFunction(call.softcap, call.sinks)
            starts, ends = zip(*((x.start, x.end) for x in arguments.values()), strict=True)
            edges = cross_edges(self.stages.cross_core, starts, ends, call.scaling, mask, row)
        count, states = len(self.valid), len(self.nodes["e"].end)
        floats = 30 * (self.z.end.numel() + self.nodes["e"].end.numel())
        floats += 9 * g.shape[1] * count * states
        stage = AttentionStage(
            function=self.stages.crossed,
            arguments=arguments,
            output=self.nodes["c"],
            g=g,
            relative_to=relative_to,
            points_at_once=self._points(floats),
            meter=self.meter,
            by_token=edges is not None,
            edges=edges,
        )
        return multipliers(stage, self.settings, self.budget, "cross")

    def _cross_fields(self, crossed: Parts, g: Tensor) -> Parts:
        total = by_head(g, self.nodes["c"])
        found = {
            "cross_token": relevance(crossed["z"], self.z),
            "cross_heads": by_head(crossed["u"], self.nodes["u"]),
        }
        if EDGES in crossed:
            found["cross"] = crossed[EDGES][..., :-1]
            found["cross_query"] = crossed[EDGES][..., -1]
            found["cross_total"] = total.T.contiguous()
            found["cross_sum"] = found["cross"].sum((0, 2))
        else:
            through = found["cross_heads"].sum(-1)
            found["cross_sum"] = total.sum(-1) - through - found["cross_token"]
        return found


def still(ends: Ends, valid: Tensor) -> Ends:
    """Padding does not move."""
    where = valid.view(-1, *[1] * (ends.end.dim() - 1))
    return Ends(torch.where(where, ends.start, ends.end), ends.end)


def relevance(g: Tensor, ends: Ends) -> Tensor:
    """``(S,)`` float64: entries of a vector may be far larger than what is read of it."""
    return (g.double() * ends.step.double()).flatten(1).sum(-1)


def by_head(g: Tensor, ends: Ends) -> Tensor:
    """``(S, H)``, the same for heads."""
    return (g.double() * ends.step.double()).sum(-1)
