"""The flow graph against loops over its edges, written from the definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from captum_lig import FlowGraph, LayerFlow, LayerFlowIG, LigError
from tests.helpers.flow_graph_twin import twin_relevance
from tests.helpers.models import tiny_bert, tiny_llama, tokens
from tests.helpers.synthetic import signed_flow, signed_flows

RULES = ("conserve", "chain", "product")


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
