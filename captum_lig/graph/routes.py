"""The strongest routes of a layered graph, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from captum_lig.flow.tokens import readable_token
from captum_lig.graph.layer import Shares
from captum_lig.graph.target_layer import TargetLayer

__all__ = ["Route", "Step", "routes_between", "signed_route"]

MOST_ROUTES = 10_000
"""Most routes that are looked for: so many ways are kept for every token and layer."""
MOST_SCORES = 2**24
"""Most candidates for a way that are looked at at once."""


@dataclass(frozen=True)
class Step:
    """One layer of a route: from a source token through a head, or along the residual stream."""

    layer: int
    source: int
    target: int
    head: int | None
    """None: past the heads, from the token itself."""
    share: float
    """Share of the target that the step carries: signed in graphs of lengths, and in those with a
    target the product of its edges' shares of the sizes into their nodes."""
    feed_forward: bool = False
    """Whether it goes through the target's MLP, in graphs where that is a node."""
    edges: tuple[float, ...] = ()
    """In graphs with a target: the signed edges on the way, in its units, from the source on: into
    the head and out of it, into the MLP and out of it, or the residual edge."""


@dataclass(frozen=True, repr=False)
class Route:
    """A route from a token entering the first layer to one leaving the last, or to the target."""

    share: float
    """Product of its steps' shares: what the route carries of its end. Of a route to the target,
    and not to a token, times the last token's part in the sizes of all."""
    steps: tuple[Step, ...]
    """First layer first."""
    labels: tuple[str, ...]
    """Tokens the route visits, one more than there are steps."""
    end: float | None = None
    """Of a route to the target: relevance of its last token, the edge from there to the target."""

    def __str__(self) -> str:
        """Share, heads and MLPs; where it only stays with its token, a step is left out."""
        text, *labels = map(readable_token, self.labels)
        for step, label in zip(self.steps, labels, strict=True):
            nodes = [] if step.head is None else [f"h{step.head}"]
            nodes += ["mlp"] * step.feed_forward
            if nodes:
                signed = "".join(f" {edge:+.2g}" for edge in step.edges)
                text += f" -[{step.layer}.{'.'.join(nodes)}{signed}]-> {label}"
        if self.end is not None:
            text += f" -[{self.end:+.2g}]-> target"
        return f"{self.share:+.3g}  {text}"

    def __repr__(self) -> str:
        return f"Route({self})"


