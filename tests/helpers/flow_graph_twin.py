"""The flow graph from its definitions: one edge after the other, in Python's numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from captum_lig import LayerFlow
from captum_lig.graph import Route


def twin_edges(
    flow: LayerFlow, rule: str, absolute: bool = False
) -> Iterator[tuple[int, int, int | None, float]]:
    """(target, source, head or None, share of the target) of one layer's routes."""
    c, big_u = flow.attention[0].tolist(), flow.attention_total[0].tolist()
    m, r = flow.mlp[0].tolist(), flow.residual[0].tolist()
    chain, total = flow.chain[0].tolist(), flow.layer_total[0].tolist()
    heads, tokens = len(c), len(r)
    everything = [(h, i) for h in range(heads) for i in range(tokens)]
    for j in range(tokens):
        if rule == "product":
            size = sum(abs(c[h][j][i] * m[j][h]) for h, i in everything)
            for h, i in everything:
                value = c[h][j][i] * m[j][h] / size
                yield j, i, h, abs(value) if absolute else value
            continue
        if rule == "chain":
            size = sum(abs(chain[h][j][i]) for h, i in everything) + abs(r[j])
            for h, i in everything:
                yield (
                    j,
                    i,
                    h,
                    abs(chain[h][j][i]) / size if absolute else chain[h][j][i] / total[j],
                )
            yield j, j, None, abs(r[j]) / size if absolute else r[j] / total[j]
            continue
        outer = sum(map(abs, m[j])) + abs(r[j]) if absolute else total[j]
        for h, i in everything:
            inner = sum(map(abs, c[h][j])) if absolute else big_u[h][j]
            value = c[h][j][i] / inner * m[j][h] / outer
            yield j, i, h, abs(value) if absolute else value
        yield j, j, None, abs(r[j]) / outer if absolute else r[j] / outer


def twin_relevance(
    flows: list[LayerFlow], start: list[float], rule: str, absolute: bool = False
) -> list[list[float]]:
    rows = [start]
    for flow in reversed(flows):
        below = [0.0] * len(start)
        for j, i, _, share in twin_edges(flow, rule, absolute):
            below[i] += share * rows[0][j]
        rows.insert(0, below)
    return rows


def twin_routes(
    flows: list[LayerFlow], source: int, target: int, rule: str
) -> list[tuple[float, tuple[tuple[int, int, int | None], ...]]]:
    """All routes by enumeration: (signed product, ((target, source, head) first layer first))."""
    edges = [list(twin_edges(flow, rule)) for flow in flows]
    found = []
    for steps in itertools.product(*edges):
        joined = all(a[0] == b[1] for a, b in itertools.pairwise(steps))
        if joined and steps[0][1] == source and steps[-1][0] == target:
            product = 1.0
            for *_, share in steps:
                product *= share
            if product != 0:
                found.append((product, tuple((j, i, h) for j, i, h, _ in steps)))
    return sorted(found, key=lambda route: -abs(route[0]))


def as_steps(route: Route) -> tuple[tuple[int, int, int | None], ...]:
    return tuple((step.target, step.source, step.head) for step in route.steps)
