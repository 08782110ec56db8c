"""What the picture draws, read back from its artists."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure

from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.views.plots import plot_flow
from tests.helpers.synthetic import HOSTILE, flows, layer_flow

TOKENS = ["[CLS]", "the", "cat", "##s", "sat", "[SEP]"]


def mesh(axes: Axes) -> QuadMesh:
    (found,) = [c for c in axes.collections if isinstance(c, QuadMesh)]
    return found


def links(axes: Axes, gid: str) -> LineCollection:
    (found,) = [c for c in axes.collections if c.get_gid() == gid]
    assert isinstance(found, LineCollection)
    return found


def ends(axes: Axes, gid: str) -> list[tuple[float, float, float, float]]:
    """(x, y) of the first and last point of every line."""
    lines = links(axes, gid).get_segments()
    return [(*np.round(line[0], 6), *np.round(line[-1], 6)) for line in lines]


def row_labels(axes: Axes) -> tuple[list[str], list[str]]:
    """On the left and on the right."""
    ticks = axes.yaxis.get_major_ticks()
    return [t.label1.get_text() for t in ticks], [t.label2.get_text() for t in ticks]


def texts(figure: Figure) -> str:
    found = [figure.get_suptitle(), figure.get_supxlabel()]
    found += [axes.get_title() for axes in figure.axes]
    return "\n".join(found)


def direct_shares(flow: LayerFlow) -> np.ndarray:
    assert flow.layer is not None
    assert flow.layer_total is not None
    return (flow.layer[0] / flow.layer_total[0, :, None]).numpy()


@pytest.mark.parametrize("baseline", ["target_token", "zero"])
def test_heat_maps_show_the_direct_map(baseline: str) -> None:
    given = flows(3, baseline=baseline)
    _, axes = plot_flow(given, TOKENS)
    assert len(axes) == 1 + 3
    for flow, panel in zip(given, axes[1:], strict=True):
        values = mesh(panel).get_array()
        own = np.eye(6, dtype=bool)
        np.testing.assert_allclose(values.data[~own], direct_shares(flow)[~own], rtol=1e-6)
        hidden = np.ma.getmaskarray(values)
        if baseline == "zero":
            assert not hidden.any()
        else:  # the self term is 0 by construction, not a finding
            assert (hidden == own).all()


def test_rows_are_targets_from_top_to_bottom() -> None:
    _, axes = plot_flow(flows(1, targets=[4, 2]), TOKENS)
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["sat", "cat"]
    assert [label.get_text() for label in axes[1].get_xticklabels()] == TOKENS
    assert axes[1].yaxis_inverted()
    assert axes[0].yaxis_inverted()


def test_one_symmetric_colour_scale_for_everything() -> None:
    given = flows(3, baseline="zero")
    _, axes = plot_flow(given, TOKENS)
    norms = [mesh(panel).norm for panel in axes[1:]]
    norms += [links(axes[0], f"links {i}").norm for i in range(3)]
    assert len({(norm.vmin, norm.vmax) for norm in norms}) == 1
    assert norms[0].vmin == -norms[0].vmax


def test_self_terms_do_not_outshine_the_links() -> None:
    flow = layer_flow(baseline="zero")
    assert flow.layer is not None
    bright = replace(flow, layer=flow.layer + 1000 * torch.eye(6))
    _, axes = plot_flow([bright], TOKENS)
    assert mesh(axes[1]).norm.vmax < 2


@pytest.mark.parametrize("rule", ["conserve", "chain"])
def test_the_strongest_links_of_each_target_are_drawn(rule: str) -> None:
    given = flows(2)
    _, axes = plot_flow(given, TOKENS, rule=rule)
    for column, flow in enumerate(given):
        assert flow.layer_total is not None
        share = (flow.compose(rule)[0] / flow.layer_total[0, :, None]).numpy()
        expected = set()
        for target in range(6):
            strongest = sorted(range(6), key=lambda s: -abs(share[target, s]))[:2]
            expected |= {(float(column), s, column + 1.0, target) for s in strongest}
        gid = f"links {column}"
        assert set(ends(axes[0], gid)) == expected
        drawn = links(axes[0], gid)
        wanted = [share[int(end[3]), int(end[1])] for end in ends(axes[0], gid)]
        np.testing.assert_allclose(drawn.get_array(), wanted, rtol=1e-5)
        widths = np.array(drawn.get_linewidths())
        order = np.argsort(np.abs(wanted))
        assert (np.diff(widths[order]) >= -1e-9).all()  # wider is stronger
        assert (order == np.arange(len(order))).all()  # and drawn over the weaker


def test_self_links_are_grey_and_as_wide_as_what_is_kept() -> None:
    flow = layer_flow(baseline="zero")
    _, axes = plot_flow([flow], TOKENS)
    assert flow.layer_total is not None
    kept = (flow.compose()[0].diagonal() / flow.layer_total[0]).numpy()
    drawn = links(axes[0], "self links 0")
    widths = np.array(drawn.get_linewidths())
    np.testing.assert_allclose(widths / widths.max(), kept / kept.max(), rtol=1e-5)
    (colour,) = {tuple(colour) for colour in drawn.get_colors()}
    assert colour[0] == colour[1] == colour[2]


def test_layers_left_out_leave_a_gap() -> None:
    _, axes = plot_flow([layer_flow(1), layer_flow(2), layer_flow(5)], TOKENS)
    starts = [{end[0] for end in ends(axes[0], f"links {i}")} for i in (1, 2, 5)]
    assert starts[0] == {0.0}
    assert starts[1] == {1.0}
    assert min(starts[2]) > 2.0
    assert "layer 5" in [text.get_text() for text in axes[0].texts]


def test_padding_is_not_drawn() -> None:
    keep = [True, False, True, True, True, False]
    _, axes = plot_flow(flows(1, valid=keep), TOKENS)
    shown = ["[CLS]", "cat", "##s", "sat"]
    left, right = row_labels(axes[0])
    assert left == right == shown
    assert mesh(axes[1]).get_array().shape == (4, 4)
    assert {y for end in ends(axes[0], "links 0") for y in end[1::2]} <= {0, 1, 2, 3}


def test_the_picture_says_how_it_was_made() -> None:
    given = flows(2, baseline="zero", error=0.03)
    figure, axes = plot_flow(given, TOKENS, rule="chain", title="a title")
    said = texts(figure).replace("\n", " ")
    for words in ("a title", "Baseline zero", "scalarization l2", "composed by chain", "0.03 over"):
        assert words in said
    agreement = given[1].agreement("chain").mean().item()
    assert axes[2].get_title().startswith(f"layer 1 · composed off by {agreement:.0%}\n")
    assert "completeness error 0.03" in axes[2].get_title()
    assert axes[2].title.get_color() != "black"  # what is not certified is coloured


def test_what_is_certified_is_not_coloured() -> None:
    _, axes = plot_flow(flows(1), TOKENS)
    assert "completeness error 1e-06" in axes[1].get_title()
    assert axes[1].title.get_color() == "black"


@pytest.mark.parametrize("format", ["png", "pdf", "svg"])
def test_hostile_tokens_are_drawn_as_they_are(format: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, axes = plot_flow(flows(2, len(HOSTILE)), HOSTILE, title="$\\frac{ 😀 中 \x00\n")
        file = io.BytesIO()
        figure.savefig(file, format=format)
    assert len(file.getvalue()) > 1000
    labels, _ = row_labels(axes[0])
    assert labels[:5] == ["$x_$", "\\frac{1}{2}", "[red]", "\\x1b[31m", "a\\nb"]
    assert not any(label.get_parse_math() for label in axes[0].get_yticklabels())


def test_a_character_no_font_has_becomes_a_box() -> None:
    _, axes = plot_flow(flows(1, 2), ["\U00012000", "a"])  # cuneiform
    assert axes[0].get_yticklabels()[0].get_text() == "□"


@pytest.mark.parametrize("tokens", [5, 12, 40])
def test_labels_do_not_overlap(tokens: int) -> None:
    figure, axes = plot_flow(flows(6, tokens), [f"token{i}" for i in range(tokens)])
    FigureCanvasAgg(figure).draw()
    for panel in (axes[0], axes[1]):
        shown = [tick.label1 for tick in panel.yaxis.get_major_ticks()]
        boxes = sorted(
            (label.get_window_extent().y0, label.get_window_extent().y1) for label in shown
        )
        for (_, top), (bottom, _) in pairwise(boxes):
            assert bottom > top - 3  # the boxes hold room for accents
    titles = [panel.title.get_window_extent() for panel in axes[1:4]]
    for left, right in pairwise(titles):
        assert not left.overlaps(right)


def test_no_state_of_pyplot_is_touched() -> None:
    code = (
        "import sys\n"
        "from captum_lig.views.plots import plot_flow\n"
        "from tests.helpers.synthetic import flows\n"
        "sys.modules['matplotlib.pyplot'] = None  # importing it would fail\n"
        "figure, _ = plot_flow(flows(1), list('abcdef'))\n"
        "figure.savefig('/dev/null', format='png')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_errors_as_the_table() -> None:
    with pytest.raises(LigError, match="5 tokens were given"):
        plot_flow(flows(1), TOKENS[:5])
    with pytest.raises(LigError, match="rule 'sum' is unknown"):
        plot_flow(flows(1), TOKENS, rule="sum")


@pytest.mark.parametrize("targets", [None, [0]])
def test_a_text_of_one_token(targets: Sequence[int] | None) -> None:
    flow = layer_flow(tokens=1, baseline="zero", targets=targets)
    figure, axes = plot_flow([flow], ["a"])
    figure.savefig(io.BytesIO())
    assert links(axes[0], "links 0").get_segments() == []


def test_a_flow_on_another_dtype() -> None:
    figure, _ = plot_flow(flows(1, dtype=torch.bfloat16), TOKENS)
    figure.savefig(io.BytesIO())
