"""Erasing tokens, text by text and token by token with plain runs of the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LigError
from captum_lig.metrics import ErasureOverTexts, erasure
from tests.helpers import models

FRACTIONS = (0.01, 0.3, 0.5, 1.0)


def number(output: Any) -> Tensor:
    """Of what a model gives, of every token."""
    hidden: Tensor = output.last_hidden_state
    weight = torch.linspace(-1, 2, hidden.shape[-1]).to(hidden)
    return torch.tanh(hidden @ weight / 5).square().sum(-1)


def expected(
    model: nn.Module, ids: list[int], baseline: list[int], relevance: list[float]
) -> dict[str, list[float]]:
    def says(text: list[int]) -> float:
        with torch.no_grad():
            return float(number(model(input_ids=torch.tensor([text]))))

    can = [n for n, (a, b) in enumerate(zip(ids, baseline, strict=True)) if a != b]
    order = sorted(can, key=lambda n: -relevance[n])
    found: dict[str, list[float]] = {"comprehensiveness": [], "sufficiency": []}
    for part in FRACTIONS:
        top = order[: math.ceil(part * len(order))]
        without = [baseline[n] if n in top else token for n, token in enumerate(ids)]
        only = [token if n in top else baseline[n] for n, token in enumerate(ids)]
        found["comprehensiveness"].append(says(ids) - says(without))
        found["sufficiency"].append(says(ids) - says(only))
    steps = len(FRACTIONS) + 1
    found["aopc"] = [
        sum(found["comprehensiveness"]) / steps,
        (says(ids) - says(baseline) + sum(found["sufficiency"])) / steps,
    ]
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_erasing_token_by_token(batch_size: int) -> None:
    model = models.tiny_bert()
    ids = models.tokens(model, 2, 7)
    other = models.tokens(model, 2, 7, seed=1)
    other[:, 1:] = torch.where(other[:, 1:] == ids[:, 1:], models.PADDING_ID, other[:, 1:])
    other[:, 0] = ids[:, 0]
    relevance = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    found = erasure(
        model,
        {"input_ids": ids},
        relevance,
        number,
        {"input_ids": other},
        fractions=FRACTIONS,
        batch_size=batch_size,
    )
    assert len(found) == 2
    for text, one in enumerate(found):
        right = expected(model, *(x[text].tolist() for x in (ids, other, relevance)))
        assert one.counts == (1, 2, 3, 6)
        assert one.comprehensiveness.tolist() == pytest.approx(right["comprehensiveness"])
        assert one.sufficiency.tolist() == pytest.approx(right["sufficiency"])
        both = [one.aopc_comprehensiveness, one.aopc_sufficiency]
        assert both == pytest.approx(right["aopc"])
        # All erased is the baseline, none is the text.
        assert float(one.without[-1]) == pytest.approx(one.baseline_value)
        assert float(one.only[-1]) == pytest.approx(one.value)


def test_padding_is_the_baseline_and_stays_out() -> None:
    model = models.tiny_bert()
    batch = models.padded_batch(model, (4, 6))
    relevance = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    one = {"input_ids": batch["input_ids"][:1, :4]}

    def first(output: Any) -> Tensor:
        hidden: Tensor = output.last_hidden_state
        return hidden[:, 0].square().sum(-1)

    padding = torch.full((2, 6), models.PADDING_ID)
    (together, _) = erasure(model, batch, relevance, first, {"input_ids": padding})
    (alone,) = erasure(model, one, relevance[:1, :4], first, {"input_ids": padding[:1, :4]})
    assert together.counts == alone.counts
    assert torch.allclose(together.without, alone.without)
    assert torch.allclose(together.only, alone.only)


def test_vectors_can_be_erased() -> None:
    model = models.tiny_gpt2()
    vectors = torch.randn(1, 5, models.WIDTH, dtype=torch.float64)
    (found,) = erasure(model, {"inputs_embeds": vectors}, torch.arange(5.0)[None], number, 0.0)
    tokens = vectors.clone()
    tokens[:, 4] = 0
    with torch.no_grad():
        assert float(found.without[0]) == pytest.approx(float(number(model(inputs_embeds=tokens))))


def test_the_best_order_is_more_comprehensive_than_its_reverse() -> None:
    model = models.tiny_bert()
    ids = {"input_ids": models.tokens(model, 1, 8)}
    padding = {"input_ids": torch.full((1, 8), models.PADDING_ID)}
    alone = torch.zeros(1, 8)
    for token in range(8):
        erased = torch.zeros(1, 8)
        erased[0, token] = 1
        (one,) = erasure(model, ids, erased, number, padding, fractions=[0.1])
        alone[0, token] = float(one.comprehensiveness)
    (best,), (worst,) = (erasure(model, ids, s * alone, number, padding) for s in (1, -1))
    assert best.comprehensiveness[0] > worst.comprehensiveness[0]
    over = ErasureOverTexts()
    over.update([best, worst])
    found = over.compute()
    mean = (best.aopc_comprehensiveness + worst.aopc_comprehensiveness) / 2
    assert found["aopc comprehensiveness"].mean == pytest.approx(mean)
    assert found["sufficiency 0.2"].mean == pytest.approx(
        float(best.sufficiency[3] + worst.sufficiency[3]) / 2
    )


def test_what_does_not_fit_is_refused() -> None:
    model = models.tiny_bert()
    ids = {"input_ids": models.tokens(model, 1, 4)}
    padding = {"input_ids": torch.full((1, 4), models.PADDING_ID)}
    with pytest.raises(LigError, match="fractions"):
        erasure(model, ids, torch.zeros(1, 4), number, padding, fractions=[0.0])
    with pytest.raises(LigError, match=r"relevance of shape \(3,\)"):
        erasure(model, ids, torch.zeros(1, 3), number, padding)
    with pytest.raises(LigError, match="2 texts"):
        erasure(model, ids, torch.zeros(2, 4), number, padding)
    with pytest.raises(LigError, match="0 of the inputs differ"):
        erasure(model, ids, torch.zeros(1, 4), number, ids)
