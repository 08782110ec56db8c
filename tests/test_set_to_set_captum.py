"""SetToSetIG of numbers: Captum says what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel
from torch import Tensor, nn

from captum_lig import SetToSetIG
from tests.helpers.sets import (
    CAPTUM_METHODS,
    SOURCES,
    TARGETS,
    WIDTH,
    Classifier,
    literal_loop,
    random,
    two_inputs,
    vector_map,
)


def like_captum(function: Callable[..., Tensor], inputs: Any, **kwargs: Any) -> None:
    """Attributions, delta and shapes are those of IntegratedGradients with the same call."""
    multiply = kwargs.pop("multiply_by_inputs", True)
    captum = IntegratedGradients(function, multiply)
    expected, expected_delta = captum.attribute(inputs, return_convergence_delta=True, **kwargs)
    ours = SetToSetIG(function, multiply)
    actual, delta = ours.attribute(inputs, return_convergence_delta=True, **kwargs)
    assert type(actual) is type(expected)
    size = sum(float(part.abs().sum()) for part in (*expected,))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(delta, expected_delta.to(delta), rtol=0, atol=1e-7 * size)
    torch.testing.assert_close(ours.attribute(inputs, **kwargs), actual, rtol=0, atol=0)


@pytest.mark.parametrize("method", CAPTUM_METHODS)
@pytest.mark.parametrize("target", [0, -1, [2, 0], torch.tensor([1, 2]), torch.tensor(1), (1,)])
def test_number_of_a_target_is_captums(target: Any, method: str) -> None:
    x = random(2, SOURCES, WIDTH)
    like_captum(Classifier(), x, target=target, method=method, n_steps=7)


@pytest.mark.parametrize(
    "baselines",
    [
        None,
        0.7,
        -2,
        random(2, SOURCES, WIDTH, seed=3),
        random(1, SOURCES, WIDTH, seed=3),
        (0.2,),
        (random(1, SOURCES, WIDTH, seed=3),),
    ],
    ids=["none", "number", "int", "tensor", "one_tensor", "tuple", "tuple_of_tensor"],
)
@pytest.mark.parametrize("multiply", [True, False])
def test_captums_baselines_are_accepted(baselines: Any, multiply: bool) -> None:
    x = random(2, SOURCES, WIDTH)
    like_captum(
        Classifier(),
        x,
        baselines=baselines,
        target=[0, 2],
        n_steps=6,
        multiply_by_inputs=multiply,
        additional_forward_args=(random(2, 1, seed=4), 0.3),
    )


@pytest.mark.parametrize(
    "baselines",
    [None, (0.3, 1), (random(1, 4, seed=5), 0), (random(2, 4, seed=5), random(1, 2, 5, seed=6))],
    ids=["none", "numbers", "mixed", "tensors"],
)
@pytest.mark.parametrize("target", [1, [0, 2], torch.tensor([1, 0])])
def test_tuples_of_inputs_are_captums(target: Any, baselines: Any) -> None:
    inputs = random(2, 4), random(2, 2, 5, seed=1)
    arguments = random(2, 1, seed=7), 2
    like_captum(
        two_inputs,
        inputs,
        baselines=baselines,
        target=target,
        additional_forward_args=arguments,
        n_steps=5,
    )


def test_a_tuple_of_one_input_stays_a_tuple() -> None:
    like_captum(Classifier(), (random(2, SOURCES, WIDTH),), target=1, n_steps=4)


def test_a_single_additional_argument_is_captums() -> None:
    x, shift = random(3, SOURCES, WIDTH), random(3, 6, seed=9)
    like_captum(Classifier(), x, target=1, additional_forward_args=shift, n_steps=4)


def test_one_number_for_each_example_is_captums() -> None:
    like_captum(lambda x: Classifier()(x).sum(-1), random(3, SOURCES, WIDTH), n_steps=6)


@pytest.mark.parametrize("target", [None, 1])
def test_inputs_that_are_one_number_each_are_captums(target: int | None) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.sin(x) if target is None else torch.stack([x.exp(), torch.sin(x)], -1)

    like_captum(function, random(4), target=target, n_steps=6)


@pytest.mark.parametrize("target", [(1, 0), (-1, 1), [(0, 1), (2, 0)]])
def test_number_inside_a_vector_is_captums(target: Any) -> None:
    like_captum(vector_map, random(2, SOURCES, WIDTH), target=target, n_steps=6)


def test_inputs_of_two_dtypes_are_captums() -> None:
    single = nn.Linear(4, TARGETS)

    def function(a: Tensor, b: Tensor) -> Tensor:
        return Classifier()(a) * torch.tanh(single(b))

    double_first = random(2, SOURCES, WIDTH), random(2, 4, seed=1).float()
    like_captum(function, double_first, target=1, n_steps=4)
    like_captum(lambda b, a: function(a, b), double_first[::-1], target=1, n_steps=4)


def test_all_numbers_at_once_are_captums_targets() -> None:
    x, function = random(2, SOURCES, WIDTH), Classifier()
    attributions, delta = SetToSetIG(function).attribute(
        x, 0.2, n_steps=8, return_convergence_delta=True, per_feature=True
    )
    summed = SetToSetIG(function).attribute(x, 0.2, n_steps=8)
    assert attributions.shape == (2, TARGETS, SOURCES, WIDTH)
    assert summed.shape == (2, TARGETS, SOURCES)
    assert delta.shape == (2, TARGETS)
    for j in range(TARGETS):
        expected, expected_delta = IntegratedGradients(function).attribute(
            x, 0.2, target=j, n_steps=8, return_convergence_delta=True
        )
        torch.testing.assert_close(attributions[:, j], expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(summed[:, j], expected.sum(-1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(delta[:, j], expected_delta.to(delta), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_is_captums(kind: str, at_once: int | None) -> None:
    found = []
    for method in (SetToSetIG, IntegratedGradients):
        torch.manual_seed(11)
        tunnel = NoiseTunnel(method(two_inputs))
        found.append(
            tunnel.attribute(
                (random(2, 4), random(2, 2, 5, seed=1)),
                nt_type=kind,
                nt_samples=5,
                nt_samples_batch_size=at_once,
                stdevs=0.3,
                baselines=(random(1, 4, seed=5), 0.1),
                target=[2, 0],
                additional_forward_args=(random(2, 1, seed=7), 2),
                n_steps=4,
                return_convergence_delta=True,
            )
        )
    (actual, delta), (expected, expected_delta) = found
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert delta.shape == expected_delta.shape == (10,)
    torch.testing.assert_close(delta, expected_delta.to(delta), rtol=1e-5, atol=1e-5)


def test_noise_tunnel_averages_maps_of_vectors() -> None:
    x = random(2, SOURCES, WIDTH)
    torch.manual_seed(5)
    attributions, delta = NoiseTunnel(SetToSetIG(vector_map)).attribute(
        x, nt_samples=3, stdevs=0.2, n_steps=4, return_convergence_delta=True
    )
    torch.manual_seed(5)
    noise = torch.normal(0, torch.tensor(0.2).repeat(6, SOURCES, WIDTH))
    noisy = x.repeat_interleave(3, 0) + noise
    each = torch.stack([literal_loop(one[None], 0.0, "l2", 4)[0] for one in noisy])
    expected = each.view(2, 3, TARGETS, SOURCES, WIDTH).mean(1).sum(-1)
    torch.testing.assert_close(attributions, expected, rtol=1e-10, atol=1e-12)
    assert delta.shape == (6, TARGETS)
