"""Graphs of flows with a target, against loops over their edges in Python's numbers."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import FlowGraph, LayerFlow, LigError
from captum_lig.graph import CannotCarryWarning
from captum_lig.graph.target_layer import target_layers
from tests.helpers.synthetic import signed_flows
from tests.helpers.target_flows import TARGET, target_flows
from tests.helpers.target_graph_twin import Node, nodes_of, of_graph, routes_of, twin

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


# --- what it says of itself, and what it refuses --------------------------------------------------


def test_what_the_graph_says_of_itself() -> None:
    graph = FlowGraph(target_flows())
    assert (graph.target, graph.change, graph.scalarization) == (TARGET, 2.0, "target")
    counts = graph.edge_counts
    assert counts == {
        "attention": 6 * 25,
        "feed_forward_heads": 6 * 5,
        "heads_past": 6 * 5,
        "feed_forward_token": 15,
        "feed_forward": 15,
        "residual": 15,
    }
    assert f"target {TARGET!r}, change 2, layers 0 to 2, 5 tokens, edges: 150 attention" in repr(
        graph
    )
    assert {one.boundary for one in graph.summary()} == {"attention", "mlp", "feed_forward_heads"}
    held = sum(t.nbytes for layer in graph.layers for t in layer.tensors().values())
    assert graph.nbytes >= held
    lengths = FlowGraph(signed_flows(1, 3, 2))
    assert (lengths.target, lengths.change) == (None, None)


def test_a_text_of_a_batch() -> None:
    one, two = target_flows(seed=1), target_flows(seed=2, change=5.0)
    both = [
        replace(
            a,
            valid=torch.cat([a.valid, b.valid]),
            tensors={name: torch.cat([t, b.tensors[name]]) for name, t in a.tensors.items()},
        )
        for a, b in zip(one, two, strict=True)
    ]
    graph = FlowGraph(both, text=1)
    assert graph.change == 5.0
    assert torch.equal(graph.relevance().tokens, FlowGraph(two).relevance().tokens)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda g: g.relevance(1), r"target=1: the flows are of one number, .*state\(position\)"),
        (lambda g: g.relevance(start=[1.0] * 5), "start=.*of one number"),
        (lambda g: g.relevance(rule="conserve"), "rule='conserve'.*leave it out"),
        (lambda g: g.relevance(absolute=True), "absolute=True.*leave it out"),
        (lambda g: g.rollout(rule="product"), "rule='product'.*leave it out"),
        (lambda g: g.paths(rule="conserve"), "rule='conserve'.*leave it out"),
        (lambda g: g.prune(top_k=1, rule="conserve"), "rule='conserve'.*leave it out"),
        (lambda g: g.prune(threshold=2), "threshold=2"),
        (lambda g: g.edges("mlp"), "edges of kind 'mlp': use one of attention, feed_forward_heads"),
        (lambda g: g.paths(9), "source=.*9 is out of range"),
    ],
)
def test_what_cannot_be_done_says_so(ask: Any, message: str) -> None:
    with pytest.raises(LigError, match=message):
        ask(FlowGraph(target_flows()))


def test_flows_that_do_not_fit_are_refused() -> None:
    flows = target_flows()
    other = target_flows(change=1.0)
    with pytest.raises(LigError, match=r"layer 1 has the change \[1.0\] of the target, layer 0"):
        FlowGraph([flows[0], *other[1:]])
    lengths = [replace(flow, target=None) for flow in flows[1:]]
    with pytest.raises(LigError, match="layer 1 has target None, layer 0 "):
        FlowGraph([flows[0], *lengths])
    few = replace(
        flows[2],
        targets=torch.arange(4),
        tensors={
            name: t[:, :4]
            for name, t in flows[2].tensors.items()
            if name in ("mlp", "mlp_total", "residual")
        }
        | {"change": flows[2].change, "entering": flows[2].entering},
    )
    with pytest.raises(LigError, match="layer 2 has 4 targets for 5 tokens"):
        FlowGraph([*flows[:2], few])
    with pytest.raises(LigError, match=r"the change of .* is 0"):
        FlowGraph(target_flows(change=0.0)).prune(threshold=0.1)


def test_flows_of_sums_alone_are_refused() -> None:
    flows = target_flows()
    some = {name: x for name, x in flows[1].tensors.items() if not name.startswith("attention")}
    flows[1] = replace(flows[1], tensors=some)
    with pytest.raises(LigError, match=r"no 'attention': .*'attention' was left out of boundaries"):
        FlowGraph(flows)


# --- sharing out lengths --------------------------------------------------------------------------


def test_sharing_out_lengths_warns_where_it_says_little(recwarn: pytest.WarningsRecorder) -> None:
    graph = FlowGraph(signed_flows(2, 4, 2))
    graph.relevance(1)
    graph.rollout()
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"tokens 0.69, heads 0.23.*attribute\(.*target=") as found:
        graph.relevance(start=[1.0, 0.0, 0.0, 0.0])
    assert len(found) == 1
    assert found[0].filename == __file__


def test_flows_that_cannot_carry_warn_once(recwarn: pytest.WarningsRecorder) -> None:
    flows = [replace(flow, baseline="target_token") for flow in signed_flows(2, 4, 2)]
    with pytest.warns(CannotCarryWarning, match=r"owes itself nothing.*self_term='zero") as found:
        graph = FlowGraph(flows)
    assert [one.filename for one in found] == [__file__]
    recwarn.clear()
    graph.relevance(1)
    graph.prune(top_k=2).relevance(1)
    graph.rollout()
    assert not recwarn.list
    estimated = [replace(flow, baseline="target_token+zero_ratio") for flow in flows]
    recwarn.clear()
    FlowGraph(estimated)
    FlowGraph(flows[:1])  # one layer has nothing to carry across
    FlowGraph(target_flows())
    assert not recwarn.list


@pytest.mark.parametrize("off_by", [0.45, 0.55])
def test_flows_composed_far_from_the_direct_maps_warn(
    off_by: float, recwarn: pytest.WarningsRecorder
) -> None:
    """In each row the composed map is ``off_by`` of the direct one away from it."""
    flows = []
    for flow in signed_flows(3, 4, 2):
        flows.append(
            replace(flow, tensors={**flow.tensors, "layer": flow.compose() / (1 + off_by)})
        )
    FlowGraph(flows)
    if off_by < 0.5:
        assert not recwarn.list
    else:
        (one,) = recwarn.list
        assert one.category is CannotCarryWarning
        assert "composed by chain are 55% off the direct ones" in str(one.message)
