"""Whether two computations agree, against its definition, entry by entry."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_lig.model.compare import ROUNDING, deviations, nearly_equal


def by_definition(a: Tensor, b: Tensor) -> list[float]:
    """Of at most 64 tokens and features, all of which say what is usual."""

    def low_median(numbers: list[float]) -> float:
        return statistics.median_low(numbers)

    tokens, features = b.shape
    columns = b.T.tolist()
    center = [low_median(c) if tokens > 2 else 0.0 for c in columns]
    usual = [low_median([abs(x - m) for x in c]) for c, m in zip(columns, center, strict=True)]
    largest, found = max(float(b.abs().max()), 1e-30), []
    for j in range(tokens):
        own = b[j].tolist()
        apart = [abs(x - m) for x, m in zip(own, center, strict=True)]
        least = max(low_median(apart), low_median([abs(x) for x in own]) / 10)
        rounding = ROUNDING * max(map(abs, own))
        worst = 0.0
        for i in range(features):
            gap = abs(float(a[j, i]) - own[i])
            size = max(apart[i], usual[i], least, 1e-30)
            worst = max(worst, max(gap - rounding, 0.0) / size, gap / largest)
        found.append(worst)
    return found


@given(
    tokens=st.integers(1, 6),
    features=st.integers(1, 6),
    gap=st.sampled_from([0.0, 1e-9, 1e-7, 1e-4, 1.0]),
    massive=st.sampled_from([1.0, 1e4]),
    some=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_deviations(
    tokens: int, features: int, gap: float, massive: float, some: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, noise = torch.randn(2, tokens, features, generator=generator, dtype=torch.float64).unbind()
    b[:, 0] *= massive
    if some:
        noise[1:] = 0
    a = b + gap * noise
    expected = torch.tensor(by_definition(a, b), dtype=torch.float64)
    torch.testing.assert_close(deviations(a, b), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("other", [torch.nan, torch.inf])
def test_what_is_not_a_number_agrees_with_nothing(other: float) -> None:
    b = torch.ones(3, 4)
    a = b.clone()
    a[1, 2] = other
    assert not nearly_equal(a, b)
    assert not nearly_equal(b, a)
    assert not nearly_equal(a, a)
