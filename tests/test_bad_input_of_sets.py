"""Bad input of SetToSetIG: one sentence that says what was given and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import SetToSetIG
from tests.helpers import models
from tests.helpers.refusals import named, refused

WIDTH, TOKENS = models.WIDTH, 5
NAN, INF = float("nan"), float("inf")


def refuses_set(
    function: Any, inputs: Any, *says: str, ig: dict[str, Any] | None = None, **kwargs: Any
) -> None:
    arguments = {"n_steps": 2, **kwargs}
    refused(lambda: SetToSetIG(function, **(ig or {})).attribute(inputs, **arguments), *says)


def squares(x: Tensor) -> Tensor:
    return x**2


X = torch.rand(2, 3, 4, dtype=torch.float64)


@pytest.mark.parametrize("function", [None, 3, "f"])
def test_not_callable(function: Any) -> None:
    refused(lambda: SetToSetIG(function), type(function).__name__, "callable")


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.bool, torch.complex64])
def test_inputs_without_gradients(dtype: torch.dtype) -> None:
    ids = torch.ones(1, 3).to(dtype)
    refuses_set(squares, ids, str(dtype), "floating point", "ids")
    refuses_set(lambda a, b: a, (torch.rand(1, 3), ids), str(dtype), "floating point")


@pytest.mark.parametrize("inputs", [None, [X], "x", 1.5, (), (X, None), {"x": X}])
def test_inputs_that_are_no_tensors(inputs: Any) -> None:
    given = {tuple: "()" if inputs == () else "NoneType"}.get(type(inputs), type(inputs).__name__)
    refuses_set(squares, inputs, "inputs", given, "tensor")


def test_inputs_that_do_not_fit() -> None:
    refuses_set(squares, torch.rand(2, 0, 3), "(2, 0, 3)", "empty")
    refuses_set(squares, torch.tensor(1.0), "()")
    refuses_set(squares, torch.full((1, 2), NAN), "inputs", "finite")
    refuses_set(squares, torch.full((1, 2), INF), "inputs", "finite")
    refuses_set(lambda a, b: a, (X, X[:1]), "2 and 1 examples")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: (x, x), ("tuple", "tensor")),
        (lambda x: {"y": x}, ("dict", "tensor")),
        (lambda x: None, ("NoneType", "tensor")),
        (lambda x: 3.0, ("float", "tensor")),
        (lambda x: x.sum(), ("()", "examples")),
        (lambda x: x[:1], ("(1, 3, 4)", "2 examples")),
        (lambda x: x.unsqueeze(-1), ("3, 4, 1)", "(B, T, E)")),
        (lambda x: x.detach(), ("grad",)),
        (lambda x: torch.ones(len(x), 3), ("grad",)),
        (lambda x: x.long(), ("int64", "floating point")),
        (lambda x: x * NAN, ("finite",)),
        (lambda x: x / 0, ("finite",)),
    ],
)
def test_outputs_that_do_not_fit(function: Any, says: tuple[str, ...]) -> None:
    refuses_set(function, X, "forward_func", *says)


@pytest.mark.parametrize(
    ("baseline", "says"),
    [
        ("mean", ("'mean'", "'zero'", "'target_token'")),
        (True, ("True", "bool")),
        ([0.0, 0.0], ("list", "'zero'")),
        ([X], ("list", "'zero'")),
        (torch.zeros(3, 4), ("(3, 4)", "use (2, 3, 4) or (1, 3, 4), or")),
        (torch.zeros(2, 2, 4), ("(2, 2, 4)", "use (2, 3, 4) or (1, 3, 4), or")),
        (torch.zeros(3, 3, 4), ("(3, 3, 4)", "use (2, 3, 4) or (1, 3, 4), or")),
        (
            torch.zeros(2, 4, 3, 4),
            ("(2, 4, 3, 4)", "(2, 3, 3, 4) or (1, 3, 3, 4) for a baseline per target"),
        ),
        ((0.0, 0.0), ("2 baselines", "1 inputs")),
        ((), ("0 baselines", "1 inputs")),
        (NAN, ("nan", "finite")),
        (torch.full((1, 3, 4), INF), ("finite",)),
        (torch.full((1, 3, 3, 4), NAN), ("finite",)),
    ],
    ids=named,
)
def test_baseline_of_sets(baseline: Any, says: tuple[str, ...]) -> None:
    refuses_set(squares, X, "baseline", *says, baselines=baseline)
    ig = SetToSetIG(squares)
    rows = torch.zeros(2, 3, 3)
    refused(lambda: ig.compute_convergence_delta(rows, baseline, X), "baseline", *says)


def test_one_baseline_tensor_for_two_inputs() -> None:
    refuses_set(lambda a, b: a + b, (X, X), "1 baselines", "2 inputs", baselines=X)


@pytest.mark.parametrize(
    "target", [3, -4, 1.5, "x", [0, 3], torch.tensor([0, 3]), (0, 0), [0], [0, 1, 2], [], None]
)
def test_target_of_numbers(target: Any) -> None:
    """`None` is one for each output, and so no error; the rest names no output of three."""

    def function(x: Tensor) -> Tensor:
        return x.sum(-1)

    if target is None:
        assert SetToSetIG(function).attribute(X, n_steps=2).shape == (2, 3, 3)
        return
    no_index = isinstance(target, (float, str)) or (
        isinstance(target, list) and len(target) != len(X)
    )
    refuses_set(function, X, "target", *(() if no_index else (", 3)",)), target=target)


@pytest.mark.parametrize("wrong", [torch.tensor([0]).repeat(3), torch.zeros(2, 2).long()])
def test_target_tensor_for_other_examples(wrong: Tensor) -> None:
    refuses_set(lambda x: x.sum(-1), X, "target", target=wrong)


def test_target_token_without_a_source() -> None:
    refuses_set(lambda x: x.sum(1), X, "target_token", "source", baselines="target_token")
    says = "target_token", "output_indices"
    refuses_set(squares, X, *says, baselines="target_token", target=1)
    refuses_set(lambda x: x.sum((1, 2)), X, "target_token", "source", baselines="target_token")


def test_output_indices_of_a_single_output() -> None:
    refuses_set(squares, X, "output_indices", "target", target=1, output_indices=[0])
    refuses_set(lambda x: x.sum((1, 2)), X, "output_indices", output_indices=[0])
