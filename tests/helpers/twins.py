"""The method a second time, from its definitions: slow, literal, and knowing no captum_lig.

A block is cut by hand (`twin_blocks`), for ONE text, z (S, D); every map of it is then Integrated
Gradients by autograd, one pass per target, head and node of the quadrature. Matrices are
[target, source], T = S here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.helpers.twin_blocks import TwinBlock

Nodes = NDArray[np.float64]
Baseline = str | float | Tensor
_jvp: Any = torch.autograd.functional.jvp  # y, and its derivative along the path
ROUNDING = 1e-13  # a change of y below this part of ||y|| is no change: total 0, attributions 0


# ---- quadrature and paths --------------------------------------------------------------------


def gauss_legendre(n: int, power: float = 1) -> tuple[Nodes, Nodes]:
    """n nodes and weights on [0, 1], of the integral over t after a = t**power."""
    x, w = np.polynomial.legendre.leggauss(n)
    t = (x + 1) / 2
    return t**power, w / 2 * power * t ** (power - 1)


def panels(edges: list[float], n: int) -> tuple[Nodes, Nodes]:
    """gauss_legendre(n) on each interval between neighbouring edges: a composite rule.

    Pre-norm blocks with a zero baseline change at every scale of a down to sqrt(eps) / rms(z):
    edges that grow geometrically integrate them, at a price in nodes.
    """
    nodes, node_weights = gauss_legendre(n)
    pairs = list(pairwise(edges))
    return (
        np.concatenate([left + (right - left) * nodes for left, right in pairs]),
        np.concatenate([(right - left) * node_weights for left, right in pairs]),
    )


def path_starts(z: Tensor, baseline: Baseline) -> list[Tensor]:
    """The start x0 (S, D) of the path of each of the T = S targets."""
    if isinstance(baseline, str):
        if baseline == "zero":
            return [torch.zeros_like(z) for _ in z]
        if baseline == "target_token":
            return [torch.stack([z[j] for _ in z]) for j in range(len(z))]
        raise ValueError(f"baseline is 'zero' or 'target_token', got {baseline!r}")
    if not isinstance(baseline, Tensor):
        return [torch.full_like(z, baseline) for _ in z]
    if baseline.shape == z.shape:
        return [baseline for _ in z]
    if baseline.shape == (len(z), *z.shape):
        return list(baseline)
    raise ValueError(f"baseline {tuple(baseline.shape)} fits no z of shape {tuple(z.shape)}")


def mean_gradients(
    function: Callable[..., Tensor],
    starts: tuple[Tensor, ...],
    ends: tuple[Tensor, ...],
    scalarization: str,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[tuple[Tensor, ...], float]:
    """The integral over a of dA/dx, for each input x of ONE output vector y = function(*inputs).

    The path is the straight line of all inputs together. A is "l2": ||y - y(0)||, or
    "projection": <y - y(0), e>, e = (y(1) - y(0)) / N. Also returned: the total N.
    Integrated Gradients is this mean times the step, x(1) - x(0), which is constant on the path.
    """
    if scalarization not in ("l2", "projection"):
        raise ValueError(f"scalarization is 'l2' or 'projection', got {scalarization!r}")
    steps = tuple(end - start for start, end in zip(starts, ends, strict=True))
    with torch.no_grad():
        y0, y1 = function(*starts), function(*ends)
    total = _total(y0, y1)
    means = [torch.zeros_like(step) for step in steps]
    if total == 0:
        return tuple(means), 0.0
    for a, w in zip(alphas.tolist(), weights.tolist(), strict=True):
        points = tuple(
            (start + a * step).detach().requires_grad_(True)
            for start, step in zip(starts, steps, strict=True)
        )
        y = function(*points)
        if scalarization == "projection":
            scalar = (y - y0) @ ((y1 - y0) / total)
        elif a == 0:  # the norm has no gradient there: take the limit of its cotangent
            velocity = _jvp(function, starts, steps)[1]
            speed = torch.linalg.vector_norm(velocity)
            scalar = y @ (velocity / speed if speed > 0 else velocity)
        else:
            scalar = torch.linalg.vector_norm(y - y0)
        gradients = torch.autograd.grad(scalar, points, materialize_grads=True)
        for mean, gradient in zip(means, gradients, strict=True):
            mean += w * gradient
    return tuple(means), float(total)


def _total(y0: Tensor, y1: Tensor) -> Tensor:
    """||y(1) - y(0)||, with rounding taken for the 0 that it is.

    Example: RoPE, causal, the first two tokens equal. Both have the same z in every layer, and
    on target 1's own path nothing changes; in floating point u changes by 1e-15.
    """
    total: Tensor = torch.linalg.vector_norm(y1 - y0)
    size = torch.linalg.vector_norm(y0) + torch.linalg.vector_norm(y1)
    return total if total > ROUNDING * size else torch.zeros_like(total)


# ---- the boundaries --------------------------------------------------------------------------


def attention_map(
    block: TwinBlock,
    z: Tensor,
    baseline: Baseline,
    scalarization: str,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[Tensor, Tensor]:
    """z -> u. phi (H, T, S) and totals (H, T); for "vector" (H, T, S, d) and (H, T, d)."""
    targets, heads = len(z), len(block.attend(z))

    def u(h: int, j: int) -> Callable[[Tensor], Tensor]:
        return lambda x: block.attend(x)[h, j]

    if scalarization == "vector":
        width = block.attend(z).shape[-1]
        phi = z.new_zeros(heads, targets, len(z), width)
        totals = z.new_zeros(heads, targets, width)
        for j, x0 in enumerate(path_starts(z, baseline)):
            for h in range(heads):
                phi[h, j], totals[h, j] = _vector(u(h, j), x0, z, alphas, weights)
        return phi, totals
    phi = z.new_zeros(heads, targets, len(z))
    totals = z.new_zeros(heads, targets)
    for j, x0 in enumerate(path_starts(z, baseline)):
        for h in range(heads):
            (gradient,), totals[h, j] = mean_gradients(
                u(h, j), (x0,), (z,), scalarization, alphas, weights
            )
            phi[h, j] = (gradient * (z - x0)).sum(-1)
    return phi, totals


def layer_map(
    block: TwinBlock,
    z: Tensor,
    baseline: Baseline,
    scalarization: str,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[Tensor, Tensor]:
    """z -> z'. phi (T, S) and totals (T,); for "vector" (T, S, D) and (T, D)."""

    def y(j: int) -> Callable[[Tensor], Tensor]:
        return lambda x: block(x)[j]

    if scalarization == "vector":
        phi, totals = z.new_zeros(len(z), *z.shape), torch.zeros_like(z)
        for j, x0 in enumerate(path_starts(z, baseline)):
            phi[j], totals[j] = _vector(y(j), x0, z, alphas, weights)
        return phi, totals
    phi, totals = z.new_zeros(len(z), len(z)), z.new_zeros(len(z))
    for j, x0 in enumerate(path_starts(z, baseline)):
        (gradient,), totals[j] = mean_gradients(y(j), (x0,), (z,), scalarization, alphas, weights)
        phi[j] = (gradient * (z - x0)).sum(-1)
    return phi, totals


