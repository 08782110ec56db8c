"""Agreement of maps with interventions, row by row with scipy."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from captum_lig import LigError
from captum_lig.metrics import Interventions, MapAgreement, map_agreement, row_agreement


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def effects_of(count: int, heads: int | None = None) -> Interventions:
    shape = (1, count, count) if heads is None else (1, heads, count, count)
    numbers = [drawn(*shape, seed=seed) for seed in range(4)]
    numbers[1], numbers[3] = numbers[1].abs(), numbers[3].abs()
    moves = torch.ones(1, count, count, dtype=torch.bool).tril(-1)
    return Interventions("block", 0, *numbers, drawn(1, count, seed=5).abs(), moves)


def expected(score: Tensor, truth: Tensor, moves: Tensor, kind: str) -> list[float]:
    found = []
    for s, t, m in zip(score.numpy(), truth.numpy(), moves.numpy(), strict=True):
        correlate = scipy.stats.pearsonr if kind == "pearson" else scipy.stats.spearmanr
        found.append(correlate(s[m], t[m]).statistic if m.sum() >= 3 else math.nan)
    return found


def test_rows_are_scipys() -> None:
    effects, score = effects_of(6), drawn(6, 6, seed=9)
    rows = row_agreement(score, effects.signed[0], effects.moves[0])
    for found, kind in zip(rows, ("pearson", "spearman"), strict=True):
        right = expected(score, effects.signed[0], effects.moves[0], kind)
        assert found.tolist() == pytest.approx(right, nan_ok=True)
        assert sum(map(math.isnan, right)) == 3  # rows of 0, 1 and 2 sources


@pytest.mark.parametrize("weighted", [False, True])
def test_means_over_rows(weighted: bool) -> None:
    effects, score = effects_of(7), drawn(7, 7, seed=9)
    weights = effects.total[0] if weighted else None
    found = map_agreement(score, effects, weights)
    assert len(found) == 12
    for measure in ("size", "signed"):
        for direction in ("out", "into", "mean"):
            parts = [
                getattr(effects, f"{way}_{measure}")[0]
                for way in (("out", "into") if direction == "mean" else (direction,))
            ]
            truth = sum(parts[1:], parts[0]) / len(parts)
            for kind in ("pearson", "spearman"):
                rows = expected(score, truth, effects.moves[0], kind)
                by = [1.0] * 7 if weights is None else weights.tolist()
                kept = [(r, w) for r, w in zip(rows, by, strict=True) if not math.isnan(r)]
                mean = sum(r * w for r, w in kept) / sum(w for _, w in kept)
                assert found[f"{measure} {direction} {kind}"] == pytest.approx(mean)


def test_edges_are_rows_of_heads() -> None:
    effects, score = effects_of(5, heads=3), drawn(3, 5, 5, seed=9)
    found = map_agreement(score, effects)["size out spearman"]
    rows = [
        row
        for head in range(3)
        for row in expected(score[head], effects.out_size[0, head], effects.moves[0], "spearman")
        if not math.isnan(row)
    ]
    assert found == pytest.approx(sum(rows) / len(rows))


def test_over_texts() -> None:
    over = MapAgreement()
    score = drawn(2, 6, 6, seed=3)
    for one in score:
        over.update(one, effects_of(6))
    each = [map_agreement(one, effects_of(6))["size mean pearson"] for one in score]
    assert over.compute()["size mean pearson"].mean == pytest.approx(sum(each) / 2)


def test_what_does_not_fit_is_refused() -> None:
    effects = effects_of(4)
    with pytest.raises(LigError, match=r"\(5, 5\).*\(4, 4\)"):
        map_agreement(torch.zeros(5, 5), effects)
    two = Interventions(
        "block", 0, *[torch.zeros(2, 4, 4)] * 4, torch.zeros(2, 4), effects.moves.repeat(2, 1, 1)
    )
    with pytest.raises(LigError, match="2 texts"):
        map_agreement(torch.zeros(4, 4), two)
