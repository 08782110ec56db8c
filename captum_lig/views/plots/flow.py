"""The flow of one text through the layers of a model, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.findings import View, choose_view, find_sink, one_source
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import LayerSummary, one_text, row_shares, summarize
from captum_lig.views.plots import draw

__all__ = ["plot_flow"]

LINKS_PER_TARGET = 2
WIDEST_LINK = 3.5
"""In points; tokens are about 12 points apart."""
ROUNDING = 1e-5
"""Self terms below this share are drawn as the 0 that they are by construction."""


@dataclass(frozen=True)
class _Layer:
    """What is drawn of one layer."""

    index: int
    links: NDArray[np.float64]
    """``(T, S)`` shares of the map that links are of; masked where they are no finding."""
    below: draw.Panel
    """Shares of the map below."""
    summary: LayerSummary
    one_source: bool
    """Whether a row has one possible source."""

    @property
    def moves_itself(self) -> bool:
        """False if every self term is 0, as it is by construction on target-token paths."""
        own = self.below.values[self.below.is_self]
        return bool((np.abs(own) > ROUNDING).any())


def plot_flow(
    flows: Sequence[LayerFlow],
    tokens: Sequence[str] | None = None,
    rule: str = DEFAULT_RULE,
    title: str | None = None,
    show: bool = False,
    *,
    kind: str | None = None,
    hide_first_token: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw how the tokens of one text flow through the layers of a model.

    Above, the tokens on their way from left to right: for every target the strongest links that
    reach it from other tokens, as wide and as dark as their share of the target, and the token's
    own share in grey. Below, one heat map a layer of the direct map ``z -> z'``, with its worst
    completeness error and how far the composed map is from it. All colours are on one scale,
    symmetric around 0, which ends at the strongest links between different tokens. Rows that have
    one possible source are grey, and no links: they are 100 % by construction.

    The figure belongs to no window and no pyplot state: save it, or leave it as the last
    expression of a notebook's cell.

    Args:
        flows: the flows of one text with all three boundaries, one a layer.
        tokens: the text's tokens, one for each source; None: as the flows have them.
        rule: composition rule of the links, see :meth:`LayerFlow.compose`.
        title: a title; plain text, whatever it contains.
        show: also show the figure through pyplot.
        kind: the map that links are of: ``"composed"``, ``"direct"``, or ``"influence"``, how much
            each source moves a target, whichever way (of that are the maps below, too). None:
            influence, where the flows hold it; else the composed one, or the direct one where that
            is more than 50 % off it, see
            :func:`~captum_lig.views.flow_table.flow_table`.
        hide_first_token: draw no links from the first token, and its column in grey.

    Returns:
        The figure and its axes: the strip of links, then the heat maps.

    Raises:
        LigError: if flows and tokens do not fit, for an unknown rule or kind, or a missing
            boundary.
    """
    tokens = one_text(flows, tokens)
    view = choose_view(flows, rule, kind)
    layers = [_layer(flow, tokens, view, hide_first_token) for flow in flows]
    labels = layers[0].below.names
    norm = _color_scale(layers)

    panel, columns, rows = draw.arrange(len(labels), len(layers))
    strip_height = min(max(1.5, 0.165 * len(labels)), 14.0)
    targets = max(len(layer.links) for layer in layers)
    map_height = min(panel * targets / len(labels), max(1.2, 0.4 * targets))
    heights = [strip_height + 0.35, rows * (map_height + 0.4)]
    width = columns * panel + 1.6
    figure = Figure(figsize=(width, sum(heights) + 1.1), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=heights)
    strip = figure.add_subplot(halves[0])
    _draw_strip(strip, layers, labels, norm, (width - 2.0, strip_height))
    panels = [layer.below if layer.moves_itself else layer.below.without_self() for layer in layers]
    within, size = draw.areas(halves[1], columns * panel, heights[1]), (panel, map_height)
    maps, bar = draw.draw_panels(figure, within, panels, columns, size, norm, 7)
    draw.draw_color_bar(figure, bar, norm, _label(view), signed=view.signed)
    _draw_notes(strip, _notes(flows, tokens, view, hide_first_token), width)
    caption = _caption(flows, layers, view, hide_first_token)
    draw.finish(figure, title, caption, width, show)
    return figure, [strip, *maps]


def _layer(flow: LayerFlow, tokens: Sequence[str], view: View, hide_first_token: bool) -> _Layer:
    summary = summarize(flow, view.rule, links=0)
    title = (
        f"layer {flow.index} · composed off by {summary.agreement_text}\n"
        f"completeness error {summary.error_text}"
    )
    shown = view if view.kind == "influence" else View("direct", view.rule)
    below = draw.make_panel(flow, row_shares(flow, shown), tokens, title, hide_first_token)
    if not summary.converged:
        below = replace(below, color=draw.COLORS(1.0))
    links = draw.make_panel(flow, row_shares(flow, view), tokens, "", hide_first_token).values
    return _Layer(flow.index, links, below, summary, bool(one_source(flow).any()))


