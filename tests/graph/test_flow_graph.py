"""The flow graph against loops over its edges, written from the definitions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import FlowGraph, LayerFlow, LayerFlowIG, LigError
from captum_lig.graph import Edges, Route
from tests.helpers.models import tiny_bert, tiny_llama, tokens
from tests.helpers.synthetic import signed_flow, signed_flows

RULES = ("conserve", "chain", "product")


# --- the twin: one edge after the other, in Python's numbers --------------------------------------


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


# --- relevance, contributions, rollout ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a prediction's relevance")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("absolute", [False, True])
def test_relevance_is_the_loop_over_edges(rule: str, absolute: bool) -> None:
    flows = signed_flows(3, 5, 2)
    start = [0.0, 2.0, -1.0, 0.0, 0.5]
    trace = FlowGraph(flows).relevance(start=start, rule=rule, absolute=absolute)
    twin = torch.tensor(twin_relevance(flows, start, rule, absolute), dtype=torch.float64)
    torch.testing.assert_close(trace.tokens, twin, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("absolute", [False, True])
def test_contributions_and_rollout_are_the_same_sums_from_the_other_end(
    rule: str, absolute: bool
) -> None:
    graph = FlowGraph(signed_flows(3, 5, 2))
    rollout = graph.rollout(rule=rule, absolute=absolute)
    for source in range(5):
        forward = graph.contributions(source, rule=rule, absolute=absolute)
        torch.testing.assert_close(forward.tokens[-1], rollout[:, source])
    for target in range(5):
        backward = graph.relevance(target, rule=rule, absolute=absolute)
        torch.testing.assert_close(backward.tokens[0], rollout[target])


def test_a_rollout_of_a_range_of_layers() -> None:
    flows = signed_flows(4, 4, 2)
    graph = FlowGraph(flows)
    part = graph.rollout(layers=(1, 2))
    torch.testing.assert_close(
        graph.rollout((3, 3)) @ part @ graph.rollout((0, 0)), graph.rollout()
    )
    torch.testing.assert_close(part, FlowGraph(flows[1:3]).rollout())


@pytest.mark.filterwarnings("ignore:a prediction's relevance")
@pytest.mark.parametrize("rule", ["conserve", "chain"])
@pytest.mark.parametrize("absolute", [False, True])
def test_each_boundary_conserves(rule: str, absolute: bool) -> None:
    graph = FlowGraph(signed_flows(5, 6, 3))
    trace = graph.relevance([1, 4], [3.0, -0.5], rule=rule, absolute=absolute)
    size = trace.tokens.abs().sum(-1)
    torch.testing.assert_close(
        trace.tokens.sum(-1), torch.full((6,), 2.5, dtype=torch.float64), rtol=0, atol=1e-9
    )
    # z' -> (u, z): what the heads and the residual edge of a token carry is what it had.
    split = trace.heads.sum(1) + trace.residual
    assert (split.sum(-1) - trace.tokens[1:].sum(-1)).abs().max() <= 1e-9 * size.max()
    torch.testing.assert_close(split, trace.tokens[1:])
    assert trace.lost.abs().max() <= 1e-9 * size.max()


def test_absolute_shares_are_probabilities() -> None:
    for rule in RULES:
        rollout = FlowGraph(signed_flows(3, 5, 2)).rollout(rule=rule, absolute=True)
        assert (rollout >= 0).all()
        torch.testing.assert_close(rollout.sum(-1), torch.ones(5, dtype=torch.float64))


def test_a_hand_computed_product_and_conserve() -> None:
    """One head, two tokens: c = [[1, 3], [2, -1]], U = [4, 1], m = [2, 6], r = [2, -1]."""
    flow = LayerFlow(
        name="block",
        index=0,
        targets=torch.arange(2),
        valid=torch.ones(1, 2, dtype=torch.bool),
        scalarization="l2",
        baseline="zero",
        attention=torch.tensor([[[[1.0, 3.0], [2.0, -1.0]]]]),
        attention_total=torch.tensor([[[4.0, 1.0]]]),
        mlp=torch.tensor([[[2.0], [6.0]]]),
        residual=torch.tensor([[2.0, -1.0]]),
        mlp_total=torch.tensor([[4.0, 5.0]]),
    )
    assert torch.equal(flow.compose("product")[0], torch.tensor([[2.0, 6.0], [12.0, -6.0]]))
    graph = FlowGraph(flow, ["a", "b"])
    # product: [1 * 2, 3 * 2] / 8 and [2 * 6, -1 * 6] / 18; the paper's rule has no residual.
    expected = torch.tensor([[0.25, 0.75], [2 / 3, -1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(graph.rollout(rule="product"), expected)
    # conserve: (c / U) (m / N) + r / N: [1/4 * 1/2 + 1/2, 3/4 * 1/2], [2 * 6/5, -6/5 - 1/5]
    expected = torch.tensor([[0.625, 0.375], [2.4, -1.4]], dtype=torch.float64)
    torch.testing.assert_close(graph.rollout(rule="conserve"), expected)


def test_what_nothing_moved_stays_where_it_is() -> None:
    """The first token of a causal model, on a path from the target token."""
    flow = signed_flow(0, 3, 2)
    for part in (flow.attention[0, :, 0], flow.mlp[0, 0], flow.residual[0, :1]):
        part.zero_()
    for part in (flow.attention_total[0, :, 0], flow.mlp_total[0, :1], flow.chain[0, :, 0]):
        part.zero_()
    graph = FlowGraph(flow)
    for rule in RULES:
        assert graph.relevance(0, rule=rule).tokens[0].tolist() == [1, 0, 0]
    assert graph.paths(0, 0)[0].share == 1


@pytest.mark.filterwarnings("ignore::captum_lig.graph.CannotCarryWarning")
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_an_mlp_boundary_from_zero_conserves_too(baseline: str) -> None:
    """There the rows of the chain do not add up to the mlp boundary's total, but to their own."""
    model = tiny_bert(dtype=torch.float32)
    flows = LayerFlowIG(model).attribute(tokens(model, 1, 6), baseline, mlp_start="zero")
    assert isinstance(flows, list)
    assert (flows[0].chain_total - flows[0].mlp.transpose(1, 2)).abs().max() > 0.01
    graph = FlowGraph(flows)
    for rule in ("conserve", "chain"):
        trace = graph.relevance(3, rule=rule)
        assert (trace.tokens.sum(-1) - 1).abs().max() <= 1e-5 * trace.tokens.abs().sum(-1).max()


