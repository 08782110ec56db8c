"""What a notebook shows of a flow or a graph by itself: a few facts and a picture."""

from __future__ import annotations

import base64
import html
import io

from matplotlib.figure import Figure

from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import TOLERANCE, target_rows
from captum_lig.flow.tokens import readable_token
from captum_lig.graph import Convergence, FlowGraph
from captum_lig.views.plots.graph import plot_graph
from captum_lig.views.plots.maps import plot_layers, plot_map

__all__ = ["flow_html", "graph_html"]


def flow_html(flow: LayerFlow) -> str:
    """A layer of the first text, as HTML without scripts; tokens are numbered, it has no names."""
    texts, sources = flow.valid.shape
    facts = [
        f"layer {flow.index} ({flow.name})",
        f"{texts} text{'s' * (texts != 1)}, {len(flow.targets)} targets, {sources} sources",
        f"baseline {flow.baseline}, scalarization {flow.scalarization}",
    ]
    tolerance = TOLERANCE if flow.tolerance is None else flow.tolerance
    for boundary in flow.checked:
        error = flow.completeness_error(boundary)
        facts.append(
            f"{boundary}: worst completeness error {float(error.max()):.1e}, "
            f"{int((error <= tolerance).sum())} of {error.numel()} rows within {tolerance:g}"
        )
    first = flow.select(0)
    figure: Figure | None = None
    if len(target_rows(first)):
        tokens = [str(position) for position in range(sources)]
        if first.layer is not None:
            figure, _ = plot_layers([first], tokens)
        elif first.attention is not None:
            figure, _ = plot_map(
                first.attention[0].sum(0),
                tokens,
                first.targets.tolist(),
                label="attention attributions, sum over heads",
            )
    return _page(facts, figure)


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
        return _page(facts, plot_graph(graph, k=0)[0])
    known = graph.layers[-1].known.nonzero().flatten().tolist()
    # Relevance cannot be handed down to tokens that were no targets.
    whole = all(bool(layer.known.all()) for layer in graph.layers[:-1])
    figure = plot_graph(graph, known[-1], k=0)[0] if known and whole else None
    return _page(facts, figure)


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
    text = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    if figure is None:
        return f"<ul>{text}</ul>"
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=72)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<ul>{text}</ul><img alt="" src="data:image/png;base64,{data}">'
