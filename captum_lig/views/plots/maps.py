"""Token-to-token maps: one, one a head, one a layer, and two beside each other.

Every function returns ``(figure, axes)``, and the figure belongs to no window and no pyplot state.
Colours are symmetric around 0. A map's numbers are in its mesh,
``axes.collections[0].get_array()``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import one_text, shares, target_rows
from captum_lig.views.plots.draw import (
    areas,
    arrange,
    draw_color_bar,
    draw_matrix,
    set_caption,
    set_title,
    show_figure,
    symmetric,
    token_labels,
)

__all__ = ["plot_compared", "plot_heads", "plot_layers", "plot_map"]

SHARE = "share of the target's total"


@dataclass(frozen=True)
class _Panel:
    title: str
    values: NDArray[Any]
    """``(T, S)``, masked where grey is to be seen."""
    rows: list[str]
    columns: list[str]
    is_self: NDArray[np.bool_]
    """``(T, S)`` True where a token is its own source; left out of the colour scale, since self
    terms of a zero baseline are far larger than links."""


def plot_map(
    values: Tensor | NDArray[Any],
    tokens: Sequence[str],
    targets: Sequence[int] | None = None,
    *,
    title: str | None = None,
    limit: float | None = None,
    percent: bool = False,
    label: str = "attribution",
    show: bool = False,
) -> tuple[Figure, Axes]:
    """Draw one map ``[target, source]`` as it is.

    Args:
        values: ``(T, S)``.
        tokens: what the sources are called, ``S`` of them.
        targets: positions of the targets among the tokens; None if every token is a target.
        title: a title; plain text, whatever it contains.
        limit: where the colours end; None for the largest size in the map.
        percent: label the colours as percentages.
        label: what the colours mean.
        show: also show the figure through pyplot.

    Raises:
        LigError: if the map does not fit the tokens, or holds numbers that are not finite.
    """
    matrix = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, float)
    rows = list(range(len(tokens))) if targets is None else [int(target) for target in targets]
    if matrix.shape != (len(rows), len(tokens)):
        raise LigError(
            f"the map has shape {matrix.shape}, and there are {len(rows)} targets and "
            f"{len(tokens)} tokens: give one map (T, S), and every token of the text."
        )
    if not np.isfinite(matrix).all():
        raise LigError("the map holds numbers that are not finite: there is nothing to draw there.")
    names = token_labels(tokens)
    panel = _Panel("", matrix, [names[row] for row in rows], names, np.zeros(matrix.shape, bool))
    figure, axes = _draw([panel], limit, title, label, None, show, quantile=1.0, percent=percent)
    return figure, axes[0]


def plot_heads(
    flow: LayerFlow,
    tokens: Sequence[str],
    rule: str | None = None,
    *,
    title: str | None = None,
    limit: float | None = None,
    show: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw one map a head of one layer.

    Args:
        flow: one layer of one text.
        tokens: the text's tokens, one for each source.
        rule: None for the attention boundary, each head's rows as shares of its own output; a
            composition rule for what the head carries, as shares of the token leaving the layer.
        title: a title.
        limit: where the colours end; None for the 99th percentile of sizes.
        show: also show the figure through pyplot.

    Raises:
        LigError: if flow and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    one_text([flow], tokens)
    if rule is None:
        if flow.attention is None or flow.attention_total is None:
            raise LigError(
                "this flow has no 'attention' boundary: name it in boundaries=(...) when calling "
                "LayerFlowIG.attribute."
            )
        values, size = flow.attention[0], flow.attention_total[0][..., None]
        label = "share of the head's output"
    else:
        values = flow.compose(rule, by_head=True)[0]
        if rule == "product":
            size = values.abs().sum((0, 2))[:, None]
            label = "share of the row's absolute sum over heads"
        else:
            assert flow.mlp_total is not None
            size, label = flow.mlp_total[0][:, None], SHARE
    parts = torch.where(size > 0, values / size, 0.0)
    panels = []
    for head, part in enumerate(parts):
        carried = part[target_rows(flow)].abs().sum(-1).mean().item()
        name = f"head {head}" if rule is None else f"head {head} · {carried:.0%}"
        panels.append(_panel(flow, part, tokens, name))
    caption = (
        f"Layer {flow.index}, {'attention boundary' if rule is None else f'composed by {rule}'}. "
        f"Baseline {flow.baseline}, scalarization {flow.scalarization}."
        + ("" if rule is None else " Per cent: mean over targets of the sizes of a head's row.")
    )
    return _draw(panels, limit, title, label, caption, show)


def plot_layers(
    flows: Sequence[LayerFlow],
    tokens: Sequence[str],
    rule: str | None = None,
    *,
    title: str | None = None,
    limit: float | None = None,
    show: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw one map ``z -> z'`` a layer, as shares of the targets.

    Args:
        flows: the flows of one text.
        tokens: the text's tokens, one for each source.
        rule: None for the direct map, or a composition rule.
        title: a title.
        limit: where the colours end; None for the 99th percentile of sizes of links between
            different tokens.
        show: also show the figure through pyplot.

    Raises:
        LigError: if flows and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    one_text(flows, tokens)
    panels = [_panel(flow, shares(flow, rule), tokens, f"layer {flow.index}") for flow in flows]
    caption = (
        f"{'Direct maps' if rule is None else f'Maps composed by {rule}'}. "
        f"Baseline {flows[0].baseline}, scalarization {flows[0].scalarization}."
    )
    return _draw(panels, limit, title, SHARE, caption, show)


def plot_compared(
    flow: LayerFlow,
    tokens: Sequence[str],
    rule: str = "conserve",
    *,
    title: str | None = None,
    limit: float | None = None,
    show: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw the composed map, the direct one, and their difference, on one scale.

    Args:
        flow: one layer of one text with all three boundaries.
        tokens: the text's tokens, one for each source.
        rule: composition rule.
        title: a title.
        limit: where the colours end; None for the 99th percentile of sizes of links between
            different tokens.
        show: also show the figure through pyplot.

    Raises:
        LigError: if flow and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    one_text([flow], tokens)
    direct = shares(flow, None)
    assert flow.layer_total is not None
    total = flow.layer_total[0][:, None]  # scales both, the product rule too
    composed = torch.where(total > 0, flow.compose(rule)[0] / total, 0.0)
    off = flow.agreement(rule)[0, target_rows(flow)].nanmean().item()
    panels = [
        _panel(flow, composed, tokens, f"composed by {rule}"),
        _panel(flow, direct, tokens, "direct"),
        _panel(flow, composed - direct, tokens, "composed - direct"),
    ]
    caption = (
        f"Layer {flow.index}: the composed map is off by "
        f"{'n/a' if math.isnan(off) else f'{off:.0%}'} (distance over the size of the direct row, "
        f"mean over targets). Baseline {flow.baseline}, scalarization {flow.scalarization}."
    )
    return _draw(panels, limit, title, SHARE, caption, show, columns=3)


def _panel(flow: LayerFlow, values: Tensor, tokens: Sequence[str], title: str) -> _Panel:
    """The map without padding, and without self terms where they are 0 by construction."""
    rows, kept = target_rows(flow), flow.valid[0]
    matrix = np.ma.array(values[rows][:, kept].detach().cpu().double().numpy())
    positions = (kept.cumsum(0) - 1)[flow.targets[rows]].cpu().numpy()
    is_self: NDArray[np.bool_] = positions[:, None] == np.arange(matrix.shape[1])
    if flow.baseline == "target_token":
        matrix[is_self] = np.ma.masked
    names = token_labels([tokens[int(i)] for i in kept.nonzero()])
    return _Panel(title, matrix, [names[i] for i in positions], names, is_self)


def _draw(
    panels: list[_Panel],
    limit: float | None,
    title: str | None,
    label: str,
    caption: str | None,
    show: bool,
    *,
    quantile: float = 0.99,
    percent: bool = True,
    columns: int | None = None,
) -> tuple[Figure, list[Axes]]:
    rows_shown, tokens = len(panels[0].rows), len(panels[0].columns)
    links = [np.asarray(panel.values)[~panel.is_self] for panel in panels]
    norm = symmetric(np.concatenate(links), quantile, limit)
    width, found, rows = arrange(tokens, len(panels))
    if columns is not None:
        found, rows = columns, math.ceil(len(panels) / columns)
    columns = found
    if len(panels) > 1:
        width = min(width, max(2.0, 0.09 * tokens, 11.0 / columns))
    height = min(width * rows_shown / tokens, max(1.2, 0.4 * rows_shown))
    full = columns * width + 1.7
    figure = Figure(figsize=(full, rows * (height + 0.45) + 1.1), layout="constrained")
    left, bar = areas(figure, columns * width, rows * (height + 0.45))
    grid = left.subgridspec(rows, columns)
    drawn = []
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        draw_matrix(axes, panel.values, panel.rows, panel.columns, norm, (width, height))
        axes.set_title(panel.title, fontsize=8)
        first, lowest = index % columns == 0, index + columns >= len(panels)
        axes.tick_params(labelleft=first, labelbottom=lowest)
        axes.set_ylabel("target" if first else "", fontsize=8)
        axes.set_xlabel("source" if lowest else "", fontsize=8)
        drawn.append(axes)
    draw_color_bar(figure, figure.add_subplot(bar), norm, label, percent)
    set_title(figure, title, full)
    if caption is not None:
        set_caption(figure, caption, full)
    if show:
        show_figure(figure)
    return figure, drawn
