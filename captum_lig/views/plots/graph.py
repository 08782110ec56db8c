"""The flow graph as a layered picture: what reaches one token, and its strongest routes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.tokens import TokenIndex
from captum_lig.graph import FlowGraph, Route
from captum_lig.graph.trace import shared_out
from captum_lig.views.plots import draw

__all__ = ["plot_graph"]

LINKS = 400
"""About as many links are drawn, the strongest of each layer; more would be a cloud."""
WIDEST = 4.0
ROUTE_COLOR = "#009E73"


def plot_graph(
    graph: FlowGraph,
    target: TokenIndex | Sequence[TokenIndex] | None = None,
    source: TokenIndex | None = None,
    k: int = 3,
    *,
    start: Tensor | Sequence[float] | None = None,
    rule: str = DEFAULT_RULE,
    absolute: bool = False,
    title: str | None = None,
    show: bool = False,
) -> tuple[Figure, Axes]:
    """Draw how relevance comes down from a token at the end to the tokens at the beginning.

    Columns are the residual stream entering each layer and leaving the last, rows are tokens.
    Links carry relevance from the right to the left (all heads together), as wide and dark as it
    is, in grey where it stays with its token; dots are as large as the relevance at a token. The
    ``k`` strongest routes from a source to the target are drawn over them, with layer and head.

    Of a graph with a target it is the relevance to that, in its units: dots are red where it is
    positive and blue where it is negative, squares between the columns are MLPs, and routes run to
    the target from any token. Without one, lengths are shared out, see
    :meth:`FlowGraph.relevance`.

    Args:
        graph: the graph of one text.
        target: the token, or the tokens, at the end; None for all that ``start`` speaks of, or
            else for the last. Of a graph with a target: None.
        source: a token at the beginning whose routes are to be seen; None for the one that most
            of the relevance of other tokens arrives at, in a graph with a target for any.
        k: how many routes; 0 for none. They go to one target.
        start: relevance at the end, see :meth:`FlowGraph.relevance`: for example of a logit, in
            its units; None for 1 at each target, of which all else is a share.
        rule: composition rule, see :meth:`FlowGraph.relevance`.
        absolute: see :meth:`FlowGraph.relevance`; routes are always signed.
        title: a title.
        show: also show the figure through pyplot.

    Raises:
        LigError: tokens or a rule that do not exist; what a graph with a target refuses, see
            :meth:`FlowGraph.relevance`.
    """
    lengths = graph.target is None
    if lengths:
        target = -1 if target is None and start is None else target
        trace = shared_out(graph, target, start, rule, absolute)
    else:
        trace = graph.relevance(target, start, rule=rule, absolute=absolute)
        if title is None:
            title = f"{graph.target}: {graph.change:+.4g}"
    labels = draw.token_labels(graph.tokens)
    columns, tokens = len(graph.layers), len(labels)
    relevance = trace.tokens.cpu().numpy()
    ends = [int(end) for end in np.flatnonzero(relevance[-1])]
    # Of a token's own relevance to the target more may stand below than at the end.
    whole = float(np.abs(relevance[-1:] if lengths else relevance).max(initial=0.0)) or 1.0
    links = _links(graph, trace.tokens, rule, absolute)
    others = [link for link in links if link[1] != link[2]]
    to_itself = [link for link in links if link[1] == link[2]]
    # Links of a token to itself are far larger: the scale leaves them out.
    norm = draw.symmetric(np.array([value for *_, value in others]), 0.99)

    column = min(1.5, max(0.35, 9 / columns))
    height = min(max(1.8, 0.2 * tokens), 16.0)
    width = column * columns + 2.6
    figure = Figure(figsize=(width, height + 1.3), layout="constrained")
    left, bar = draw.areas(figure, width - 0.9, height)
    axes = figure.add_subplot(left)
    axes.hlines(np.arange(tokens), 0, columns, colors=draw.GREY, linewidths=0.5, zorder=1)
    kept = [(column, row, row, value / whole) for column, row, _, value in to_itself]
    draw.draw_self_links(axes, kept, "0.7", WIDEST, "self links")
    draw.draw_links(axes, others, norm, 0.2, WIDEST, "links")
    _draw_nodes(axes, relevance / whole, signed=not lengths)
    if trace.feed_forward is not None:
        mlps = trace.feed_forward.cpu().numpy() / whole
        _draw_nodes(axes, mlps, signed=True, shift=0.5, marker="s", gid="MLPs")
    if lengths:
        routes = _routes(graph, ends, source, relevance, k, rule)
    else:
        routes = graph.paths(source, k=k) if k else []
    _draw_routes(axes, routes, graph.indices[0])
    axes.set_xlim(-0.1, columns + 0.1)
    axes.set_ylim(tokens - 0.5, -0.7)
    every = max(1, round(0.3 / column))
    names = [f"layer {index}" if column > 0.7 else str(index) for index in graph.indices]
    axes.set_xticks(
        np.arange(columns)[::every] + 0.5, names[::every], fontsize=8 if column > 0.7 else 7
    )
    axes.xaxis.tick_top()
    if column <= 0.7:
        axes.set_xlabel("layer", fontsize=8)
        axes.xaxis.set_label_position("top")
    draw.label_rows(axes, labels, height)
    label = "relevance carried" + (", absolute" if absolute else "")
    shares = lengths and start is None
    draw.draw_color_bar(figure, figure.add_subplot(bar), norm, label, percent=shares)
    caption = _caption(graph, ends, routes, rule) if lengths else _target_caption(graph, routes)
    draw.finish(figure, title, caption, width, show)
    return figure, axes


def _links(graph: FlowGraph, relevance: Tensor, rule: str, absolute: bool) -> list[draw.Link]:
    """The strongest links of each layer, weakest first."""
    found: list[draw.Link] = []
    most = _links_a_layer(graph)
    for column, layer in enumerate(graph.layers):
        carried = layer.links(relevance[column + 1], rule, absolute).cpu().numpy()
        for flat in np.argsort(np.abs(carried), axis=None)[-most:]:
            target, source = divmod(int(flat), carried.shape[1])
            if carried[target, source]:
                found.append((column, source, target, float(carried[target, source])))
    return sorted(found, key=lambda link: abs(link[3]))


def _links_a_layer(graph: FlowGraph) -> int:
    return max(20, LINKS // len(graph.layers))


def _draw_nodes(
    axes: Axes,
    relevance: NDArray[np.float64],
    signed: bool = False,
    shift: float = 0.0,
    marker: str = "o",
    gid: str = "nodes",
) -> None:
    """Marks as large as what is there, in columns that lie ``shift`` further to the right."""
    positions, values = np.argwhere(relevance != 0), relevance[relevance != 0]
    axes.scatter(
        positions[:, 0] + shift,
        positions[:, 1],
        s=2 + 60 * np.abs(values).clip(0, 1),
        color=draw.COLORS(np.where(values < 0, 0.1, 0.9)) if signed else "0.25",
        marker=marker,
        linewidths=0,
        zorder=4,
    ).set_gid(gid)


def _routes(
    graph: FlowGraph,
    ends: list[int],
    source: TokenIndex | None,
    relevance: NDArray[np.float64],
    k: int,
    rule: str,
) -> list[Route]:
    if k == 0 or len(ends) != 1:
        if source is not None and k:
            raise LigError(f"target={ends} is not one token: routes go to one, or give k=0.")
        return []
    if source is None:
        others = np.abs(relevance[0])
        others[ends[0]] = 0
        source = int(others.argmax())
    return graph.paths(source, ends[0], k, rule=rule)


def _draw_routes(axes: Axes, routes: list[Route], first: int) -> None:
    """A line for each link of the routes, with all heads and MLPs that a route takes there."""
    links: dict[tuple[int, int, int], list[str]] = {}
    for route in routes:
        for step in route.steps:
            taken = links.setdefault((step.layer - first, step.source, step.target), [])
            names = [] if step.head is None else [str(step.head)]
            name = "+".join(names + ["mlp"] * step.feed_forward)
            if name and name not in taken:
                taken.append(name)
    for (column, source, target), taken in links.items():
        line = draw.curve(column, source, target)
        axes.plot(line[:, 0], line[:, 1], color=ROUTE_COLOR, linewidth=1.2, zorder=4)
        if taken:
            axes.annotate(
                ",".join(taken) if taken[0] == "mlp" else "h" + ",".join(taken),
                (column + 0.5, (source + target) / 2),
                fontsize=6.5,
                color="white",
                ha="center",
                va="center",
                bbox={"boxstyle": "round,pad=0.15", "color": ROUTE_COLOR},
                zorder=5,
            )


def _target_caption(graph: FlowGraph, routes: list[Route]) -> str:
    text = (
        f"Relevance to {graph.target} of the tokens leaving the last layer (right), and of what "
        "leads to them (left), in its units: dots, and squares for MLPs, by size, red for it and "
        f"blue against it; the strongest links of each layer (at most {_links_a_layer(graph)}), "
        "all heads together, in grey what stays with its token. "
    )
    if routes:
        text += (
            f"Green: the strongest routes, with {', '.join(f'{one.share:.2g}' for one in routes)} "
            "of the sizes of all; h: head. "
        )
    return text + f"Baseline {graph.baseline.rstrip('.')}."


def _caption(graph: FlowGraph, ends: list[int], routes: list[Route], rule: str) -> str:
    labels = draw.token_labels(graph.tokens)
    names = ", ".join(labels[end] for end in ends)
    if len(ends) > 8:
        names = f"{len(ends)} tokens"
    text = (
        f"Relevance of {names} (right) handed down to the tokens entering layer "
        f"{graph.indices[0]} (left), rule {rule}: the strongest links of each layer (at most "
        f"{_links_a_layer(graph)}), all heads together, in grey where it stays with its token. "
    )
    if routes:
        start, end = labels[routes[0].steps[0].source], labels[routes[0].steps[-1].target]
        text += (
            f"Green: the strongest routes from {start} to {end}, with shares "
            f"{', '.join(f'{route.share:+.2g}' for route in routes)}; h: head. "
        )
    return text + f"Baseline {graph.baseline}, scalarization {graph.scalarization}."
