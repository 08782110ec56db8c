"""Influence vectors: the boundaries without a scalarization."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import LayerFlowIG, LigError, SetToSetIG
from captum_lig.flow.layer_flow import LayerFlow
from tests.helpers import models, twin_blocks, twins
from tests.helpers.attributions import BASELINES, NODES, attribute, baseline_for, block_input


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("family", models.MODELS)
def test_lengths_equal_the_twins_vectors(family: str, baseline: str) -> None:
    model = models.MODELS[family]()
    inputs = {"input_ids": models.tokens(model, 1, 4)}
    z = block_input(model, 1, **inputs)[0]
    start = baseline_for(baseline, z)
    flow = attribute(model, 1, inputs, start, boundaries=("influence",))
    block = twin_blocks.twin_block(model, 1, torch.ones(4))
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
        assert float(part.abs().max()) > 0.1 * float(length.max())
        if family in models.CAUSAL and baseline == "target_token":  # target 1 reads token 0 alone
            one, whole = (x[0, ..., 1, 0] for x in (part, length))
            torch.testing.assert_close(one, whole, rtol=1e-6, atol=1e-7)


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


# --- SetToSetIG ---------------------------------------------------------------------------------


def set_map(x: Tensor) -> Tensor:
    """``(B, 3, 4) -> (B, 2, 5)``."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, 4, 2, 5, generator=generator, dtype=torch.float64)
    return torch.tanh(torch.einsum("bsd,sdte->bte", torch.sin(x), weight))


def inputs_of(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["zero", "target_token", "shared", "per_target"])
def test_vectors_equal_the_full_jacobian(baseline: str) -> None:
    x = inputs_of((2, 3, 4), 1)
    given: Any = {
        "shared": inputs_of((2, 3, 4), 2),
        "per_target": inputs_of((2, 2, 3, 4), 2),
    }.get(baseline, baseline)
    attributions, delta = SetToSetIG(set_map, scalarization="vector").attribute(
        x, given, n_steps=5, return_convergence_delta=True
    )
    assert isinstance(attributions, Tensor)
    assert attributions.shape == (2, 2, 3, 5)
    assert delta.shape == (2, 2, 5)
    alphas, weights = twins.gauss_legendre(5)
    for b in range(2):
        for j in range(2):
            start = {
                "zero": torch.zeros(3, 4, dtype=torch.float64),
                "target_token": x[b, j].expand(3, 4),
                "shared": given[b] if baseline == "shared" else None,
                "per_target": given[b, j] if baseline == "per_target" else None,
            }[baseline]
            expected = torch.zeros(3, 5, dtype=torch.float64)
            for a, w in zip(alphas, weights, strict=True):
                jacobian = torch.autograd.functional.jacobian(
                    lambda y, j=j: set_map(y[None])[0, j], start + a * (x[b] - start)
                )  # (E, S, D)
                expected += w * torch.einsum("esd,sd->se", jacobian, x[b] - start)
            torch.testing.assert_close(attributions[b, j], expected, rtol=1e-9, atol=1e-12)
            change = set_map(x[b][None])[0, j] - set_map(start[None])[0, j]
            torch.testing.assert_close(delta[b, j], expected.sum(0) - change)


@pytest.mark.parametrize("baseline", [None, "target_token"])
def test_the_component_of_vectors_along_the_change_is_the_projection(baseline: Any) -> None:
    x = inputs_of((2, 3, 4), 4)
    vectors = SetToSetIG(set_map, scalarization="vector")
    found, delta = vectors.attribute(x, baseline, n_steps=4, return_convergence_delta=True)
    projection = SetToSetIG(set_map, scalarization="projection").attribute(x, baseline, n_steps=4)
    assert isinstance(found, Tensor)
    assert isinstance(projection, Tensor)
    change = found.sum(2) - delta
    along = change / change.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(torch.einsum("btse,bte->bts", found, along), projection)
    torch.testing.assert_close(vectors.compute_convergence_delta(found, baseline, x), delta)
    few = vectors.attribute(x, baseline, n_steps=4, internal_batch_size=3, output_indices=[1])
    assert isinstance(few, Tensor)
    torch.testing.assert_close(few, found[:, 1:])


def test_vectors_of_one_target_of_two_inputs_and_of_sensitivities() -> None:
    x, y = inputs_of((2, 3, 4), 5), inputs_of((2, 1, 4), 6)
    ig = SetToSetIG(lambda a, b: set_map(a + b), scalarization="vector")
    first, second = ig.attribute((x, y), n_steps=3)
    assert first.shape == (2, 2, 3, 5)
    assert second.shape == (2, 2, 1, 5)
    one = SetToSetIG(set_map, scalarization="vector").attribute(x, target=1, n_steps=3)
    every = SetToSetIG(set_map, scalarization="vector").attribute(x, n_steps=3)
    assert isinstance(one, Tensor)
    assert isinstance(every, Tensor)
    torch.testing.assert_close(one, every[:, 1])
    local = SetToSetIG(set_map, multiply_by_inputs=False, scalarization="vector")
    linear = local.attribute(torch.ones(2, 3, 4, dtype=torch.float64), n_steps=3)
    whole = SetToSetIG(set_map, scalarization="vector").attribute(
        torch.ones(2, 3, 4, dtype=torch.float64), n_steps=3
    )
    torch.testing.assert_close(linear, whole)  # the change is 1 in each feature


def test_vectors_for_each_feature_are_refused() -> None:
    with pytest.raises(LigError, match="per_feature"):
        SetToSetIG(set_map, scalarization="vector").attribute(
            inputs_of((1, 3, 4), 7), per_feature=True
        )
