"""Relevances over what the model looked at or listened to: the patches of a picture, seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.graph import Trace
from captum_lig.views.plots import draw

__all__ = ["plot_picture", "plot_sound"]

_SIZES = np.linspace(-1, 1, 257)
INK = ListedColormap(
    np.column_stack(
        [draw.COLORS(np.where(_SIZES < 0, 0.0, 1.0))[:, :3], 0.85 * np.abs(_SIZES) ** 0.75]
    )
)
"""Blue and red that let the picture below be seen, the more the nearer to 0."""
MOST_SPECIAL = 16
"""More tokens than these that are no patches: the grid is another one."""


def plot_picture(
    values: Trace | Tensor | NDArray[Any],
    picture: Tensor | NDArray[Any],
    patch: int | tuple[int, int] | None = None,
    *,
    depths: Sequence[int] | None = None,
    special: Sequence[str] | None = None,
    title: str | None = None,
    limit: float | None = None,
    label: str = "part of the number",
    show: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw relevances of patches over the picture, one panel a depth.

    Tokens are the picture's patches, row after row, behind the special ones (class token,
    registers), which have no place in it and are named above it.

    Args:
        values: a trace; or one value a token ``(N,)``, or a row a depth ``(K, N)``.
        picture: as the model got it, without normalization: ``(H, W)``, ``(H, W, 3)`` or
            ``(3, H, W)``, between 0 and 1, or whole numbers up to 255.
        patch: pixels of a patch, or height and width of it. None: the largest number of square
            patches that fills the picture and leaves at most 16 special tokens.
        depths: of a trace: indices of layers, for the tokens entering them; the last one plus 1 for
            those that leave it. None: four, from the lowest to the highest. Of rows: their numbers.
        special: what the special tokens are called.
        title: a title.
        limit: where the colours end; None for the largest size of a patch.
        label: what the colours mean.
        show: also show the figure through pyplot.

    Returns:
        The figure, and the axes of each panel, the bare picture's first.

    Raises:
        LigError: if tokens and patches do not fit, or depths do not exist.
    """
    chosen = _chosen(values, depths)
    image = _pixels(picture)
    rows, columns = _grid(image, chosen.values.shape[1], patch)
    count = chosen.values.shape[1] - rows * columns
    names = [f"token {n}" for n in range(count)]
    if special is not None:
        names = draw.token_labels(special)
    if len(names) != count:
        raise LigError(
            f"special={brief(special)} are {len(names)} names, and {count} of the "
            f"{chosen.values.shape[1]} tokens are no patches."
        )
    norm = draw.symmetric(chosen.values[:, count:], limit=limit)
    box = {"extent": (0.0, float(columns), float(rows), 0.0), "interpolation": "nearest"}
    down = math.ceil((1 + len(chosen.names)) / 5)
    across = math.ceil((1 + len(chosen.names)) / down)
    side = 1.9
    height = min(max(side * image.shape[0] / image.shape[1], 0.8), 4.0)
    figure = Figure(
        figsize=(across * side + 0.9, down * (height + 0.5) + 0.4), layout="constrained"
    )
    panels = figure.subplots(down, across, squeeze=False).flatten().tolist()
    panels[0].imshow(image, cmap="gray", vmin=0, vmax=1, extent=box["extent"])
    panels[0].set_title("the picture", fontsize=8)
    grey = image if image.ndim == 2 else image.mean(-1)
    for axes, name, row in zip(panels[1:], chosen.names, chosen.values, strict=False):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=box["extent"])
        heat = row[count:].reshape(rows, columns)
        axes.imshow(heat, cmap=INK, norm=norm, **box)
        parts = [f"{one} {value:+.3g}" for one, value in zip(names, row, strict=False)]
        shown = (
            parts
            if len(parts) <= 2
            else [*parts[:1], f"{count - 1} more {row[1:count].sum():+.3g}"]
        )
        axes.set_title("\n".join([name, *shown]), fontsize=8, **draw.text_style())
    for axes in panels:
        axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(norm, INK), ax=panels, shrink=0.7, aspect=25)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    draw.finish(figure, title, None, figure.get_figwidth(), show)
    return figure, panels[: 1 + len(chosen.names)]


