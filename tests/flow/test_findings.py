"""What is listed as a finding, which map a view opens with, and when the first token is a sink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.flow.findings import choose_view, distance, find_sink, one_source, spans
from captum_lig.flow.summary import findings, row_shares, shares, summarize
from tests.helpers.models import tiny_bert, tiny_gpt2, tiny_llama
from tests.helpers.synthetic import flows, layer_flow, with_influence

MAPS = ("attention", "chain", "layer")


def masked(flow: LayerFlow, mask: Tensor) -> LayerFlow:
    """The flow with its maps 0 where the mask ``(T, S)`` is."""
    kept = {name: flow.need(name) * mask for name in MAPS}
    return replace(flow, tensors={**flow.tensors, **kept})


def with_map(flow: LayerFlow, values: list[list[float]]) -> LayerFlow:
    """The flow with a direct map of shares, whose composed map is the same."""
    matrix = torch.tensor(values)[None]
    total = torch.ones_like(flow.need("layer_total"))
    heads = torch.zeros_like(flow.need("chain"))
    heads[:, 0] = matrix
    through = heads.sum(-1)
    return replace(
        flow,
        tensors={
            **flow.tensors,
            "layer": matrix,
            "layer_total": total,
            "mlp_total": total,
            "chain": heads,
            "chain_total": through,
            "mlp": through.transpose(1, 2),
            "residual": torch.zeros_like(flow.need("residual")),
        },
    )


# --- what is so by construction -------------------------------------------------------------------


def test_a_row_with_one_possible_source_is_never_listed() -> None:
    causal = masked(layer_flow(tokens=5), torch.ones(5, 5).tril())
    assert one_source(causal).tolist() == [False, True, False, False, False]
    assert shares(causal)[1, 0].abs() > 0.2  # strong, and no finding
    links = summarize(causal, links=99).links
    assert {(one.target, one.source) for one in links} == {
        (target, source) for target in range(2, 5) for source in range(target)
    }
    assert not findings(causal)[1].any()


def test_the_head_of_a_link_does_not_work_against_it() -> None:
    flow = layer_flow(tokens=5, heads=5)
    random = torch.Generator().manual_seed(0)
    signed = torch.randn(flow.need("chain").shape, generator=random)
    flow = replace(flow, chain=signed, chain_total=signed.sum(-1).abs() + 1)
    by_head = flow.compose(by_head=True)[0]
    against = 0
    for one in summarize(flow, links=99).links:
        parts = by_head[:, one.target, one.source]
        assert one.head == int((parts * one.share).argmax())
        against += one.head != int(parts.abs().argmax())
    assert against


def test_a_source_that_is_anywhere_is_possible() -> None:
    """A head alone, or the direct map alone, may see a token."""
    only = torch.zeros(4, 4)
    only[2, 1] = 1
    flow = masked(layer_flow(tokens=4), only)
    assert one_source(flow).tolist() == [False, False, True, False]
    for name in MAPS:
        other = flow.need(name).clone()
        other.view(-1, 4, 4)[0, 2, 3] = 1e-9
        assert not one_source(replace(flow, tensors={**flow.tensors, name: other})).any()
    assert not one_source(replace(flow, tensors={})).any()


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_in_causal_models_it_is_the_second_row_from_its_own_token_else_the_first(
    build: Callable[[], nn.Module],
) -> None:
    ids = torch.tensor([[5, 9, 3, 7, 2]])
    for baseline, row in (("target_token", 1), ("zero", 0)):
        for flow in LayerFlowIG(build()).attribute(ids, baseline):
            assert one_source(flow).nonzero().flatten().tolist() == [row]


def test_in_an_encoder_there_is_none() -> None:
    for flow in LayerFlowIG(tiny_bert()).attribute(torch.tensor([[5, 9, 3, 7, 2]])):
        assert not one_source(flow).any()


# --- which map ------------------------------------------------------------------------------------


def composed_off_by(parts: list[float]) -> list[LayerFlow]:
    """Layers of which each row is composed so far from the direct one."""
    made = []
    for flow, part in zip(flows(len(parts)), parts, strict=True):
        made.append(
            replace(flow, tensors={**flow.tensors, "layer": flow.compose("chain") / (1 + part)})
        )
    return made


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([0.45, 0.45, 0.45], "composed"),
        ([0.55, 0.55, 0.55], "direct"),
        ([0.1, 0.2, 9.0], "composed"),  # the median layer, not the mean
        ([0.1, 0.6, 0.7], "direct"),
    ],
)
def test_a_view_opens_with_the_direct_map_if_the_composed_is_far_off(
    parts: list[float], kind: str
) -> None:
    given = composed_off_by(parts)
    view = choose_view(given, "chain")
    assert view.off_by == pytest.approx(sorted(parts)[1], rel=1e-4)
    assert view.kind == kind
    assert view.far == (kind == "direct")
    assert f"{sorted(parts)[1]:.0%} off" in view.sentence
    assert ("so the direct maps are shown" in view.sentence) == (kind == "direct")
    rule = "chain" if kind == "composed" else None
    assert torch.equal(row_shares(given[0], view), shares(given[0], rule))


def test_a_kind_that_is_asked_for_is_shown_and_said_to_be_far_off() -> None:
    view = choose_view(composed_off_by([0.9]), "chain", "composed")
    assert view.kind == "composed"
    assert "do not say what the layers do" in view.sentence


def test_without_a_direct_map_nothing_is_known_of_distances() -> None:
    given = [replace(flow, layer=None) for flow in flows(2)]
    assert distance(given, "chain") != distance(given, "chain")
    view = choose_view(given, "chain")
    assert (view.kind, view.far, view.sentence) == ("composed", False, "")


def test_unknown_kinds_and_rules_are_refused() -> None:
    with pytest.raises(LigError, match="kind='best' is unknown: use one of composed, direct"):
        choose_view(flows(1), "chain", "best")
    with pytest.raises(LigError, match="rule 'best' is unknown"):
        choose_view(flows(1), "best")


def test_influence_is_shown_as_shares_of_the_row() -> None:
    values = torch.tensor([[[0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 0.0]]])
    missing = torch.zeros(1, 3)
    flow = replace(layer_flow(tokens=3), influence=values, influence_missing=missing)
    view = choose_view([flow], "chain", "influence")
    expected = torch.tensor([[0, 0.75, 0.25], [0, 0, 0], [0.5, 0.5, 0]])
    assert torch.equal(row_shares(flow, view), expected)
    links = summarize(flow, view=view, links=1).links
    assert [(one.source, one.target, one.head, one.share) for one in links] == [(1, 0, None, 0.75)]
    with pytest.raises(LigError, match="no 'influence' boundary"):
        row_shares(layer_flow(), view)


def test_a_view_opens_with_influence_where_all_flows_hold_it() -> None:
    given = [with_influence(flow) for flow in composed_off_by([0.9, 0.9])]
    view = choose_view(given, "chain")
    assert (view.kind, view.signed) == ("influence", False)
    assert "influence, which is shown, is of no composed map" in view.sentence
    assert choose_view(given, "chain", "composed").kind == "composed"
    assert choose_view([*given, layer_flow(2)], "chain").kind != "influence"


# --- the first token ------------------------------------------------------------------------------

SINK = [[0.0, 0.9, 0.1], [0.9, 0.0, 0.1], [0.7, 0.3, 0.0]]
"""80 % of what reaches the second and the third token is the first's."""
EVEN = [[0.0, 0.9, 0.1], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
"""Half of it, which is no more than what all others bring."""


def test_the_first_token_is_a_sink_where_it_is_more_than_all_others() -> None:
    maps = (EVEN, SINK, SINK, EVEN)
    made = [with_map(flow, one) for flow, one in zip(flows(4, 3), maps, strict=True)]
    sink = find_sink(made, [shares(flow) for flow in made])
    assert sink is not None
    assert sink.layers == (1, 2)
    assert sink.part == pytest.approx(0.8)
    assert sink.sentence("[CLS]", False).startswith(
        "The first token, [CLS], is 80% of what reaches the others in layers 1-2: a sink."
    )
    assert "hidden here" in sink.sentence("[CLS]", True)
    even = [with_map(flow, EVEN) for flow in flows(2, 3)]
    assert find_sink(even, [shares(flow) for flow in even]) is None


def test_rows_of_one_source_make_no_sink() -> None:
    """In two tokens of a causal model all is the first's, and that says nothing."""
    flow = masked(layer_flow(tokens=2), torch.ones(2, 2).tril())
    assert find_sink([flow], [shares(flow)]) is None


def test_padding_before_the_text_is_not_its_first_token() -> None:
    shifted = [[0.0] * 4, *([0.0, *row] for row in SINK)]
    flow = with_map(layer_flow(tokens=4, valid=[False, True, True, True]), shifted)
    sink = find_sink([flow], [shares(flow)])
    assert sink is not None
    assert sink.part == pytest.approx(0.8)


def test_hiding_the_first_token_takes_its_links_and_no_number() -> None:
    flow = layer_flow(tokens=5)
    shown, hidden = summarize(flow, links=99), summarize(flow, links=99, hide_first_token=True)
    assert [one for one in shown.links if one.source != 0] == list(hidden.links)
    assert len(hidden.links) == 16
    assert replace(shown, links=()) == replace(hidden, links=())


def test_spans() -> None:
    assert spans([3]) == "layer 3"
    assert spans([0, 3, 4, 5, 7]) == "layers 0, 3-5, 7"
