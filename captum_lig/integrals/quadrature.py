"""Nodes and weights for integrals over the path parameter ``a`` in [0, 1].

Captum's own trapezoid gives its ``n`` end-point-inclusive nodes weights that add up to
``(n - 1) / n``, and casts step sizes to float32; the rules here are exact for constants and stay
in float64. The names are Captum's, plus ``gausslegendre_graded``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from captum_lig._arguments import brief, whole_number
from captum_lig.errors import LigError

__all__ = ["METHODS", "nodes_and_weights"]

METHODS = (
    "gausslegendre",
    "gausslegendre_graded",
    "riemann_left",
    "riemann_right",
    "riemann_middle",
    "riemann_trapezoid",
)
"""Names of the rules."""

# a = t ** GRADING gathers nodes where the path starts: scale-invariant norms do everything there.
# A path integral does not care about the parametrisation, so this is exact.
GRADING = 4
MOST_STEPS = 10_000
"""More would take minutes and gigabytes to find the nodes of."""


@lru_cache(maxsize=64)
def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(n)
    return 0.5 * (x + 1), 0.5 * w


def nodes_and_weights(method: str, n_steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a named rule.

    Args:
        method: one of :data:`METHODS`.
        n_steps: number of nodes, at least 1 (the trapezoid and the graded rule need 2).

    Returns:
        ``(alphas, weights)``, float64 tensors ``(n_steps,)``, alphas ascending in [0, 1].

    Raises:
        LigError: unknown method, or too few or too many steps.
    """
    if method not in METHODS:
        raise LigError(f"method {brief(method)} is unknown: use one of {', '.join(METHODS)}.")
    # With one node a trapezoid has no width, and a graded rule is not exact for constants.
    least = 2 if method in ("riemann_trapezoid", "gausslegendre_graded") else 1
    whole_number(f"method {method!r} with n_steps", n_steps, least)
    if n_steps > MOST_STEPS:
        raise LigError(f"n_steps={brief(n_steps)}: give {MOST_STEPS} at most.")
    if method == "gausslegendre":
        alphas, weights = _gauss_legendre(n_steps)
    elif method == "gausslegendre_graded":
        t, w = _gauss_legendre(n_steps)
        alphas, weights = t**GRADING, w * GRADING * t ** (GRADING - 1)
    elif method == "riemann_trapezoid":
        alphas = np.linspace(0.0, 1.0, n_steps)
        weights = np.full(n_steps, 1 / (n_steps - 1))
        weights[[0, -1]] /= 2
    else:
        offset = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[method]
        alphas = (np.arange(n_steps) + offset) / n_steps
        weights = np.full(n_steps, 1 / n_steps)
    return torch.from_numpy(alphas.copy()), torch.from_numpy(weights.copy())
