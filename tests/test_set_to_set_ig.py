"""SetToSetIG against Captum for numbers, against a literal loop for vectors, and its laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_lig import LayerFlowIG, LigError, SetToSetIG
from captum_lig.flow.layer_flow import LayerFlow
from tests.helpers import models, twins

SOURCES, TARGETS, WIDTH, OUT = 4, 3, 5, 2
SCALARIZATIONS = ["l2", "projection"]
# Captum casts its weights to float32, and its trapezoid's do not add up to 1.
CAPTUM_METHODS = ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"]
METHODS = [*CAPTUM_METHODS, "riemann_trapezoid", "gausslegendre_graded"]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def nodes(method: str, n: int) -> tuple[twins.Nodes, twins.Nodes]:
    """Nodes and weights, written a second time."""
    if method == "gausslegendre":
        return twins.gauss_legendre(n)
    if method == "gausslegendre_graded":
        return twins.gauss_legendre(n, power=4)
    if method == "riemann_trapezoid":
        weights = np.full(n, 1 / (n - 1))
        weights[[0, -1]] /= 2
        return np.array([k / (n - 1) for k in range(n)]), weights
    offset = {"riemann_left": 0, "riemann_middle": 0.5, "riemann_right": 1}[method]
    return np.array([(k + offset) / n for k in range(n)]), np.full(n, 1 / n)


# ---- numbers: Captum says what is right ------------------------------------------------------


class Classifier(nn.Module):
    """(B, S, D) -> (B, 3), not linear anywhere; further arguments shift and scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 6, dtype=torch.float64)
        self.second = nn.Linear(6, TARGETS, dtype=torch.float64)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = random(*parameter.shape, seed=seed)

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: float = 1.0) -> Tensor:
        mixed = torch.tanh(self.first(x)).prod(1)
        if shift is not None:
            mixed = mixed + torch.sin(shift) * mixed**2
        y: Tensor = scale * self.second(mixed).exp()
        return y


def two_inputs(a: Tensor, b: Tensor, shift: Tensor, power: int) -> Tensor:
    """(B, 4), (B, 2, 5) -> (B, 3)."""
    mixed = torch.tanh(a) @ random(4, TARGETS, seed=1) * (b.sum(1) @ random(5, TARGETS, seed=2))
    return (mixed + shift) ** power


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


# ---- vectors: a loop over examples, targets and nodes ----------------------------------------


def vector_map(x: Tensor) -> Tensor:
    """(N, S, D) -> (N, T, E): attention with fixed queries, a residual, and a tanh."""
    values = torch.tanh(x @ random(WIDTH, OUT, seed=21))
    weights = (random(TARGETS, WIDTH, seed=22) @ x.transpose(1, 2)).softmax(-1)
    direct = x[:, :TARGETS] @ random(WIDTH, OUT, seed=23)
    return weights @ values + torch.tanh(direct) + 0.1 * direct


def literal_loop(
    x: Tensor,
    starts: float | Tensor,
    scalarization: str,
    n: int,
    method: str = "gausslegendre",
    multiply: bool = True,
) -> Tensor:
    """(B, T, S, D); starts is a number or, per example and target, (B, T, S, D)."""
    result = x.new_zeros(len(x), TARGETS, SOURCES, WIDTH)
    for b in range(len(x)):
        for j in range(TARGETS):
            start = starts[b, j] if isinstance(starts, Tensor) else torch.full_like(x[b], starts)

            def one(v: Tensor, j: int = j) -> Tensor:
                return vector_map(v[None])[0, j]

            (mean,), _ = twins.mean_gradients(
                one, (start,), (x[b],), scalarization, *nodes(method, n)
            )
            result[b, j] = mean * (x[b] - start) if multiply else mean
    return result


def literal_totals(x: Tensor, starts: Tensor) -> Tensor:
    """||y_j(1) - y_j(0)||, (B, T)."""
    totals = x.new_zeros(len(x), TARGETS)
    for b in range(len(x)):
        for j in range(TARGETS):
            change = vector_map(x[b : b + 1])[0, j] - vector_map(starts[b, j][None])[0, j]
            totals[b, j] = change.square().sum().sqrt()
    return totals


X = random(2, SOURCES, WIDTH)
PLAIN = random(2, SOURCES, WIDTH, seed=31)
OWN = random(2, TARGETS, SOURCES, WIDTH, seed=33)
TOKENS = torch.zeros_like(OWN)
for example in range(2):
    for one_target in range(TARGETS):
        TOKENS[example, one_target] = X[example, one_target]


