"""Within a layer: maps beside what happens if a source is put to its baseline.

At the input of a layer one source token ``i`` is put to its baseline, the layer runs, and target
``j`` moves. The effect is a vector; what is kept of it is its length, and its component along the
target's whole change from the baseline to the text:

    out(j, i)  = y_j(text) - y_j(text with i at its baseline)
    into(j, i) = y_j(baseline with i at its text value) - y_j(baseline)
    signed = <effect, e_j>,  size = ||effect||,  e_j = (y_j(text) - y_j(baseline)) / ||...||

Edges are the same with one head: it alone sees the other value of the source, as key and value, for
one target (path patching, Goldowsky-Dill et al. 2023, arXiv:2304.05969).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_lig._restore import restoring
from captum_lig.attribution.lengths import Baselines
from captum_lig.errors import LigError
from captum_lig.flow.compare_maps import compare_maps
from captum_lig.integrals.scalarization import unit
from captum_lig.metrics.block import Case, cases, edge_effects_of, source_effects
from captum_lig.metrics.statistics import OverTexts, mean_over
from captum_lig.model.select import Finder, Layer

__all__ = [
    "Intervening",
    "Interventions",
    "MapAgreement",
    "edge_interventions",
    "interventions",
    "map_agreement",
    "row_agreement",
]

FEWEST = 3
"""Sources that a row's correlation needs: two always lie on a line."""


@dataclass(frozen=True)
class Interventions:
    """Effects of sources on targets in one layer, ``(B, T, S)``; of edges ``(B, H, T, S)``.

    All are lengths in the space of the tokens that leave the layer. 0 where ``moves`` is False.
    """

    name: str
    """Dotted name of the block."""
    index: int
    out_signed: Tensor
    """Taken out of the text."""
    out_size: Tensor
    into_signed: Tensor
    """Put into the baseline."""
    into_size: Tensor
    total: Tensor
    """``(B, T)`` length of each target's whole change."""
    moves: Tensor
    """``(B, T, S)`` False where there is nothing to do: padding, a source that is its own baseline
    (a target-token baseline's ``i = j``), or one that the mask hides."""

    @property
    def signed(self) -> Tensor:
        """Mean of both directions."""
        return (self.out_signed + self.into_signed) / 2

    @property
    def size(self) -> Tensor:
        """Mean of both directions."""
        return (self.out_size + self.into_size) / 2

    def truth(self, measure: str, direction: str = "mean") -> Tensor:
        """``"signed"`` or ``"size"``, of ``"out"``, ``"into"`` or their mean.

        Raises:
            LigError: for another name.
        """
        if measure not in ("signed", "size") or direction not in ("out", "into", "mean"):
            raise LigError(
                f"measure={measure!r}, direction={direction!r}: use 'signed' or 'size', and 'out', "
                "'into' or 'mean'."
            )
        found: Tensor = getattr(self, measure if direction == "mean" else f"{direction}_{measure}")
        return found


class Intervening:
    """Interventions in the layers of a model, on one text after the other.

    Args:
        model: a Transformer, in evaluation mode.
        layer: as :class:`LayerFlowIG` takes it; None for every block.
    """

    def __init__(self, model: nn.Module, layer: Layer | Sequence[Layer] | None = None) -> None:
        self.finder = Finder(model, layer)

    @restoring
    def sources(
        self,
        inputs: Any,
        baselines: Baselines = "target_token",
        additional_forward_args: object = None,
        *,
        show_progress: bool = False,
    ) -> list[Interventions]:
        """See :func:`interventions`."""
        with cases(self.finder, inputs, baselines, additional_forward_args) as found:
            return [
                _stacked([(case, [source_effects(case)]) for case in texts], False)
                for texts in tqdm(found, desc="layers", unit="layer", disable=not show_progress)
            ]

    @restoring
    def edges(
        self,
        inputs: Any,
        baselines: Baselines = "target_token",
        additional_forward_args: object = None,
        *,
        show_progress: bool = False,
    ) -> list[Interventions]:
        """See :func:`edge_interventions`."""
        with cases(self.finder, inputs, baselines, additional_forward_args) as found:
            return [
                _stacked([(case, list(edge_effects_of(case))) for case in texts], True)
                for texts in tqdm(found, desc="layers", unit="layer", disable=not show_progress)
            ]


@restoring
def interventions(
    model: nn.Module,
    inputs: Any,
    baselines: Baselines = "target_token",
    layer: Layer | Sequence[Layer] | None = None,
    additional_forward_args: object = None,
    *,
    show_progress: bool = False,
) -> list[Interventions]:
    """What each source does to each target of each layer, by intervening.

    About ``3 S`` to ``4 S`` runs of a layer of ``S`` tokens. For many texts use
    :class:`Intervening`, which looks at the model's blocks once. With baselines that targets share,
    these are whole runs of the unmodified block. With ``"target_token"``, where every target has
    another baseline, keys, values and what follows the attention are its own code, and whole runs
    of some pairs confirm the rest; where they do not, or the block has no attention that opens,
    whole runs are made for every pair (``2 S^2``).

    Args:
        model: a Transformer, in evaluation mode.
        inputs: as :meth:`LayerFlowIG.attribute` takes them.
        baselines: as :meth:`LayerFlowIG.attribute` takes them without a target: for the tokens of
            another run, :func:`captum_lig.prediction.layer_baselines`.
        layer: as :class:`LayerFlowIG` takes it; None for every block.
        additional_forward_args: further arguments of the model after ``inputs``.
        show_progress: show a bar over layers.

    Returns:
        One for each layer.

    Raises:
        LigError: as :meth:`LayerFlowIG.attribute`.
    """
    one = Intervening(model, layer)
    return one.sources(inputs, baselines, additional_forward_args, show_progress=show_progress)


