"""How many pairs of a path point and a target are worked on at once, where nobody says."""

from __future__ import annotations

import pytest
import torch

from captum_lig.integrals.settings import MEMORY, Settings


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(100, 500), (500, 500), (700, 700), (1000, 1000), (1500, 1000)],
    ids=["several points", "half", "one point", "just one point", "less than a point"],
)
def test_one_point_of_all_targets_or_several_in_half_the_memory(
    targets: int, expected: int
) -> None:
    settings = Settings.checked(16, "gausslegendre")
    floats = MEMORY // (1000 * 4)  # a thousand pairs in float32
    assert settings.pairs_at_once(floats, targets, torch.zeros(1)) == expected


def test_what_the_caller_says_stands() -> None:
    settings = Settings.checked(16, "gausslegendre", internal_batch_size=7)
    assert settings.pairs_at_once(1, 100, torch.zeros(1)) == 7


def test_elsewhere_than_on_a_cpu_all_of_the_memory() -> None:
    settings = Settings.checked(16, "gausslegendre")
    floats = MEMORY // (1000 * 4)
    assert settings.pairs_at_once(floats, 100, torch.zeros(1, device="meta")) == 1000
