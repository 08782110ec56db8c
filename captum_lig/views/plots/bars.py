"""Charts of sums: where the totals of each layer came from, and how well rows add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import TOLERANCE, row_errors, target_rows
from captum_lig.views.plots import draw

__all__ = ["plot_completeness", "plot_shares"]

# Of the Okabe-Ito palette, told apart with every common colour blindness.
OTHERS, SELF, RESIDUAL, MLP = "#D55E00", "#E69F00", "0.75", "#56B4E9"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "black")
MARKERS = "os^Dv<>"
EXACT = 1e-9
"""Errors below this are drawn here: the scale is logarithmic, and it cannot show 0."""


def plot_shares(
    flows: Sequence[LayerFlow],
    rule: str = DEFAULT_RULE,
    *,
    title: str | None = None,
    show: bool = False,
) -> tuple[Figure, Axes]:
    """Draw where what reached the tokens leaving each layer came from.

    A bar a layer, from sizes (absolute values) of the composed routes, mean over the targets of
    the first text: through the heads from other tokens, through the heads from the token itself,
    and along the residual stream. The mlp is on all three ways and no part itself. In flows with a
    target sizes are those of the edges themselves, and what the token brings to its MLP past the
    heads is a part of its own.

    Args:
        flows: flows with the attention and mlp boundaries, one a layer.
        rule: ``"conserve"`` or ``"chain"``, by which heads' parts are shared out among sources.
        title: a title.
        show: also show the figure through pyplot.

    Raises:
        LigError: for an unknown rule, a missing boundary, or no flow.
    """
    if rule == "product":
        raise LigError("rule='product' does not see the residual stream: use conserve or chain.")
    if not flows:
        raise LigError("there is no flow to show: the list of flows is empty.")
    parts = np.array([_mean_shares(flow, rule) for flow in flows])
    figure, axes = _figure(len(flows), 1.8, 3.2)
    columns, bottom = np.arange(len(flows)), np.zeros(len(flows))
    names = ("heads, from other tokens", "heads, from the token itself", "residual stream",
             "MLP, from the token itself")  # fmt: skip
    colors, hatches = (OTHERS, SELF, RESIDUAL, MLP), ("", "//", "", "..")
    for part, name, color, hatch in zip(parts.T, names, colors, hatches, strict=True):
        if name == names[-1] and not part.any():
            continue
        axes.bar(
            columns, part, 0.8, bottom, color=color, label=name, hatch=hatch, edgecolor="white"
        )
        bottom += part
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    of = f"routes, {rule}" if flows[0].target is None else f"edges, target {flows[0].target}"
    caption = f"Mean over targets of the sizes of {of}. Baseline {flows[0].baseline}."
    _label(figure, axes, columns, flows)
    draw.finish(figure, title, caption, figure.get_figwidth(), show)
    return figure, axes


def _figure(layers: int, room: float, height: float) -> tuple[Figure, Axes]:
    """For so many layers, with some inches beside them for the legend."""
    width = max(3.5, 0.35 * layers + 1.5) + room
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _label(figure: Figure, axes: Axes, columns: NDArray[Any], flows: Sequence[LayerFlow]) -> None:
    """Name the layers, at ``columns`` of the axes, and put a legend beside them."""
    every = max(1, len(flows) // 16)
    axes.set_xticks(columns[::every], [str(flow.index) for flow in flows][::every])
    axes.set_xlabel("layer", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    bars = bool(axes.patches)  # piled up from below
    figure.legend(
        loc="outside right center", fontsize=7, frameon=False, markerscale=2, reverse=bars
    )


def _mean_shares(flow: LayerFlow, rule: str) -> tuple[float, ...]:
    """From others and from itself through the heads, along the residual stream, to the MLP."""
    if flow.target is None:
        routes = flow.compose(rule, by_head=True)[0].abs().double()  # (H, T, S)
    elif flow.attention is None:
        routes = torch.zeros(1, *flow.valid[0, flow.targets].shape, flow.valid.shape[1]).double()
    else:
        routes = flow.attention[0].abs().double()
    rows = target_rows(flow)
    every = torch.arange(len(flow.targets), device=routes.device)
    itself = routes[:, every, flow.targets].sum(0)
    others = routes.sum((0, 2)) - itself
    residual = flow.need("residual")[0].abs().double()
    mlp = flow.feed_forward_token
    from_token = torch.zeros_like(residual) if mlp is None else mlp[0].abs().double()
    parts = torch.stack([others, itself, residual, from_token])[:, rows]
    size = parts.sum(0)
    share = torch.where(size > 0, parts / size, 0.0)[:, size > 0]
    if share.shape[1] == 0:
        return 0.0, 0.0, 0.0, 0.0
    return tuple(share.mean(1).tolist())


def plot_completeness(
    flows: Sequence[LayerFlow],
    *,
    title: str | None = None,
    show: bool = False,
) -> tuple[Figure, Axes]:
    """Draw every row's completeness error, by boundary, beside the tolerance.

    Args:
        flows: one a layer, with any boundaries.
        title: a title.
        show: also show the figure through pyplot.

    Raises:
        LigError: if there is no flow, or none with a boundary that has errors.
    """
    boundaries = [name for name in FIELDS if any(name in flow.checked for flow in flows)]
    if not boundaries:
        raise LigError("there is no row to show: give flows with a boundary.")
    figure, axes = _figure(len(flows), 1.0, 3.0)
    count = missed = 0
    tolerance = TOLERANCE if flows[0].tolerance is None else flows[0].tolerance
    for number, boundary in enumerate(boundaries):
        x, y = [], []
        for flow in flows:
            if boundary not in flow.checked:
                continue
            texts = [flow.select(text) for text in range(len(flow.valid))]
            errors = [row_errors(one, boundary, target_rows(one)).flatten() for one in texts]
            found = torch.cat(errors).double().cpu().numpy()
            shift = (number - (len(boundaries) - 1) / 2) * 0.75 / len(boundaries)
            spread = np.linspace(-0.09, 0.09, len(found)) if len(found) > 1 else 0.0
            x.append(flow.index + shift + spread)
            y.append(found)
        values = np.concatenate(y)
        count, missed = count + len(values), missed + int((~(values <= tolerance)).sum())
        axes.plot(
            np.concatenate(x),
            values.clip(min=EXACT),
            MARKERS[number % len(MARKERS)],
            color=COLORS[number % len(COLORS)],
            markersize=2.5,
            alpha=0.6,
            markeredgewidth=0,
            label=boundary,
            rasterized=len(values) > 5000,
        )
    axes.axhline(tolerance, color="black", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"tolerance {tolerance:g}",
        (0.01, tolerance),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=7,
    )
    axes.set_yscale("log")
    axes.set_ylabel("completeness error", fontsize=8)
    relative_to = "total" if flows[0].target is None else "the target's change"
    caption = (
        f"|sum of a row - total| / {relative_to} of {count} rows, {missed} of them above the "
        f"tolerance; errors below {EXACT:g} are drawn there."
    )
    _label(figure, axes, np.array([flow.index for flow in flows]), flows)
    draw.finish(figure, title, caption, figure.get_figwidth(), show)
    return figure, axes