def _label(view: View) -> str:
    """What the colours are shares of."""
    if view.kind == "influence":
        return "share of the lengths of what the sources bring, whichever way"
    other = " (links: of the row's absolute sum)" if view.rule == "product" else ""
    return f"share of the target's total{other if view.kind == 'composed' else ''}"


def _notes(
    flows: Sequence[LayerFlow], tokens: Sequence[str], view: View, hide_first_token: bool
) -> str:
    """What a reader has to know before anything else; empty as a rule."""
    notes = [view.sentence] if view.far else []
    sink = find_sink(flows, [row_shares(flow, view) for flow in flows])
    first = tokens[int(flows[0].valid[0].nonzero()[0])]
    if sink is not None:
        notes.append(sink.sentence(first, hide_first_token))
    return " ".join(notes)


def _draw_notes(axes: Axes, notes: str, width: float) -> None:
    style = draw.text_style()
    text = draw.wrapped(notes, int(width * 14))
    axes.set_title(text, fontsize=9, loc="left", pad=18, color=draw.COLORS(1.0), **style)


def _color_scale(layers: Sequence[_Layer]) -> Normalize:
    """Symmetric, and made for the links: self terms of a zero baseline would outshine them."""
    links = [
        np.ma.compressed(np.ma.array(m)[~layer.below.is_self])
        for layer in layers
        for m in (layer.links, layer.below.values)
    ]
    return draw.symmetric(np.concatenate(links), 0.99)


def _draw_strip(
    axes: Axes,
    layers: Sequence[_Layer],
    labels: Sequence[str],
    norm: Normalize,
    size: tuple[float, float],
) -> None:
    rows = np.arange(len(labels))
    name = "layer {}" if size[0] / len(layers) > 0.7 else "{}"
    widest = WIDEST_LINK * max(0.6, min(1.0, 16 / len(labels)))
    start, previous = 0.0, layers[0].index - 1
    for layer in layers:
        if layer.index != previous + 1:
            axes.text(start + 0.2, len(rows) / 2 - 0.5, "· · ·", ha="center", color="0.35")
            start += 0.4
        axes.hlines(rows, start, start + 1, colors=draw.GREY, linewidths=0.5, zorder=1)
        own, links = _links(layer, start)
        draw.draw_self_links(axes, own, "0.75", widest, f"self links {layer.index}")
        draw.draw_links(axes, links, norm, 0.3, widest, f"links {layer.index}")
        for column in (start, start + 1):
            axes.plot([column] * len(rows), rows, ".", color="0.35", markersize=3, zorder=4)
        number = name.format(layer.index)
        axes.text(start + 0.5, -1.0, number, ha="center", va="bottom", fontsize=8)
        start, previous = start + 1, layer.index
    axes.set_xlim(-0.03, start + 0.03)
    axes.set_ylim(len(labels) - 0.5, -0.9)
    axes.set_xticks([])
    if name == "{}":
        axes.set_title("layer", fontsize=8, pad=14, loc="right")
    draw.label_rows(axes, labels, size[1])


def _links(layer: _Layer, start: float) -> tuple[list[draw.Link], list[draw.Link]]:
    """What tokens keep of themselves, and the strongest links of each target, weakest first."""
    own, found = [], []
    for target, row in zip(layer.below.targets, layer.links, strict=True):
        size = np.ma.filled(np.ma.abs(row), 0.0)
        size[target] = 0
        own.append((start, target, target, row[target]))
        strongest = np.argsort(-size, kind="stable")[:LINKS_PER_TARGET]
        found += [(start, source, target, row[source]) for source in strongest if size[source] > 0]
    return own, sorted(found, key=lambda link: abs(link[3]))


def _caption(
    flows: Sequence[LayerFlow], layers: Sequence[_Layer], view: View, hide_first_token: bool
) -> str:
    worst = max((layer.summary for layer in layers), key=lambda s: s.completeness_error)
    grey = (
        "Grey links: what a token keeps of itself, at full width all of it."
        if any(layer.moves_itself for layer in layers)
        else "Grey diagonal: 0 by construction, since each target's path starts at its own token."
    )
    if any(layer.one_source for layer in layers):
        grey += " Grey rows: 100 % by construction, the target has one possible source."
    if hide_first_token:
        grey += " Grey column: the first token's, hidden here."
    of = {
        "composed": f"composed by {view.rule} from the attention and mlp boundaries",
        "direct": "in the direct maps",
        "influence": "in the influence, how much each source moves a target, whichever way",
    }[view.kind]
    below = "the influence" if view.kind == "influence" else "the direct map z → z'"
    return (
        f"Above: the {LINKS_PER_TARGET} strongest links into each target, as wide and dark as "
        f"their share, {of}. Below: {below}. Colours end at the 99th percentile of links between "
        f"tokens. {grey} Baseline {flows[0].baseline}, scalarization {flows[0].scalarization}. "
        f"Completeness error: the worst of all rows of all boundaries, {worst.error_text} over all "
        "layers shown; it says that sums are right, not that maps are. Composed off by: ‖direct − "
        f"composed‖ / ‖direct‖, composed by {view.rule}, mean over targets."
    )
