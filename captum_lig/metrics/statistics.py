"""Agreement of two lists of numbers, and means over texts with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_lig._arguments import brief, fraction, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.compare_maps import compare_maps

__all__ = ["Agreement", "Interval", "OverTexts", "agreement", "interval", "mean_over"]

RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """How near scores ``s`` are to truths ``t``; NaN where it is not defined."""

    pearson: float
    """Correlation; NaN if either is constant."""
    spearman: float
    """Correlation of ranks, ties sharing their mean rank."""
    distance: float
    """``||s - t|| / ||t||``; NaN if all truths are 0."""
    size: float
    """``||s|| / ||t||``; NaN if all truths are 0."""


def agreement(score: Tensor, truth: Tensor) -> Agreement:
    """Compare two lists of numbers.

    Args:
        score: ``(N,)``, any shape that is flattened.
        truth: of the same shape.

    Raises:
        LigError: if the shapes differ.
    """
    if score.shape != truth.shape:
        raise LigError(
            f"scores of shape {tuple(score.shape)} and truths of {tuple(truth.shape)}: give one "
            "number each for the same things."
        )
    s, t = score.double().flatten(), truth.double().flatten()
    if not len(t):
        return Agreement(*[math.nan] * 4)
    found = compare_maps(t[None], s[None])
    length = float(torch.linalg.vector_norm(t))
    size = float(torch.linalg.vector_norm(s)) / length if length else math.nan
    return Agreement(float(found.pearson), float(found.spearman), float(found.relative_l2), size)


def mean_over(values: Tensor, weights: Tensor | None = None, dim: int | None = None) -> Tensor:
    """Weighted mean of the values that are numbers; NaN if there is none, or none that counts.

    Args:
        values: any shape; NaN are left out.
        weights: of the same shape, at least 0; None: all 1.
        dim: over which axis; None: over all.

    Raises:
        LigError: for weights of another shape, or below 0.
    """
    values = values.double()
    weights = torch.ones_like(values) if weights is None else weights.double()
    if weights.shape != values.shape or bool((weights < 0).any()):
        raise LigError(
            f"weights {brief(weights)} for values of shape {tuple(values.shape)}: give one each, "
            "at least 0."
        )
    kept = ~values.isnan()
    weights = torch.where(kept, weights, 0.0)
    total = (torch.where(kept, values, 0.0) * weights, weights)
    over, count = (x.sum() if dim is None else x.sum(dim) for x in total)
    return over / count


@dataclass(frozen=True)
class Interval:
    """A mean over texts, and where it would lie for other texts of the kind."""

    mean: float
    low: float
    high: float
    texts: int
    """How many had a number."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(
    values: Sequence[float], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over texts with a bootstrap interval.

    The middle ``level`` of the means of as many texts drawn with replacement (percentile method,
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    Args:
        values: a number of each text; NaN are left out.
        level: how much of the means lies between the ends.
        resamples: how many means.
        seed: of the draws.
    """
    fraction("level", level)
    whole_number("resamples", resamples, 1)
    kept: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan, 0)
    draws = np.random.default_rng(seed).integers(len(kept), size=(resamples, len(kept)))
    outside = 50 * (1 - level)
    low, high = np.percentile(kept[draws].mean(1), [outside, 100 - outside])
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


class OverTexts:
    """Numbers of one text after the other, and their means with intervals.

    The base of the classes here: their ``update`` takes one text, what the function of the same
    name takes or what it gave; each class says which.

    Args:
        level: how much of the means of resampled texts an interval holds.
        seed: of the resampling.
    """

    def __init__(self, level: float = 0.95, seed: int = 0) -> None:
        self.level, self.seed = fraction("level", level), seed
        self.rows: list[dict[str, float]] = []
        """Numbers of each text, by name."""

    def add(self, numbers: Mapping[str, float]) -> None:
        """Keep the numbers of one text."""
        self.rows.append(dict(numbers))

    def compute(self) -> dict[str, Interval]:
        """The mean of each number over the texts that have it.

        Raises:
            LigError: before the first text.
        """
        if not self.rows:
            raise LigError(f"{type(self).__name__} has no text yet: call update first.")
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {
            name: interval(
                [row.get(name, math.nan) for row in self.rows], self.level, seed=self.seed
            )
            for name in names
        }

    def reset(self) -> None:
        """Forget all texts."""
        self.rows = []
