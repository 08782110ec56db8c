"""Token-to-token maps: one, one a head, one a layer, and two beside each other.

Every function returns ``(figure, axes)``, and the figure belongs to no window and no pyplot state.
Colours are symmetric around 0. A map's numbers are in its mesh,
``axes.collections[0].get_array()``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import one_text, shares, target_rows
from captum_lig.flow.tokens import TokenIndex, find_tokens
from captum_lig.views.plots import draw

__all__ = ["plot_compared", "plot_heads", "plot_layers", "plot_map"]

SHARE = "share of the target's total"


def plot_map(
    values: Tensor | NDArray[Any],
    tokens: Sequence[str],
    targets: Sequence[TokenIndex] | None = None,
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
        targets: which of the tokens the targets are, by what they say or their positions; None if
            every token is a target.
        title: a title; plain text, whatever it contains.
        limit: where the colours end; None for the largest size in the map.
        percent: label the colours as percentages.
        label: what the colours mean.
        show: also show the figure through pyplot.

    Raises:
        LigError: if the map does not fit the tokens, or holds numbers that are not finite.
    """
    matrix = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, float)
    found = find_tokens(range(len(tokens)) if targets is None else targets, tokens, "targets")
    rows = [int(target) for target in found]
    if matrix.shape != (len(rows), len(tokens)):
        raise LigError(
            f"the map has shape {matrix.shape}, and there are {len(rows)} targets and "
            f"{len(tokens)} tokens: give one map (T, S), and every token of the text."
        )
    if not np.isfinite(matrix).all():
        raise LigError("the map holds numbers that are not finite: there is nothing to draw there.")
    panel = draw.Panel("", matrix, np.array(rows, int), draw.token_labels(tokens))
    norm = draw.symmetric(matrix, limit=limit)
    figure, axes = _draw([panel], norm, title, label, None, show, percent=percent)
    return figure, axes[0]