def mlp_map(
    block: TwinBlock,
    z: Tensor,
    baseline: Baseline,
    scalarization: str,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[Tensor, Tensor, Tensor]:
    """(u, z) -> z'. m (T, H), r (T,), totals (T,).

    The path is the straight line from (u(0), z0) to (u(1), z), u(0) the attention output at z0.
    """
    heads = len(block.attend(z))
    m, r, totals = z.new_zeros(len(z), heads), z.new_zeros(len(z)), z.new_zeros(len(z))
    for j, x0 in enumerate(path_starts(z, baseline)):
        u0, u1, by_u, by_z, totals[j] = _on_mlp_path(
            block, z, x0, j, scalarization, alphas, weights
        )
        for h in range(heads):
            m[j, h] = by_u[h, j] @ (u1 - u0)[h, j]
        r[j] = by_z[j] @ (z - x0)[j]
    return m, r, totals


def chain_map(
    block: TwinBlock,
    z: Tensor,
    baseline: Baseline,
    scalarization: str,
    alphas: Nodes,
    weights: Nodes,
) -> Tensor:
    """z -> u with the constant cotangent gbar[h, j], the mean of dA_j/du[h, j] on the mlp path.

    Returns (H, T, S): chain[h, j, i] = integral of <d<gbar[h, j], u[h, j]>/dz_i, z_i - z0_i>.
    """
    heads = len(block.attend(z))
    chained = z.new_zeros(heads, len(z), len(z))
    for j, x0 in enumerate(path_starts(z, baseline)):
        gbar = _on_mlp_path(block, z, x0, j, scalarization, alphas, weights)[2][:, j]  # (H, d)
        for a, w in zip(alphas.tolist(), weights.tolist(), strict=True):
            x = (x0 + a * (z - x0)).detach().requires_grad_(True)
            u = block.attend(x)
            for h in range(heads):
                (gradient,) = torch.autograd.grad(gbar[h] @ u[h, j], x, retain_graph=True)
                chained[h, j] += w * (gradient * (z - x0)).sum(-1)
    return chained


def _on_mlp_path(
    block: TwinBlock,
    z: Tensor,
    x0: Tensor,
    j: int,
    scalarization: str,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """u(0), u(1), and the means of dA_j/du (H, T, d) and dA_j/dz (S, D), and the total N_j."""

    def y_j(u: Tensor, x: Tensor) -> Tensor:
        return block.post(u, x)[j]

    with torch.no_grad():
        u0, u1 = block.attend(x0), block.attend(z)
    (by_u, by_z), total = mean_gradients(y_j, (u0, x0), (u1, z), scalarization, alphas, weights)
    return u0, u1, by_u, by_z, total


def _vector(
    function: Callable[[Tensor], Tensor],
    x0: Tensor,
    z: Tensor,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[Tensor, Tensor]:
    """Per source i, the integral of (dy/dx_i)(z_i - x0_i), (S, E), by the full Jacobian of y (E,);
    and y(1) - y(0)."""
    with torch.no_grad():
        total = function(z) - function(x0)
    every_component = torch.eye(len(total), dtype=z.dtype, device=z.device)
    phi = z.new_zeros(len(z), len(total))
    for a, w in zip(alphas.tolist(), weights.tolist(), strict=True):
        x = (x0 + a * (z - x0)).detach().requires_grad_(True)
        (jacobian,) = torch.autograd.grad(
            function(x), x, every_component, is_grads_batched=True
        )  # (E, S, D)
        phi += w * torch.einsum("esd,sd->se", jacobian, z - x0)
    return phi, total


# ---- compositions (DESIGN, section 7) --------------------------------------------------------


def product(c: Tensor, m: Tensor) -> Tensor:
    """sum_h c[h,j,i] m[j,h]. c (H, T, S), m (T, H) -> (T, S)."""
    heads, targets, sources = c.shape
    composed = c.new_zeros(targets, sources)
    for h in range(heads):
        for j in range(targets):
            for i in range(sources):
                composed[j, i] += c[h, j, i] * m[j, h]
    return composed


def conserve(c: Tensor, totals: Tensor, m: Tensor, r: Tensor) -> Tensor:
    """sum_h (c[h,j,i] / U[h,j]) m[j,h] + delta_ij r[j]; a head of total U = 0 passes nothing."""
    heads, targets, sources = c.shape
    composed = c.new_zeros(targets, sources)
    for j in range(targets):
        for i in range(sources):
            for h in range(heads):
                if totals[h, j] != 0:
                    composed[j, i] += c[h, j, i] / totals[h, j] * m[j, h]
            if i == j:
                composed[j, i] += r[j]
    return composed


def chain(chained: Tensor, r: Tensor) -> Tensor:
    """sum_h chain[h,j,i] + delta_ij r[j]. chained (H, T, S) from `chain_map`, r (T,)."""
    heads, targets, sources = chained.shape
    composed = chained.new_zeros(targets, sources)
    for j in range(targets):
        for i in range(sources):
            for h in range(heads):
                composed[j, i] += chained[h, j, i]
            if i == j:
                composed[j, i] += r[j]
    return composed


def mlp_map_from_zero(
    block: TwinBlock,
    z: Tensor,
    scalarization: str,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[Tensor, Tensor, Tensor]:
    """m (T, H), totals (T,), the mean of dA_j/du[h, j] (H, T, d): from u = 0, with z held."""
    u = block.attend(z)
    m, totals, means = z.new_zeros(len(z), len(u)), z.new_zeros(len(z)), torch.zeros_like(u)
    for j in range(len(z)):
        (by_u,), totals[j] = mean_gradients(
            lambda x, j=j: block.post(x, z)[j],
            (torch.zeros_like(u),),
            (u,),
            scalarization,
            alphas,
            weights,
        )
        means[:, j] = by_u[:, j]
        for h in range(len(u)):
            m[j, h] = by_u[h, j] @ u[h, j]
    return m.detach(), totals, means


def chain_map_with(
    block: TwinBlock,
    z: Tensor,
    baseline: str,
    cotangents: Tensor,
    alphas: Nodes,
    weights: Nodes,
) -> tuple[Tensor, Tensor]:
    """chain (H, T, S) and its totals (H, T): <cotangents[h, j], u[h, j]> along the layer's path."""
    heads = len(cotangents)
    chained, totals = z.new_zeros(heads, len(z), len(z)), z.new_zeros(heads, len(z))
    for j, x0 in enumerate(path_starts(z, baseline)):
        moved = block.attend(z) - block.attend(x0)
        for h in range(heads):
            totals[h, j] = cotangents[h, j] @ moved[h, j]
            for a, w in zip(alphas.tolist(), weights.tolist(), strict=True):
                x = (x0 + a * (z - x0)).detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(cotangents[h, j] @ block.attend(x)[h, j], x)
                chained[h, j] += w * (gradient * (z - x0)).sum(-1)
    return chained, totals


def by_autograd(block: nn.Module, z: Tensor, n: int) -> Tensor:
    """The layer map (T, S) of target_token paths, l2, Gauss-Legendre with n nodes."""
    rows = []
    for j in range(len(z)):
        start = z[j].expand_as(z)
        (means,), _ = mean_gradients(
            lambda x, j=j: block(x[None])[0, j], (start,), (z,), "l2", *gauss_legendre(n)
        )
        rows.append((means * (z - start)).sum(-1))
    return torch.stack(rows)


# ---- estimates of self terms ---------------------------------------------------------------------


def with_self_term(c: list[float], j: int, ratio: float) -> list[float]:
    """The paper's rule: c_j <- s * ratio, then all of c rescaled to keep the sum s."""
    s = sum(x for i, x in enumerate(c) if i != j)
    filled = [s * ratio if i == j else x for i, x in enumerate(c)]
    return [x * s / sum(filled) for x in filled]
