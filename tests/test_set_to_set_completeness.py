"""Rows of SetToSetIG add up, and are refined until they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import LayerFlowIG, LigError, SetToSetIG
from captum_lig.flow.layer_flow import LayerFlow
from tests.helpers import models
from tests.helpers.sets import (
    METHODS,
    SCALARIZATIONS,
    SOURCES,
    STARTS,
    TARGETS,
    X,
    random,
    two_inputs,
    vector_map,
)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    scalarization=st.sampled_from(["l2", "projection", "numbers"]),
    own_paths=st.booleans(),
)
def test_rows_add_up_to_their_totals(
    seed: int, sizes: tuple[int, int, int, int], scalarization: str, own_paths: bool
) -> None:
    """Outputs tanh(w.x + b) move one way along a path, so nothing passes by its start again."""
    sources, width, targets, out = sizes
    if scalarization == "numbers":
        out = 1
    mix = random(targets * out, sources * width, seed=seed) / (sources * width) ** 0.5
    bias = random(targets * out, seed=seed + 1)

    def function(x: Tensor) -> Tensor:
        y = torch.tanh(x.flatten(1) @ mix.T + bias)
        return y if scalarization == "numbers" else y.view(-1, targets, out)

    x = random(2, sources, width, seed=seed + 2)
    shape = (2, targets, sources, width) if own_paths else (2, sources, width)
    start = random(*shape, seed=seed + 3)
    shared = start if own_paths else start[:, None].expand(-1, targets, -1, -1)
    y1 = function(x).view(2, targets, out)
    y0 = torch.stack(
        [function(shared[:, j]).view(2, targets, out)[:, j] for j in range(targets)], 1
    )
    totals = (y1 - y0)[..., 0] if scalarization == "numbers" else (y1 - y0).norm(dim=-1)

    ig = SetToSetIG(function, scalarization="l2" if scalarization == "numbers" else scalarization)
    worst = []
    for n in (1, 48):
        rows, delta = ig.attribute(x, start, n_steps=n, return_convergence_delta=True)
        assert rows.shape == (2, targets, sources)
        torch.testing.assert_close(delta, rows.sum(-1) - totals, rtol=0, atol=1e-12)
        worst.append(float(delta.abs().max()))
    assert worst[1] <= 1e-6
    assert worst[0] > worst[1] or worst[0] < 1e-9


@pytest.mark.parametrize("per_feature", [True, False])
@pytest.mark.parametrize("name", STARTS)
def test_delta_of_what_attribute_returned(name: str, per_feature: bool) -> None:
    baseline, _ = STARTS[name]
    ig = SetToSetIG(vector_map)
    rows, delta = ig.attribute(
        X, baseline, n_steps=2, per_feature=per_feature, return_convergence_delta=True
    )
    assert float(delta.abs().max()) > 1e-4, "nothing to see with so many steps"
    again = ig.compute_convergence_delta(rows, baseline, X)
    torch.testing.assert_close(again, delta, rtol=1e-10, atol=1e-12)
    assert ig.has_convergence_delta()


@pytest.mark.parametrize("target", [1, [0, 2]])
def test_delta_of_one_target(target: Any) -> None:
    inputs, arguments = (random(2, 4), random(2, 2, 5, seed=1)), (random(2, 1, seed=7), 3)
    ig = SetToSetIG(two_inputs)
    rows, delta = ig.attribute(
        inputs, 0.2, target, arguments, n_steps=2, return_convergence_delta=True
    )
    assert delta.shape == (2,)
    again = ig.compute_convergence_delta(rows, 0.2, inputs, target, arguments)
    torch.testing.assert_close(again, delta, rtol=1e-10, atol=1e-12)


def test_errors_of_opposite_sign_are_not_hidden() -> None:
    ig = SetToSetIG(vector_map)
    rows = ig.attribute(X, n_steps=60)
    wrong = rows.clone()
    wrong[0, 0, 1] += 1
    wrong[0, 2, 3] -= 1
    delta = ig.compute_convergence_delta(wrong, None, X)
    expected = torch.tensor([[1.0, 0, -1], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scalarization", SCALARIZATIONS)
def test_outputs_that_do_not_move_get_exactly_nothing(scalarization: str) -> None:
    ig = SetToSetIG(vector_map, scalarization=scalarization)
    rows, delta = ig.attribute(X, X, n_steps=3, return_convergence_delta=True)
    assert bool((rows == 0).all())
    assert bool((delta == 0).all())


def test_a_source_that_is_the_target_token_gets_exactly_nothing() -> None:
    rows = SetToSetIG(vector_map).attribute(X, "target_token", n_steps=3)
    own = torch.arange(TARGETS)
    assert bool((rows[:, own, own] == 0).all())
    assert int((rows != 0).sum()) == 2 * TARGETS * (SOURCES - 1)


# ---- a block of a Transformer ----------------------------------------------------------------


@pytest.mark.parametrize("scalarization", SCALARIZATIONS)
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("method", METHODS)
def test_a_bert_layer_is_the_layer_boundary(method: str, baseline: str, scalarization: str) -> None:
    """By the plain rule: then both use the same nodes."""
    model = models.tiny_bert()
    ids = models.tokens(model, 1, 5)
    z, _ = models.block_input_output(model, 1, input_ids=ids)
    block = models.blocks(model)[1]

    def layer(x: Tensor) -> Tensor:
        output = block(x)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    rule: dict[str, Any] = {"n_steps": 6, "method": method}
    rows, delta = SetToSetIG(layer, scalarization=scalarization).attribute(
        z, baseline, return_convergence_delta=True, **rule
    )
    flow = LayerFlowIG(model, 1, scalarization).attribute(ids, baseline, tolerance=None, **rule)
    assert isinstance(flow, LayerFlow)
    assert flow.layer is not None
    assert flow.layer_total is not None
    torch.testing.assert_close(rows, flow.layer, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(rows.sum(-1) - delta, flow.layer_total, rtol=1e-9, atol=1e-10)


def test_forward_without_gradients_is_refused() -> None:
    with pytest.raises(LigError, match="grad"):
        SetToSetIG(torch.no_grad()(vector_map)).attribute(X, n_steps=2)


@pytest.mark.parametrize("scalarization", ["l2", "projection", "vector"])
@pytest.mark.parametrize("baseline", [0.0, "target_token"])
def test_rows_are_refined_until_they_are_within_tolerance(
    baseline: Any, scalarization: str
) -> None:
    """A map that turns fast near the start of the path: few nodes miss it, refined rows do not."""

    def steep(x: Tensor) -> Tensor:
        return torch.tanh(20 * vector_map(x)) + vector_map(x)

    ig = SetToSetIG(steep, scalarization=scalarization)

    def asked(**settings: Any) -> tuple[Tensor, Tensor]:
        attr, delta = ig.attribute(X, baseline, return_convergence_delta=True, **settings)
        return attr, delta.abs() if delta.dim() == 2 else delta.norm(dim=-1)

    plain, missed = asked(n_steps=8)
    refined, left = asked(n_steps=8, tolerance=1e-4, max_steps=4096)
    exact, _ = asked(n_steps=400)
    total = refined.sum(2).abs() if refined.dim() == 3 else refined.sum(2).norm(dim=-1)
    assert bool((missed > 1e-4 * total).any())
    assert bool((left <= 1e-4 * total).all())
    assert float((refined - exact).abs().max()) < 0.05 * float((plain - exact).abs().max())


def test_numbers_are_refined_too() -> None:
    """Signed totals of outputs that are numbers, on several inputs."""

    def numbers(x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(30 * x.sum(-1)) * y.sum((-1, -2))[:, None]

    y = X.roll(1, 0) + 1
    attr, delta = SetToSetIG(numbers).attribute(
        (X, y), n_steps=8, tolerance=1e-5, max_steps=4096, return_convergence_delta=True
    )
    total = numbers(X, y) - numbers(0 * X, 0 * y)
    summed = sum(part.flatten(2).sum(-1) for part in attr)
    torch.testing.assert_close(summed, total, rtol=1e-5, atol=0)
    torch.testing.assert_close(delta, summed - total, rtol=0, atol=1e-12)
