"""What the charts draw, read back from their artists."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from captum_lig import FlowGraph, LigError
from captum_lig.views.plots import (
    plot_compared,
    plot_completeness,
    plot_graph,
    plot_heads,
    plot_layers,
    plot_map,
    plot_shares,
)
from captum_lig.views.plots.draw import arrange
from tests.helpers.synthetic import HOSTILE, flows, layer_flow

TOKENS = ["[CLS]", "the", "cat", "##s", "sat", "[SEP]"]


def drawn(axes: Axes) -> np.ma.MaskedArray[Any, Any]:
    return np.ma.array(axes.collections[0].get_array())


def lines(axes: Axes, gid: str) -> LineCollection:
    (found,) = [c for c in axes.collections if c.get_gid() == gid]
    assert isinstance(found, LineCollection)
    return found


def saved(figure: Figure) -> None:
    for suffix in ("png", "svg", "pdf"):
        figure.savefig(io.BytesIO(), format=suffix, dpi=40)


def test_a_map_holds_its_numbers() -> None:
    values = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    figure, axes = plot_map(values, TOKENS, title="a map")
    np.testing.assert_allclose(drawn(axes), values)
    norm = axes.collections[0].norm
    assert norm.vmax == -norm.vmin == pytest.approx(float(values.abs().max()))
    assert [t.get_text() for t in axes.get_yticklabels()] == TOKENS
    assert axes.yaxis_inverted()
    saved(figure)


def test_a_map_of_some_targets_and_a_limit() -> None:
    _, axes = plot_map(np.arange(12.0).reshape(2, 6), TOKENS, [4, 1], limit=3)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sat", "the"]
    assert axes.collections[0].norm.vmax == 3


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_heads_are_shares(baseline: str) -> None:
    flow = layer_flow(2, 6, 3, baseline=baseline)
    _, axes = plot_heads(flow, TOKENS)
    assert len(axes) == 3
    for head, one in enumerate(axes):
        share = flow.attention[0, head] / flow.attention_total[0, head, :, None]
        found = drawn(one)
        assert found.mask.any() == (baseline == "target_token")
        np.testing.assert_allclose(found.filled(0), share, rtol=1e-5)
    _, axes = plot_heads(flow, TOKENS, "chain")
    routes = flow.compose("chain", by_head=True)[0] / flow.layer_total[0, :, None]
    for one, route in zip(axes, routes, strict=True):
        np.testing.assert_allclose(drawn(one).filled(0), route, rtol=1e-5)
        size = route.abs().sum(-1).mean().item()
        assert one.get_title().endswith(f"· {size:.0%}")


def test_layers_and_the_difference() -> None:
    found = flows(3, 6, baseline="zero")
    _, axes = plot_layers(found, TOKENS, "conserve")
    for one, flow in zip(axes, found, strict=True):
        expected = flow.compose("conserve")[0] / flow.layer_total[0, :, None]
        np.testing.assert_allclose(drawn(one), expected, rtol=1e-5)
    _, (composed, direct, difference) = plot_compared(found[0], TOKENS)
    np.testing.assert_allclose(drawn(composed) - drawn(direct), drawn(difference), atol=1e-7)
    np.testing.assert_allclose(
        drawn(direct), found[0].layer[0] / found[0].layer_total[0, :, None], rtol=1e-5
    )


def test_a_product_is_compared_at_the_size_it_has() -> None:
    flow = layer_flow(0, 6, 2, baseline="zero")
    _, (composed, direct, difference) = plot_compared(flow, TOKENS, "product")
    expected = flow.compose("product")[0] / flow.layer_total[0, :, None]
    np.testing.assert_allclose(drawn(composed), expected, rtol=1e-5)
    gap = np.linalg.norm(drawn(difference), axis=-1) / np.linalg.norm(drawn(direct), axis=-1)
    np.testing.assert_allclose(gap, flow.agreement("product")[0], rtol=1e-4)


def test_a_graph_of_few_targets_shows_its_facts() -> None:
    shown = FlowGraph(flows(2, 6, targets=[2, 4], baseline="zero"), TOKENS)._repr_html_()
    assert "layers 0 to 1, 6 tokens" in shown
    assert "<img" not in shown


def test_padding_is_not_drawn() -> None:
    flow = layer_flow(0, 6, 2, valid=[False, True, True, True, True, True])
    _, (axes,) = plot_layers([flow], TOKENS)
    assert drawn(axes).shape == (5, 5)
    assert [t.get_text() for t in axes.get_yticklabels()] == TOKENS[1:]


def test_shares_of_a_layer_add_up_and_are_the_flow_s() -> None:
    found = flows(3, 6, baseline="zero")
    figure, axes = plot_shares(found)
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(heights.sum(0), 1)
    for layer, flow in enumerate(found):
        routes = flow.compose("conserve", by_head=True)[0].abs()
        residual = flow.residual[0].abs()
        whole = routes.sum((0, 2)) + residual
        own = torch.stack([routes[:, j, j].sum() for j in range(6)])
        assert heights[2, layer] == pytest.approx(float((residual / whole).mean()), rel=1e-4)
        assert heights[1, layer] == pytest.approx(float((own / whole).mean()), rel=1e-4)
    saved(figure)


def test_every_completeness_error_is_drawn() -> None:
    found = flows(2, 6, error=1e-5)
    found[1] = replace(found[1], residual=found[1].residual + found[1].mlp_total * 0.5)
    figure, axes = plot_completeness(found)
    by_name = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    for boundary in ("attention", "mlp", "layer", "chain"):
        errors = torch.cat([flow.completeness_error(boundary).flatten() for flow in found])
        np.testing.assert_allclose(by_name[boundary], errors.double().clamp_min(1e-9), rtol=1e-5)
    assert "6 of them above the tolerance" in figure.get_supxlabel()
    saved(figure)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_graph_s_links_are_its_relevance(absolute: bool) -> None:
    graph = FlowGraph(flows(3, 6, baseline="zero"), TOKENS)
    figure, axes = plot_graph(graph, 4, source=1, k=2, absolute=absolute)
    trace = graph.relevance(4, absolute=absolute)
    links = lines(axes, "links")
    arrived = np.zeros((4, 6))
    for segment, value in zip(links.get_segments(), links.get_array(), strict=True):
        (column, source), (_, target) = np.round(segment[0]), np.round(segment[-1])
        assert source != target
        arrived[int(column), int(source)] += value
    own = lines(axes, "self links")
    for segment, width in zip(own.get_segments(), own.get_linewidths(), strict=True):
        (column, token), _ = np.round(segment[0]), segment[1]
        arrived[int(column), int(token)] += width / 4
    np.testing.assert_allclose(arrived[:3], trace.tokens[:3], atol=1e-6)
    routes = graph.paths(1, 4, 2)
    caption = figure.get_supxlabel().replace("\n", " ")
    assert f"{routes[0].share:+.2g}, {routes[1].share:+.2g}" in caption
    saved(figure)


@pytest.mark.filterwarnings("ignore:a prediction's relevance")
def test_a_graph_starts_at_a_number_of_the_model() -> None:
    graph = FlowGraph(flows(3, 6, baseline="zero"), TOKENS)
    start = torch.tensor([0.0, 5.0, 0.0, 0.0, -2.5, 0.0])
    figure, axes = plot_graph(graph, start=start, k=0)
    trace = graph.relevance(start=start)
    arrived, own = np.zeros((4, 6)), np.zeros((4, 6))
    links = lines(axes, "links")
    for segment, value in zip(links.get_segments(), links.get_array(), strict=True):
        (column, source), _ = np.round(segment[0]), segment[-1]
        arrived[int(column), int(source)] += value
    for segment, width in zip(
        lines(axes, "self links").get_segments(),
        lines(axes, "self links").get_linewidths(),
        strict=True,
    ):
        (column, token), _ = np.round(segment[0]), segment[1]
        own[int(column), int(token)] = width / 4 * 5  # the largest start is the full width
    stayed = np.abs(trace.tokens[:3].numpy() - arrived[:3])
    np.testing.assert_allclose(own[:3], stayed.clip(max=5), atol=1e-6)
    assert "Relevance of the, sat (right)" in figure.get_supxlabel().replace("\n", " ")
    scale = figure.axes[1].yaxis
    assert not any("%" in label.get_text() for label in scale.get_ticklabels())
    with pytest.raises(LigError, match="routes go to one"):
        plot_graph(graph, start=start, source=0)
    _, axes = plot_graph(graph, k=0)  # neither a target nor a start: the last token
    np.testing.assert_array_equal(
        lines(axes, "links").get_array(), lines(plot_graph(graph, 5, k=0)[1], "links").get_array()
    )


def test_every_layer_keeps_its_strongest_links() -> None:
    graph = FlowGraph(flows(8, 30, baseline="zero"), [f"token{i}" for i in range(30)])
    _, axes = plot_graph(graph, 29, k=0)
    found = [np.round(line[0]) for line in lines(axes, "links").get_segments()]
    found += [np.round(line[0]) for line in lines(axes, "self links").get_segments()]
    columns = np.array(found)[:, 0].astype(int)
    # All relevance is at one token at the end; from there it spreads.
    assert np.bincount(columns).tolist() == [50] * 7 + [30]


def test_heads_of_routes_that_share_a_link_are_all_named() -> None:
    graph = FlowGraph(flows(1, 6, heads=3, baseline="zero"), TOKENS)
    _, axes = plot_graph(graph, 4, source=1, k=3)
    (label,) = [text.get_text() for text in axes.texts]
    assert label == "h" + ",".join(str(route.steps[0].head) for route in graph.paths(1, 4, 3))


@pytest.mark.parametrize(
    ("maps", "columns"), [(1, 1), (6, 3), (8, 4), (12, 3), (30, 5), (32, 8), (7, 3)]
)
def test_maps_are_arranged_without_empty_places_if_they_can_be(maps: int, columns: int) -> None:
    width, found, rows = arrange(12, maps)
    assert found == columns
    assert rows == -(-maps // columns)
    assert width >= 2.0
    assert width * columns <= 16


@pytest.mark.parametrize("count", [5, 128])
def test_few_and_many_tokens_are_readable(count: int) -> None:
    tokens = [f"token{i}" for i in range(count)]
    found = flows(2, count, baseline="zero")
    graph = FlowGraph(found, tokens)
    for figure in (
        plot_map(found[0].layer[0], tokens)[0],
        plot_heads(found[0], tokens)[0],
        plot_compared(found[0], tokens)[0],
        plot_graph(graph, count - 1)[0],
    ):
        figure.draw_without_rendering()
        for axes in figure.axes:
            for label in axes.get_yticklabels():
                assert label.get_fontsize() >= 4


def test_hostile_tokens_are_text() -> None:
    tokens = HOSTILE
    found = flows(2, len(tokens), baseline="zero")
    for figure in (
        plot_map(found[0].layer[0], tokens, title="$x_{$ <script>")[0],
        plot_heads(found[0], tokens)[0],
        plot_graph(FlowGraph(found, tokens), 3, title="\x1b[31m")[0],
    ):
        figure.savefig(io.BytesIO(), dpi=40)


@pytest.mark.filterwarnings("ignore::captum_lig.graph.CannotCarryWarning")
@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda f: plot_map(torch.zeros(3, 3), TOKENS), r"shape \(3, 3\), and there are 6 targets"),
        (lambda f: plot_map(torch.full((6, 6), torch.nan), TOKENS), "not finite"),
        (lambda f: plot_map(torch.zeros(6, 6), TOKENS, limit=-1), "limit=-1"),
        (lambda f: plot_heads(replace(f[0], attention=None), TOKENS), "no 'attention' boundary"),
        (lambda f: plot_layers(f, TOKENS[:3]), "3 tokens were given"),
        (lambda f: plot_compared(f[0], TOKENS, "best"), "composition rule 'best'"),
        (lambda f: plot_shares(f, "product"), "does not see the residual"),
        (lambda f: plot_shares([]), "list of flows is empty"),
        (lambda f: plot_completeness([replace(f[0], tensors={})]), "no row to show"),
        (lambda f: plot_graph(FlowGraph(f, TOKENS), [1, 2], source=0), "routes go to one"),
    ],
)
def test_what_cannot_be_drawn_says_so(draw: Any, message: str) -> None:
    with pytest.raises(LigError, match=message):
        draw(flows(2, 6))


def test_a_notebook_says_by_which_rule_flows_without_a_chain_are_composed() -> None:
    made = flows(2, 6, baseline="zero")
    said = "composed by conserve: the flows hold no chain"
    assert said not in FlowGraph(made, TOKENS)._repr_html_()
    without = FlowGraph([replace(flow, chain=None) for flow in made], TOKENS)._repr_html_()
    assert said in without
    assert "<img" in without


def test_a_notebook_shows_something_by_itself() -> None:
    found = flows(2, 6, baseline="zero", texts=2)
    shown = found[1]._repr_html_()
    assert "layer 1 (encoder.layer.1)" in shown
    assert "2 texts, 6 targets, 6 sources" in shown
    assert "data:image/png;base64," in shown
    assert len(repr(found[1])) < 200  # what a terminal shows
    assert "layer 1: attention, mlp, layer, chain; 2 texts, 6 targets, 6 sources" in repr(found[1])
    worst = float(found[1].completeness_error("attention").max())
    assert f"attention: worst completeness error {worst:.1e}, 24 of 24 rows" in shown
    assert "<img" not in replace(found[1], layer=None, attention=None)._repr_html_()
    graph = FlowGraph(flows(2, 6, baseline="zero"), ["<script>", *TOKENS[1:]])
    shown = graph._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "edges: 144 attention, 24 mlp, 12 residual" in shown


def test_the_methods_draw_the_same() -> None:
    found = flows(2, 6, baseline="zero")
    for kind, count in (("layer", 1), ("heads", 2), ("compared", 3)):
        _, axes = found[0].plot(TOKENS, kind)
        assert len(axes) == count
    _, (axes,) = found[0].plot(TOKENS, rule="chain")
    np.testing.assert_allclose(
        drawn(axes), found[0].compose("chain")[0] / found[0].layer_total[0, :, None], rtol=1e-5
    )
    with pytest.raises(LigError, match="kind='map' is unknown"):
        found[0].plot(TOKENS, "map")
    figure, _ = FlowGraph(found, TOKENS).plot(2, k=0, title="x")
    assert figure.get_suptitle() == "x"
