"""What is not finite is refused, with layer, boundary and token."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlow, LayerFlowIG, SetToSetIG
from captum_lig.metrics import CompletenessErrors, completeness, erasure
from tests.helpers import models
from tests.helpers.wrong_numbers import IDS, LAST, NAN, OTHER, decoder, last, refused


class Root(nn.Module):
    """Its value is finite, its gradient is not where a feature is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x).abs().sqrt() + x


@pytest.mark.parametrize("tolerance", [1e-3, None])
def test_gradients_on_the_path(tolerance: float | None) -> None:
    model = models.tiny_bert()
    model.encoder.layer[1].intermediate.intermediate_act_fn = Root().eval()
    with refused("encoder.layer.1", "mlp of target 0 of text 0", "not finite", "5 of 5"):
        LayerFlowIG(model).attribute(IDS, tolerance=tolerance)
    with refused("encoder.layer.1", "feed_forward", "token 0", "not finite"):
        LayerFlowIG(model).attribute(IDS, OTHER, last, tolerance=tolerance)


@pytest.mark.parametrize("token", [1, 3])
def test_vectors_that_are_not_finite(token: int) -> None:
    model = models.tiny_bert()
    good = model.embeddings.word_embeddings(torch.cat([IDS, OTHER])).detach()
    bad = good.clone()
    bad[1, token, 4] = NAN
    named = "encoder.layer.0", f"token {token} of text 1", "entering"
    with refused(*named):
        LayerFlowIG(model).attribute({"inputs_embeds": bad})
    with refused("text 1 of the batch", f"token {token} ", "these inputs"):
        LayerFlowIG(model).attribute({"inputs_embeds": bad}, good, last)
    with refused("text 1 of the batch", f"token {token} ", "the baseline"):
        LayerFlowIG(model).attribute({"inputs_embeds": good}, bad, last)


def test_what_overflows_half_precision() -> None:
    model = models.tiny_gpt2(torch.float16)
    with torch.no_grad():
        model.h[1].mlp.c_proj.weight.mul_(2e4)
    with refused("h.1", "leaving", "float16", "wider dtype"):
        LayerFlowIG(model).attribute(IDS)


def test_sets_that_are_not_finite_on_the_path() -> None:
    x = torch.rand(2, 3, 2, dtype=torch.float64) + 1

    def broken(x: Tensor) -> Tensor:
        middle = (x.detach()[:, 1:2] > 0.5) & (x.detach()[:, 1:2] < 0.9)
        hole = torch.where(middle, NAN, 0.0)
        return torch.cat([x[:, :1], x[:, 1:2] * (1 + hole), x[:, 2:]], 1)

    for tolerance in (None, 1e-3):
        with refused("target 1 of example 0", "not finite"):
            SetToSetIG(broken).attribute(x, tolerance=tolerance)


def test_rows_of_sets_that_miss_are_named() -> None:
    x = torch.ones(2, 2, 1, dtype=torch.float64)

    def steep(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], (3000 * x[:, 1:]).sin()], 1)

    arguments: dict[str, Any] = {"tolerance": 1e-3, "max_steps": 20, "n_steps": 5}
    with pytest.warns(UserWarning, match="target 1 of example 0, target 1 of example 1[.]"):
        SetToSetIG(steep).attribute(x, **arguments)


def test_errors_of_what_is_not_finite() -> None:
    assert completeness(torch.tensor([[1.0, NAN]]), torch.ones(1)).worst != 0
    good = LayerFlowIG(models.tiny_bert(), 0).attribute(IDS)
    assert isinstance(good, LayerFlow)
    bad = replace(good, tensors={**good.tensors, "layer": good.layer.clone().fill_(NAN)})
    for flows in ([good, bad], [bad, good]):
        errors = CompletenessErrors()
        errors.update(flows)
        errors.update(good)
        assert math.isnan(errors.worst()["layer"])
        assert errors.worst()["mlp"] < 1e-3
    with refused("finite"):
        erasure(decoder(), IDS, torch.tensor([[1.0, NAN, 2, 3, 4]]), LAST, OTHER)