@pytest.mark.filterwarnings("ignore::captum_lig.graph.CannotCarryWarning")
def test_an_output_that_did_not_move_hands_nothing_down_and_the_trace_says_so() -> None:
    """A causal model's first token, target-token paths, and an mlp boundary that starts at zero."""
    model = tiny_llama(dtype=torch.float32)
    flows = LayerFlowIG(model).attribute(tokens(model, 1, 4), "target_token", mlp_start="zero")
    assert isinstance(flows, list)
    for rule in ("conserve", "chain"):
        trace = FlowGraph(flows).relevance(0, rule=rule)
        assert trace.tokens.sum(-1).tolist() == pytest.approx([0, 0, 1])
        assert trace.lost.tolist() == pytest.approx([0, 1])


@pytest.mark.filterwarnings("ignore:a prediction's relevance")
def test_the_strongest_tokens_of_a_trace() -> None:
    trace = FlowGraph(signed_flows(2, 4, 2), list("abcd")).relevance([2, 0], [1.0, -3.0])
    assert trace.strongest(2, layer=2) == [("a", 0, -3.0), ("c", 2, 1.0)]
    rows = {None: 0, 0: 0, 1: 1}
    for layer, row in rows.items():
        order = sorted(range(4), key=lambda i, row=row: -abs(float(trace.tokens[row, i])))
        found = trace.strongest(9, layer)
        assert [place for _, place, _ in found] == order
        assert [value for *_, value in found] == trace.tokens[row, order].tolist()


# --- routes ---------------------------------------------------------------------------------------


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


# --- parts of the graph ---------------------------------------------------------------------------


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


# --- what goes in ---------------------------------------------------------------------------------


