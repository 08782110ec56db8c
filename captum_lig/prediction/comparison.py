"""Relevances that a graph carries down, beside those that Captum gives at every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from captum_lig._arguments import brief
from captum_lig._restore import restoring
from captum_lig.errors import LigError
from captum_lig.flow.compare_maps import Comparison, compare_maps
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.shown import Short
from captum_lig.graph import FlowGraph
from captum_lig.graph.trace import shared_out
from captum_lig.prediction.baselines import InputBaseline, Inputs
from captum_lig.prediction.layer_ig import DirectRelevance, Integration, direct_relevance
from captum_lig.prediction.targets import TargetLike

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["RelevanceComparison", "compare", "compare_with_layer_integrated_gradients"]

MAPS = ("carried", "stays", "uniform")
FAR = 5e-2
"""Changes that are further apart are of two questions; half precision is off by less."""


@dataclass(frozen=True, repr=False)
class RelevanceComparison(Short):
    """Carried relevances, direct ones and two controls, at ``R`` depths for ``N`` tokens.

    A graph of flows towards a target has relevances of its own; any other is given the direct ones
    at the last depth, so that there both are the same.
    """

    layers: tuple[int, ...]
    """``R`` indices: the input of this layer; the last one is the output of the last layer (its
    index plus 1)."""
    labels: tuple[str, ...]
    """The tokens."""
    carried: Tensor
    """``(R, N)`` float64: the graph's. Of a graph without a target of its own they are the last
    depth's direct relevances, handed down."""
    direct: Tensor
    """``(R, N)`` float64: ``LayerIntegratedGradients`` at each depth."""
    direct_delta: Tensor
    """``(R,)`` Captum's convergence delta: sum of ``direct`` minus ``change``."""
    change: float
    """Target of the inputs minus that of the baselines."""
    rule: str
    """How the graph shares out, or ``"target"`` if its flows are towards a target."""
    absolute: bool

    @property
    def stays(self) -> Tensor:
        """``(R, N)`` control: the last depth's relevances, each token keeping its own."""
        return self.direct[-1].expand_as(self.direct)

    @property
    def uniform(self) -> Tensor:
        """``(R, N)`` control: their sum spread evenly over the tokens."""
        return self.stays.mean(-1, keepdim=True).expand_as(self.direct)

    @property
    def carried_delta(self) -> Tensor:
        """``(R,)`` sum of ``carried`` minus ``change``."""
        return self.carried.sum(-1) - self.change

    def measures(self, of: str = "carried") -> Comparison:
        """Correlations with ``direct`` and distances from it, each ``(R,)``.

        Args:
            of: ``"carried"``, or a control: ``"stays"``, ``"uniform"``.

        Raises:
            LigError: for another map.
        """
        if of not in MAPS:
            raise LigError(f"there is no map {brief(of)} to compare: use {', '.join(MAPS)}.")
        return compare_maps(self.direct, getattr(self, of))

    def rows(self) -> list[dict[str, Any]]:
        """One a depth, first layer first: plain numbers, such as ``pearson_carried``."""
        columns: dict[str, Tensor] = {
            "carried_delta": self.carried_delta,
            "direct_delta": self.direct_delta,
        }
        for of in MAPS:
            columns |= {f"{name}_{of}": x for name, x in vars(self.measures(of)).items()}
        return [
            {"layer": layer} | {name: float(column[row]) for name, column in columns.items()}
            for row, layer in enumerate(self.layers)
        ]


@restoring
def compare_with_layer_integrated_gradients(
    graph: FlowGraph,
    model: nn.Module,
    target: TargetLike,
    inputs: Inputs,
    baselines: InputBaseline = None,
    additional_forward_args: object = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layers: Sequence[int] | None = None,
    rule: str = DEFAULT_RULE,
    absolute: bool = False,
    show_progress: bool = False,
    **settings: Unpack[Integration],
) -> RelevanceComparison:
    """Put relevances that the graph carries beside Captum's ``LayerIntegratedGradients``.

    ``LayerIntegratedGradients`` is computed anew at the input of every layer: those with the
    indices ``layers``, None for all of the graph. The graph is of the text ``inputs``, from flows
    of this model, towards the same target and from the same baselines if they have a target. All
    else is as in :func:`direct_relevance` and :func:`compare`, errors too.
    """
    direct = direct_relevance(
        model,
        target,
        inputs,
        baselines,
        additional_forward_args,
        tokenizer=tokenizer,
        layers=graph.indices if layers is None else layers,
        last=graph.indices[-1],
        show_progress=show_progress,
        **settings,
    )
    return compare(graph, direct, rule, absolute)


@restoring
def compare(
    graph: FlowGraph, direct: DirectRelevance, rule: str = DEFAULT_RULE, absolute: bool = False
) -> RelevanceComparison:
    """The comparison with direct relevances that are there already, for several graphs or rules.

    The graph is of the same text and ends with the layer that ``direct`` ends with; ``rule`` and
    ``absolute`` are those of :meth:`FlowGraph.relevance`. If the graph's flows are towards a target
    its own relevances are compared, and neither is used.

    Raises:
        LigError: for a graph of other layers or another text, or towards another number.
    """
    first, end = graph.indices[0], graph.indices[-1] + 1
    if direct.layers[-1] != end or direct.layers[0] < first:
        raise LigError(
            f"the graph has the layers {first} to {end - 1}, the direct relevances are of layers "
            f"{direct.layers[0]} to {direct.layers[-1] - 1}: they have to end with the same one, "
            "and begin within the graph."
        )
    if not torch.equal(graph.positions, direct.positions):
        raise LigError(
            f"the graph is of {len(graph.positions)} tokens, the inputs of "
            f"{len(direct.positions)}: give the text that the graph was made of."
        )
    change = direct.change if graph.change is None else graph.change
    if not abs(change - direct.change) <= FAR * max(abs(change), abs(direct.change)):
        raise LigError(
            f"the graph is of {graph.target!r}, which changes by {change:.6g}, the direct "
            f"relevances of {direct.target!r}, which changes by {direct.change:.6g}: give both the "
            "same target and baselines."
        )
    if graph.target is None:
        trace = shared_out(graph, start=direct.tokens[-1], rule=rule, absolute=absolute)
    else:
        trace, rule, absolute = graph.relevance(), "target", False
    return RelevanceComparison(
        layers=direct.layers,
        labels=trace.labels,
        carried=trace.tokens[[layer - first for layer in direct.layers]],
        direct=direct.tokens,
        direct_delta=direct.delta.double(),
        change=direct.change,
        rule=rule,
        absolute=absolute,
    )
