"""Across layers: what is attributed to nodes beside what patching them does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.metrics.statistics import Agreement, OverTexts, agreement
from captum_lig.patching.effects import Effects
from captum_lig.patching.nodes import KINDS, Kind, NodeValues

__all__ = ["NodeAgreement", "node_agreement"]


def node_agreement(
    score: NodeValues, truth: NodeValues, kept: Mapping[Kind, Tensor] | None = None
) -> dict[Kind, Agreement]:
    """Compare the numbers of nodes with what patching them does, kind by kind.

    Args:
        score: what a method says of each node.
        truth: the effect of each, as :func:`captum_lig.patching.effects` gives it; heads,
            attention and MLPs at all tokens at once are compared with the sums of the scores.
        kept: by kind, which nodes count, in the shape of the truth; None: all. Nodes that are the
            same in both runs have no effect, and are better left out. NaN is left out always.

    Returns:
        For each kind that both have.

    Raises:
        LigError: if they are of other layers or tokens.
    """
    if tuple(score.layers) != tuple(truth.layers):
        raise LigError(
            f"scores are of the layers {list(score.layers)}, truths of {list(truth.layers)}: give "
            "those of the same."
        )
    found: dict[Kind, Agreement] = {}
    for kind in KINDS:
        s: Tensor | None = getattr(score, kind)
        t: Tensor | None = getattr(truth, kind)
        if s is None or t is None:
            continue
        if s.dim() == t.dim() + 1:
            s = s.sum(-1)
        if s.shape != t.shape:
            raise LigError(
                f"scores of {kind} have the shape {tuple(s.shape)}, truths {tuple(t.shape)}: give "
                "those of one text."
            )
        there = ~(s.isnan() | t.isnan())
        if kept is not None and kind in kept:
            there = there & kept[kind]
        found[kind] = agreement(s[there], t[there])
    return found


class NodeAgreement(OverTexts):
    """Agreement of nodes' numbers with patching, over texts, by kind and direction."""

    def update(
        self,
        score: NodeValues,
        truth: Effects | NodeValues,
        kept: Mapping[Kind, Tensor] | None = None,
    ) -> None:
        """Add one text: against both directions and their mean, or against given numbers."""
        truths = {"": truth}
        if isinstance(truth, Effects):
            truths = {" mean": truth.mean, " out": truth.out, " into": truth.into}
        numbers: dict[str, float] = {}
        for name, values in truths.items():
            assert isinstance(values, NodeValues)
            for kind, one in node_agreement(score, values, kept).items():
                numbers |= {f"{kind}{name} {what}": x for what, x in vars(one).items()}
        if isinstance(truth, Effects):
            for kind, one in node_agreement(truth.out, truth.into, kept).items():
                numbers[f"{kind} out with into pearson"] = one.pearson
        self.add(numbers)
