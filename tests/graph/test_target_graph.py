"""Graphs of flows with a target, against loops over their edges in Python's numbers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from captum_lig import FlowGraph, LayerFlow, LigError
from captum_lig.graph.target_layer import target_layers
from tests.helpers.synthetic import signed_flows
from tests.helpers.target_flows import target_flows
from tests.helpers.target_graph_twin import Node, of_graph, twin

KINDS: dict[str, dict[str, Any]] = {
    "MLPs": {},
    "no MLP": {"mlp": False},
    "some MLPs": {"mlp": [True, False, True]},
    "padding": {"valid": [False, True, True, True, False, True], "tokens": 6},
    "causal": {"causal": True},
    "float32": {"dtype": torch.float32},
    "a block without heads": {"heads": (2, 0, 3)},
    "rough": {"error": 0.05},
    "negative": {"change": -0.3},
    "later layers": {"first": 7},
}


@pytest.fixture(params=KINDS)
def flows(request: pytest.FixtureRequest) -> list[LayerFlow]:
    return target_flows(**KINDS[request.param])


# --- closing --------------------------------------------------------------------------------------


def test_edges_are_closed_from_the_target_down(flows: list[LayerFlow]) -> None:
    edges, _ = twin(flows)
    found = of_graph(FlowGraph(flows))
    assert found.keys() <= edges.keys()
    for ends, value in edges.items():
        if ends[1] != ("F",):
            assert found.get(ends, 0.0) == pytest.approx(value, rel=1e-9, abs=1e-11)


def test_rows_and_columns_of_every_node_add_up(flows: list[LayerFlow]) -> None:
    graph = FlowGraph(flows)
    trace = graph.relevance()
    into: dict[Node, list[float]] = defaultdict(list)
    out: dict[Node, list[float]] = defaultdict(list)
    for (source, to), value in of_graph(graph).items():
        out[source].append(value)
        into[to].append(value)
    depth, count = len(flows), len(graph.tokens)
    for j in range(count):
        out["z", depth, j] = [float(trace.tokens[-1, j])]
    for node in into.keys() | out.keys():
        if node[:2] != ("z", 0):
            size = max(sum(map(abs, into[node])), sum(map(abs, out[node])))
            assert abs(sum(into[node]) - sum(out[node])) <= 1e-6 * size, node
    change = float(flows[0].change[0])
    for row in trace.tokens:
        assert abs(float(row.sum()) - change) <= 1e-6 * float(row.abs().sum())
    assert trace.lost.abs().max() <= 1e-6 * trace.tokens.abs().sum(-1).max()


def test_relevances_of_all_nodes(flows: list[LayerFlow]) -> None:
    graph = FlowGraph(flows)
    _, relevance = twin(flows)
    trace = graph.relevance()
    depth, count = len(flows), len(graph.tokens)
    assert trace.tokens.dtype == torch.float64
    assert trace.tokens.shape == (depth + 1, count)
    assert trace.heads.shape == (depth, max(flow.mlp.shape[-1] for flow in flows), count)
    assert trace.feed_forward is not None
    assert trace.feed_forward.shape == trace.residual.shape == (depth, count)
    for level, j in itertools.product(range(depth + 1), range(count)):
        wanted = relevance["z", level, j]
        assert float(trace.tokens[level, j]) == pytest.approx(wanted, rel=1e-9, abs=1e-10)
    for layer, j in itertools.product(range(depth), range(count)):
        wanted = relevance.get(("m", layer, j), 0.0)
        assert float(trace.feed_forward[layer, j]) == pytest.approx(wanted, rel=1e-9, abs=1e-10)
        for h in range(trace.heads.shape[1]):
            wanted = relevance.get(("u", layer, h, j), 0.0)
            assert float(trace.heads[layer, h, j]) == pytest.approx(wanted, rel=1e-9, abs=1e-10)


def test_both_parts_of_an_edge_grow_with_it() -> None:
    flows = target_flows(error=0.05)
    graph = FlowGraph(flows)
    for flow, layer in zip(flows, graph.layers, strict=True):
        whole, value = flow.attention[0], flow.attention_value[0]
        torch.testing.assert_close(layer.attention_value, value * layer.attention / whole)  # type: ignore[attr-defined]
    assert any(
        not torch.allclose(layer.attention, flow.attention[0], rtol=1e-3)
        for flow, layer in zip(flows, graph.layers, strict=True)
    )
    edges = graph.edges("attention")
    assert edges.value_part is not None
    assert edges.value_part.shape == edges.value.shape
    first = graph.layers[int(edges.layer[7])].attention_value  # type: ignore[attr-defined]
    assert edges.value_part[7] == first[edges.head[7], edges.target[7], edges.source[7]]


@pytest.mark.parametrize("given", [{"top_k": 1}, {"top_k": 2}, {"threshold": 0.5}])
@pytest.mark.parametrize("mlp", [True, False])
def test_what_no_way_through_the_graph_carries_is_lost(mlp: bool, given: dict[str, Any]) -> None:
    """Edge by edge: one into a head or an MLP that none leaves upward carries nothing."""
    graph = FlowGraph(target_flows(heads=(2, 3), mlp=mlp, seed=4)).prune(**given)
    dead = 0
    for layer, lost in zip(target_layers(graph.layers), graph.relevance().lost, strict=True):
        carried = 0.0
        for j in range(len(graph.tokens)):
            through = layer.feed_forward is not None and float(layer.feed_forward[j]) != 0
            carried += float(layer.residual[j])
            if layer.feed_forward_token is not None and through:
                carried += float(layer.feed_forward_token[j])
            for h in range(len(layer.attention)):
                up = float(layer.heads_past[j, h]) != 0
                if layer.feed_forward_heads is not None:
                    up = up or (through and float(layer.feed_forward_heads[j, h]) != 0)
                into = [float(x) for x in layer.attention[h, j]]
                carried += sum(into) if up else 0.0
                dead += not up and any(into)
        assert float(lost) == pytest.approx(float(layer.leaving.sum()) - carried, abs=1e-12)
    assert dead > 0 or "threshold" in given


def test_what_no_edge_carries_is_lost() -> None:
    flows = target_flows(heads=(2, 2), seed=3)
    for name in ("mlp", "residual", "feed_forward", "feed_forward_heads", "feed_forward_token"):
        getattr(flows[1], name)[0, 2] = 0.0
    flows[1].attention[0, :, 2] = 0.0
    flows[0].attention[0, 1, 3] = 0.0
    trace = FlowGraph(flows).relevance()
    assert torch.isfinite(trace.tokens).all()
    assert torch.isfinite(trace.heads).all()
    assert trace.lost[1] == pytest.approx(float(trace.tokens[2, 2]))
    assert trace.lost[0] == pytest.approx(float(trace.heads[0, 1, 3]))
    sums = trace.tokens.sum(-1)
    torch.testing.assert_close(sums[1:] - sums[:-1], trace.lost)


def test_what_comes_from_an_encoder_leaves_the_graph() -> None:
    flows = target_flows(cross=True)
    graph = FlowGraph(flows)
    trace = graph.relevance()
    for row, flow in enumerate(flows):
        came = float(flow.cross_sum.sum())
        assert float(trace.lost[row]) == pytest.approx(came, rel=0.05, abs=0.05)
        outside = graph.layers[row].outside + graph.layers[row].feed_forward_outside  # type: ignore[attr-defined]
        torch.testing.assert_close(trace.lost[row], outside.sum())
    torch.testing.assert_close(trace.tokens.sum(-1).diff(), trace.lost)
    assert (graph.rollout().sum(-1) < 1).all()
    # A part of it ends with what the layers above left to the decoder.
    below = FlowGraph(flows[:2]).relevance()
    torch.testing.assert_close(below.tokens, trace.tokens[:3], rtol=0.01, atol=0.01)


def test_an_encoder_has_what_the_decoder_left() -> None:
    flows = target_flows(change=2.0)
    stream = [
        replace(flow, tensors={**flow.tensors, "elsewhere": torch.tensor([1.5]),
                               "change": torch.tensor([3.5])})
        for flow in flows
    ]  # fmt: skip
    trace = FlowGraph(stream).relevance()
    torch.testing.assert_close(trace.tokens, FlowGraph(flows).relevance().tokens)


# --- relevance ------------------------------------------------------------------------------------


def test_a_range_of_layers() -> None:
    graph = FlowGraph(target_flows(first=3))
    whole, part = graph.relevance(), graph.relevance(layers=(4, 5))
    assert part.layers == (4, 5)
    assert torch.equal(part.tokens, whole.tokens[1:])
    assert torch.equal(part.heads, whole.heads[1:])


def test_the_strongest_nodes() -> None:
    graph = FlowGraph(target_flows(first=3), list("abcde"))
    trace = graph.relevance()
    for found, values in (
        ([(one[1] - 3, one[2], one[3], one[4]) for one in trace.strongest_heads(4)], trace.heads),
        (
            [(one[1] - 3, one[2], one[3]) for one in trace.strongest_feed_forward(4)],
            trace.feed_forward,
        ),
    ):
        assert values is not None
        every = [
            (*place, float(values[place]))
            for place in itertools.product(*(range(size) for size in values.shape))
        ]
        assert found == sorted(every, key=lambda one: -abs(one[-1]))[:4]
    label, _, _, token, _ = trace.strongest_heads(1)[0]
    assert label == "abcde"[token]
    assert (
        trace.strongest(1)[0][2]
        == trace.tokens[0].abs().max() * trace.tokens[0].sign()[trace.tokens[0].abs().argmax()]
    )
    with pytest.raises(LigError, match="MLPs are no nodes of a graph of lengths"):
        FlowGraph(signed_flows(1, 2, 1)).relevance(0).strongest_feed_forward()
    with pytest.raises(LigError, match="count=0"):
        trace.strongest_heads(0)
