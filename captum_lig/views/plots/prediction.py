"""A prediction explained as a picture: tokens, and the heads and MLPs that carry it, by depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from captum_lig._arguments import whole_number
from captum_lig.errors import LigError
from captum_lig.graph import FlowGraph
from captum_lig.graph.target_layer import TargetLayer
from captum_lig.views.plots import draw

__all__ = ["plot_prediction"]

WIDEST = 7.0
"""Points, of a line that carries as much as the largest node."""
MOST_TOKENS = 12
"""As many tokens have a column, besides those that a node that is drawn stands at or reads."""
LEAST = 0.1
"""Of the largest relevance, what a token needs for a column; of a head's largest edge, what
another of its edges needs."""
FOR, AGAINST = draw.COLORS(0.92), draw.COLORS(0.08)


@dataclass(frozen=True)
class _Node:
    """A head or an MLP that is drawn."""

    layer: int
    """Its row in the graph."""
    position: int
    value: float
    name: str
    is_head: bool
    sources: tuple[tuple[int, float], ...] = ()
    """Of a head: positions that it reads, and how much came from each."""

    @property
    def height(self) -> float:
        return self.layer + (0.35 if self.is_head else 0.72)


def plot_prediction(
    graph: FlowGraph,
    nodes: int = 10,
    title: str | None = None,
    *,
    height: float | None = None,
    show: bool = False,
) -> tuple[Figure, Axes]:
    """Draw which tokens a number of the model came from, and through which heads and MLPs.

    Tokens stand side by side, depth runs upwards, from the tokens that enter the first layer to
    the number. A token's line is as wide as its relevance at that depth; circles are heads, with
    lines from the tokens that they read; squares are MLPs. Red is for the number, blue against
    it. Tokens without a part in it are left out (dots).

    Args:
        graph: of flows with a target.
        nodes: how many heads and MLPs are drawn, the strongest.
        title: a title; None for the target and its change.
        height: of the drawing in inches; None: as the depth needs.
        show: also show the figure through pyplot.

    Raises:
        LigError: for a graph of lengths, or fewer than 0 nodes.
    """
    if graph.target is None or graph.change is None:
        raise LigError(
            "the graph has no target: attribute one, LayerFlowIG.attribute(..., target=...), or "
            "draw lengths with plot_graph or plot_flow."
        )
    whole_number("nodes", nodes, 0)
    trace = graph.relevance()
    relevance = trace.tokens.cpu().numpy()
    drawn = _strongest(graph, nodes)
    largest = float(np.abs(relevance).max(initial=0.0)) or 1.0
    kept = _columns(relevance, drawn, largest)
    column = {position: x for x, position in enumerate(kept)}
    depth = len(graph.layers)

    width = max(5.2, 1.15 * len(kept) + 1.4)
    if height is None:
        height = min(8.2, max(3.6, 0.24 * depth + 1.2))
    layer = (72 * height - 46) / (depth + 0.25)  # its height in points, about
    figure = Figure(figsize=(width, height + 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.vlines(range(len(kept)), 0, depth, colors=draw.GREY, linewidths=0.6, zorder=1)
    _draw_streams(axes, relevance[:, kept], largest)
    _draw_edges(axes, drawn, column, largest)
    _draw_number(axes, graph, relevance[-1], column, largest, depth + 28 / layer)
    _draw_nodes(axes, drawn, column, layer)

    labels = draw.token_labels([graph.tokens[position] for position in kept])
    style = draw.text_style()
    axes.set_xlim(-0.85, len(kept) - 0.15)
    axes.set_ylim(-0.25, depth + 46 / layer)
    axes.set_xticks(range(len(kept)), labels, fontsize=9, **style)
    _mark_gaps(axes, kept, len(graph.tokens))
    every = max(1, round(depth / 12))
    names = [str(index) for index in graph.indices]
    axes.set_yticks(np.arange(depth)[::every] + 0.5, names[::every], fontsize=7)
    axes.set_ylabel("layer", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if title is None:
        title = f"{graph.target}: {graph.change:+.4g}"
    draw.finish(figure, title, _caption(graph, len(drawn)), width, show)
    return figure, axes


def _strongest(graph: FlowGraph, count: int) -> list[_Node]:
    """Heads and MLPs together, strongest first."""
    if count == 0:
        return []
    trace = graph.relevance()
    rows = {index: row for row, index in enumerate(graph.indices)}
    found = []
    for _, index, head, position, value in trace.strongest_heads(count):
        layer = graph.layers[rows[index]]
        assert isinstance(layer, TargetLayer)
        edges = layer.attention[head, position].cpu().numpy()
        least = LEAST * np.abs(edges).max(initial=0.0)
        order = np.argsort(-np.abs(edges))[:3]
        read = tuple((int(i), float(edges[i])) for i in order if abs(edges[i]) > least)
        found.append(_Node(rows[index], position, value, f"{index}.{head}", True, read))
    if trace.feed_forward is not None:
        for _, index, position, value in trace.strongest_feed_forward(count):
            found.append(_Node(rows[index], position, value, f"MLP {index}", False))
    found.sort(key=lambda node: -abs(node.value))
    return [node for node in found[:count] if node.value]


def _columns(relevance: NDArray[np.float64], nodes: list[_Node], largest: float) -> list[int]:
    """Positions of the tokens that are drawn, in the order of the text."""
    sizes = np.abs(relevance).max(0)
    strongest = [i for i in np.argsort(-sizes)[:MOST_TOKENS] if sizes[i] >= LEAST * largest]
    needed = {node.position for node in nodes}
    needed |= {position for node in nodes for position, _ in node.sources}
    return sorted(needed | {int(i) for i in strongest} or {0})


def _draw_streams(axes: Axes, relevance: NDArray[np.float64], largest: float) -> None:
    """The residual stream of each token, from half a layer below each depth to half above."""
    lines, widths, colors = [], [], []
    depth = len(relevance) - 1
    for row, values in enumerate(relevance):
        for x, value in enumerate(values):
            lines.append([(x, max(row - 0.5, 0)), (x, min(row + 0.5, depth))])
            widths.append(WIDEST * min(abs(value) / largest, 1))
            colors.append(FOR if value > 0 else AGAINST)
    streams = LineCollection(
        lines, linewidths=widths, colors=colors, alpha=0.45, capstyle="butt", zorder=2
    )
    streams.set_gid("streams")
    axes.add_collection(streams)


def _draw_edges(axes: Axes, nodes: list[_Node], column: dict[int, int], largest: float) -> None:
    """From the tokens entering a layer to the heads that read them."""
    for node in nodes:
        for position, value in node.sources:
            start, end = column[position], column[node.position]
            bend = np.linspace(0, 1, 25)
            ease = bend * bend * (3 - 2 * bend)
            axes.plot(
                start + (end - start) * ease,
                node.layer + (node.height - node.layer) * bend,
                color=FOR if value > 0 else AGAINST,
                linewidth=max(0.6, WIDEST * min(abs(value) / largest, 1)),
                solid_capstyle="butt",
                alpha=0.8,
                zorder=3,
            )


def _draw_nodes(axes: Axes, nodes: list[_Node], column: dict[int, int], layer: float) -> None:
    """Marks, with names and values beside them: MLPs on the left, heads on the right.

    ``layer`` is the height of a layer in points.
    """
    largest = max((abs(node.value) for node in nodes), default=1.0)
    sides: dict[tuple[int, bool], list[_Node]] = {}
    for node in nodes:
        x = column[node.position]
        sides.setdefault((x, node.is_head), []).append(node)
        axes.scatter(
            x,
            node.height,
            s=20 + 90 * abs(node.value) / largest,
            marker="o" if node.is_head else "s",
            color=FOR if node.value > 0 else AGAINST,
            edgecolors="white",
            linewidths=0.8,
            zorder=6 - abs(node.value) / largest,
        )
    for (x, right), here in sides.items():
        here.sort(key=lambda node: (node.height, abs(node.value)))
        for node, y in zip(here, _apart([n.height for n in here], 10.5 / layer), strict=True):
            axes.annotate(
                f"{node.name}  {node.value:+.3g}",
                (x, node.height),
                (9 if right else -9, (y - node.height) * layer + (0 if right else 5)),
                textcoords="offset points",
                fontsize=7.5,
                ha="left" if right else "right",
                va="center",
                bbox={"boxstyle": "round,pad=0.1", "color": "white", "alpha": 0.8},
                zorder=7,
            )


def _apart(heights: list[float], least: float) -> list[float]:
    """Heights in rising order, moved as little as keeps them ``least`` apart."""
    groups: list[list[float]] = []  # each of a middle and a count
    for height in heights:
        groups.append([height, 1])
        while len(groups) > 1:
            (low, few), (high, many) = groups[-2:]
            if high - low >= least * (few + many) / 2:
                break
            groups[-2:] = [[(low * few + high * many) / (few + many), few + many]]
    return [
        middle + least * (rank - (count - 1) / 2)
        for middle, count in groups
        for rank in range(int(count))
    ]


def _draw_number(
    axes: Axes,
    graph: FlowGraph,
    leaving: NDArray[np.float64],
    column: dict[int, int],
    largest: float,
    top: float,
) -> None:
    """The number at height ``top``, with lines from the tokens that it is read from."""
    depth = len(graph.layers)
    parts = {position: float(leaving[position]) for position in column}
    most = max(parts, key=lambda position: abs(parts[position]))
    for position, value in parts.items():
        if abs(value) >= LEAST * abs(parts[most]):
            axes.plot(
                [column[position], column[most]],
                [depth, top],
                color=FOR if value > 0 else AGAINST,
                linewidth=max(0.6, WIDEST * abs(value) / largest),
                alpha=0.45,
                solid_capstyle="butt",
                zorder=2,
            )
    axes.annotate(
        f"{graph.change:+.3g}",
        (column[most], top),
        fontsize=10,
        weight="bold",
        ha="center",
        va="center",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "0.4"},
        zorder=8,
    )


def _mark_gaps(axes: Axes, kept: list[int], tokens: int) -> None:
    """Dots in the row of words where tokens of the text have no column."""
    for x, (left, right) in enumerate(zip([-1, *kept], [*kept, tokens], strict=True)):
        if right - left > 1:
            axes.annotate(
                "···",
                (x - 0.5, 0),
                (0, -11),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                ha="center",
                va="center",
                color="0.4",
            )


def _caption(graph: FlowGraph, nodes: int) -> str:
    return (
        "Upwards: depth, from the tokens that enter the first layer to the number that is "
        f"explained. Lines: tokens, as wide as their part in the change. The {nodes} strongest "
        "nodes: circles are heads (layer.head) with lines from what they read, squares MLPs. Red "
        "is for the number, blue against it. Parts of tokens at one depth add up to the change, "
        f"{graph.change:+.3g}; heads and MLPs follow one another, and theirs do not."
    )