def plot_sound(
    values: Trace | Tensor | NDArray[Any],
    sound: Tensor | NDArray[Any],
    *,
    seconds_per_token: float = 0.02,
    sampling_rate: int = 16_000,
    seconds_per_frame: float = 0.01,
    depths: Sequence[int] | None = None,
    title: str | None = None,
    limit: float | None = None,
    label: str = "part of the number",
    show: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Draw relevances of an audio encoder's tokens over time, below the sound.

    Token ``k`` stands for the time from ``k`` to ``k + 1`` times ``seconds_per_token``. Tokens
    after the end of the sound, as Whisper has them up to 30 s, are not drawn; what they have
    together is said.

    Args:
        values: a trace; or one value a token ``(N,)``, or a row a depth ``(K, N)``.
        sound: a wave ``(samples,)``, or a spectrogram ``(bands, frames)``, the lowest band first.
        seconds_per_token: 0.02 for Whisper, wav2vec 2.0 and HuBERT.
        sampling_rate: samples of the wave a second.
        seconds_per_frame: of the spectrogram; 0.01 for Whisper.
        depths: as in :func:`plot_picture`; None: all.
        title: a title.
        limit: where the colours end; None for the largest size that is drawn.
        label: what the colours mean.
        show: also show the figure through pyplot.

    Returns:
        The figure, and two axes: the sound's, and that of the relevances, a row a depth.

    Raises:
        LigError: if the sound is longer than the tokens by a token or more, or depths do not exist.
    """
    chosen = _chosen(values, depths, most=None)
    data = _array("sound", sound)
    if data.ndim not in (1, 2) or not data.size:
        raise LigError(
            f"sound has shape {data.shape}: give a wave (samples,) or a "
            "spectrogram (bands, frames)."
        )
    seconds = data.shape[-1] * (1 / sampling_rate if data.ndim == 1 else seconds_per_frame)
    tokens = chosen.values.shape[1]
    if seconds >= (tokens + 1) * seconds_per_token - 1e-9:
        raise LigError(
            f"the sound has {seconds:.3f} s, and {tokens} tokens of {seconds_per_token:g} s are "
            f"{tokens * seconds_per_token:.3f} s: give seconds_per_token, sampling_rate or "
            "seconds_per_frame as they are in the model."
        )
    heard = min(tokens, math.ceil(seconds / seconds_per_token - 1e-9))
    end = heard * seconds_per_token
    norm = draw.symmetric(chosen.values[:, :heard], limit=limit)
    depth = min(max(0.22 * len(chosen.names), 0.5), 6.0)
    width = 8.0
    figure = Figure(figsize=(width, 1.3 + depth + 0.9), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, depth])
    if data.ndim == 1:
        times = np.arange(len(data)) / sampling_rate
        upper.plot(times, data, color="0.3", linewidth=0.5, rasterized=len(data) > 20_000)
        upper.set_ylabel("wave", fontsize=8)
    else:
        edges = np.arange(data.shape[1] + 1) * seconds_per_frame
        bands = np.arange(len(data) + 1)
        upper.pcolormesh(edges, bands, data, cmap="gray_r", rasterized=True)
        upper.set_ylabel("band", fontsize=8)
    mesh = lower.pcolormesh(
        np.arange(heard + 1) * seconds_per_token,
        np.arange(len(chosen.names) + 1),
        chosen.values[:, :heard],
        cmap=draw.COLORS,
        norm=norm,
        rasterized=chosen.values.size > draw.LARGEST_VECTOR,
    )
    places = np.arange(len(chosen.names)) + 0.5
    draw.label_axis(lower.yaxis, places, chosen.names, depth, 8.0, draw.text_style())
    lower.set_xlim(0, max(end, seconds))
    lower.set_xlabel("seconds", fontsize=8)
    for axes in (upper, lower):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(mesh, ax=[upper, lower], aspect=25, shrink=0.9)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    caption = None
    if heard < tokens:
        rest = chosen.values[:, heard:].sum(-1)
        largest = rest[np.abs(rest).argmax()]
        caption = (
            f"Not drawn: {tokens - heard} tokens after the end of the sound, which have together "
            f"up to {largest:+.3g} at a depth."
        )
    draw.finish(figure, title, caption, width, show)
    return figure, [upper, lower]


@dataclass(frozen=True)
class _Rows:
    names: list[str]
    values: NDArray[np.float64]
    """``(K, N)``"""


def _chosen(
    values: Trace | Tensor | NDArray[Any], depths: Sequence[int] | None, most: int | None = 4
) -> _Rows:
    """The depths that are to be drawn, and their names."""
    if isinstance(values, Trace):
        matrix = values.tokens.detach().cpu().double().numpy()
        indices = [*values.layers, values.layers[-1] + 1]
        names = [f"into layer {index}" for index in values.layers]
        names.append(f"out of layer {values.layers[-1]}")
    else:
        matrix = np.atleast_2d(_array("values", values))
        indices, names = list(range(len(matrix))), [""] * len(matrix)
        if len(matrix) > 1:
            names = [f"row {index}" for index in indices]
    if matrix.ndim != 2 or not matrix.size:
        raise LigError(f"values have shape {matrix.shape}: give (N,), or (K, N), a row a depth.")
    if not np.isfinite(matrix).all():
        raise LigError("values that are not finite have no colour.")
    if depths is None:
        count = len(indices) if most is None else min(most, len(indices))
        rows = np.linspace(0, len(indices) - 1, count).round().astype(int).tolist()
    else:
        unknown = [depth for depth in depths if depth not in indices]
        if unknown or not len(depths):
            raise LigError(
                f"depths={brief(depths)}: there are {indices[0]} to {indices[-1]}; give some."
            )
        rows = [indices.index(depth) for depth in depths]
    return _Rows([names[row] for row in rows], matrix[rows])


def _array(name: str, values: Any) -> NDArray[np.float64]:
    found = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    found = np.asarray(found, dtype=float)
    if not np.isfinite(found).all():
        raise LigError(f"{name} holds numbers that are not finite.")
    return found


def _pixels(picture: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """``(H, W)`` or ``(H, W, 3)`` between 0 and 1."""
    image = _array("picture", picture)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or not image.size:
        raise LigError(f"picture has shape {image.shape}: give (H, W), (H, W, 3) or (3, H, W).")
    image = image / (255 if image.max() > 1 else 1)
    if image.min() < 0 or image.max() > 1:
        raise LigError(
            f"picture has numbers from {image.min():.3g} to {image.max():.3g}: give it before it "
            "was normalized, from 0 to 1 or from 0 to 255."
        )
    return image


def _grid(image: NDArray[Any], tokens: int, patch: int | tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = image.shape[:2]
    if patch is None:
        sizes = [n for n in range(1, min(height, width) + 1) if height % n == width % n == 0]
        grids = [(height // n, width // n) for n in sizes]
        fitting = [(a, b) for a, b in grids if 0 <= tokens - a * b <= MOST_SPECIAL]
        if not fitting:
            raise LigError(
                f"no square patches of a picture of {height} x {width} pixels are {tokens} tokens, "
                f"or up to {MOST_SPECIAL} fewer: give the picture as the model got it, or patch=."
            )
        return fitting[0]
    tall, wide = (patch, patch) if isinstance(patch, int) else patch
    if tall < 1 or wide < 1 or height % tall or width % wide:
        raise LigError(
            f"patch={brief(patch)} does not divide a picture of {height} x {width} pixels: give it "
            "as the model got it."
        )
    rows, columns = height // tall, width // wide
    if not 0 <= tokens - rows * columns <= MOST_SPECIAL:
        raise LigError(
            f"patches of {tall} x {wide} pixels are {rows} x {columns} = {rows * columns} in a "
            f"picture of {height} x {width}, and there are {tokens} tokens."
        )
    return rows, columns
