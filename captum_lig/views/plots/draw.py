"""What all charts share: colours, token labels, maps as meshes, showing a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from numpy.typing import NDArray
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.findings import off_diagonal
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import findings, target_rows
from captum_lig.flow.tokens import numbered_tokens, readable_text
from captum_lig.views.plots.text import PLAIN, drawable, font_families

COLORS = ListedColormap(colormaps["RdBu_r"](np.linspace(0.07, 0.93, 256)))
"""Positive red, negative blue: told apart with every common colour blindness. The darkest ends
are left out: they would look alike."""
GREY = "0.85"
"""A token's own row: guide lines, self links, the diagonal where it is 0."""
LABEL_LENGTH = 16
TALLEST_BAR = 5.0
"""Inches; in a longer one the numbers are too far apart."""
LARGEST_VECTOR = 45**2
"""Entries of a map that a vector file holds one by one: more make it some megabytes."""


def text_style() -> dict[str, Any]:
    """Properties of text that is not ours."""
    return {**PLAIN, "family": font_families()}


def token_labels(tokens: Sequence[str], positions: Iterable[int] | None = None) -> list[str]:
    """Tokens as they are drawn, with their positions where two look alike."""
    families = font_families()
    shown = numbered_tokens(tokens, positions, LABEL_LENGTH)
    return [drawable(token, families) for token in shown]


def symmetric(values: NDArray[Any], quantile: float = 1.0, limit: float | None = None) -> Normalize:
    """A colour scale around 0 that ends at ``limit``, or at a quantile of the sizes."""
    if limit is None:
        limit = float(np.quantile(np.abs(values), quantile)) if values.size else 0.0
    elif not limit > 0:
        raise LigError(f"limit={limit}: give a positive number, where the colours end.")
    return Normalize(-(limit or 1.0), limit or 1.0)


@dataclass(frozen=True)
class Panel:
    """One heat map. Padding is gone: positions count the tokens that are left."""

    title: str
    values: NDArray[Any]
    """``(T, S)``, masked where grey is to be seen."""
    targets: NDArray[np.int64]
    """``(T,)`` positions of the targets among the sources."""
    names: list[str]
    """What the ``S`` sources are called."""
    color: Any = "black"
    """Of the title."""

    @property
    def is_self(self) -> NDArray[np.bool_]:
        """``(T, S)`` True where a token is its own source."""
        is_self: NDArray[np.bool_] = self.targets[:, None] == np.arange(len(self.names))
        return is_self

    def without_self(self) -> Panel:
        """The same with self terms in grey."""
        return self.greyed(self.is_self)

    def greyed(self, cells: NDArray[np.bool_]) -> Panel:
        """The same with some cells ``(T, S)`` in grey."""
        values = np.ma.array(self.values)
        values[cells] = np.ma.masked
        return replace(self, values=values)


def make_panel(
    flow: LayerFlow,
    values: Tensor,
    tokens: Sequence[str],
    title: str = "",
    hide_first_token: bool = False,
) -> Panel:
    """A map of a flow of one text, without padding; grey where :func:`grey_cells` says so."""
    rows, kept = target_rows(flow), flow.valid[0]
    positions = kept.nonzero().flatten().tolist()
    names = token_labels([tokens[i] for i in positions], positions)
    matrix = values[rows][:, kept].detach().cpu().double().numpy()
    places = (kept.cumsum(0) - 1)[flow.targets[rows]].cpu().numpy()
    grey = grey_cells(flow, hide_first_token)[rows][:, kept].cpu().numpy()
    panel = Panel(title, matrix, places, names)
    return panel.greyed(grey) if grey.any() else panel


def grey_cells(flow: LayerFlow, hide_first_token: bool) -> Tensor:
    """``(T, S)`` links that are no finding, see :func:`~captum_lig.flow.summary.findings`."""
    return off_diagonal(flow) & ~findings(flow, hide_first_token)


