"""Routes through a flow graph, and parts of it: pruned, of some layers, as columns, as sums."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.graph import Edges
from tests.helpers.flow_graph_twin import as_steps, twin_routes
from tests.helpers.models import tiny_llama, tokens
from tests.helpers.synthetic import signed_flow, signed_flows

RULES = ("conserve", "chain", "product")


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 3),
    tokens=st.integers(2, 3),
    heads=st.integers(1, 2),
    k=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    rule=st.sampled_from(RULES),
)
def test_paths_are_what_enumeration_finds(
    layers: int, tokens: int, heads: int, k: int, seed: int, rule: str
) -> None:
    flows = signed_flows(layers, tokens, heads, seed)
    source, target = seed % tokens, (seed // 7) % tokens
    found = FlowGraph(flows).paths(source, target, k, rule=rule)
    twin = twin_routes(flows, source, target, rule)
    assert len(found) == min(k, len(twin))
    for ours, (share, steps) in zip(found, twin, strict=False):
        assert ours.share == pytest.approx(share, rel=1e-9)
        assert as_steps(ours) == steps


def test_all_paths_add_up_to_the_rollout() -> None:
    graph = FlowGraph(signed_flows(3, 3, 2))
    routes = graph.paths(2, 1, 10**4)
    assert sum(route.share for route in routes) == pytest.approx(float(graph.rollout()[1, 2]))


def test_many_candidates_are_worked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = FlowGraph(signed_flows(3, 4, 2))
    whole = graph.paths(0, 3, 7)
    monkeypatch.setattr("captum_lig.graph.routes.MOST_SCORES", 10)
    assert graph.paths(0, 3, 7) == whole


def test_a_route_reads_as_a_sentence() -> None:
    """Layers and heads; a step along the residual stream is left out."""
    graph = FlowGraph(signed_flows(2, 3, 2), ["the", "cat", "sat"])
    for route in graph.paths(1, 2, 100):
        moves = [
            f" -[{step.layer}.h{step.head}]-> {label}"
            for step, label in zip(route.steps, route.labels[1:], strict=True)
            if step.head is not None
        ]
        assert str(route) == f"{route.share:+.3g}  cat{''.join(moves)}"
        assert [step.layer for step in route.steps] == [0, 1]


def test_pruning_by_a_threshold_keeps_the_shares() -> None:
    graph = FlowGraph(signed_flows(3, 5, 2))
    pruned = graph.prune(threshold=0.2)
    for whole, part in zip(graph.layers, pruned.layers, strict=True):
        before, after = whole.shares("chain", False), part.shares("chain", False)
        kept = before.heads.abs() >= 0.2
        assert 0 < kept.sum() < kept.numel()
        assert torch.equal(after.heads, torch.where(kept, before.heads, 0.0))
        kept = before.residual.abs() >= 0.2
        assert torch.equal(after.residual, torch.where(kept, before.residual, 0.0))
    trace = pruned.relevance(2)
    assert trace.lost.abs().max() > 1e-3  # and says so
    torch.testing.assert_close(trace.tokens[0].sum() + trace.lost.sum(), trace.tokens[-1].sum())
    assert pruned.edge_counts["attention"] < graph.edge_counts["attention"]


def test_pruning_to_the_strongest_into_each_token() -> None:
    graph = FlowGraph(signed_flows(2, 5, 2))
    pruned = graph.prune(top_k=3)
    for whole, part in zip(graph.layers, pruned.layers, strict=True):
        before, after = whole.shares("chain", False), part.shares("chain", False)
        for target in range(5):

            def flat(shares: object, target: int = target) -> Tensor:
                return torch.cat([shares.heads[:, target].flatten(), shares.residual[target, None]])  # type: ignore[attr-defined]

            strongest = flat(before).abs().sort(descending=True).values[:3]
            left = flat(after).abs()
            torch.testing.assert_close(left[left > 0].sort(descending=True).values, strongest)


def test_pruning_a_chain_is_by_its_own_shares() -> None:
    graph = FlowGraph(signed_flows(2, 4, 2))
    pruned = graph.prune(threshold=0.3, rule="chain").layers[0].shares("chain", False).heads
    before = graph.layers[0].shares("chain", False).heads
    assert torch.equal(pruned, torch.where(before.abs() >= 0.3, before, 0.0))


def test_a_subgraph_has_the_shares_of_the_whole() -> None:
    graph = FlowGraph(signed_flows(4, 5, 3), list("abcde"))
    part = graph.subgraph(tokens=[1, 3, 4], layers=(1, 2), heads=[0, 2])
    assert part.tokens == ["b", "d", "e"]
    assert part.indices == (1, 2)
    assert part.positions.tolist() == [1, 3, 4]
    for whole, kept in zip(graph.layers[1:3], part.layers, strict=True):
        for rule in RULES:
            before, after = whole.shares(rule, False), kept.shares(rule, False)
            expected = before.heads[:, [1, 3, 4]][..., [1, 3, 4]].clone()
            expected[1] = 0
            torch.testing.assert_close(after.heads, expected)
            torch.testing.assert_close(after.residual, before.residual[[1, 3, 4]])
    one = graph.subgraph(heads=[(2, 1)])
    assert (one.layers[1].attention == 0).all()
    assert [bool((one.layers[2].attention[h] != 0).any()) for h in range(3)] == [False, True, False]


def columns(edges: Edges) -> Iterator[tuple[Tensor, ...]]:
    return zip(edges.layer, edges.head, edges.target, edges.source, edges.value, strict=True)


def test_edges_as_columns() -> None:
    flows = signed_flows(2, 3, 2)
    graph = FlowGraph(flows).prune(threshold=0.1)
    edges = graph.edges("attention")
    assert len(edges.value) == graph.edge_counts["attention"] > 0
    assert edges.value_part is None
    for layer, head, target, source, value in columns(edges):
        assert value == pytest.approx(float(flows[layer].attention[0, head, target, source]))
    mlp = graph.edges("mlp")
    for layer, head, target, source, value in columns(mlp):
        assert source == target
        assert value == pytest.approx(float(flows[layer].mlp[0, target, head]))
        reached = (edges.layer == layer) & (edges.head == head) & (edges.target == target)
        assert reached.any()
    residual = graph.edges("residual")
    assert (residual.head == -1).all()
    for layer, _, target, source, value in columns(residual):
        assert source == target
        assert value == pytest.approx(float(flows[layer].residual[0, target]))


def test_sums_by_head_and_residual_share() -> None:
    flows = signed_flows(3, 4, 2)
    graph = FlowGraph(flows)
    for layer, flow in enumerate(flows):
        heads = [sum(abs(float(flow.mlp[0, j, h])) for j in range(4)) for h in range(2)]
        residual = sum(abs(float(flow.residual[0, j])) for j in range(4))
        whole = sum(heads) + residual
        assert graph.head_shares()[layer].tolist() == pytest.approx([x / whole for x in heads])
        assert float(graph.residual_share()[layer]) == pytest.approx(residual / whole)


def test_sums_of_a_part_stay_what_they_are_in_the_whole() -> None:
    flows = signed_flows(2, 4, 2)
    graph = FlowGraph(flows)
    one = graph.subgraph(heads=[1])
    assert one.head_shares()[:, 0].tolist() == [0, 0]
    assert torch.equal(one.head_shares()[:, 1], graph.head_shares()[:, 1])
    assert torch.equal(one.residual_share(), graph.residual_share())
    pruned = graph.prune(top_k=2)
    for layer, (flow, part) in enumerate(zip(flows, pruned.layers, strict=True)):
        m, r = flow.mlp[0].abs(), flow.residual[0].abs()
        reached = (part.attention != 0).any(-1).T  # (targets, heads)
        assert 0 < reached.sum() < reached.numel()
        whole = float(m.sum() + r.sum())
        heads = [float(m[:, h][reached[:, h]].sum()) / whole for h in range(2)]
        assert pruned.head_shares()[layer].tolist() == pytest.approx(heads)
        residual = float(r[part.residual != 0].sum()) / whole
        assert float(pruned.residual_share()[layer]) == pytest.approx(residual)
    words = graph.merge_tokens([0, 1, 1, 2])
    torch.testing.assert_close(
        words.head_shares().sum(-1) + words.residual_share(), torch.ones(2, dtype=torch.float64)
    )


def test_one_token_alone() -> None:
    """On a target-token path nothing moves it."""
    model = tiny_llama(dtype=torch.float32)
    flows = LayerFlowIG(model).attribute(tokens(model, 1, 1), "target_token")
    assert isinstance(flows, list)
    graph = FlowGraph(flows)
    assert graph.head_shares().isnan().all()
    assert graph.residual_share().isnan().all()
    assert graph.rollout().tolist() == [[1]]
    assert [route.share for route in graph.paths(0, 0)] == [1]


def test_layers_with_different_numbers_of_heads() -> None:
    flows = [signed_flow(0, 4, 3), signed_flow(1, 4, 2)]
    graph = FlowGraph(flows)
    trace = graph.relevance(1)
    assert trace.heads.shape == (2, 3, 4)
    assert (trace.heads[1, 2] == 0).all()
    assert graph.head_shares().shape == (2, 3)
    assert graph.paths(0, 1)


def test_a_graph_of_bert_base_fits_in_memory() -> None:
    """Twelve layers of twelve heads and 128 tokens: 2.4 million edges within 200 MB."""
    flows = [signed_flow(index, 128, 12, dtype=torch.float32) for index in range(12)]
    graph = FlowGraph(flows)
    assert sum(graph.edge_counts.values()) == 12 * (12 * 128 * 128 + 12 * 128 + 128)
    assert graph.nbytes < 200e6
