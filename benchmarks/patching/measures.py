"""How far scores are from the truth: correlations, distance, and intervals over texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.patching.net import KINDS, Scores
from captum_lig import metrics

Row = dict[str, float]


def compared(score: Tensor, truth: Tensor) -> Row:
    """Of two lists of numbers; what is not defined (no spread) is nan."""
    return vars(metrics.agreement(score, truth))


def against(scores: Scores, truths: dict[str, Scores], moved: dict[str, Tensor]) -> list[Any]:
    """Rows of one method on one text: each kind of node beside each truth."""
    rows = []
    for kind in KINDS:
        if kind in scores:
            kept = moved[kind]
            for name, truth in truths.items():
                row = compared(scores[kind][kept], truth[kind][kept])
                rows.append({"kind": kind, "truth": name, **row})
    return rows


def by_layer(scores: Scores, truth: Scores, moved: dict[str, Tensor]) -> list[Any]:
    """Distance and size of each layer apart."""
    rows = []
    for kind in KINDS:
        for layer in range(len(scores.get(kind, ()))):
            kept = moved[kind][layer]
            if bool(truth[kind][layer][kept].any()):
                row = compared(scores[kind][layer][kept], truth[kind][layer][kept])
                chosen = {name: row[name] for name in ("distance", "size")}
                rows.append({"kind": kind, "layer": layer, **chosen})
    return rows


def interval(values: list[float]) -> Row:
    """Mean over texts and the middle 95 % of the means of as many drawn with replacement."""
    return vars(metrics.interval(values))


def mean_of(out: Scores, into: Scores) -> Scores:
    """What both directions say in the mean."""
    return {kind: (torch.as_tensor(out[kind]) + into[kind]) / 2 for kind in out}
