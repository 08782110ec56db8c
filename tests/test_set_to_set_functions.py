"""What SetToSetIG takes for a function, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LigError, SetToSetIG
from tests.helpers.sets import (
    OUT,
    PLAIN,
    SOURCES,
    STARTS,
    TARGETS,
    WIDTH,
    Classifier,
    X,
    random,
    vector_map,
)


class CubeInNumpy(torch.autograd.Function):
    """x**3, with a backward that no batching rule gets through."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (x,) = ctx.saved_tensors
        arrays = grad_outputs[0].detach().numpy(), x.detach().numpy()
        CubeInNumpy.calls += 1
        return torch.from_numpy(arrays[0] * 3 * arrays[1] ** 2)


class CubeThatBranches(CubeInNumpy):
    """x**3, with a backward whose way depends on its values."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (x,) = ctx.saved_tensors
        if float(grad_outputs[0].abs().sum()) == 0:
            return torch.zeros_like(x)
        return grad_outputs[0] * 3 * x**2


@pytest.mark.parametrize("cube", [CubeInNumpy, CubeThatBranches])
@pytest.mark.parametrize("name", ["tensor", "target_token"])
def test_operations_without_a_batching_rule_work(cube: Any, name: str) -> None:
    baseline, _ = STARTS[name]
    before = CubeInNumpy.calls
    actual = SetToSetIG(lambda x: vector_map(cube.apply(x))).attribute(X, baseline, n_steps=4)
    expected = SetToSetIG(lambda x: vector_map(x**3)).attribute(X, baseline, n_steps=4)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert CubeInNumpy.calls > before or cube is not CubeInNumpy


def test_an_error_in_the_functions_backward_is_not_swallowed() -> None:
    class Broken(CubeInNumpy):
        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="broken on purpose"):
        SetToSetIG(lambda x: vector_map(Broken.apply(x))).attribute(X, n_steps=2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["zero", "target_token", "tensor"])
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left"])
def test_the_callers_grad_mode_does_not_reach_in(mode: Any, name: str, method: str) -> None:
    layer = nn.Linear(OUT, OUT, dtype=torch.float64)
    ig = SetToSetIG(lambda x, scale: torch.tanh(layer(vector_map(x))) * scale)
    baseline, _ = STARTS[name]
    scale = random(2, 1, 1, seed=51)  # goes along with the examples
    arguments: dict[str, Any] = {"n_steps": 3, "method": method, "return_convergence_delta": True}
    expected = ig.attribute(X, baseline, None, scale, **arguments)
    with mode():
        # Tensors made in here are inference tensors: they cannot be part of a graph.
        made_inside = baseline.clone() if isinstance(baseline, Tensor) else baseline
        actual = ig.attribute(X.clone(), made_inside, None, scale.clone(), **arguments)
        delta = ig.compute_convergence_delta(actual[0], made_inside, X.clone(), None, scale)
        assert not torch.is_grad_enabled()
    for one, other in zip((*actual, delta), (*expected, expected[1]), strict=True):
        torch.testing.assert_close(one.clone(), other, rtol=1e-10, atol=1e-12)


def test_arguments_for_all_examples_may_be_inference_tensors() -> None:
    ig = SetToSetIG(lambda x, scale: vector_map(x) * scale)
    expected = ig.attribute(X, additional_forward_args=torch.tensor(2.0), n_steps=3)
    with torch.inference_mode():
        actual = ig.attribute(X, additional_forward_args=torch.tensor(2.0), n_steps=3)
    torch.testing.assert_close(actual.clone(), expected, rtol=1e-12, atol=0)


def test_float32_stays_float32() -> None:
    for baseline in (None, PLAIN, "target_token"):
        expected = SetToSetIG(vector_map).attribute(X, baseline, n_steps=5)
        actual, delta = SetToSetIG(lambda x: vector_map(x.double()).float()).attribute(
            X.float(), baseline, n_steps=5, return_convergence_delta=True
        )
        assert actual.dtype == delta.dtype == torch.float32
        torch.testing.assert_close(actual, expected.float(), rtol=1e-3, atol=1e-5)


def test_an_input_that_is_not_used_gets_exactly_nothing() -> None:
    rows, unused = SetToSetIG(lambda x, _: vector_map(x)).attribute((X, PLAIN), n_steps=3)
    assert unused.shape == (2, TARGETS, SOURCES)
    assert bool((unused == 0).all())
    torch.testing.assert_close(rows, SetToSetIG(vector_map).attribute(X, n_steps=3))


def test_more_targets_than_sources() -> None:
    few = X[:, :2]
    ig = SetToSetIG(lambda x: torch.cat([x, x.sum(1, keepdim=True).exp()], 1))
    with pytest.raises(LigError, match="source for each target"):
        ig.attribute(few, "target_token", n_steps=3)
    # The first outputs have a source, and are that source: nothing else moves them.
    rows = ig.attribute(few, "target_token", n_steps=3, output_indices=[1, 0])
    assert rows.shape == (2, 2, 2)
    assert bool((rows == 0).all())


def test_inputs_and_parameters_are_left_alone() -> None:
    function = Classifier()
    x = random(2, SOURCES, WIDTH).requires_grad_()
    start = random(2, SOURCES, WIDTH, seed=1).requires_grad_()
    bits = x.detach().clone(), start.detach().clone()
    result = SetToSetIG(function).attribute(x, start, n_steps=3)
    assert x.grad is None
    assert start.grad is None
    assert all(parameter.grad is None for parameter in function.parameters())
    assert x.requires_grad
    assert start.requires_grad
    assert not result.requires_grad
    assert torch.equal(x.detach(), bits[0])
    assert torch.equal(start.detach(), bits[1])
