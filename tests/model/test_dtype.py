"""Models in half precision: the paths in float32, on a copy of one block at a time."""

from __future__ import annotations

import pytest
import torch

from captum_lig import LayerFlowIG, LigError
from captum_lig.flow.layer_flow import LayerFlow
from tests.helpers import models


def first_layer(model: torch.nn.Module, ids: torch.Tensor, **kwargs: object) -> LayerFlow:
    flow = LayerFlowIG(model, 0).attribute(ids, **kwargs)  # type: ignore[call-overload]
    assert isinstance(flow, LayerFlow)
    return flow


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("family", models.MODELS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_on_the_rounded_model(
    half: torch.dtype, family: str, baseline: str
) -> None:
    """The first block sees the same embeddings as the float32 model of the rounded weights."""
    coarse = models.MODELS[family](dtype=half)
    ids = models.tokens(coarse, 1, 5)
    rounded = models.MODELS[family](dtype=half).to(torch.float32)
    flow = first_layer(coarse, ids, baselines=baseline)
    expected = first_layer(rounded, ids, baselines=baseline)
    assert flow.layer is not None
    assert expected.layer is not None
    assert expected.layer_total is not None
    assert flow.layer.dtype == torch.float32
    assert bool(flow.converged["layer"].all())
    gap = (flow.layer - expected.layer).abs().amax(-1)
    bound = 0.015 if half == torch.bfloat16 else 0.001
    assert bool((gap <= bound * expected.layer_total + 1e-6).all())
    assert {p.dtype for p in coarse.parameters()} == {half}


def test_a_wider_dtype_is_that_of_the_wider_model() -> None:
    single, double = models.tiny_llama(dtype=torch.float32), models.tiny_llama()
    double.load_state_dict(single.state_dict())
    ids = models.tokens(single, 1, 5)
    double.set_attn_implementation("eager")
    flow = first_layer(single, ids, dtype=torch.float64)
    expected = first_layer(double, ids)
    assert flow.layer is not None
    assert expected.layer is not None
    assert flow.layer.dtype == torch.float64
    torch.testing.assert_close(flow.layer, expected.layer, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wrong", [torch.bfloat16, torch.int64, "float32"])
def test_other_dtypes_are_refused(wrong: object) -> None:
    model = models.tiny_bert(dtype=torch.float32)
    with pytest.raises(LigError, match="dtype="):
        first_layer(model, models.tokens(model, 1, 4), dtype=wrong)
