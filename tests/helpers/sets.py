"""Maps between sets of vectors, and where their paths start, written from the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers import twins

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
