"""The picture of a prediction: what it shows is what the graph says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from captum_lig import FlowGraph, LigError
from captum_lig.views.plots import plot_prediction
from tests.helpers.pages import graph as graph_of_lengths
from tests.helpers.target_flows import target_flows

TOKENS = ["the", "keys", "to", "it", "are"]


def given(**settings: Any) -> FlowGraph:
    return FlowGraph(target_flows(**settings), TOKENS)


def test_the_strongest_nodes_are_named_with_their_values() -> None:
    graph = given()
    trace = graph.relevance()
    assert trace.feed_forward is not None
    values = {
        (f"{layer}.{head}", token): float(trace.heads[row, head, token])
        for row, layer in enumerate(trace.layers)
        for head in range(trace.heads.shape[1])
        for token in range(len(TOKENS))
    } | {
        (f"MLP {layer}", token): float(trace.feed_forward[row, token])
        for row, layer in enumerate(trace.layers)
        for token in range(len(TOKENS))
    }
    strongest = sorted(values.items(), key=lambda item: -abs(item[1]))[:4]
    figure, axes = plot_prediction(graph, nodes=4)
    shown = [text.get_text() for text in axes.texts]
    expected = [f"{name}  {value:+.3g}" for (name, _), value in strongest]
    assert sorted(text for text in shown if "  " in text) == sorted(expected)
    assert f"{graph.change:+.3g}" in shown
    assert "4 strongest" in figure.get_supxlabel().replace("\n", " ")


def test_lines_are_as_wide_as_relevances_and_coloured_by_sign() -> None:
    tokens = list("abcdefgh")
    graph = FlowGraph(target_flows(tokens=8, seed=23), tokens)
    relevance = graph.relevance().tokens.numpy()
    _, axes = plot_prediction(graph, nodes=0)
    streams = next(one for one in axes.collections if one.get_gid() == "streams")
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    kept = [tokens.index(label) for label in labels]
    shown = relevance[:, kept].flatten()
    widths = np.array(streams.get_linewidths())
    np.testing.assert_allclose(widths / widths.max(), np.abs(shown) / np.abs(relevance).max())
    red = np.array([color[0] > color[2] for color in streams.get_colors()])
    assert ((shown > 0) == red).all()
    left_out = np.abs(np.delete(relevance, kept, axis=1))
    assert left_out.size
    assert (left_out < 0.1 * np.abs(relevance).max()).all()


def test_tokens_without_a_part_have_no_column_and_are_marked_as_left_out() -> None:
    tokens = list("abcdefgh")
    graph = FlowGraph(target_flows(tokens=8, seed=23), tokens)
    sizes = graph.relevance().tokens.abs().amax(0)
    few = sizes < 0.1 * sizes.max()
    assert [t for t, one in zip(tokens, few, strict=True) if one] == ["c", "g"]
    _, axes = plot_prediction(graph, nodes=1)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list("abdefh")
    assert [text.get_text() for text in axes.texts].count("···") == 2


def test_markup_in_tokens_stays_text() -> None:
    graph = FlowGraph(target_flows(), ["$x$", "<b>", "a_b", "^", "\x1b[31m"])
    figure, axes = plot_prediction(graph, title="$\\frac{1}$")
    figure.canvas.draw()
    assert not any(label.get_usetex() for label in axes.get_xticklabels())
    assert all(to_rgba(label.get_color()) == (0, 0, 0, 1) for label in axes.get_xticklabels())


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(LigError, match="nodes=-1"):
        plot_prediction(given(), nodes=-1)
    with pytest.raises(LigError, match="no target"):
        plot_prediction(graph_of_lengths())