def test_padding_is_no_part_of_the_graph() -> None:
    flow = signed_flow(0, 4, 2)
    padded = replace(flow, valid=torch.tensor([[False, True, True, True]]))
    for name in ("attention", "chain"):
        getattr(padded, name)[..., 0] = 0
        getattr(padded, name)[:, :, 0] = 0
    padded = replace(
        padded,
        attention_total=padded.attention.sum(-1),
        mlp=padded.chain.sum(-1).transpose(1, 2),
        residual=padded.residual * torch.tensor([[0.0, 1, 1, 1]], dtype=torch.float64),
        chain_total=padded.chain.sum(-1),
    )
    total = padded.mlp.sum(-1) + padded.residual
    padded = replace(padded, layer_total=total, mlp_total=total)
    graph = FlowGraph(padded, ["<pad>", "a", "b", "c"])
    assert graph.tokens == ["a", "b", "c"]
    assert graph.positions.tolist() == [1, 2, 3]
    torch.testing.assert_close(graph.layers[0].attention, padded.attention[0, :, 1:, 1:])


def test_the_last_layer_may_have_few_targets() -> None:
    flows = signed_flows(2, 4, 2)
    last = flows[1]
    few = replace(
        last,
        targets=torch.tensor([3, 1]),
        **{
            name: getattr(last, name)[:, :, [3, 1]]
            for name in ("attention", "attention_total", "chain", "chain_total")
        },
        **{name: getattr(last, name)[:, [3, 1]] for name in ("mlp", "residual", "layer_total")},
        mlp_total=last.layer_total[:, [3, 1]],
    )
    whole, part = FlowGraph(flows), FlowGraph([flows[0], few])
    for target in (1, 3):
        torch.testing.assert_close(part.relevance(target).tokens, whole.relevance(target).tokens)
    torch.testing.assert_close(part.rollout()[[1, 3]], whole.rollout()[[1, 3]])
    assert (part.rollout()[[0, 2]] == 0).all()
    assert part.paths(0, 3, 4) == whole.paths(0, 3, 4)
    for ask in (lambda: part.relevance(2), lambda: part.paths(0, 2)):
        with pytest.raises(LigError, match=r"token 2 \('2'\) was no target in layer 1"):
            ask()


@pytest.mark.parametrize(
    "ask",
    [
        lambda graph: graph.relevance(3),
        lambda graph: graph.contributions(1),
        lambda graph: graph.rollout(),
        lambda graph: graph.paths(1, 3),
    ],
)
def test_what_goes_on_below_a_token_without_edges_is_not_known(ask: object) -> None:
    model = tiny_llama(dtype=torch.float32)
    flows = LayerFlowIG(model).attribute(tokens(model, 1, 4), "zero", output_indices=[3])
    assert isinstance(flows, list)
    graph = FlowGraph(flows)
    with pytest.raises(LigError, match=r"token 0 .* was no target in layer 0"):
        ask(graph)  # type: ignore[operator]
    assert graph.rollout((1, 1))[3].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: FlowGraph([]), "list of flows is empty"),
        (lambda f: FlowGraph([f[0], f[2]]), r"layers \[0, 2\]: give consecutive"),
        (lambda f: FlowGraph(f, ["a"]), "1 tokens were given for flows of 4 sources"),
        (lambda f: FlowGraph([replace(f[0], mlp=None)]), "layer 0 has no 'mlp' boundary"),
        (lambda f: FlowGraph([f[0], replace(f[1], baseline="x")]), "has baseline 'x'"),
        (lambda f: FlowGraph([f[0], replace(f[1], mlp_start="zero")]), "has mlp_start 'zero'"),
        (lambda f: FlowGraph(f, text=1), "text 1 does not exist"),
        (lambda f: FlowGraph(f, text=False), "text False does not exist"),
        (lambda f: FlowGraph(f).relevance(4), "target=.*4 is out of range"),
        (lambda f: FlowGraph(f).relevance(), "give a target, or a start"),
        (lambda f: FlowGraph(f).relevance([1, -3]), "names a token twice"),
        (lambda f: FlowGraph(f).relevance(start=[1.0]), "1 numbers for 4 tokens"),
        (lambda f: FlowGraph(f).relevance(1, [float("nan")]), "not finite"),
        (lambda f: FlowGraph(f).relevance(1, rule="best"), "composition rule 'best' is unknown"),
        (lambda f: FlowGraph(f).relevance(1, layers=(1, 5)), "within 0 to 2"),
        (lambda f: FlowGraph(f).rollout((2, 1)), "within 0 to 2"),
        (lambda f: FlowGraph(f).paths(0, 9), "target=.*9 is out of range"),
        (lambda f: FlowGraph(f).paths([0, 1], 1), r"source=\[0, 1\]: a route goes from one token"),
        (lambda f: FlowGraph(f).paths(0, 1, 0), "k=0: give a whole number"),
        (lambda f: FlowGraph(f).paths(0, 1, 10**9), "k=1000000000: at most 10,000 routes"),
        (lambda f: FlowGraph(f).relevance(start=["a"] * 4), "give numbers, one for each token"),
        (
            lambda f: FlowGraph(f).relevance(1).strongest(layer=4),
            r"layer=4.* layers 0 to 2, and as 3",
        ),
        (lambda f: FlowGraph(f).relevance(1).strongest(0), "count=0: give a whole number"),
        (lambda f: FlowGraph(f).prune(), "either threshold or top_k"),
        (lambda f: FlowGraph(f).prune(threshold=2), "threshold=2"),
        (lambda f: FlowGraph(f).subgraph(heads=[5]), "head 5 of layer 0 does not exist"),
        (lambda f: FlowGraph(f).subgraph(heads=2), "heads=2: give a list of numbers of heads"),
        (lambda f: FlowGraph(f).subgraph(heads=[(0,)]), "or of pairs"),
        (lambda f: FlowGraph(f).subgraph(heads=[(0, 0.5)]), "or of pairs"),
        (lambda f: FlowGraph(f).subgraph(tokens=[7]), "tokens=.*7 is out of range"),
        (lambda f: FlowGraph(f).subgraph(tokens=[1, -3]), "names a token twice"),
        (lambda f: FlowGraph(f).edges("layer"), "edges of kind 'layer'"),
        (
            lambda f: FlowGraph([replace(x, chain=None) for x in f]).relevance(1, rule="chain"),
            "has no 'chain' boundary",
        ),
    ],
)
def test_what_cannot_be_done_says_so(make: object, message: str) -> None:
    with pytest.raises(LigError, match=message):
        make(signed_flows(3, 4, 2))  # type: ignore[operator]


