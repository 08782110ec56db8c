"""How far two maps are apart: by hand, and against the definitions of the measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import LigError
from captum_lig.flow.compare_maps import compare_maps
from tests.helpers.correlations import mean_ranks, pearson
from tests.helpers.synthetic import number


def test_measures_by_hand() -> None:
    direct = number([[3, 4, 0], [0, 0, 0], [1, 2, 4], [5, 5, 5]])
    composed = number([[3, 0, 3], [1, 0, 0], [1, 4, 2], [1, 2, 3]])
    found = compare_maps(direct, composed)
    assert found.l2.tolist() == pytest.approx([5, 1, math.sqrt(8), math.sqrt(29)])
    assert found.relative_l2[0].item() == pytest.approx(1)
    assert found.relative_l2[1].isnan()
    # Row 2: ranks 1 2 3 against 1 3 2.
    assert found.spearman[2].item() == pytest.approx(0.5)
    assert found.pearson[2].item() == pytest.approx(pearson([1, 2, 4], [1, 4, 2]))
    for constant in (1, 3):
        assert found.pearson[constant].isnan()
        assert found.spearman[constant].isnan()


def test_what_a_target_does_not_see_says_nothing() -> None:
    direct, composed = number([[1, 2, 3, 0, 0]]), number([[3, 2, 1, 0, 0]])
    visible = torch.tensor([[True, True, True, False, False]])
    assert compare_maps(direct, composed).pearson.item() > 0.3
    found = compare_maps(direct, composed, visible)
    assert found.pearson.item() == pytest.approx(-1)
    assert found.spearman.item() == pytest.approx(-1)
    alone = torch.tensor([[True, False, False, False, False]])
    assert compare_maps(direct, composed, alone).pearson.isnan().all()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    seed=st.integers(0, 2**31),
    sources=st.integers(1, 7),
    ties=st.booleans(),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
)
def test_measures_are_their_definitions(seed: int, sources: int, ties: bool, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def a_map() -> Tensor:
        x = torch.randn(2, 3, sources, generator=generator, dtype=torch.float64)
        return scale * (x.round() if ties else x)

    direct, composed = a_map(), a_map()
    visible = torch.rand(3, sources, generator=generator) < 0.7
    visible[:, 0] = True
    found = compare_maps(direct, composed, visible)
    for place in np.ndindex(2, 3):
        x, y = (m[place][visible[place[1]]].tolist() for m in (direct, composed))
        whole_x, whole_y = direct[place].numpy(), composed[place].numpy()
        l2 = float(np.sqrt(((whole_x - whole_y) ** 2).sum()))
        size = float(np.sqrt((whole_x**2).sum()))
        right = (
            l2,
            l2 / size if size > 0 else math.nan,
            pearson(x, y),
            pearson(mean_ranks(x), mean_ranks(y)),
        )
        for measure, expected in zip(vars(found).values(), right, strict=True):
            assert measure[place].item() == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


def test_maps_that_do_not_fit() -> None:
    with pytest.raises(LigError, match=r"\(2, 3\) and \(2, 4\)"):
        compare_maps(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(LigError, match=r"visible: \(4,\)"):
        compare_maps(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, dtype=torch.bool))
