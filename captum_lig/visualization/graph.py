"""The flow graph as a layered picture: what reaches one token, and its strongest routes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from captum_lig.errors import LigError
from captum_lig.graph import FlowGraph, Route
from captum_lig.visualization._draw import (
    COLORS,
    GREY,
    curve,
    draw_color_bar,
    label_axis,
    set_caption,
    set_title,
    show_figure,
    symmetric,
    text_style,
    token_labels,
)

__all__ = ["plot_graph"]

LINKS = 400
"""Most links drawn, the strongest; more would be a cloud."""
WIDEST = 4.0
ROUTE_COLOR = "#009E73"


def plot_graph(
    graph: FlowGraph,
    target: int | Sequence[int],
    source: int | None = None,
    k: int = 3,
    *,
    rule: str = "conserve",
    absolute: bool = False,
    title: str | None = None,
    show: bool = False,
) -> tuple[Figure, Axes]:
    """Draw how relevance comes down from a token at the end to the tokens at the beginning.

    Columns are the residual stream entering each layer and leaving the last, rows are tokens.
    Links carry relevance from the right to the left (all heads together), as wide and dark as it
    is, in grey where it stays with its token; dots are as large as the relevance at a token. With a
    source, its ``k`` strongest routes
    to the target are drawn over them, with layer and head.

    Args:
        graph: the graph of one text.
        target: the token, or the tokens, at the end.
        source: a token at the beginning whose routes are to be seen; None for the one that most
            of the relevance of other tokens arrives at.
        k: how many routes; 0 for none.
        rule: composition rule, see :meth:`FlowGraph.relevance`.
        absolute: see :meth:`FlowGraph.relevance`; routes are always signed.
        title: a title.
        show: also show the figure through pyplot.

    Raises:
        LigError: tokens or a rule that do not exist.
    """
    trace = graph.relevance(target, rule=rule, absolute=absolute)
    labels = token_labels(graph.tokens)
    columns, tokens = len(graph.layers), len(labels)
    ends = [target] if isinstance(target, int) else list(target)
    relevance = trace.tokens.cpu().numpy()
    links = _links(graph, relevance, rule, absolute)
    others = [link for link in links if link[1] != link[2]]
    own = [link for link in links if link[1] == link[2]]
    # Made for links between tokens: what stays where it is would outshine them.
    norm = symmetric(np.array([value for *_, value in others]), 0.99)

    column = min(1.5, max(0.45, 14 / columns))
    height = min(max(1.8, 0.2 * tokens), 16.0)
    width = column * columns + 2.6
    figure = Figure(figsize=(width, height + 1.3), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[width - 0.9, 0.12])
    axes = figure.add_subplot(grid[0, 0])
    axes.hlines(np.arange(tokens), 0, columns, colors=GREY, linewidths=0.5, zorder=1)
    axes.add_collection(_stays(own))
    axes.add_collection(_moves(others, norm))
    _draw_nodes(axes, relevance)
    routes = _routes(graph, ends, source, relevance, k, rule)
    for route in routes:
        _draw_route(axes, route, graph.indices[0], column)
    axes.set_xlim(-0.1, columns + 0.1)
    axes.set_ylim(tokens - 0.5, -0.7)
    every = max(1, round(0.3 / column))
    names = [f"layer {index}" if column > 0.7 else str(index) for index in graph.indices]
    axes.set_xticks(
        np.arange(columns)[::every] + 0.5, names[::every], fontsize=8 if column > 0.7 else 7
    )
    axes.xaxis.tick_top()
    style = text_style()
    label_axis(axes.yaxis, np.arange(tokens), labels, height, 8.0, style)
    axes.tick_params(length=0, labelright=True)
    for tick in axes.yaxis.get_major_ticks():
        tick.label2.update({"fontsize": tick.label1.get_fontsize(), **style})
    axes.spines[:].set_visible(False)
    label = "relevance carried" + (", absolute" if absolute else "")
    draw_color_bar(figure, figure.add_subplot(grid[0, 1]), norm, label)
    set_title(figure, title, width)
    set_caption(figure, _caption(graph, ends, routes, len(links), rule), width)
    if show:
        show_figure(figure)
    return figure, axes


Link = tuple[int, int, int, float]
"""Column, source, target, relevance carried."""


def _links(
    graph: FlowGraph, relevance: NDArray[np.float64], rule: str, absolute: bool
) -> list[Link]:
    """The strongest links, weakest first."""
    found: list[Link] = []
    for column, layer in enumerate(graph.layers):
        matrix = layer.shares(rule, absolute).matrix.cpu().numpy()
        carried = matrix * relevance[column + 1][:, None]
        for target, source in zip(*np.nonzero(carried), strict=True):
            found.append((column, int(source), int(target), float(carried[target, source])))
    found.sort(key=lambda link: abs(link[3]))
    return found[-LINKS:]


def _moves(links: list[Link], norm: Normalize) -> LineCollection:
    values = np.array([value for *_, value in links])
    collection = LineCollection(
        [curve(column, source, target) for column, source, target, _ in links],
        linewidths=0.2 + (WIDEST - 0.2) * (np.abs(values) / norm.vmax).clip(0, 1),
        cmap=COLORS,
        norm=norm,
        capstyle="butt",
        zorder=2,
    )
    collection.set_array(values)
    collection.set_gid("links")
    return collection


def _stays(links: list[Link]) -> LineCollection:
    """What comes down to the same token; all of the relevance is the full width."""
    values = np.array([value for *_, value in links])
    collection = LineCollection(
        [[(column, source), (column + 1, source)] for column, source, *_ in links],
        linewidths=WIDEST * np.abs(values).clip(0, 1),
        colors="0.7",
        capstyle="butt",
        zorder=1.5,
    )
    collection.set_gid("self links")
    return collection


def _draw_nodes(axes: Axes, relevance: NDArray[np.float64]) -> None:
    places = np.argwhere(relevance != 0)
    sizes = np.abs(relevance[relevance != 0]).clip(0, 1)
    dots = axes.scatter(
        places[:, 0], places[:, 1], s=2 + 60 * sizes, color="0.25", linewidths=0, zorder=3
    )
    dots.set_gid("nodes")


def _routes(
    graph: FlowGraph,
    ends: list[int],
    source: int | None,
    relevance: NDArray[np.float64],
    k: int,
    rule: str,
) -> list[Route]:
    if k == 0 or len(ends) != 1:
        if source is not None and k:
            raise LigError(f"target={ends} are several tokens: routes go to one, or give k=0.")
        return []
    if source is None:
        others = np.abs(relevance[0])
        others[ends[0]] = 0
        source = int(others.argmax())
    return graph.paths(source, ends[0], k, rule=rule)


def _draw_route(axes: Axes, route: Route, first: int, column: float) -> None:
    for step in route.steps:
        line = curve(step.layer - first, step.source, step.target)
        axes.plot(line[:, 0], line[:, 1], color=ROUTE_COLOR, linewidth=1.2, zorder=4)
        if step.head is not None and column > 0.4:
            axes.annotate(
                f"h{step.head}",
                (step.layer - first + 0.5, (step.source + step.target) / 2),
                fontsize=6.5,
                color="white",
                ha="center",
                va="center",
                bbox={"boxstyle": "round,pad=0.15", "color": ROUTE_COLOR},
                zorder=5,
            )


def _caption(graph: FlowGraph, ends: list[int], routes: list[Route], links: int, rule: str) -> str:
    names = ", ".join(token_labels([graph.tokens[end] for end in ends]))
    text = (
        f"Relevance of {names} (right) handed down to the tokens entering layer "
        f"{graph.indices[0]} (left), rule {rule}: the {links} strongest links, all heads together, "
        "in grey where it stays with its token. "
    )
    if routes:
        start, end = token_labels([routes[0].labels[0], routes[0].labels[-1]])
        text += (
            f"Green: the {len(routes)} strongest routes from {start} to {end}, which carry "
            f"{', '.join(f'{route.share:+.2g}' for route in routes)}; h: head. "
        )
    return text + f"Baseline {graph.baseline}, scalarization {graph.scalarization}."
