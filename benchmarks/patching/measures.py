"""How far scores are from the truth: correlations, distance, and intervals over texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.patching.net import KINDS, Scores

RESAMPLES = 2000
Row = dict[str, float]


def ranks(values: Tensor) -> Tensor:
    """From 1; equal values have the mean of their ranks."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place].double()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, nan if either has no spread."""
    a, b = a - a.mean(), b - b.mean()
    both = float(a.norm() * b.norm())
    return float(a @ b) / both if both else float("nan")


def compared(score: Tensor, truth: Tensor) -> Row:
    """Of two lists of numbers; what is not defined (no spread) is nan."""
    s, t = score.double(), truth.double()
    return {
        "pearson": correlation(s, t),
        "spearman": correlation(ranks(s), ranks(t)),
        "distance": float((s - t).norm() / t.norm()),
        "size": float(s.norm() / t.norm()),
    }


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
    kept: NDArray[np.float64] = np.array([value for value in values if not np.isnan(value)])
    if not len(kept):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "texts": 0}
    draws = np.random.default_rng(0).integers(len(kept), size=(RESAMPLES, len(kept)))
    low, high = np.percentile(kept[draws].mean(1), [2.5, 97.5])
    ends = {"low": float(low), "high": float(high)}
    return {"mean": float(kept.mean()), **ends, "texts": len(kept)}


def mean_of(out: Scores, into: Scores) -> Scores:
    """What both directions say in the mean."""
    return {kind: (torch.as_tensor(out[kind]) + into[kind]) / 2 for kind in out}
