"""Graphs of a prediction: routes through them, and less of them."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import FlowGraph
from tests.helpers.target_flows import TARGET, target_flows
from tests.helpers.target_graph_twin import Node, nodes_of, of_graph, routes_of

# --- routes, contributions, rollout ---------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"mlp": [False, True]}, {"mlp": False}, {"causal": True}])
@pytest.mark.parametrize("seed", [0, 1])
def test_paths_are_what_enumeration_finds(settings: dict[str, Any], seed: int) -> None:
    graph = FlowGraph(target_flows(heads=(2, 1), tokens=3, seed=seed, **settings))
    trace = graph.relevance()
    edges = of_graph(graph)
    for j in range(3):
        edges[("z", 2, j), ("F",)] = float(trace.tokens[-1, j])
    every = routes_of(edges)
    assert sum(every.values()) == pytest.approx(1)
    order = sorted(every, key=lambda route: -every[route])
    found = graph.paths(k=10_000)
    assert [nodes_of(route, 0) for route in found] == order
    assert [route.share for route in found] == pytest.approx([every[route] for route in order])
    for route in found[:20]:
        nodes = nodes_of(route, 0)
        signed = [edges[pair] for pair in itertools.pairwise(nodes)]
        told = [edge for step in route.steps for edge in step.edges]
        assert [*told, route.end] == pytest.approx(signed)
    for count in (1, 4):
        assert graph.paths(k=count) == found[:count]
    for source in range(3):
        from_one = [route for route in found if route.steps[0].source == source]
        assert graph.paths(source, k=7) == from_one[:7]
    # To a token: without the last step, so relative to it.
    ending = [route for route in found if route.steps[-1].target == 1]
    part = float(trace.tokens[-1, 1].abs() / trace.tokens[-1].abs().sum())
    ours = graph.paths(target=1, k=5)
    assert [route.share for route in ours] == pytest.approx([x.share / part for x in ending[:5]])
    assert [route.steps for route in ours] == [route.steps for route in ending[:5]]
    assert {route.end for route in ours} == {None}


def test_rollout_and_contributions_are_sums_over_routes() -> None:
    graph = FlowGraph(target_flows(heads=(2, 1), tokens=3))
    edges = of_graph(graph)
    trace = graph.relevance()
    for j in range(3):
        edges[("z", 2, j), ("F",)] = float(trace.tokens[-1, j])
    every = routes_of(edges)
    size = float(trace.tokens[-1].abs().sum())
    part = [abs(float(value)) / size for value in trace.tokens[-1]]

    def through(*nodes: Node) -> float:
        return math.fsum(share for route, share in every.items() if set(nodes) <= set(route))

    rollout = graph.rollout()
    for i in range(3):
        shares = graph.contributions(i)
        assert shares.feed_forward is not None
        for j in range(3):
            wanted = through(("z", 0, i), ("z", 2, j)) / part[j]
            assert float(rollout[j, i]) == pytest.approx(wanted)
            assert float(shares.tokens[2, j]) == pytest.approx(wanted)
            mlp = through(("z", 0, i), ("m", 1, j)) / part[j]
            assert float(shares.feed_forward[1, j]) == pytest.approx(mlp)
            head = through(("z", 0, i), ("u", 1, 0, j)) / part[j]
            assert float(shares.heads[1, 0, j]) == pytest.approx(head)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(rollout, graph.rollout(absolute=True))


def test_a_route_reads_as_a_sentence() -> None:
    graph = FlowGraph(target_flows(first=2), list("abcde"))
    for route in graph.paths(k=30):
        text = str(route)
        assert text.startswith(f"{route.share:+.3g}  {route.labels[0]}")
        assert text.endswith(f" -[{route.end:+.2g}]-> target")
        assert text.count("mlp") == sum(step.feed_forward for step in route.steps)
        for step in route.steps:
            assert (f"{step.layer}.h{step.head}" in text) == (step.head is not None)


# --- less of it -----------------------------------------------------------------------------------


def test_pruning_by_a_part_of_the_change() -> None:
    graph = FlowGraph(target_flows(change=-2.0))
    pruned = graph.prune(threshold=0.5)
    before, after = of_graph(graph), of_graph(pruned)
    assert after == {ends: value for ends, value in before.items() if abs(value) >= 1.0}
    assert 0 < len(after) < len(before)
    whole, part = graph.relevance(), pruned.relevance()
    assert torch.equal(part.tokens, whole.tokens)
    assert torch.equal(part.heads, whole.heads)
    for row in range(3):
        carried = sum(
            value
            for (source, to), value in after.items()
            if source[:2] == ("z", row) and to[1] in (row, row + 1)
        )
        assert float(part.lost[row]) == pytest.approx(float(whole.tokens[row + 1].sum()) - carried)
    assert pruned.rollout().sum() < graph.rollout().sum()
    assert set(pruned.paths(k=50)) <= set(graph.paths(k=10_000))


def test_pruning_to_the_strongest_into_each_node() -> None:
    graph = FlowGraph(target_flows(mlp=[True, False, True]))
    after = of_graph(graph.prune(top_k=2))
    into: dict[Node, list[float]] = defaultdict(list)
    for (_, to), value in of_graph(graph).items():
        into[to].append(value)
    for node, values in into.items():
        left = [abs(value) for (_, to), value in after.items() if to == node]
        assert sorted(left) == sorted(map(abs, values))[-2:]


def test_a_subgraph_has_the_edges_between_its_tokens() -> None:
    graph = FlowGraph(target_flows(), list("abcde"))
    part = graph.subgraph(tokens=[1, 3], layers=(1, 2), heads=[0])
    assert (part.tokens, part.indices, part.target) == (["b", "d"], (1, 2), TARGET)
    new = {1: 0, 3: 1}
    expected = {}
    for (source, to), value in of_graph(graph).items():
        heads = [node[2] for node in (source, to) if node[0] == "u"]
        if {source[-1], to[-1]} <= new.keys() and source[1] >= 1 and set(heads) <= {0}:
            ends = [(*node[:1], node[1] - 1, *node[2:-1], new[node[-1]]) for node in (source, to)]
            expected[ends[0], ends[1]] = value
    assert of_graph(part) == expected
    whole = graph.relevance(layers=(1, 2))
    assert torch.equal(part.relevance().tokens, whole.tokens[:, [1, 3]])
    torch.testing.assert_close(part.rollout((2, 2)), _without(graph, [1, 3]))


def _without(graph: FlowGraph, tokens: list[int]) -> Tensor:
    last = graph.layers[-1].shares("chain", True)
    heads = last.all_heads[:1].sum(0)
    # Other heads' parts in the MLP and past it are gone, the shares of what is left are the same.
    return (heads + torch.diag(last.stays))[tokens][:, tokens]


def test_words_add_up_exactly() -> None:
    graph = FlowGraph(target_flows(tokens=5), list("abcde"))
    groups = [0, 0, 1, 2, 2]
    words = graph.merge_tokens(groups)
    merged: dict[tuple[Node, Node], float] = defaultdict(float)
    for ends, value in of_graph(graph).items():
        source, to = ((*node[:-1], groups[node[-1]]) for node in ends)
        merged[source, to] += value
    found = of_graph(words)
    assert found.keys() == merged.keys()
    assert all(found[ends] == pytest.approx(value) for ends, value in merged.items())
    trace, whole = words.relevance(), graph.relevance()
    for word in range(3):
        pieces = [i for i, group in enumerate(groups) if group == word]
        torch.testing.assert_close(trace.tokens[:, word], whole.tokens[:, pieces].sum(-1))
        torch.testing.assert_close(trace.heads[..., word], whole.heads[..., pieces].sum(-1))
    assert trace.lost.abs().max() < 1e-10
    # Shares are of the words' own edges, some of whose pieces cancelled.
    torch.testing.assert_close(words.rollout().sum(-1), torch.ones(3, dtype=torch.float64))
    assert words.change == graph.change


def test_shares_of_heads_and_of_the_residual() -> None:
    graph = FlowGraph(target_flows(heads=(2, 3), mlp=[True, False]))
    edges = of_graph(graph)
    size: dict[Node, float] = defaultdict(float)
    for (_, to), value in edges.items():
        size[to] += abs(value)
    for layer in range(2):
        tops = [("z", layer + 1, j) for j in range(5)]
        whole = sum(size[node] for node in tops)

        def through(node: Node, layer: int = layer) -> float:
            j = node[-1]
            past = abs(edges.get((node, ("z", layer + 1, j)), 0.0))
            mlp = ("m", layer, j)
            out = abs(edges.get((mlp, ("z", layer + 1, j)), 0.0))
            return past + (abs(edges[node, mlp]) / size[mlp] * out if out else 0.0)

        for h in range(graph.layers[layer].heads):
            wanted = sum(through(("u", layer, h, j)) for j in range(5)) / whole
            assert float(graph.head_shares()[layer, h]) == pytest.approx(wanted)
        stays = sum(through(("z", layer, j)) for j in range(5)) / whole
        assert float(graph.residual_share()[layer]) == pytest.approx(stays)
        assert float(graph.head_shares()[layer].sum()) + stays == pytest.approx(1)