def draw_panels(
    figure: Figure,
    within: tuple[SubplotSpec, SubplotSpec],
    panels: Sequence[Panel],
    columns: int,
    size: tuple[float, float],
    norm: Normalize,
    fontsize: float,
) -> tuple[list[Axes], Axes]:
    """Maps of ``size`` inches each in rows of ``columns``; their axes, and those for the scale.

    ``within`` are the two areas that :func:`areas` gives.
    """
    left, bar = within
    grid = left.subgridspec(math.ceil(len(panels) / columns), columns)
    drawn = []
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        labels = [panel.names[target] for target in panel.targets]
        draw_matrix(axes, panel.values, labels, panel.names, norm, size)
        axes.set_title(panel.title, fontsize=fontsize, color=panel.color)
        first, lowest = index % columns == 0, index + columns >= len(panels)
        axes.tick_params(labelleft=first, labelbottom=lowest)
        axes.set_ylabel("target" if first else "", fontsize=8)
        axes.set_xlabel("source" if lowest else "", fontsize=8)
        drawn.append(axes)
    return drawn, figure.add_subplot(bar)


def draw_matrix(
    axes: Axes,
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    norm: Normalize,
    size: tuple[float, float],
) -> None:
    """A map ``(T, S)`` as a mesh in axes of ``size`` inches, first row on top; masked is grey."""
    axes.set_facecolor(GREY)
    heavy = len(rows) * len(columns) > LARGEST_VECTOR
    mesh = axes.pcolormesh(values, cmap=COLORS, norm=norm, rasterized=heavy)
    if len(columns) <= 64:  # more are too small for a grid
        mesh.set(edgecolor="white", linewidth=min(0.3, 4 / len(columns)))
    axes.invert_yaxis()
    width, height = size
    style = text_style()
    label_axis(axes.xaxis, np.arange(len(columns)) + 0.5, columns, width, 7.0, style)
    label_axis(axes.yaxis, np.arange(len(rows)) + 0.5, rows, height, 7.0, style)
    axes.tick_params("x", labelrotation=90)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


def arrange(tokens: int, maps: int) -> tuple[float, int, int]:
    """Inches a heat map, columns and rows of heat maps: without an empty cell where possible."""
    panel = min(max(2.4, 0.09 * tokens), 6.0)
    least = min(maps, max(int(9.0 / panel), math.ceil(math.sqrt(maps / 1.5))))
    columns = next((n for n in range(least, least + 4) if maps % n == 0), least)
    rows = math.ceil(maps / columns)
    panel = min(panel, max(2.0, 14.0 / columns))
    return max(panel, 4.6 / columns), columns, rows


def curve(start: float, source: int, target: int) -> NDArray[np.float64]:
    """A smooth line from row ``source`` to row ``target``, one column on."""
    t = np.linspace(0, 1, 25)
    ease = t * t * (3 - 2 * t)
    return np.column_stack([start + t, source + (target - source) * ease])


Link = tuple[float, int, int, float]
"""Where its column starts, row of the source, row of the target, and a share."""


def draw_links(
    axes: Axes, links: Sequence[Link], norm: Normalize, thin: float, widest: float, gid: str
) -> None:
    """Links as wide, from ``thin`` to ``widest`` points, and as dark as their size."""
    values = np.array([value for *_, value in links])
    lines = LineCollection(
        [curve(start, source, target) for start, source, target, _ in links],
        linewidths=thin + (widest - thin) * (np.abs(values) / norm.vmax).clip(0, 1),
        cmap=COLORS,
        norm=norm,
        capstyle="butt",
        zorder=3,
    )
    lines.set_array(values)
    lines.set_gid(gid)
    axes.add_collection(lines)