@restoring
def edge_interventions(
    model: nn.Module,
    inputs: Any,
    baselines: Baselines = "target_token",
    layer: Layer | Sequence[Layer] | None = None,
    additional_forward_args: object = None,
    *,
    show_progress: bool = False,
) -> list[Interventions]:
    """What each head's view of each source does to each target of each layer, ``(B, H, T, S)``.

    One head sees the source's baseline as key and value, for one target alone. All else of the
    target is as it was: its query, its own token, the other heads. About ``2 H S`` runs of what
    follows the attention. Arguments and errors are those of :func:`interventions`; a block has to
    have softmax attention that can be reached.
    """
    one = Intervening(model, layer)
    return one.edges(inputs, baselines, additional_forward_args, show_progress=show_progress)


def _stacked(texts: list[tuple[Case, list[Any]]], by_head: bool) -> Interventions:
    """Lengths and components of effects, padding filled with 0."""
    call = texts[0][0].call
    batch, length = call.hidden.shape[:2]
    heads = len(texts[0][1])
    names = ("out_signed", "out_size", "into_signed", "into_size")
    zeros = call.hidden.new_zeros(batch, heads, length, length)
    found = {name: zeros.clone() for name in names}
    total = call.hidden.new_zeros(batch, length)
    moves = torch.zeros(batch, length, length, dtype=torch.bool, device=total.device)
    for case, each in texts:
        text, rows = case.text, case.rows
        moves[text, rows] = case.moves
        for head, (out, into, change) in enumerate(each):
            total[text, rows] = torch.linalg.vector_norm(change, dim=-1)
            direction = unit(change)
            for name, effect in (("out", out), ("into", into)):
                found[f"{name}_signed"][text, head, rows] = (effect * direction[:, None]).sum(-1)
                found[f"{name}_size"][text, head, rows] = torch.linalg.vector_norm(effect, dim=-1)
    if not by_head:
        found = {name: x[:, 0] for name, x in found.items()}
    return Interventions(call.name, call.index, total=total, moves=moves, **found)


def row_agreement(
    score: Tensor, truth: Tensor, moves: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Correlations of the rows of a map with those of a truth, over sources.

    Args:
        score: ``(..., T, S)``
        truth: the same shape.
        moves: ``(T, S)``, or the same shape with fewer axes before: the sources that count. None:
            all.

    Returns:
        Pearson and Spearman, ``(..., T)`` each, float64; NaN where fewer than three sources count,
        or either is constant on them.

    Raises:
        LigError: if the shapes do not fit.
    """
    found = compare_maps(truth, score, moves)
    if moves is None:
        moves = torch.ones_like(truth, dtype=torch.bool)
    enough = (moves.sum(-1) >= FEWEST).expand(found.pearson.shape)
    return tuple(torch.where(enough, x, torch.nan) for x in (found.pearson, found.spearman))  # type: ignore[return-value]


def map_agreement(
    score: Tensor, effects: Interventions, weights: Tensor | None = None
) -> dict[str, float]:
    """How well the rows of a map of one text agree with interventions: means over its rows.

    Args:
        score: ``(1, T, S)`` or ``(T, S)``; of edges ``(1, H, T, S)`` or ``(H, T, S)``.
        effects: of one text.
        weights: ``(T,)`` of the rows; None: all alike. ``effects.total[0]`` weighs them by how far
            their target moves.

    Returns:
        By ``"<measure> <direction> <correlation>"``, such as ``"signed mean spearman"``; NaN where
        no row has one.

    Raises:
        LigError: for several texts, or a map of another shape.
    """
    if len(effects.moves) != 1:
        raise LigError(f"interventions on {len(effects.moves)} texts: give those on one.")
    shape = effects.out_size.shape[1:]
    if score.shape not in (shape, (1, *shape)):
        raise LigError(
            f"a map of shape {tuple(score.shape)} beside interventions of {tuple(shape)}: give one "
            "of the same shape."
        )
    score, moves = score.reshape(shape), effects.moves[0]
    found = {}
    for measure in ("size", "signed"):
        for direction in ("out", "into", "mean"):
            truth = effects.truth(measure, direction)[0]
            for name, rows in zip(
                ("pearson", "spearman"), row_agreement(score, truth, moves), strict=True
            ):
                own = None if weights is None else weights.to(rows).expand_as(rows)
                found[f"{measure} {direction} {name}"] = float(mean_over(rows, own))
    return found


class MapAgreement(OverTexts):
    """Agreement of a map's rows with interventions, over texts; one instance a layer."""

    def update(self, score: Tensor, effects: Interventions, weights: Tensor | None = None) -> None:
        """Add one text, see :func:`map_agreement`."""
        self.add(map_agreement(score, effects, weights))
