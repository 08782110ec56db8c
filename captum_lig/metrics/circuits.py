"""How faithful circuits of growing size are to a model: faithfulness, CPR and CMD.

A circuit keeps a share ``k`` of a model's edges (or nodes); all others have the values of a
counterfactual run. With ``m`` the number that is explained, ``m(C_k)`` is what the circuit gives.

After Mueller et al., "MIB: A Mechanistic Interpretability Benchmark" (2025), arXiv:2504.13151.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.metrics.statistics import OverTexts

__all__ = [
    "SHARES",
    "CircuitsOverTexts",
    "Scale",
    "circuit_cmd",
    "circuit_cpr",
    "circuit_faithfulness",
]

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges or nodes that are kept: those of the benchmark."""

Scale = Literal["linear", "log"]


def circuit_faithfulness(values: Tensor, none: Tensor | float, whole: Tensor | float) -> Tensor:
    """``f(k) = (m(C_k) - m(none)) / (m(all) - m(none))``: 0 is the counterfactual, 1 the model.

    Args:
        values: ``(..., K)`` what the circuits give.
        none: ``(...)`` what an empty one gives.
        whole: ``(...)`` what the whole model gives.

    Returns:
        ``(..., K)`` float64. NaN or infinite where the empty circuit gives what the model gives.
    """
    values = torch.as_tensor(values).double()
    low, high = (
        torch.as_tensor(x, dtype=torch.float64, device=values.device).unsqueeze(-1)
        for x in (none, whole)
    )
    return (values - low) / (high - low)


def circuit_cpr(
    faithfulness: Tensor, shares: Sequence[float] | Tensor = SHARES, scale: Scale = "linear"
) -> Tensor:
    """Circuit performance ratio: the mean of ``f`` over ``k``, by the trapezoid rule.

    The area under ``f`` from the smallest share to the largest, divided by the distance between
    them: 1 for the model itself at each size, larger where circuits do better than the model. Over
    a log scale every factor of ``k`` counts the same, so small circuits count. (The benchmark does
    not divide: its areas over a linear ``k`` are 0.999 times these.)

    Args:
        faithfulness: ``(..., K)``
        shares: ``(K,)`` increasing, above 0.
        scale: ``"linear"`` or ``"log"``.

    Returns:
        ``(...)`` float64.

    Raises:
        LigError: for shares that do not fit or do not increase, or another scale.
    """
    return _mean(torch.as_tensor(faithfulness).double(), shares, scale)


def circuit_cmd(
    faithfulness: Tensor, shares: Sequence[float] | Tensor = SHARES, scale: Scale = "linear"
) -> Tensor:
    """Circuit-model distance: the mean of ``|1 - f|`` over ``k``, by the trapezoid rule.

    0 for the model itself at each size. Arguments, result and errors as :func:`circuit_cpr`.
    """
    return _mean((1 - torch.as_tensor(faithfulness).double()).abs(), shares, scale)


class CircuitsOverTexts(OverTexts):
    """Faithfulness of circuits over texts, and the areas.

    Names are ``"faithfulness 0.001"`` for each share, and ``"cmd"``, ``"cpr"``, ``"cmd log"`` and
    ``"cpr log"``.
    """

    def update(
        self, faithfulness: Tensor | Sequence[float], shares: Sequence[float] = SHARES
    ) -> None:
        """Add one text: the faithfulness of its circuits ``(K,)`` that keep the shares ``(K,)``."""
        f = torch.as_tensor(faithfulness, dtype=torch.float64)
        areas = {
            "cmd": circuit_cmd(f, shares),
            "cpr": circuit_cpr(f, shares),
            "cmd log": circuit_cmd(f, shares, "log"),
            "cpr log": circuit_cpr(f, shares, "log"),
        }
        each = {f"faithfulness {k:g}": x for k, x in zip(shares, f.tolist(), strict=True)}
        self.add(each | {name: float(area) for name, area in areas.items()})


def _mean(heights: Tensor, shares: Sequence[float] | Tensor, scale: Scale) -> Tensor:
    """Mean over the range of shares of what is linear between them."""
    k = torch.as_tensor(shares, dtype=torch.float64, device=heights.device)
    if k.dim() != 1 or heights.dim() == 0 or len(k) != heights.shape[-1] or len(k) < 2:
        raise LigError(
            f"faithfulness has the shape {tuple(heights.shape)} and there are {k.numel()} shares: "
            "give (..., K) and K of them, at least 2."
        )
    if not bool((k[1:] > k[:-1]).all()) or not float(k[0]) > 0:
        raise LigError(f"shares={brief(k.tolist())}: give them increasing, above 0.")
    if scale not in ("linear", "log"):
        raise LigError(f"scale={brief(scale)}: give 'linear' or 'log'.")
    x = k.log() if scale == "log" else k
    return torch.trapezoid(heights, x) / (x[-1] - x[0])
