"""Influence vectors: the boundaries without a scalarization."""

from __future__ import annotations

import pytest
import torch

from captum_lig import LayerFlowIG
from captum_lig.flow import LayerFlow
from tests import models, twins
from tests.test_layer_flow import BASELINES, NODES, attribute, baseline_for, block_input


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("family", models.MODELS)
def test_lengths_equal_the_twins_vectors(family: str, baseline: str) -> None:
    model = models.MODELS[family]()
    inputs = {"input_ids": models.tokens(model, 1, 4)}
    z = block_input(model, 1, **inputs)[0]
    start = baseline_for(baseline, z)
    flow = attribute(model, 1, inputs, start, boundaries=("influence",))
    block = twins.twin_block(model, 1, torch.ones(4))
    nodes = twins.gauss_legendre(NODES)
    layer, change = twins.layer_map(block, z, start, "vector", *nodes)
    heads, _ = twins.attention_map(block, z, start, "vector", *nodes)
    assert flow.influence is not None
    assert flow.attention_influence is not None
    torch.testing.assert_close(flow.influence[0], layer.norm(dim=-1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        flow.attention_influence[0], heads.norm(dim=-1), rtol=1e-6, atol=1e-9
    )
    missing = (layer.sum(1) - change).norm(dim=-1)
    torch.testing.assert_close(flow.delta["influence"][0], missing, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("family", models.MODELS)
def test_the_component_along_the_change_is_the_projection(family: str, baseline: str) -> None:
    """|projection| is at most the vector's length; equal if there is one source only."""
    model = models.MODELS[family]()
    inputs = {"input_ids": models.tokens(model, 1, 5)}
    flow = attribute(
        model,
        1,
        inputs,
        baseline,
        scalarization="projection",
        boundaries=("attention", "layer", "influence"),
    )
    for part, length in (
        (flow.layer, flow.influence),
        (flow.attention, flow.attention_influence),
    ):
        assert part is not None
        assert length is not None
        assert bool((part.abs() <= length * (1 + 1e-9) + 1e-12).all())


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_vectors_are_certified_and_padding_is_zero(baseline: str) -> None:
    model = models.tiny_bert(dtype=torch.float32)
    inputs = models.padded_batch(model, (3, 5))
    flow = LayerFlowIG(model, 1).attribute(inputs, baseline, boundaries=("influence",))
    assert isinstance(flow, LayerFlow)
    assert flow.influence is not None
    for name in ("influence", "attention_influence"):
        assert bool(flow.converged[name].all())
    assert bool((flow.influence[0, 3:] == 0).all())
    assert bool((flow.influence[0, :, 3:] == 0).all())
    whole = LayerFlowIG(model, 1).attribute(
        inputs, baseline, boundaries=("influence",), internal_batch_size=5
    )
    assert isinstance(whole, LayerFlow)
    assert whole.influence is not None
    torch.testing.assert_close(whole.influence, flow.influence, rtol=1e-4, atol=1e-5)
