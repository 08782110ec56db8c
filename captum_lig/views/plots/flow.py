"""The flow of one text through the layers of a model, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import LayerSummary, one_text, shares, summarize, target_rows
from captum_lig.views.plots.draw import (
    COLORS,
    GREY,
    areas,
    arrange,
    curve,
    draw_color_bar,
    draw_matrix,
    label_axis,
    set_caption,
    set_title,
    show_figure,
    symmetric,
    text_style,
    token_labels,
)

__all__ = ["plot_flow"]

LINKS_PER_TARGET = 2
WIDEST_LINK = 3.5
"""In points; tokens are about 12 points apart."""
ROUNDING = 1e-5
"""Self terms below this share are drawn as the 0 that they are by construction."""


@dataclass(frozen=True)
class _Layer:
    """What is drawn of one layer. Padding is gone: positions count the tokens that are left."""

    index: int
    composed: NDArray[np.float64]
    """``(T, S)`` shares by the composition rule."""
    direct: NDArray[np.float64]
    """``(T, S)`` shares of the direct map."""
    targets: NDArray[np.int64]
    """``(T,)`` positions of the targets among the sources."""
    summary: LayerSummary

    @property
    def is_self(self) -> NDArray[np.bool_]:
        """``(T, S)`` True where a token is its own source."""
        is_self: NDArray[np.bool_] = self.targets[:, None] == np.arange(self.direct.shape[1])
        return is_self

    @property
    def moves_itself(self) -> bool:
        """False if every self term is 0, as it is by construction on target-token paths."""
        return bool(np.abs(self.direct[self.is_self]).max(initial=0.0) > ROUNDING)


def plot_flow(
    flows: Sequence[LayerFlow],
    tokens: Sequence[str],
    rule: str = "conserve",
    title: str | None = None,
    show: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw how the tokens of one text flow through the layers of a model.

    Above, the tokens on their way from left to right: for every target the strongest composed
    links that reach it from other tokens, as wide and as dark as their share of the target, and
    the token's own share in grey. Below, one heat map a layer of the direct map ``z -> z'``, with
    its worst completeness error and how far the composed map is from it. All colours are on one
    scale, symmetric around 0, which ends at the strongest links between different tokens.

    The figure belongs to no window and no pyplot state: save it, or leave it as the last
    expression of a notebook's cell.

    Args:
        flows: the flows of one text with all three boundaries, one a layer.
        tokens: the text's tokens, one for each source.
        rule: composition rule of the links, see :meth:`LayerFlow.compose`.
        title: a title; plain text, whatever it contains.
        show: also show the figure through pyplot.

    Returns:
        The figure and its axes: the strip of links, then the heat maps.

    Raises:
        LigError: if flows and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    one_text(flows, tokens)
    layers = [_layer(flow, rule) for flow in flows]
    style = text_style()
    kept = flows[0].valid[0].nonzero().squeeze(-1).tolist()
    labels = token_labels([tokens[i] for i in kept])
    norm = _color_scale(layers)

    panel, columns, rows = arrange(len(labels), len(layers))
    strip_height = min(max(1.5, 0.165 * len(labels)), 14.0)
    targets = max(len(layer.targets) for layer in layers)
    map_height = min(panel * targets / len(labels), max(1.2, 0.4 * targets))
    heights = [strip_height + 0.35, rows * (map_height + 0.4)]
    width = columns * panel + 1.6
    figure = Figure(figsize=(width, sum(heights) + 1.1), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=heights)
    left, bar = areas(halves[1], columns * panel, heights[1])
    grid = left.subgridspec(rows, columns)

    strip = figure.add_subplot(halves[0])
    _draw_strip(strip, layers, labels, norm, (width - 2.0, strip_height), style)
    maps = []
    for index, layer in enumerate(layers):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        _draw_map(axes, layer, labels, norm, (panel, map_height))
        first, lowest = index % columns == 0, index + columns >= len(layers)
        axes.tick_params(labelleft=first, labelbottom=lowest)
        axes.set_ylabel("target" if first else "", fontsize=8)
        axes.set_xlabel("source" if lowest else "", fontsize=8)
        maps.append(axes)
    other = " (links: of the row's absolute sum)" if rule == "product" else ""
    draw_color_bar(figure, figure.add_subplot(bar), norm, f"share of the target's total{other}")
    set_title(figure, title, width)
    set_caption(figure, _caption(flows, layers, rule), width)
    if show:
        show_figure(figure)
    return figure, [strip, *maps]


def _layer(flow: LayerFlow, rule: str) -> _Layer:
    rows, kept = target_rows(flow), flow.valid[0]
    position = kept.cumsum(0) - 1
    return _Layer(
        index=flow.index,
        composed=shares(flow, rule)[rows][:, kept].cpu().double().numpy(),
        direct=shares(flow, None)[rows][:, kept].cpu().double().numpy(),
        targets=position[flow.targets[rows]].cpu().numpy(),
        summary=summarize(flow, rule, links=0),
    )


def _color_scale(layers: Sequence[_Layer]) -> Normalize:
    """Symmetric, and made for the links: self terms of a zero baseline would outshine them."""
    links = [m[~layer.is_self] for layer in layers for m in (layer.composed, layer.direct)]
    return symmetric(np.concatenate(links), 0.99)


def _draw_strip(
    axes: Axes,
    layers: Sequence[_Layer],
    labels: Sequence[str],
    norm: Normalize,
    size: tuple[float, float],
    style: dict[str, Any],
) -> None:
    rows = np.arange(len(labels))
    name = "layer {}" if size[0] / len(layers) > 0.7 else "{}"
    widest = WIDEST_LINK * max(0.6, min(1.0, 16 / len(labels)))
    start, previous = 0.0, layers[0].index - 1
    for layer in layers:
        if layer.index != previous + 1:
            axes.text(start + 0.2, len(rows) / 2 - 0.5, "· · ·", ha="center", color="0.35")
            start += 0.4
        axes.hlines(rows, start, start + 1, colors=GREY, linewidths=0.5, zorder=1)
        axes.add_collection(_self_links(layer, start, widest))
        axes.add_collection(_links(layer, start, widest, norm))
        for column in (start, start + 1):
            axes.plot([column] * len(rows), rows, ".", color="0.35", markersize=3, zorder=4)
        number = name.format(layer.index)
        axes.text(start + 0.5, -1.0, number, ha="center", va="bottom", fontsize=8)
        start, previous = start + 1, layer.index
    axes.set_xlim(-0.03, start + 0.03)
    axes.set_ylim(len(labels) - 0.5, -0.9)
    axes.set_xticks([])
    if name == "{}":
        axes.set_title("layer", fontsize=8, pad=14)
    label_axis(axes.yaxis, rows, labels, size[1], 8.0, style)
    axes.tick_params(length=0, labelright=True)
    for tick in axes.yaxis.get_major_ticks():
        tick.label2.update({"fontsize": tick.label1.get_fontsize(), **style})
    axes.spines[:].set_visible(False)


def _links(layer: _Layer, start: float, widest: float, norm: Normalize) -> LineCollection:
    """The strongest links of each target from other tokens, the weakest drawn first."""
    size = np.where(layer.is_self, 0.0, np.abs(layer.composed))
    found = [
        (row, source)
        for row in range(len(size))
        for source in np.argsort(-size[row], kind="stable")[:LINKS_PER_TARGET]
        if size[row, source] > 0
    ]
    found.sort(key=lambda link: size[link])
    values = np.array([layer.composed[link] for link in found])
    links = LineCollection(
        [curve(start, source, layer.targets[row]) for row, source in found],
        linewidths=0.3 + (widest - 0.3) * (np.abs(values) / norm.vmax).clip(0, 1),
        cmap=COLORS,
        norm=norm,
        capstyle="butt",
        zorder=3,
    )
    links.set_array(values)
    links.set_gid(f"links {layer.index}")
    return links


def _self_links(layer: _Layer, start: float, widest: float) -> LineCollection:
    """What each token keeps of itself; all of it is the full width."""
    links = LineCollection(
        [[(start, target), (start + 1, target)] for target in layer.targets],
        linewidths=widest * np.abs(layer.composed[layer.is_self]).clip(0, 1),
        colors="0.75",
        capstyle="butt",
        zorder=2,
    )
    links.set_gid(f"self links {layer.index}")
    return links


def _draw_map(
    axes: Axes,
    layer: _Layer,
    labels: Sequence[str],
    norm: Normalize,
    size: tuple[float, float],
) -> None:
    values = np.ma.array(layer.direct)
    if not layer.moves_itself:
        values[layer.is_self] = np.ma.masked
    draw_matrix(axes, values, [labels[target] for target in layer.targets], labels, norm, size)
    axes.set_title(
        f"layer {layer.index} · composed off by {layer.summary.agreement_text}\n"
        f"completeness error {layer.summary.error_text}",
        fontsize=7,
        color="black" if layer.summary.certified else COLORS(1.0),
    )


def _caption(flows: Sequence[LayerFlow], layers: Sequence[_Layer], rule: str) -> str:
    worst = max((layer.summary for layer in layers), key=lambda s: s.completeness_error)
    diagonal = (
        "Grey links: what a token keeps of itself, at full width all of it."
        if any(layer.moves_itself for layer in layers)
        else "Grey diagonal: 0 by construction, since each target's path starts at its own token."
    )
    return (
        f"Above: the {LINKS_PER_TARGET} strongest links into each target, as wide and dark as "
        f"their share, composed by {rule} from the attention and mlp boundaries. Below: the direct "
        f"map z → z'. Colours end at the 99th percentile of links between tokens. {diagonal} "
        f"Baseline {flows[0].baseline}, scalarization {flows[0].scalarization}. Completeness "
        f"error: the worst of all rows of all boundaries, {worst.error_text} over all layers "
        "shown. Composed off by: ‖direct − composed‖ / ‖direct‖, mean over targets."
    )
