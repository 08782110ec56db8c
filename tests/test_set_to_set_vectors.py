"""SetToSetIG of vectors, against a loop over examples, targets and nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import SetToSetIG
from tests.helpers import twins
from tests.helpers.sets import (
    METHODS,
    OUT,
    SCALARIZATIONS,
    SOURCES,
    STARTS,
    TARGETS,
    WIDTH,
    X,
    literal_loop,
    literal_totals,
    nodes,
    random,
    vector_map,
)


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
