"""Correlations of two lists of numbers, from their definitions."""

from __future__ import annotations

import math

import numpy as np


def mean_ranks(x: list[float]) -> list[float]:
    """Rank 1 is the smallest; equal numbers share the mean of their ranks."""
    below = [sum(other < one for other in x) for one in x]
    equal = [sum(other == one for other in x) for one in x]
    return [b + (e + 1) / 2 for b, e in zip(below, equal, strict=True)]


def pearson(x: list[float], y: list[float]) -> float:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