def draw_self_links(axes: Axes, links: Sequence[Link], color: str, widest: float, gid: str) -> None:
    """Links of tokens to themselves; a share of 1 is ``widest`` points wide."""
    sizes = np.abs([value for *_, value in links])
    lines = LineCollection(
        [[(start, row), (start + 1, row)] for start, row, *_ in links],
        linewidths=widest * sizes.clip(0, 1),
        colors=color,
        capstyle="butt",
        zorder=2,
    )
    lines.set_gid(gid)
    axes.add_collection(lines)


def label_rows(axes: Axes, labels: Sequence[str], height: float) -> None:
    """Tokens on both sides of axes of ``height`` inches, first row on top."""
    style = text_style()
    label_axis(axes.yaxis, np.arange(len(labels)), labels, height, 8.0, style)
    axes.tick_params(length=0, labelright=True)
    for tick in axes.yaxis.get_major_ticks():
        tick.label2.update({"fontsize": tick.label1.get_fontsize(), **style})
    axes.spines[:].set_visible(False)


def label_axis(
    axis: Axis,
    places: NDArray[Any],
    labels: Sequence[str],
    length: float,
    size: float,
    style: dict[str, Any],
) -> None:
    """Label an axis of ``length`` inches with tokens, every so many where they would overlap."""
    pitch = 72 * length / len(labels)  # points
    every = max(1, math.ceil(5.0 / pitch))
    size = min(size, 0.85 * every * pitch)
    axis.set_ticks(places[::every], labels[::every], fontsize=size, **style)


def areas(
    within: Figure | SubplotSpec, width: float, height: float
) -> tuple[SubplotSpec, SubplotSpec]:
    """An area of so many inches, and one beside it for the colour scale.

    The scale is short: a long one pushes many rows of maps apart.
    """
    divide = within.add_gridspec if isinstance(within, Figure) else within.subgridspec
    rest = height - TALLEST_BAR
    heights = [TALLEST_BAR, rest] if rest > 0.5 else [height]
    grid = divide(len(heights), 2, width_ratios=[width, 0.12], height_ratios=heights)
    return grid[:, 0], grid[0, 1]


def draw_color_bar(
    figure: Figure,
    axes: Axes,
    norm: Normalize,
    label: str,
    percent: bool = True,
    signed: bool = True,
) -> None:
    """The colour scale, in separate axes; of values without a sign its upper half."""
    extend = "both" if signed else "max"
    bar = figure.colorbar(ScalarMappable(norm, COLORS), cax=axes, extend=extend, extendfrac=0.02)
    if not signed:
        bar.ax.set_ylim(0, norm.vmax)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if percent:
        bar.ax.yaxis.set_major_formatter(
            lambda share, _: f"{100 * share:{'+' if signed else ''}.3g} %" if share else "0 %"
        )


def wrapped(text: str, width: int) -> str:
    """Untrusted text in lines of ``width`` characters that a picture can draw."""
    return textwrap.fill(drawable(readable_text(text), font_families()), width)


def finish(
    figure: Figure, title: str | None, caption: str | None, width: float, show: bool
) -> None:
    """Put a title over a figure of ``width`` inches and say below what it shows: untrusted texts.

    Raises:
        LigError: with ``show``, if matplotlib is too old for it.
    """
    style = text_style()
    if title is not None:
        heading = drawable(readable_text(title), style["family"])
        heading = textwrap.fill(heading, int(width * 10.5), max_lines=2, placeholder=" …")
        figure.suptitle(heading, fontsize=11, x=0.01, ha="left", **style)
    if caption is not None:
        text = drawable(readable_text(caption), style["family"])
        text = textwrap.fill(text, max(20, int(width * 18)))
        figure.supxlabel(text, fontsize=7, x=0.01, ha="left", **style)
    if not show:
        return
    from matplotlib import pyplot

    try:
        pyplot.figure(figure)  # from matplotlib 3.11 on, pyplot adopts a figure it did not make
    except ValueError as error:
        raise LigError(
            "show=True needs matplotlib 3.11 or newer: save the figure with savefig, or leave it "
            "as the last expression of a notebook's cell."
        ) from error
    pyplot.show()