def routes_between(
    layers: Sequence[Shares],
    indices: Sequence[int],
    labels: Sequence[str],
    sources: Sequence[int],
    ends: Tensor,
    count: int,
) -> list[Route]:
    """The routes with the largest absolute product of shares, strongest first.

    For each token and layer the best ``count`` ways to reach it from the sources are kept, which
    is exact: a way that is not among them cannot be the beginning of one of the best routes.

    Args:
        layers: the shares of consecutive layers, first layer first, on the CPU.
        indices: the layers' indices.
        labels: what the tokens are called.
        sources: tokens entering the first layer.
        ends: ``(N,)`` by how much routes to each token leaving the last layer count; 0: not at all.
        count: how many routes at most; routes that carry nothing are none.
    """
    tokens = len(layers[0].residual)
    # best[j, r]: log of the r-th best product of the ways from a source to token j.
    best = torch.full((tokens, 1), -torch.inf, dtype=torch.float64)
    best[list(sources)] = 0.0
    choices: list[_Choice] = []
    wanted = ends.nonzero().flatten()
    if not len(wanted):
        return []
    for number, layer in enumerate(layers):
        targets = wanted if number == len(layers) - 1 else torch.arange(tokens)
        ways = len(layer.heads) * (1 if layer.heads_through_mlp is None else 2)
        edges = 2 + tokens * min(count, ways)
        at_once = max(1, MOST_SCORES // (edges * best.shape[1]))
        parts = [_best_ways(layer, best, part, count) for part in targets.split(at_once)]
        best = torch.cat([scores for scores, _ in parts])
        choices.append(_Choice(*(torch.cat(t) for t in zip(*(c for _, c in parts), strict=True))))
    scores = (best + ends[wanted, None].log()).flatten()
    routes = []
    for place in scores.argsort(descending=True, stable=True)[:count].tolist():
        if not math.isfinite(scores[place]):
            break
        row, rank = divmod(place, best.shape[1])
        steps = _walk_back(layers, indices, choices, int(wanted[row]), row, rank)
        visited = [steps[0].source, *(step.target for step in steps)]
        share = math.prod(step.share for step in steps) * float(ends[wanted[row]])
        routes.append(Route(share, steps, tuple(labels[token] for token in visited)))
    return routes


def signed_route(route: Route, layers: Sequence[TargetLayer], to_target: bool) -> Route:
    """The route with the signed edges of its steps, and on to the target."""
    steps = tuple(
        replace(step, edges=layer.along(step.head, step.source, step.target, step.feed_forward))
        for step, layer in zip(route.steps, layers, strict=True)
    )
    end = float(layers[-1].leaving[steps[-1].target]) if to_target else None
    return replace(route, steps=steps, end=end)


class _Choice(NamedTuple):
    """Of each of the best ways to some tokens ``(tokens, ways)``: the last step."""

    sources: Tensor
    ways: Tensor
    """The head, or the number of heads more through the head and the MLP; -1 for the residual edge,
    -2 from the token through the MLP."""
    ranks: Tensor
    """Which of the best ways to the source it goes on from."""


def _best_ways(layer: Shares, best: Tensor, ends: Tensor, count: int) -> tuple[Tensor, _Choice]:
    """The best ways through one layer to each of ``ends``, given those to its sources."""
    edge_scores, sources, ways = _edges_into(layer, ends, count)
    ranks = best.shape[1]
    scores = (edge_scores[..., None] + best[sources]).flatten(1)  # (ends, edges * ranks)
    found, position = scores.topk(min(count, scores.shape[1]), dim=1)
    edge = position // ranks
    return found, _Choice(sources.gather(1, edge), ways.gather(1, edge), position % ranks)


def _edges_into(layer: Shares, ends: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of shares, sources and ways (see :class:`_Choice`) of the edges into ``ends``.

    Of the parallel edges between two tokens the ``count`` strongest are enough.
    """
    past, through = layer.heads[:, ends], layer.heads_through_mlp
    by_way = (past if through is None else torch.cat([past, through[:, ends]])).abs().log()
    strongest, number = by_way.topk(min(count, len(by_way)), dim=0)
    kept, rows, tokens = strongest.shape
    sources = torch.arange(tokens).expand(rows, kept, tokens)
    stays = [layer.residual] + [one for one in (layer.token_through_mlp,) if one is not None]

    def joined(through_heads: Tensor, of_token: list[Tensor]) -> Tensor:
        return torch.cat([through_heads.flatten(1), torch.stack(of_token, 1)], 1)

    return (
        joined(strongest.transpose(0, 1), [share[ends].abs().log() for share in stays]),
        joined(sources, [ends] * len(stays)),
        joined(
            number.transpose(0, 1), [torch.full_like(ends, -1 - way) for way in range(len(stays))]
        ),
    )


def _walk_back(
    layers: Sequence[Shares],
    indices: Sequence[int],
    choices: Sequence[_Choice],
    target: int,
    row: int,
    rank: int,
) -> tuple[Step, ...]:
    """The steps of a way to ``target``, which stands in ``row`` of the last layer's choices."""
    steps: list[Step] = []
    token = target
    for index, layer, choice in list(zip(indices, layers, choices, strict=True))[::-1]:
        source, way, rank = (int(part[row, rank]) for part in choice)
        heads = len(layer.heads)
        head, through = (None, way == -2) if way < 0 else (way % heads, way >= heads)
        if head is None:
            shares = layer.token_through_mlp if through else layer.residual
            place: tuple[int, ...] = (token,)
        else:
            shares = layer.heads_through_mlp if through else layer.heads
            place = (head, token, source)
        assert shares is not None
        share = shares[place]
        steps.append(Step(index, source, token, head, float(share), through))
        token = row = source
    return tuple(steps[::-1])
