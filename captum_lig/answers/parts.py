"""The strongest tokens, heads and MLPs of a graph with a target, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from captum_lig.answers.words import word_of
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.graph import FlowGraph, Trace
from captum_lig.graph.target_layer import TargetLayer
from captum_lig.patching import Node

__all__ = [
    "Held",
    "Part",
    "held_at",
    "node_of",
    "strongest_heads",
    "strongest_mlps",
    "strongest_tokens",
    "worst_sum_error",
]


@dataclass(frozen=True)
class Part:
    """A token, a head or an MLP at a token, and its part of the change of the target."""

    kind: Literal["token", "head", "MLP"]
    value: float
    """In units of the target."""
    share: float | None
    """Of the change; above 1 or below 0 where others work against it. None of no change."""
    position: int
    """Of the token where it is, padding not counted."""
    token: str
    """That token, as :attr:`Answer.tokens` has it."""
    layer: int | None = None
    """Of a head or an MLP; a token is as it enters the lowest layer."""
    head: int | None = None
    source: int | None = None
    """Of a head: position of the token that more of its part came from than from any other; what
    other tokens work against it does not count."""
    source_value: float | None = None
    """Of a head: how much came from there. Less than half of its part, where it reads from many."""
    through_pattern: float | None = None
    """Of a head: how much of its part came from where it looks (its attention pattern); the rest
    came through what it reads there (its values). None if the block hides them."""

    @property
    def word(self) -> str:
        """The token as the text that it stands for, a space in front included."""
        return word_of(self.token)

    @property
    def name(self) -> str:
        """``head 23.4``, ``MLP 23``, or ``token``."""
        if self.kind == "token":
            return self.kind
        return f"{self.kind} {self.layer}" + ("" if self.head is None else f".{self.head}")


@dataclass(frozen=True)
class Held:
    """Depths at which one token, none, or several hold more than half of the change each."""

    first: int
    """Index of the first of the layers that the tokens enter."""
    last: int
    """Of the last; one more than the last layer for the tokens that leave it."""
    position: int | None
    """None where no token has more than half by itself, or several have."""
    token: str | None
    several: bool = False
    """Whether several have: others, or one of them, work against them."""


def strongest_tokens(trace: Trace, change: float, count: int) -> list[Part]:
    """Tokens entering the lowest layer, largest first; those without a part are left out."""
    return [
        Part("token", value, _share(value, change), position, token)
        for token, position, value in trace.strongest(count)
        if value
    ]


def strongest_heads(graph: FlowGraph, trace: Trace, count: int) -> list[Part]:
    """Heads at a token, largest first."""
    rows = {layer.index: layer for layer in graph.layers}
    found = []
    for token, layer, head, position, value in trace.strongest_heads(count):
        if not value:
            continue
        row = rows[layer]
        assert isinstance(row, TargetLayer)
        edges, values = row.attention[head, position], row.attention_value
        pattern = None if values is None else float((edges - values[head, position]).sum())
        source = int((edges * value).argmax())  # of its sign: others work against it
        found.append(
            Part(
                "head",
                value,
                _share(value, _change(graph)),
                position,
                token,
                layer,
                head,
                source,
                float(edges[source]),
                pattern,
            )
        )
    return found


def strongest_mlps(graph: FlowGraph, trace: Trace, count: int) -> list[Part]:
    """MLPs at a token, largest first; none if the graph has no such nodes."""
    if trace.feed_forward is None:
        return []
    return [
        Part("MLP", value, _share(value, _change(graph)), position, token, layer)
        for token, layer, position, value in trace.strongest_feed_forward(count)
        if value
    ]


def held_at(trace: Trace, change: float) -> list[Held]:
    """The one token with more than half of the change at each depth, neighbours joined."""
    found: list[Held] = []
    depths = (*trace.layers, trace.layers[-1] + 1)
    for depth, row in zip(depths, trace.tokens, strict=True):
        holders = (row * change > change * change / 2).nonzero().flatten().tolist()
        position, several = holders[0] if len(holders) == 1 else None, len(holders) > 1
        if found and (found[-1].position, found[-1].several) == (position, several):
            found[-1] = replace(found[-1], last=depth)
        else:
            token = None if position is None else trace.labels[position]
            found.append(Held(depth, depth, position, token, several))
    return found


def worst_sum_error(flows: Sequence[LayerFlow]) -> float:
    """Largest distance of the tokens' sum from the change, over all depths, in units of it.

    Of parts that cancel it is larger than the ``tolerance`` that they were integrated to, which is
    then of the sum of their sizes. Of a change of 0 it is a share of that sum, too.
    """
    worst = 0.0
    for flow in flows:
        change = flow.need("change").double()
        sums = flow.need("entering").double().sum(-1)
        if flow.elsewhere is not None:
            sums = sums + flow.elsewhere.double()
        gap = (sums - change).abs()
        whole = torch.where(change != 0, change.abs(), flow.need("scale").double())
        worst = max(worst, float(torch.where(gap > 0, gap / whole, 0.0).max()))
    return worst


def node_of(part: Part) -> Node:
    """What patching calls a part."""
    kinds: dict[str, Literal["tokens", "heads", "feed_forward"]]
    kinds = {"token": "tokens", "head": "heads", "MLP": "feed_forward"}
    return Node(kinds[part.kind], part.layer or 0, part.position, part.head)


def _change(graph: FlowGraph) -> float:
    assert graph.change is not None
    return graph.change


def _share(value: float, change: float) -> float | None:
    return value / change if change else None