def for_all_targets(start: Tensor) -> Tensor:
    """(B or 1, S, D) -> (2, T, S, D)."""
    return torch.stack([start.expand(2, -1, -1)] * TARGETS, 1)


STARTS: dict[str, tuple[Any, Tensor]] = {
    # what the caller gives, and the start of each example and target
    "none": (None, torch.zeros_like(OWN)),
    "zero": ("zero", torch.zeros_like(OWN)),
    "number": (0.4, torch.full_like(OWN, 0.4)),
    "tensor": (PLAIN, for_all_targets(PLAIN)),
    "one_tensor": (PLAIN[:1], for_all_targets(PLAIN[:1])),
    "tuple": ((PLAIN[1:],), for_all_targets(PLAIN[1:])),
    "target_token": ("target_token", TOKENS),
    "per_target": (OWN, OWN),
    "per_target_for_all": (OWN[1:], OWN[1:].expand(2, -1, -1, -1)),
}


@pytest.mark.parametrize("scalarization", SCALARIZATIONS)
@pytest.mark.parametrize("name", STARTS)
def test_vectors_equal_the_literal_loop(name: str, scalarization: str) -> None:
    given_baseline, starts = STARTS[name]
    ig = SetToSetIG(vector_map, scalarization=scalarization)
    arguments: dict[str, Any] = {"n_steps": 5, "per_feature": True}
    actual, delta = ig.attribute(X, given_baseline, return_convergence_delta=True, **arguments)
    expected = literal_loop(X, starts, scalarization, 5)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert delta.shape == (2, TARGETS)
    missing = expected.sum((-1, -2)) - literal_totals(X, starts)
    torch.testing.assert_close(delta, missing, rtol=1e-8, atol=1e-12)
    tokens = ig.attribute(X, given_baseline, n_steps=5)
    torch.testing.assert_close(tokens, expected.sum(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scalarization", SCALARIZATIONS)
@pytest.mark.parametrize("name", ["zero", "tensor", "target_token", "per_target_for_all"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_the_literal_loop(method: str, name: str, scalarization: str) -> None:
    given_baseline, starts = STARTS[name]
    actual = SetToSetIG(vector_map, scalarization=scalarization).attribute(
        X, given_baseline, n_steps=4, method=method, per_feature=True
    )
    expected = literal_loop(X, starts, scalarization, 4, method)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["number", "target_token"])
def test_average_gradients_equal_the_literal_loop(name: str) -> None:
    given_baseline, starts = STARTS[name]
    ig = SetToSetIG(vector_map, multiply_by_inputs=False)
    assert ig.multiplies_by_inputs is False
    actual = ig.attribute(X, given_baseline, n_steps=5, per_feature=True)
    expected = literal_loop(X, starts, "l2", 5, multiply=False)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("baseline", ["zero", "mixed"])
def test_a_tuple_of_vector_sets_equals_the_literal_loop(baseline: str) -> None:
    """Two inputs on one path; with one start per target both paths are per target."""
    other = random(2, 2, 3, seed=41)
    scale, flag = random(2, 1, 1, seed=42).exp(), "square"

    def function(a: Tensor, b: Tensor, scale: Tensor, flag: str) -> Tensor:
        assert flag == "square"
        return scale * vector_map(a) * (b @ random(3, OUT, seed=43)).prod(1, keepdim=True) ** 2

    starts = torch.zeros(2, TARGETS, SOURCES, WIDTH), torch.zeros(2, TARGETS, 2, 3)
    given_baseline: Any = "zero"
    if baseline == "mixed":
        starts = random(2, TARGETS, SOURCES, WIDTH, seed=44), torch.full((2, TARGETS, 2, 3), 0.5)
        given_baseline = starts[0], 0.5
    starts = starts[0].double(), starts[1].double()
    actual, delta = SetToSetIG(function).attribute(
        (X, other),
        given_baseline,
        additional_forward_args=(scale, flag),
        n_steps=4,
        per_feature=True,
        return_convergence_delta=True,
    )
    tokens = SetToSetIG(function).attribute(
        (X, other), given_baseline, additional_forward_args=(scale, flag), n_steps=4
    )
    assert isinstance(actual, tuple)
    for b in range(2):
        for j in range(TARGETS):

            def one(a: Tensor, c: Tensor, b: int = b, j: int = j) -> Tensor:
                return function(a[None], c[None], scale[b : b + 1], flag)[0, j]

            start = starts[0][b, j], starts[1][b, j]
            means, total = twins.mean_gradients(
                one, start, (X[b], other[b]), "l2", *nodes("gausslegendre", 4)
            )
            expected = [
                m * (end - s) for m, end, s in zip(means, (X[b], other[b]), start, strict=True)
            ]
            for part, token, right in zip(actual, tokens, expected, strict=True):
                torch.testing.assert_close(part[b, j], right, rtol=1e-9, atol=1e-11)
                torch.testing.assert_close(token[b, j], right.sum(-1), rtol=1e-9, atol=1e-11)
            missing = float(expected[0].sum() + expected[1].sum()) - total
            assert float(delta[b, j]) == pytest.approx(missing, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("target", [1, -1])
def test_one_vector_of_a_target_is_its_row(target: int) -> None:
    ig = SetToSetIG(vector_map)
    attributions, delta = ig.attribute(X, target=target, return_convergence_delta=True, n_steps=5)
    chosen = vector_map(X)[:, target]
    assert attributions.shape == (2, SOURCES)
    assert delta.shape == (2,)
    whole = ig.attribute(X, n_steps=5)
    torch.testing.assert_close(attributions, whole[:, target], rtol=1e-10, atol=1e-12)
    size = (chosen - vector_map(torch.zeros_like(X))[:, target]).norm(dim=-1)
    torch.testing.assert_close(attributions.sum(-1) - delta, size, rtol=1e-10, atol=1e-12)


# ---- what must not change the numbers --------------------------------------------------------


@pytest.mark.parametrize("name", ["zero", "target_token", "per_target"])
@pytest.mark.parametrize("indices", [[2, 0], [-1], [1, -3, 1], torch.tensor([2, 1]), (0,)])
def test_output_indices_choose_rows_in_their_order(indices: Any, name: str) -> None:
    baseline, _ = STARTS[name]
    rows = [int(i) % TARGETS for i in indices]
    ig = SetToSetIG(vector_map)
    whole, whole_delta = ig.attribute(X, baseline, n_steps=4, return_convergence_delta=True)
    if name == "per_target":
        baseline = baseline[:, rows]
    part, delta = ig.attribute(
        X, baseline, n_steps=4, output_indices=indices, return_convergence_delta=True
    )
    torch.testing.assert_close(part, whole[:, rows], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(delta, whole_delta[:, rows], rtol=1e-10, atol=1e-12)
    again = ig.compute_convergence_delta(part, baseline, X, output_indices=indices)
    torch.testing.assert_close(again, delta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left"])
@pytest.mark.parametrize("name", ["zero", "tensor", "target_token"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_internal_batch_size_changes_no_number(size: int, name: str, method: str) -> None:
    baseline, _ = STARTS[name]
    arguments: dict[str, Any] = {"n_steps": 3, "method": method, "per_feature": True}
    ig = SetToSetIG(vector_map)
    whole = ig.attribute(X, baseline, **arguments)
    parts = ig.attribute(X, baseline, internal_batch_size=size, **arguments)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left"])
@pytest.mark.parametrize("name", ["zero", "target_token"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_internal_batch_size_bounds_what_is_in_flight(size: int, name: str, method: str) -> None:
    """The forward sees at most `size` points; where gradients flow, each point counts once for
    each target that it is differentiated for."""
    seen: list[tuple[int, bool]] = []
    backward = [0]

    def count(_: Tensor) -> None:
        backward[0] += 1

    def recorded(x: Tensor) -> Tensor:
        seen.append((len(x), torch.is_grad_enabled()))
        y = vector_map(x)
        if y.requires_grad:
            y.register_hook(count)
        return y

    steps, baseline = 3, STARTS[name][0]
    SetToSetIG(recorded).attribute(
        X, baseline, n_steps=steps, method=method, internal_batch_size=size
    )
    own_paths = name == "target_token"
    assert max(points for points, _ in seen) <= size
    with_gradients = [points for points, grad in seen if grad]
    at_most = size if own_paths else max(1, size // TARGETS)
    assert max(with_gradients) <= at_most
    assert backward[0] * size >= steps * len(X) * TARGETS  # no pass takes more pairs than that


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


# ---- completeness ----------------------------------------------------------------------------


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
