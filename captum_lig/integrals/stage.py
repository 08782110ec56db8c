"""The stages of a block as boundaries: maps between nodes, each with a given cotangent.

Two runs of a model, of an input and of a baseline, give every node a value at each end. A stage
``y = S(x)`` goes along the straight line of all its arguments together, and hands the cotangent of
its output down to them::

    g_x = integral over a of J_S(x(a))^T g_y

so that ``<g_x, x(1) - x(0)>`` over all arguments is ``<g_y, y(1) - y(0)>``: the chain rule of
DeepLIFT (Shrikumar et al. 2017) with averages over a path for multipliers.

A stage has one row, the text: its tokens are refined together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lig._types import Parts
from captum_lig.cost import Meter
from captum_lig.integrals.adaptive import SHARE, refine
from captum_lig.integrals.boundary import Boundary, sweep
from captum_lig.integrals.scalarization import Cotangent
from captum_lig.integrals.settings import Settings
from captum_lig.paths.edges import Edges

__all__ = ["AttentionStage", "Budget", "Ends", "ReaderStage", "Stage", "multipliers"]

EDGES, VALUES, READERS = "edges", "values", "readers"
"""Names of what an attention stage gives beside the multipliers."""


@dataclass(frozen=True)
class Ends:
    """A node's values in the two runs, ``(...)`` each."""

    start: Tensor
    end: Tensor

    @property
    def step(self) -> Tensor:
        """Its change."""
        return self.end - self.start

    def at(self, a: Tensor) -> Tensor:
        """``(P, ...)`` on the straight line at ``a (P,)``."""
        step = self.step
        return self.start + a.to(step).view(-1, *[1] * step.dim()) * step


