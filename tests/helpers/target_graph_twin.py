"""A graph of flows with a target, as loops over its edges in Python's numbers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from captum_lig import FlowGraph, LayerFlow
from captum_lig.graph import Route

Node = tuple[Any, ...]
"""("z", depth, token), ("u", layer, head, token), ("m", layer, token) or ("F",)."""


def spread(parts: dict[Any, float], total: float) -> dict[Any, float]:
    """Parts that add up to a total: what is missing is spread over them by size."""
    size = sum(map(abs, parts.values()))
    missing = total - sum(parts.values())
    return {key: x + (abs(x) / size * missing if size else 0.0) for key, x in parts.items()}


def twin(flows: list[LayerFlow]) -> tuple[dict[tuple[Node, Node], float], dict[Node, float]]:
    """Edges (from, to) closed from the target down, and the relevance of every node."""
    kept = flows[0].valid[0].nonzero().flatten().tolist()
    tokens = range(len(kept))
    edges: dict[tuple[Node, Node], float] = {}
    change = float(flows[0].change[0])
    top = {j: float(flows[-1].mlp_total[0, kept[j]]) for j in tokens}
    for j, value in spread(top, change).items():
        edges[("z", len(flows), j), ("F",)] = value
    relevance: dict[Node, float] = defaultdict(float)
    relevance[("F",)] = change
    for (node, _), value in edges.items():
        relevance[node] += value

    def add(parts: dict[Node, float], to: Node) -> None:
        for node, value in spread(parts, relevance[to]).items():
            edges[node, to] = value
            relevance[node] += value

    for depth in reversed(range(len(flows))):
        flow = flows[depth]
        heads = range(flow.mlp.shape[-1])
        for j in tokens:
            at = kept[j]
            parts: dict[Node, float] = {("z", depth, j): float(flow.residual[0, at])}
            for h in heads:
                past = float(flow.mlp[0, at, h])
                if flow.feed_forward is not None:
                    past -= float(flow.feed_forward_heads[0, at, h])
                parts["u", depth, h, j] = past
            if flow.feed_forward is not None:
                parts["m", depth, j] = float(flow.feed_forward[0, at])
            add(parts, ("z", depth + 1, j))
        if flow.feed_forward is not None:
            for j in tokens:
                at = kept[j]
                parts = {("z", depth, j): float(flow.feed_forward_token[0, at])}
                for h in heads:
                    parts["u", depth, h, j] = float(flow.feed_forward_heads[0, at, h])
                add(parts, ("m", depth, j))
        for h, j in itertools.product(heads, tokens):
            row = flow.attention[0, h, kept[j]]
            add({("z", depth, i): float(row[kept[i]]) for i in tokens}, ("u", depth, h, j))
    return edges, relevance


def of_graph(graph: FlowGraph) -> dict[tuple[Node, Node], float]:
    """All edges of a graph by their columns; layers counted from 0."""
    found: dict[tuple[Node, Node], float] = {}
    first = graph.indices[0]
    for kind in graph.edge_counts:
        columns = graph.edges(kind)
        rows = (columns.layer - first, columns.head, columns.target, columns.source, columns.value)
        for layer, h, j, i, value in zip(*(row.tolist() for row in rows), strict=True):
            u, m = ("u", layer, h, j), ("m", layer, j)
            below, above = ("z", layer, i), ("z", layer + 1, j)
            found[
                {
                    "attention": (below, u),
                    "feed_forward_heads": (u, m),
                    "heads_past": (u, above),
                    "feed_forward_token": (below, m),
                    "feed_forward": (m, above),
                    "residual": (below, above),
                }[kind]
            ] = value
    return found


def routes_of(edges: dict[tuple[Node, Node], float]) -> dict[tuple[Node, ...], float]:
    """Every route from a token entering to the end, with the product of the shares of sizes."""
    into: dict[Node, list[tuple[Node, float]]] = defaultdict(list)
    for (source, to), value in edges.items():
        into[to].append((source, abs(value)))

    def down(node: Node) -> list[tuple[tuple[Node, ...], float]]:
        if node[:2] == ("z", 0):
            return [((node,), 1.0)]
        size = sum(value for _, value in into[node])
        return [
            ((*route, node), share * value / size)
            for source, value in into[node]
            if value
            for route, share in down(source)
        ]

    return dict(down(("F",)))


def nodes_of(route: Route, first: int) -> tuple[Node, ...]:
    nodes: list[Node] = [("z", 0, route.steps[0].source)]
    for step in route.steps:
        layer = step.layer - first
        if step.head is not None:
            nodes.append(("u", layer, step.head, step.target))
        if step.feed_forward:
            nodes.append(("m", layer, step.target))
        nodes.append(("z", layer + 1, step.target))
    return (*nodes, ("F",))
