"""Graphs of a prediction: what they say of themselves, refuse and warn of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from captum_lig import FlowGraph, LigError
from captum_lig.graph import CannotCarryWarning
from tests.helpers.synthetic import signed_flows
from tests.helpers.target_flows import TARGET, target_flows

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
