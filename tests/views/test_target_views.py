"""Pictures and pages of graphs with a target: what they show is what the graph says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from captum_lig import FlowGraph, LigError
from captum_lig.views.page import page
from captum_lig.views.plots import plot_completeness, plot_graph, plot_shares
from tests.helpers.page_script import NODE, run_script
from tests.helpers.pages import Elements, header, numbers
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


# --- the page -------------------------------------------------------------------------------------


def test_the_header_names_the_target() -> None:
    said = header(page(given(change=-0.5)))
    assert (said["target"], said["change"]) == (TARGET, -0.5)
    assert said["title"] == f"{TARGET}: -0.5"
    assert [one["name"] for one in said["rules"]] == ["edges", "sizes"]
    assert said["rule"] == "edges"
    assert header(page(given(), "mine"))["title"] == "mine"


def test_numbers_of_the_page_are_those_of_the_graph() -> None:
    graph = given(mlp=[True, False, True])
    found = numbers(page(graph))
    for place, layer in enumerate(graph.layers):
        tensors = layer.tensors()
        for name in ("attention", "attention_value"):
            assert found[place, name] == tensors[name].float().flatten().tolist()
        for name in ("entering", "leaving"):
            assert found[place, name] == tensors[name].tolist()
        assert ((place, "feed_forward_relevance") in found) == (place != 1)


@pytest.mark.skipif(NODE is None, reason="there is no node to run the script in")
@pytest.mark.parametrize("kind", ["whole", "pruned", "words", "no change", "encoder"])
def test_the_script_gives_the_graph_s_numbers(tmp_path: Path, kind: str) -> None:
    graph = {
        "whole": lambda: given(),
        "pruned": lambda: given().prune(top_k=2),
        "words": lambda: given().merge_tokens([0, 0, 1, 2, 2]),
        "no change": lambda: given(change=0.0),
        "encoder": lambda: given(cross=True),
    }[kind]()
    found = run_script(page(graph), tmp_path, {"column": 2, "token": 1})
    count = len(graph.tokens)
    for place, layer in enumerate(graph.layers):
        edges, sizes = found["edges"], found["sizes"]
        links = layer.links(layer.leaving, "chain", False)  # type: ignore[attr-defined]
        size = torch.tensor(edges["size"][place])[:, None]
        maps = torch.tensor(edges["maps"][place], dtype=torch.float64).reshape(count, count)
        torch.testing.assert_close(maps * size, links, rtol=1e-5, atol=1e-6)
        shares = layer.shares("chain", True)
        maps = torch.tensor(sizes["maps"][place], dtype=torch.float64).reshape(count, count)
        torch.testing.assert_close(maps, shares.matrix, rtol=1e-5, atol=1e-7)
    below = graph.rollout((0, 1))[1].tolist()
    assert found["sizes"]["carried"][0] == pytest.approx(below, rel=1e-5, abs=1e-7)


def test_a_hostile_target_stays_text() -> None:
    attack = "</script><script>hacked=1</script>"
    flows = target_flows()
    for flow in flows:
        object.__setattr__(flow, "target", attack)
    document = page(FlowGraph(flows))
    assert json.loads(Elements(document).text("script", id="page-header"))["target"] == attack
    assert len([one for one in Elements(document).found if one[0] == "script"]) == 3