# --- real flows -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::captum_lig.graph.CannotCarryWarning")
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_a_batch_of_a_causal_model(baseline: str) -> None:
    model = tiny_llama(dtype=torch.float32)
    flows = LayerFlowIG(model).attribute(tokens(model, 2, 6), baseline)
    assert isinstance(flows, list)
    with pytest.raises(LigError, match="say which one, text=0 to 1"):
        FlowGraph(flows)
    for text in range(2):
        graph = FlowGraph(flows, text=text)
        assert torch.equal(graph.rollout(), FlowGraph(flows, text=text - 2).rollout())
        for rule in ("conserve", "chain"):
            for layer, flow in zip(graph.layers, flows, strict=True):
                # The graph's shares are the composed map's, and nothing is lost.
                composed = flow.compose(rule)[text].double()
                total = flow.layer_total[text].double()[:, None]
                matrix = layer.shares(rule, False).matrix
                torch.testing.assert_close(
                    matrix * total, composed, rtol=1e-5, atol=1e-6 * float(total.max())
                )
            trace = graph.relevance(-1, rule=rule)
            size = float(trace.tokens.abs().sum(-1).max())
            assert (trace.tokens.sum(-1) - 1).abs().max() <= 1e-5 * size
        assert (graph.rollout().triu(1) == 0).all()  # causal


def test_what_a_token_brings_to_its_mlp_stays_with_it() -> None:
    """Where the MLP is a node of flows of lengths."""
    model = tiny_bert(dtype=torch.float64)
    names = ("attention", "mlp", "feed_forward")
    flows = LayerFlowIG(model).attribute(tokens(model, 1, 5), "zero", boundaries=names)
    assert isinstance(flows, list)
    for flow, layer in zip(flows, FlowGraph(flows).layers, strict=True):
        assert flow.feed_forward_token.abs().max() > 0.01
        past = flow.residual + flow.feed_forward_token
        torch.testing.assert_close(layer.residual, past[0], rtol=0, atol=2e-3)  # type: ignore[attr-defined]
        torch.testing.assert_close(layer.mlp, flow.mlp[0], rtol=0, atol=2e-3)  # type: ignore[attr-defined]
