"""Random parameters: what is shuffled, in which order, and that the model is left alone."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from captum_lig import LigError
from captum_lig.metrics import RandomisationOverTexts, cascading_randomisation
from tests.helpers import models
from tests.helpers.state import Unchanged

PARTS = ["encoder.layer.1", "encoder.layer.0", "embeddings"]


def entries(module: nn.Module) -> list[list[float]]:
    return [sorted(p.flatten().tolist()) for p in module.parameters()]


def test_parts_are_shuffled_from_the_top_down() -> None:
    model = models.tiny_bert()
    inputs = {"input_ids": models.tokens(model, 1, 5)}
    seen: list[nn.Module] = []
    explanations: list[Tensor] = []

    def explain(one: nn.Module) -> Tensor:
        with torch.no_grad():
            explanations.append(one(**inputs).last_hidden_state.sum(-1))
        changed = [
            name
            for name in PARTS
            if any(
                not torch.equal(p, q)
                for p, q in zip(
                    one.get_submodule(name).parameters(),
                    model.get_submodule(name).parameters(),
                    strict=True,
                )
            )
        ]
        assert changed == PARTS[: len(seen)]
        assert entries(one) == entries(model)
        seen.append(one)
        return explanations[-1]

    with Unchanged(model, inputs):
        found = cascading_randomisation(model, explain, PARTS)
    assert [one.part for one in found] == PARTS
    assert seen[0] is model
    assert all(one is not model for one in seen[1:])
    before = explanations[0].flatten().numpy()
    for one, after in zip(found, explanations[1:], strict=True):
        x = after.flatten().numpy()
        assert one.pearson == pytest.approx(scipy.stats.pearsonr(before, x).statistic)
        assert one.spearman == pytest.approx(scipy.stats.spearmanr(before, x).statistic)
        sizes = scipy.stats.spearmanr(abs(before), abs(x)).statistic
        assert one.spearman_of_sizes == pytest.approx(sizes)


def test_what_does_not_look_at_the_model_is_found_out() -> None:
    model = models.tiny_bert()
    found = cascading_randomisation(model, lambda one: torch.arange(6.0), PARTS)
    assert all(one.spearman == one.pearson == pytest.approx(1) for one in found)


def test_shared_parameters_are_shuffled_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    weights: list[Tensor] = []

    def explain(one: nn.Module) -> Tensor:
        weights.append(one["a"].weight.detach().clone())  # type: ignore[index]
        return weights[-1]

    cascading_randomisation(model, explain, ["a", "b"])
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


def test_a_seed_is_one_order() -> None:
    model = models.tiny_bert()

    def explain(one: nn.Module) -> Tensor:
        return one.get_parameter("encoder.layer.1.output.dense.bias")

    one, same, other = (cascading_randomisation(model, explain, PARTS[:1], s) for s in (0, 0, 1))
    assert one == same
    assert one != other


def test_over_texts() -> None:
    over = RandomisationOverTexts()
    model = models.tiny_bert()
    over.update(cascading_randomisation(model, lambda one: torch.arange(6.0), PARTS[:1]))
    assert over.compute()["encoder.layer.1 spearman"].mean == pytest.approx(1)


def test_what_is_not_there_is_refused() -> None:
    model = models.tiny_bert()
    for parts, words in (
        ("embeddings", "give a list"),
        ([], "give a list"),
        (["encoder.layer.7"], "no module"),
        (["encoder.layer.0.attention.output.dropout"], "no parameters"),
    ):
        with pytest.raises(LigError, match=words):
            cascading_randomisation(model, lambda one: torch.zeros(3), parts)
    shapes = iter([3, 4])
    with pytest.raises(LigError, match=r"\(3,\).*\(4,\)"):
        cascading_randomisation(model, lambda one: torch.zeros(next(shapes)), PARTS)
