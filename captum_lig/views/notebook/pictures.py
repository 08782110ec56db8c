"""What a notebook shows of flows, graphs and reports by themselves: a few facts and a picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console, RenderableType

from captum_lig.errors import LigError
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.shown import html_list
from captum_lig.flow.summary import TOLERANCE, target_rows
from captum_lig.flow.tokens import readable_token
from captum_lig.graph import Convergence, FlowGraph
from captum_lig.views.plots.flow import plot_flow
from captum_lig.views.plots.graph import plot_graph
from captum_lig.views.plots.maps import plot_layers, plot_map

__all__ = ["flows_html", "graph_html", "rich_html"]

MOST_TOKENS = 48
MOST_LAYERS = 12
"""A picture that a notebook draws unasked is of no more than these, and drawn within a second."""


def flows_html(flows: Sequence[LayerFlow], tokens: Sequence[str] | None = None) -> str:
    """Layers of the first text, as HTML without scripts.

    Args:
        flows: of one attribution.
        tokens: what the sources are called; None: as the flows have it, or else their positions.
    """
    if not flows:
        return html_list(["no flow"])
    one = flows[0]
    texts, sources = one.valid.shape
    several = len(flows) > 1
    name = (
        f"layers {one.index} to {flows[-1].index}" if several else f"layer {one.index} ({one.name})"
    )
    facts = [
        name,
        f"{texts} text{'s' * (texts != 1)}, {len(one.targets)} targets, {sources} sources",
        f"baseline {one.baseline}, scalarization {one.scalarization}",
    ]
    if one.target is not None:
        facts.insert(0, f"target {one.target}")
    tolerance = TOLERANCE if one.tolerance is None else one.tolerance
    for boundary in one.checked:
        errors = [f.completeness_error(boundary) for f in flows if boundary in f.checked]
        facts.append(
            f"{boundary}: worst completeness error {max(float(e.max()) for e in errors):.1e}, "
            f"{sum(int((e <= tolerance).sum()) for e in errors)} of "
            f"{sum(e.numel() for e in errors)} rows within {tolerance:g}"
        )
    if sources > MOST_TOKENS or (one.target is None and len(flows) > MOST_LAYERS):
        facts.append("too large for a picture here: see captum_lig.views.plots")
        return _page(facts, None)
    return _page(facts, _picture([flow.select(0) for flow in flows], tokens))


def _picture(flows: list[LayerFlow], tokens: Sequence[str] | None) -> Figure | None:
    """Of one text."""
    if not all(len(target_rows(flow)) for flow in flows):
        return None
    if flows[0].target is not None:
        try:
            return plot_graph(FlowGraph(flows, tokens), k=0)[0]
        except LigError:  # of some boundaries, or of layers that do not follow each other
            return None
    there = set.intersection(*(set(flow.tensors) for flow in flows))
    if {"layer", "attention", "mlp", "chain"} <= there and len(flows) > 1:
        return plot_flow(flows, tokens)[0]
    if "layer" in there:
        return plot_layers(flows, tokens)[0]
    flow = flows[0]
    if flow.attention is None:
        return None
    names = tokens or (flow.tokens or [list(map(str, range(flow.valid.shape[1])))])[0]
    attention = flow.attention[0].sum(0)
    label = f"attention of layer {flow.index}, sum over heads"
    return plot_map(attention, names, flow.targets.tolist(), label=label)[0]


def graph_html(graph: FlowGraph) -> str:
    """A graph with the relevance to its target, or of its last token, as HTML without scripts."""
    counts = ", ".join(f"{count:,} {kind}" for kind, count in graph.edge_counts.items())
    facts = [
        f"layers {graph.indices[0]} to {graph.indices[-1]}, {len(graph.tokens)} tokens",
        f"edges: {counts}",
        f"baseline {graph.baseline}, scalarization {graph.scalarization}",
        *_convergence(graph),
        " ".join(readable_token(token) for token in graph.tokens[:64])
        + (" …" if len(graph.tokens) > 64 else ""),
    ]
    if graph.target is not None:
        facts.insert(0, f"target {graph.target}, change {graph.change:+.4g}")
    if len(graph.tokens) > MOST_TOKENS:
        facts.append("too large for a picture here: see FlowGraph.plot")
        return _page(facts, None)
    if graph.target is not None:
        return _page(facts, plot_graph(graph, k=0)[0])
    known = graph.layers[-1].known.nonzero().flatten().tolist()
    # Relevance cannot be handed down to tokens that were no targets.
    whole = all(bool(layer.known.all()) for layer in graph.layers[:-1])
    if not (known and whole):
        return _page(facts, None)
    rule = DEFAULT_RULE
    if not all("chain" in layer.tensors() for layer in graph.layers):
        rule = "conserve"
        facts.append("composed by conserve: the flows hold no chain")
    figure = plot_graph(graph, known[-1], k=0, rule=rule)[0]
    return _page(facts, figure)


def rich_html(shown: RenderableType, width: int = 120) -> str:
    """What a terminal shows, as HTML in a fixed width."""
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False)
    console.print(shown)
    style = "line-height: normal; font-family: monospace"
    return console.export_html(
        inline_styles=True, code_format=f'<pre style="{style}"><code>{{code}}</code></pre>'
    )


def _convergence(graph: FlowGraph) -> list[str]:
    """A line for each boundary, over all layers."""
    by_boundary: dict[str, list[Convergence]] = {}
    for one in graph.summary():
        by_boundary.setdefault(one.boundary, []).append(one)
    return [
        f"{boundary}: worst completeness error {max(one.worst for one in found):.1e}, "
        f"{sum(one.missed for one in found)} of {sum(one.rows for one in found)} rows further off "
        f"than {found[0].tolerance:g}"
        for boundary, found in by_boundary.items()
    ]


def _page(facts: list[str], figure: Figure | None) -> str:
    text = html_list(facts)
    if figure is None:
        return text
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    # Lines and colour maps in 256 colours are a fifth of the size, which the notebook's file keeps.
    few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(file, "png", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    said = html.escape(facts[0])
    return f'{text}<img alt="{said}" src="data:image/png;base64,{data}">'