@dataclass(frozen=True)
class Stage(Boundary):
    """One stage of one text."""

    function: Callable[..., Tensor]
    """Arguments by name ``(P, ...)`` to the output ``(P, ...)``."""
    arguments: Mapping[str, Ends]
    output: Ends
    """``(K, ...)``: what ``K`` sums are checked of, tokens as a rule."""
    g: Tensor
    """``(K, ...)`` the cotangent of the output."""
    relative_to: Tensor
    """What the sums' errors, all together, are relative to."""
    points_at_once: int
    meter: Meter
    """Counts the points."""
    by_token: bool = True
    """Whether token ``k`` of the output reads token ``k`` of the arguments alone. If not, all sums
    are checked together."""

    @property
    def scalarization(self) -> Cotangent:  # type: ignore[override]
        """The given cotangent, in float64: entries may be larger than what is read of them."""
        return Cotangent(self._flat(self.g))

    @property
    def step(self) -> Tensor:
        """Shape ``(1, K, E)``."""
        return self._flat(self.output.step)

    def change(self, a: float) -> Tensor:
        """Shape ``(1, K, E)``."""
        with torch.no_grad():
            y = self.function(**self.inputs(torch.tensor([a], dtype=torch.float64)))[0]
        return self._flat(y - self.output.start)

    @property
    def scale(self) -> Tensor:
        """Shape ``(1, 1)``; a panel may use up all of it, since tokens do not cancel."""
        return (self.relative_to / SHARE).view(1, 1)

    def error(self, sums: Tensor, change: Tensor) -> Tensor:
        """``(1, 1)``: sizes of what the tokens miss, added up."""
        return (sums - change).abs().sum(-1, keepdim=True)

    @property
    def path(self) -> object:
        """Its own."""
        return self

    def at(self, a: Tensor) -> Tensor:
        """The points themselves."""
        return a

    def inputs(self, a: Tensor) -> Parts:
        """The arguments at ``a (P,)``, ``(P, ...)`` each."""
        return {name: ends.at(a) for name, ends in self.arguments.items()}

    def rates(self, at: Tensor, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """``J^T g`` for each argument, ``(1, ...)``."""
        self.meter.pairs += len(a) * len(self.output.end)
        inputs = {name: x.detach().requires_grad_() for name, x in self.inputs(at).items()}
        with torch.enable_grad():
            y = self.function(**inputs)
        g = self.g.to(y) * w.to(y).view(-1, *[1] * self.g.dim())
        found = torch.autograd.grad(y, [*inputs.values()], g, materialize_grads=True)
        return {name: x.sum(0, keepdim=True) for name, x in zip(inputs, found, strict=True)}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(1, K)``."""
        each = [
            parts[name][0].double() * ends.step.double() for name, ends in self.arguments.items()
        ]
        if self.by_token:
            return torch.stack([x.flatten(1).sum(-1) for x in each]).sum(0)[None]
        return torch.stack([x.sum() for x in each]).sum().view(1, 1)

    def __len__(self) -> int:
        return 1

    def select(self, rows: Tensor) -> Self:
        """Itself: there is one row."""
        return self

    @property
    def graded(self) -> bool:
        """A straight line between two runs is not special where it starts."""
        return False

    @property
    def pairs_at_once(self) -> int:
        """Points, of one row."""
        return self.points_at_once

    def _flat(self, x: Tensor) -> Tensor:
        """``(1, K, E)``, all in one if tokens are not checked by themselves."""
        return x.double().reshape(1, len(x) if self.by_token else 1, -1)


@dataclass(frozen=True)
class AttentionStage(Stage):
    """``z -> u`` with its edges; ``output`` and ``g`` are ``(T, H, d)``.

    The multiplier of ``z`` comes from running the block with its attention; the edges from the
    queries, keys and values along the same line, in closed form. Their columns add up to what the
    multiplier gives.
    """

    edges: Edges | None = None
    """Gives them at some points; None: no edges."""

    def rates(self, at: Tensor, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """``z (1, S, D)``; the edges and their part through the value ``(1, H, T, S)``."""
        found = super().rates(at, a, w, starts)
        if self.edges is None:
            return found
        edges, values = self.edges(a, self.g[None] * w.to(self.g).view(-1, 1, 1, 1))
        found[EDGES] = edges[None]
        if values is not None:
            found[VALUES] = values[None]
        return found

    def sums(self, parts: Parts) -> Tensor:
        """``(1, T)`` from the edges, or ``(1, 1)`` from the multiplier."""
        if EDGES in parts:
            return parts[EDGES].double().sum((1, 3))
        return super().sums(parts)


@dataclass(frozen=True)
class ReaderStage(Stage):
    """``z -> u`` by what reads ``z``: each head's query, key and value has a multiplier of its own.

    Heads that share a key are a group, and each group is checked. ``output`` and ``g`` are
    ``(G, ...)``, groups first.
    """

    readers: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    """Points ``z (P, S, D)`` and cotangents ``(P, G, ...)`` to what each reader hands down,
    ``(R, S, D)``, summed over the points."""
    groups: Tensor = field(kw_only=True)
    """``(R,)`` the group that each reader is of."""

    def rates(self, at: Tensor, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """``z (1, S, D)``, and of each reader ``(1, R, S, D)``."""
        self.meter.pairs += len(a) * len(self.output.end)
        z = self.inputs(at)["z"]
        g = self.g.to(z) * w.to(z).view(-1, *[1] * self.g.dim())
        found = self.readers(z, g)
        return {"z": found.sum(0, keepdim=True), READERS: found[None]}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(1, G)``."""
        each = (parts[READERS][0].double() * self.arguments["z"].step.double()).sum((1, 2))
        return each.new_zeros(1, len(self.g)).index_add_(1, self.groups, each[None])


@dataclass
class Budget:
    """What the stages of one text have left of the tolerance, and the nodes that they took.

    Errors of all stages add up, with their signs. Most stages stay far below what they may use, so
    a stage may use a part of what is left, not an equal share.
    """

    spent: float = 0.0
    """Sum of the errors so far, in units of the tolerance."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Nodes to begin with by kind of stage: the block above needed about as many."""

    @property
    def part(self) -> float:
        """What the next stage may use; something in any case, however much is spent."""
        return SHARE * max(1 - abs(self.spent), 1 / 4)


ROUNDING = 16
"""How many units in the last place of what is added up count as rounding, which more nodes do not
mend; 5 to 10 were seen in the stages of a decoder."""
MOST = 4
"""A stage begins with at most so many times the nodes that were asked for."""


def multipliers(
    stage: Stage,
    settings: Settings,
    budget: Budget,
    kind: str,
    relative_to: Callable[[Parts], Tensor] | None = None,
) -> Parts:
    """What a stage hands down to each of its arguments, ``(...)`` by name.

    And what else it gives, under the names that it has there.

    Args:
        stage: its ``relative_to`` is what the errors of all stages together are relative to.
        settings: the rule to begin with, and the tolerance of all stages together.
        budget: what of it is left; what this stage uses is taken off.
        kind: stages of one kind need about as many nodes.
        relative_to: from what the first rule gives to what errors are relative to, if the stage
            does not say.
    """
    least = len(settings.alphas)
    count = budget.nodes.get(kind, least)
    settings, used = settings.with_nodes(count), stage.meter.pairs
    found = sweep([stage], settings.alphas, settings.weights)[0]
    first = stage.meter.pairs - used
    whole = stage.relative_to
    if relative_to is not None:
        whole = relative_to({name: x[0] for name, x in found.items()})
    relative = whole * budget.part
    if settings.tolerance is not None:
        rounding = torch.finfo(stage.g.dtype).eps * (stage.g * stage.output.step).abs().sum()
        relative = torch.maximum(relative, ROUNDING * rounding / settings.tolerance)
    stage = replace(stage, relative_to=relative)
    found = refine(stage, found, settings)
    if settings.tolerance is not None:
        gaps = stage.sums(found) - stage.totals
        missed, allowed = float(gaps.abs().sum()), settings.tolerance * float(whole)
        if allowed > 0:
            budget.spent += float(gaps.sum()) / allowed
        if stage.meter.pairs - used > first:
            budget.nodes[kind] = min(count + (count + 1) // 2, MOST * least)
        elif missed < 0.01 * allowed * budget.part:
            budget.nodes[kind] = max(count - count // 4, least)
    return {name: x[0] for name, x in found.items()}
