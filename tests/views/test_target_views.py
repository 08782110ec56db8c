"""Pictures and pages of graphs with a target: what they show is what the graph says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from captum_lig import FlowGraph, LigError
from captum_lig.views.plots import plot_completeness, plot_graph, plot_shares
from tests.helpers.target_flows import TARGET, target_flows

TOKENS = ["the", "keys", "to", "it", "are"]


def given(**settings: Any) -> FlowGraph:
    return FlowGraph(target_flows(**settings), TOKENS)


def marks(axes: Axes, gid: str) -> Any:
    return next(one for one in axes.collections if one.get_gid() == gid)


def test_the_links_drawn_add_up_to_the_relevances() -> None:
    graph = given()
    figure, axes = plot_graph(graph, k=2)
    trace = graph.relevance()
    arrived = np.zeros((3, 5))
    for name in ("links", "self links"):
        links = marks(axes, name)
        values = links.get_array() if name == "links" else [None] * len(links.get_segments())
        for segment, value in zip(links.get_segments(), values, strict=True):
            column, source = np.round(segment[0]).astype(int)
            if value is None:  # drawn as wide as it is, whatever its sign
                layer = graph.layers[column]
                value = float(layer.links(trace.tokens[column + 1], "chain", False)[source, source])
            arrived[column, source] += value
    np.testing.assert_allclose(arrived, trace.tokens[:3], atol=1e-6)
    assert figure.get_suptitle() == f"{TARGET}: +2"
    shares = ", ".join(f"{route.share:.2g}" for route in graph.paths(k=2))
    assert shares in figure.get_supxlabel().replace("\n", " ")


def test_dots_and_squares_are_nodes_with_their_signs() -> None:
    graph = given(mlp=[True, False, True])
    _, axes = plot_graph(graph, k=0, title="mine")
    trace = graph.relevance()
    assert trace.feed_forward is not None
    whole = float(trace.tokens.abs().max())
    for gid, values, shift in (("nodes", trace.tokens, 0.0), ("MLPs", trace.feed_forward, 0.5)):
        drawn = marks(axes, gid)
        places = [(int(x - shift), int(y)) for x, y in drawn.get_offsets()]
        assert len(places) == int((values != 0).sum())
        found = zip(places, drawn.get_sizes(), drawn.get_facecolors(), strict=True)
        for place, size, color in found:
            value = float(values[place])
            assert size == pytest.approx(2 + 60 * min(1.0, abs(value) / whole))
            assert (color[0] > color[2]) == (value > 0)  # red for, blue against


def test_a_picture_takes_no_start() -> None:
    with pytest.raises(LigError, match=r"start=.*of one number"):
        plot_graph(given(), start=[1.0] * 5)
    with pytest.raises(LigError, match="target=2"):
        given().plot(2)


def test_a_caption_names_the_baseline_as_readable_text() -> None:
    flows = [replace(one, baseline="The \u202ekey $x^$\nfell.") for one in target_flows()]
    figure, _ = plot_graph(FlowGraph(flows, TOKENS), k=0)
    caption = figure.get_supxlabel().replace("\n", " ")
    assert caption.endswith("$x^$\\nfell.")
    assert "\u202e" not in caption
    figure.canvas.draw()


def test_bars_of_sizes() -> None:
    flows = target_flows(mlp=[True, False, True])
    _, axes = plot_shares(flows)
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(heights.sum(0), 1)
    for column, flow in enumerate(flows):
        parts = []
        for j in range(5):
            edges = flow.attention[0, :, j].abs()
            own = float(edges[:, j].sum())
            mlp = (
                0.0
                if flow.feed_forward_token is None
                else float(flow.feed_forward_token[0, j].abs())
            )
            sizes = [float(edges.sum()) - own, own, float(flow.residual[0, j].abs()), mlp]
            parts.append([size / sum(sizes) for size in sizes])
        np.testing.assert_allclose(heights[:, column], np.mean(parts, 0))
    figure, _ = plot_completeness(flows)
    assert "/ the target's change" in figure.get_supxlabel().replace("\n", " ")


def test_a_notebook_names_the_target() -> None:
    text = given()._repr_html_()
    assert "change +2" in text
    assert "logit &#x27; are&#x27;" in text
    assert "data:image/png" in text
