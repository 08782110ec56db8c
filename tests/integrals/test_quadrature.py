"""The quadrature rules against integrals known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from captum.attr import IntegratedGradients
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import LigError, SetToSetIG
from captum_lig.integrals.quadrature import METHODS, nodes_and_weights

GAUSS = "gausslegendre"
GRADED = "gausslegendre_graded"

CAPTUMS = ["gausslegendre"]
CAPTUMS += [f"riemann_{name}" for name in ("left", "right", "middle", "trapezoid")]
"""The rules of `captum.attr.IntegratedGradients`, by its names."""

coefficients = st.lists(st.integers(-8, 8), min_size=1, max_size=24)


def integrate(method: str, n: int, function: Callable[[Tensor], Tensor]) -> float:
    alphas, weights = nodes_and_weights(method, n)
    return float((weights * function(alphas)).sum())


def polynomial(c: list[int]) -> Callable[[Tensor], Tensor]:
    """Sum over k of c[k] a**k."""
    return lambda a: sum((ck * a**k for k, ck in enumerate(c)), torch.zeros_like(a))


def exact_integral(c: list[int]) -> float:
    return float(sum(Fraction(ck, k + 1) for k, ck in enumerate(c)))


def test_captums_names_are_accepted() -> None:
    assert set(CAPTUMS) <= set(METHODS)


@pytest.mark.parametrize("n", [2, 3, 7, 50, 200])
@pytest.mark.parametrize("method", METHODS)
def test_weights_sum_to_one_in_float64(method: str, n: int) -> None:
    alphas, weights = nodes_and_weights(method, n)
    assert alphas.dtype == weights.dtype == torch.float64
    assert alphas.shape == weights.shape == (n,)
    assert bool((alphas.diff() > 0).all())
    assert float(alphas[0]) >= 0
    assert float(alphas[-1]) <= 1
    assert bool((weights > 0).all())
    assert float(weights.sum()) == pytest.approx(1, abs=4e-15 * n)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_exact_for_constants_or_refused(method: str) -> None:
    places = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0, GAUSS: 0.5}
    refused = ""
    try:
        alphas, weights = nodes_and_weights(method, 1)
    except LigError as error:
        refused = str(error)
    if refused:
        assert method not in places
        assert "n_steps=1" in refused
        return
    assert weights.tolist() == pytest.approx([1], abs=1e-15)
    assert alphas.tolist() == pytest.approx([places.get(method, float(alphas[0]))], abs=1e-15)


@pytest.mark.parametrize("n", [2, 9, 32])
@pytest.mark.parametrize("method", CAPTUMS)
def test_nodes_are_captums(method: str, n: int) -> None:
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.detach()[:, 0])
        return x.sum(-1)

    one = torch.ones(1, 1, dtype=torch.float64)
    IntegratedGradients(look).attribute(one, method=method, n_steps=n)
    (alphas,) = (x for x in seen if len(x) == n)
    torch.testing.assert_close(nodes_and_weights(method, n)[0], alphas, rtol=0, atol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(n=st.integers(1, 12), c=coefficients)
@example(n=12, c=[1] * 24)
def test_gauss_legendre_is_exact_to_degree_2n_minus_1(n: int, c: list[int]) -> None:
    c = c[: 2 * n]
    size = sum(abs(ck) for ck in c)
    gap = integrate(GAUSS, n, polynomial(c)) - exact_integral(c)
    assert abs(gap) <= 1e-14 * max(1, size)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_gauss_legendre_misses_degree_2n_by_what_the_theory_says(n: int) -> None:
    missing = 1 / (2 * n + 1) - integrate(GAUSS, n, lambda a: a ** (2 * n))
    theory = math.factorial(n) ** 4 / ((2 * n + 1) * math.factorial(2 * n) ** 2)
    assert missing == pytest.approx(theory, rel=1e-6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(n=st.integers(4, 14), c=coefficients)
def test_graded_rule_is_exact_for_polynomials(n: int, c: list[int]) -> None:
    # a = t**4: a polynomial of degree m becomes one of degree 4 m + 3 in t.
    c = c[: (2 * n - 4) // 4 + 1]
    size = sum(abs(ck) for ck in c)
    gap = integrate(GRADED, n, polynomial(c)) - exact_integral(c)
    assert abs(gap) <= 1e-13 * max(1, size)


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 1e-5])
def test_graded_rule_gathers_nodes_where_the_path_starts(eps: float) -> None:
    exact = math.log((1 + eps) / eps)
    errors = {
        method: abs(integrate(method, 32, lambda a: 1 / (a + eps)) - exact)
        for method in (GAUSS, GRADED)
    }
    assert errors[GRADED] < 2e-2 * errors[GAUSS]
    assert errors[GRADED] < 2e-2 * exact


# Sums of arithmetic and square progressions, as fractions.
RIEMANN: dict[str, Callable[[int], tuple[Fraction, Fraction]]] = {
    "riemann_left": lambda n: (
        Fraction(n - 1, 2 * n),
        Fraction((n - 1) * (2 * n - 1), 6 * n * n),
    ),
    "riemann_right": lambda n: (
        Fraction(n + 1, 2 * n),
        Fraction((n + 1) * (2 * n + 1), 6 * n * n),
    ),
    "riemann_middle": lambda n: (Fraction(1, 2), Fraction(1, 3) - Fraction(1, 12 * n * n)),
    "riemann_trapezoid": lambda n: (
        Fraction(1, 2),
        Fraction(1, 3) + Fraction(1, 6 * (n - 1) ** 2),
    ),
}


@pytest.mark.parametrize("n", [2, 3, 10, 33])
@pytest.mark.parametrize("method", RIEMANN)
def test_riemann_sums_of_a_and_a_squared(method: str, n: int) -> None:
    linear, square = RIEMANN[method](n)
    assert integrate(method, n, lambda a: a) == pytest.approx(float(linear), abs=1e-14)
    assert integrate(method, n, lambda a: a**2) == pytest.approx(float(square), abs=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_caller_does_to_a_rule_stays_with_the_caller(method: str) -> None:
    alphas, weights = nodes_and_weights(method, 5)
    before = alphas.clone(), weights.clone()
    alphas.zero_()
    weights.zero_()
    again = nodes_and_weights(method, 5)
    assert torch.equal(again[0], before[0])
    assert torch.equal(again[1], before[1])


@pytest.mark.parametrize(
    ("method", "share"),
    [
        ("gausslegendre", Fraction(1)),
        ("riemann_left", 3 * RIEMANN["riemann_left"](10)[1]),
        ("riemann_right", 3 * RIEMANN["riemann_right"](10)[1]),
        ("riemann_middle", 3 * RIEMANN["riemann_middle"](10)[1]),
        ("riemann_trapezoid", 3 * RIEMANN["riemann_trapezoid"](10)[1]),
    ],
)
def test_attributions_of_a_cube_are_the_rules_sums(method: str, share: Fraction) -> None:
    """x**3 from 0: the integral of 3 (a x)**2 x is x**3, to float64 (Captum: float32)."""
    x = torch.tensor([[1.25], [-0.5]], dtype=torch.float64)
    attributions = SetToSetIG(lambda v: v**3).attribute(x, n_steps=10, method=method)
    torch.testing.assert_close(attributions[:, 0], float(share) * x**3, rtol=1e-14, atol=0)
