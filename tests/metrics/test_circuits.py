"""Faithfulness, CPR and CMD against sums written out, and curves whose areas are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from captum_lig.errors import LigError
from captum_lig.metrics import circuits

SHARES = circuits.SHARES


def mean_by_hand(heights: list[float], x: list[float]) -> float:
    """Trapezoids one by one."""
    area = 0.0
    for n in range(len(x) - 1):
        area += (x[n + 1] - x[n]) * (heights[n] + heights[n + 1]) / 2
    return area / (x[-1] - x[0])


def test_the_shares_are_those_of_the_benchmark() -> None:
    percent = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    np.testing.assert_allclose(SHARES, np.array(percent) / 100)


def test_faithfulness_is_0_for_nothing_and_1_for_all() -> None:
    values = torch.tensor([[-2.0, 1.0, 4.0], [5.0, 3.0, 3.0]])
    found = circuits.circuit_faithfulness(
        values, torch.tensor([-2.0, 5.0]), torch.tensor([4.0, 3.0])
    )
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), [[0, 0.5, 1], [0, 1, 1]])
    assert circuits.circuit_faithfulness(
        torch.tensor([0.1], dtype=torch.float64), 0.1, 0.7
    ).tolist() == [0]
    assert not circuits.circuit_faithfulness(values[0], 1.0, 1.0).isfinite().all()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_areas_are_sums_of_trapezoids(scale: circuits.Scale) -> None:
    drawn = np.random.default_rng(0).normal(0.6, 0.5, size=(3, len(SHARES)))
    assert (drawn > 1).any()
    x = list(np.log(SHARES)) if scale == "log" else list(SHARES)
    faithfulness = torch.from_numpy(drawn)
    cpr = circuits.circuit_cpr(faithfulness, SHARES, scale)
    cmd = circuits.circuit_cmd(faithfulness, SHARES, scale)
    for n, row in enumerate(drawn):
        assert float(cpr[n]) == pytest.approx(mean_by_hand(list(row), x), abs=1e-12)
        apart = [abs(1 - f) for f in row]
        assert float(cmd[n]) == pytest.approx(mean_by_hand(apart, x), abs=1e-12)


def test_areas_of_known_curves() -> None:
    model, nothing = torch.ones(len(SHARES)), torch.zeros(len(SHARES))
    for scale in ("linear", "log"):
        assert float(circuits.circuit_cpr(model, scale=scale)) == pytest.approx(1)  # type: ignore[arg-type]
        assert float(circuits.circuit_cmd(model, scale=scale)) == pytest.approx(0)  # type: ignore[arg-type]
        assert float(circuits.circuit_cmd(nothing, scale=scale)) == pytest.approx(1)  # type: ignore[arg-type]
    # f(k) = k is a straight line over k; f = log k is one over log k.
    line = torch.tensor(SHARES)
    assert float(circuits.circuit_cpr(line)) == pytest.approx((1 + 0.001) / 2)
    logs = torch.tensor([math.log10(k) / 3 + 1 for k in SHARES])
    assert float(circuits.circuit_cpr(logs, scale="log")) == pytest.approx(0.5)
    # Better than the model is as far from it as worse.
    assert float(circuits.circuit_cmd(model + 0.25)) == pytest.approx(0.25)
    assert float(circuits.circuit_cmd(model - 0.25)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("shares", "scale", "message"),
    [
        ([0.1, 0.5], "linear", "shape"),
        ([0.1, 0.5, 0.5], "linear", "increasing"),
        ([0.0, 0.5, 1.0], "log", "above 0"),
        ([0.1, 0.5, 1.0], "cubic", "'cubic'"),
    ],
)
def test_what_does_not_fit_is_refused(shares: list[float], scale: str, message: str) -> None:
    with pytest.raises(LigError, match=message):
        circuits.circuit_cpr(torch.zeros(3), shares, scale)  # type: ignore[arg-type]


def test_means_over_texts() -> None:
    over = circuits.CircuitsOverTexts()
    over.update([0.0, 0.5, 1.0], [0.01, 0.1, 1.0])
    over.update(torch.tensor([1.0, 1.5, 1.0]), [0.01, 0.1, 1.0])
    found = over.compute()
    assert found["faithfulness 0.01"].mean == 0.5
    assert found["faithfulness 0.1"].mean == 1
    assert found["cpr log"].mean == pytest.approx((0.5 + 1.25) / 2)
    assert found["cmd log"].mean == pytest.approx((0.5 + 0.25) / 2)
    linear = (0.09 * 0.25 + 0.9 * 0.75) / 0.99
    assert found["cpr"].mean == pytest.approx((linear + (0.09 * 1.25 + 0.9 * 1.25) / 0.99) / 2)
    assert found["cmd"].texts == 2