def plot_heads(
    flow: LayerFlow,
    tokens: Sequence[str] | None = None,
    rule: str | None = None,
    *,
    title: str | None = None,
    limit: float | None = None,
    show: bool = False,
    hide_first_token: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw one map a head of one layer.

    Args:
        flow: one layer of one text.
        tokens: the text's tokens, one for each source; None: as the flow has them.
        rule: None for the attention boundary, each head's rows as shares of its own output; a
            composition rule for what the head carries, as shares of the token leaving the layer.
        title: a title.
        limit: where the colours end; None for the 99th percentile of sizes.
        show: also show the figure through pyplot.
        hide_first_token: draw the column of the first token in grey.

    Raises:
        LigError: if flow and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    tokens = one_text([flow], tokens)
    if rule is None:
        values, size = flow.need("attention")[0], flow.need("attention_total")[0][..., None]
        label = "share of the head's output"
    else:
        values = flow.compose(rule, by_head=True)[0]
        if rule == "product":
            size = values.abs().sum((0, 2))[:, None]
            label = "share of the row's absolute sum over heads"
        else:
            size, label = flow.need("mlp_total")[0][:, None], SHARE
    parts = torch.where(size > 0, values / size, 0.0)
    panels = []
    for head, part in enumerate(parts):
        carried = part[target_rows(flow)].abs().sum(-1).mean().item()
        name = f"head {head}" if rule is None else f"head {head} · {carried:.0%}"
        panels.append(_panel(flow, part, tokens, name, hide_first_token))
    caption = (
        f"Layer {flow.index}, {'attention boundary' if rule is None else f'composed by {rule}'}. "
        f"Baseline {flow.baseline}, scalarization {flow.scalarization}."
        + ("" if rule is None else " Per cent: mean over targets of the sizes of a head's row.")
    )
    return _draw(panels, _scale(panels, limit), title, label, caption, show)


def plot_layers(
    flows: Sequence[LayerFlow],
    tokens: Sequence[str] | None = None,
    rule: str | None = None,
    *,
    title: str | None = None,
    limit: float | None = None,
    show: bool = False,
    hide_first_token: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw one map ``z -> z'`` a layer, as shares of the targets.

    Args:
        flows: the flows of one text.
        tokens: the text's tokens, one for each source; None: as the flow has them.
        rule: None for the direct map, or a composition rule.
        title: a title.
        limit: where the colours end; None for the 99th percentile of sizes of links between
            different tokens.
        show: also show the figure through pyplot.
        hide_first_token: draw the column of the first token in grey.

    Raises:
        LigError: if flows and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    tokens = one_text(flows, tokens)
    panels = [
        _panel(flow, shares(flow, rule), tokens, f"layer {flow.index}", hide_first_token)
        for flow in flows
    ]
    caption = (
        f"{'Direct maps' if rule is None else f'Maps composed by {rule}'}. "
        f"Baseline {flows[0].baseline}, scalarization {flows[0].scalarization}."
    )
    return _draw(panels, _scale(panels, limit), title, SHARE, caption, show)


def plot_compared(
    flow: LayerFlow,
    tokens: Sequence[str] | None = None,
    rule: str = DEFAULT_RULE,
    *,
    title: str | None = None,
    limit: float | None = None,
    show: bool = False,
    hide_first_token: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw the composed map, the direct one, and their difference, on one scale.

    Args:
        flow: one layer of one text with all three boundaries.
        tokens: the text's tokens, one for each source; None: as the flow has them.
        rule: composition rule.
        title: a title.
        limit: where the colours end; None for the 99th percentile of sizes of links between
            different tokens.
        show: also show the figure through pyplot.
        hide_first_token: draw the column of the first token in grey.

    Raises:
        LigError: if flow and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    tokens = one_text([flow], tokens)
    direct = shares(flow, None)
    total = flow.need("layer_total")[0][:, None]  # scales both, the product rule too
    composed = torch.where(total > 0, flow.compose(rule)[0] / total, 0.0)
    off = flow.agreement(rule)[0, target_rows(flow)].nanmean().item()
    panels = [
        _panel(flow, composed, tokens, f"composed by {rule}", hide_first_token),
        _panel(flow, direct, tokens, "direct", hide_first_token),
        _panel(flow, composed - direct, tokens, "composed - direct", hide_first_token),
    ]
    caption = (
        f"Layer {flow.index}: the composed map is off by "
        f"{'n/a' if math.isnan(off) else f'{off:.0%}'} (distance over the size of the direct row, "
        f"mean over targets). Baseline {flow.baseline}, scalarization {flow.scalarization}."
    )
    return _draw(panels, _scale(panels, limit), title, SHARE, caption, show, columns=3)


def _panel(
    flow: LayerFlow, values: Tensor, tokens: Sequence[str], title: str, hide_first_token: bool
) -> draw.Panel:
    """The map without padding; what is 0 or 100 % by construction is grey."""
    panel = draw.make_panel(flow, values, tokens, title, hide_first_token)
    return panel.without_self() if flow.baseline == "target_token" else panel


def _scale(panels: Sequence[draw.Panel], limit: float | None) -> Normalize:
    """Of links alone: self terms of a zero baseline are far larger."""
    links = [np.ma.compressed(np.ma.array(panel.values)[~panel.is_self]) for panel in panels]
    return draw.symmetric(np.concatenate(links), 0.99, limit)


def _draw(
    panels: Sequence[draw.Panel],
    norm: Normalize,
    title: str | None,
    label: str,
    caption: str | None,
    show: bool,
    *,
    percent: bool = True,
    columns: int | None = None,
) -> tuple[Figure, list[Axes]]:
    targets, tokens = panels[0].values.shape
    width, found, _ = draw.arrange(tokens, len(panels))
    columns = columns or found
    if len(panels) > 1:
        width = min(width, max(2.0, 0.09 * tokens, 11.0 / columns))
    height = min(width * targets / tokens, max(1.2, 0.4 * targets))
    full, rows = columns * width + 1.7, math.ceil(len(panels) / columns)
    whole = rows * (height + 0.45)
    figure = Figure(figsize=(full, whole + 1.1), layout="constrained")
    within = draw.areas(figure, columns * width, whole)
    drawn, bar = draw.draw_panels(figure, within, panels, columns, (width, height), norm, 8)
    draw.draw_color_bar(figure, bar, norm, label, percent)
    draw.finish(figure, title, caption, full, show)
    return figure, drawn
