"""The strongest routes of a layered graph, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captum_lig.graph.layer import Shares

__all__ = ["Route", "Step", "routes_between"]

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
    """None: the residual edge."""
    share: float
    """Signed share of the target that the step carries."""


@dataclass(frozen=True)
class Route:
    """A route from a token entering the first layer to a token leaving the last."""

    share: float
    """Signed product of its steps' shares: what the route carries of its end."""
    steps: tuple[Step, ...]
    """First layer first."""
    labels: tuple[str, ...]
    """Tokens the route visits, one more than there are steps."""

    def __str__(self) -> str:
        """Share and heads; where it only stays with its token, a step is left out."""
        text = self.labels[0]
        for step, label in zip(self.steps, self.labels[1:], strict=True):
            if step.head is not None:
                text += f" -[{step.layer}.h{step.head}]-> {label}"
        return f"{self.share:+.3g}  {text}"


def routes_between(
    layers: Sequence[Shares],
    indices: Sequence[int],
    labels: Sequence[str],
    source: int,
    target: int,
    count: int,
) -> list[Route]:
    """The routes with the largest absolute product of shares, strongest first.

    For each token and layer the best ``count`` ways to reach it from ``source`` are kept, which
    is exact: a way that is not among them cannot be the beginning of one of the best routes.

    Args:
        layers: the shares of consecutive layers, first layer first, on the CPU.
        indices: the layers' indices.
        labels: what the tokens are called.
        source: a token entering the first layer.
        target: a token leaving the last layer.
        count: how many routes at most; routes that carry nothing are none.
    """
    tokens = len(layers[0].residual)
    # best[j, r]: log of the r-th best product of the ways from the source to token j.
    best = torch.full((tokens, 1), -torch.inf, dtype=torch.float64)
    best[source] = 0.0
    choices: list[_Choice] = []
    for number, layer in enumerate(layers):
        ends = torch.tensor([target]) if number == len(layers) - 1 else torch.arange(tokens)
        edges = 1 + tokens * min(count, len(layer.heads))
        at_once = max(1, MOST_SCORES // (edges * best.shape[1]))
        parts = [_best_ways(layer, best, part, count) for part in ends.split(at_once)]
        best = torch.cat([scores for scores, _ in parts])
        choices.append(_Choice(*(torch.cat(t) for t in zip(*(c for _, c in parts), strict=True))))
    routes = []
    for rank in torch.isfinite(best[0]).nonzero().flatten().tolist():
        steps = _walk_back(layers, indices, choices, target, rank)
        visited = [source, *(step.target for step in steps)]
        share = math.prod(step.share for step in steps)
        routes.append(Route(share, steps, tuple(labels[token] for token in visited)))
    return routes


class _Choice(NamedTuple):
    """Of each of the best ways to some tokens ``(tokens, ways)``: the last step."""

    sources: Tensor
    heads: Tensor
    """-1 for the residual edge."""
    ranks: Tensor
    """Which of the best ways to the source it goes on from."""


def _best_ways(layer: Shares, best: Tensor, ends: Tensor, count: int) -> tuple[Tensor, _Choice]:
    """The best ways through one layer to each of ``ends``, given those to its sources."""
    edge_scores, sources, heads = _edges_into(layer, ends, count)
    ranks = best.shape[1]
    scores = (edge_scores[..., None] + best[sources]).flatten(1)  # (ends, edges * ranks)
    found, position = scores.topk(min(count, scores.shape[1]), dim=1)
    edge = position // ranks
    return found, _Choice(sources.gather(1, edge), heads.gather(1, edge), position % ranks)


def _edges_into(layer: Shares, ends: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of shares, sources and heads (-1: residual) of the edges into ``ends``.

    Of the parallel edges between two tokens the ``count`` strongest are enough.
    """
    by_head = layer.heads[:, ends].abs().log()
    strongest, number = by_head.topk(min(count, len(by_head)), dim=0)
    kept, rows, tokens = strongest.shape
    sources = torch.arange(tokens).expand(rows, kept, tokens)

    def joined(through_heads: Tensor, residual: Tensor) -> Tensor:
        return torch.cat([through_heads.flatten(1), residual[:, None]], 1)

    return (
        joined(strongest.transpose(0, 1), layer.residual[ends].abs().log()),
        joined(sources, ends),
        joined(number.transpose(0, 1), torch.full_like(ends, -1)),
    )


def _walk_back(
    layers: Sequence[Shares],
    indices: Sequence[int],
    choices: Sequence[_Choice],
    target: int,
    rank: int,
) -> tuple[Step, ...]:
    steps: list[Step] = []
    token, row = target, 0  # the last layer was worked out for the target alone
    for index, layer, choice in list(zip(indices, layers, choices, strict=True))[::-1]:
        source, head, rank = (int(part[row, rank]) for part in choice)
        share = layer.residual[token] if head < 0 else layer.heads[head, token, source]
        steps.append(Step(index, source, token, None if head < 0 else head, float(share)))
        token = row = source
    return tuple(steps[::-1])
