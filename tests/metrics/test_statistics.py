"""Agreement and intervals, beside scipy and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from captum_lig import LigError
from captum_lig.metrics import OverTexts, agreement, interval, mean_over


def drawn(count: int, seed: int, ties: bool = False) -> Tensor:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.mul(2).round() if ties else values


@pytest.mark.parametrize("ties", [False, True])
def test_agreement_is_that_of_scipy(ties: bool) -> None:
    score, truth = drawn(30, 0, ties), drawn(30, 1, ties) + drawn(30, 0, ties)
    found = agreement(score, truth)
    s, t = score.numpy(), truth.numpy()
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(s, t).statistic)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(s, t).statistic)
    squares = sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
    assert found.distance == pytest.approx(math.sqrt(squares / sum(b * b for b in t)))
    assert found.size == pytest.approx(math.sqrt(sum(a * a for a in s) / sum(b * b for b in t)))


def test_agreement_where_nothing_is_defined() -> None:
    constant = agreement(torch.ones(4), torch.tensor([1.0, 2, 3, 4]))
    assert math.isnan(constant.pearson)
    assert math.isnan(constant.spearman)
    assert constant.distance > 0
    nothing = agreement(torch.ones(4), torch.zeros(4))
    assert math.isnan(nothing.distance)
    assert math.isnan(nothing.size)
    assert all(map(math.isnan, vars(agreement(torch.ones(0), torch.ones(0))).values()))
    with pytest.raises(LigError, match=r"\(3,\).*\(4,\)"):
        agreement(torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_interval_is_scipys_percentile_bootstrap(level: float) -> None:
    values = drawn(40, 2).exp().tolist()
    found = interval(values, level, resamples=20_000)
    other = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert found.mean == pytest.approx(np.mean(values))
    width = other.high - other.low
    # Both are estimates from draws of their own.
    assert abs(found.low - other.low) < 0.05 * width
    assert abs(found.high - other.high) < 0.05 * width
    assert found.texts == 40
    assert interval(values) == interval(values)
    assert interval(values, seed=1) != interval(values)


def test_interval_leaves_out_texts_without_a_number() -> None:
    assert interval([1.0, math.nan, 3.0]).texts == 2
    assert interval([1.0, math.nan, 3.0]).mean == 2
    assert math.isnan(interval([math.nan]).mean)
    with pytest.raises(LigError, match=r"level=1\.5"):
        interval([1.0], 1.5)


def test_weighted_means() -> None:
    values = torch.tensor([[1.0, 2, math.nan], [4, 5, 6]])
    weights = torch.tensor([[1.0, 3, 5], [0, 1, 1]])
    assert float(mean_over(values)) == pytest.approx(18 / 5)
    assert float(mean_over(values, weights)) == pytest.approx(
        np.average([1, 2, 4, 5, 6], weights=[1, 3, 0, 1, 1])
    )
    assert mean_over(values, weights, dim=-1).tolist() == pytest.approx([7 / 4, 11 / 2])
    assert mean_over(torch.tensor([math.nan])).isnan()
    with pytest.raises(LigError, match="weights"):
        mean_over(values, weights[0])
    with pytest.raises(LigError, match="at least 0"):
        mean_over(values, -weights)


def test_numbers_over_texts() -> None:
    over = OverTexts()
    with pytest.raises(LigError, match="no text yet"):
        over.compute()
    over.add({"a": 1.0, "b": 2.0})
    over.add({"a": 3.0})
    found = over.compute()
    assert found["a"] == interval([1.0, 3.0])
    assert found["b"].texts == 1
    assert str(found["b"]) == "2.000 [2.000, 2.000]"
    over.reset()
    assert over.rows == []
