"""Queries, keys and values along a straight path, without running the block again.

In every usual block what the attention core receives is an affine image of the normed residual
stream, ``pre_i(x) = A_i n(x) + b_i`` with ``n`` the identity, a LayerNorm or an RMSNorm (without
their affine parts, which belong to ``A`` and ``b``). Along ``x(a) = (1 - a) x0 + a x1`` then

    pre_i(x(a)) = b_i + w0(a) (pre_i(x0) - b_i) + w1(a) (pre_i(x1) - b_i)
    w0 = (1 - a) sigma(x0) / sigma(x(a)),   w1 = a sigma(x1) / sigma(x(a)),

and ``sigma(x(a))`` follows from three scalar products. Which ``n`` it is need not be known: the
candidates are tried on points where they differ, and the one that reproduces ``pre`` is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from captum_lig.paths.memory import in_halves

__all__ = ["Mixture", "Norm", "recognise_norm"]


@dataclass(frozen=True)
class Norm:
    """The scalar part of a norm: ``n(x) = center(x) / sigma(x)``."""

    kind: Literal["identity", "layer", "rms"]
    eps: float = 0.0

    def center(self, x: Tensor) -> Tensor:
        """``x (..., D)`` in float64, without its mean if this is a LayerNorm."""
        x = x.double()
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def mixture(self, start: Tensor, end: Tensor, dot: Tensor, alphas: Tensor) -> Mixture:
        """The two weights along the path, and their derivatives.

        Args:
            start: mean square of ``center(x0)``, any shape that broadcasts with the others.
            end: mean square of ``center(x1)``.
            dot: mean product of ``center(x0)`` and ``center(x1)``.
            alphas: ``(P,)`` path parameters.

        Returns:
            A :class:`Mixture` of ``(P, ...)`` tensors in float64.
        """
        a = alphas.double().view(-1, *[1] * dot.dim())
        line = Mixture(1 - a, a, -torch.ones_like(a), torch.ones_like(a), -a)
        return line if self.kind == "identity" else self.of(line, start, end, dot)

    def of(self, w: Mixture, start: Tensor, end: Tensor, dot: Tensor) -> Mixture:
        """The weights of ``n(x0)`` and ``n(x1)`` in ``n(w.start x0 + w.end x1)``.

        Args:
            w: the weights of what is normed.
            start: mean square of ``center(x0)``, any shape that broadcasts with the others.
            end: mean square of ``center(x1)``.
            dot: mean product of ``center(x0)`` and ``center(x1)``.
        """
        variance = w.start**2 * start + 2 * w.start * w.end * dot + w.end**2 * end
        sigma = (variance.clamp_min(0) + self.eps).sqrt()
        sigma0, sigma1 = (start + self.eps).sqrt(), (end + self.eps).sqrt()
        from_start = w.start * sigma0 / sigma
        # The derivatives with the cancelling terms already cancelled.
        turn = w.d_start * w.end - w.start * w.d_end
        return Mixture(
            from_start,
            w.end * sigma1 / sigma,
            sigma0 * (w.d_start * self.eps + turn * (w.end * end + w.start * dot)) / sigma**3,
            sigma1 * (w.d_end * self.eps - turn * (w.start * start + w.end * dot)) / sigma**3,
            from_start - 1,
        )


@dataclass(frozen=True)
class Mixture:
    """Weights of the path's start and end, and their derivatives by ``a``."""

    start: Tensor
    end: Tensor
    d_start: Tensor
    d_end: Tensor
    less_one: Tensor
    """``start - 1``, before rounding."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Mixture:
        """Each of the weights changed."""
        return Mixture(*(change(getattr(self, field.name)) for field in fields(self)))

    def to(self, dtype: torch.dtype) -> Mixture:
        """The same weights in another precision."""
        return self.map(lambda x: x.to(dtype))


def recognise_norm(
    pre: Callable[[Tensor], tuple[Tensor, ...]], z: Tensor, epsilons: Iterable[float]
) -> Norm | None:
    """Find the norm with which the closed form reproduces ``pre``.

    Args:
        pre: ``(N, S, D)`` to queries, keys and values ``(N, heads, S, d)``, or to some of them.
        z: ``(S, D)`` a residual stream to test around.
        epsilons: values of eps that the norm may have.

    Returns:
        The norm, or None if no candidate reproduces ``pre`` to rounding.
    """
    start, dot_alphas = z.roll(1, 0), torch.tensor([0.35, 0.8], device=z.device)
    candidates = [Norm("identity")]
    epsilons = sorted(set(epsilons))
    for eps in epsilons:
        candidates += [Norm("layer", eps), Norm("rms", eps)]
    # From zero, a norm is decided where the input's mean square is about eps.
    size = z.double().square().mean().clamp_min(1e-30)
    zero_alphas = torch.stack(
        [
            torch.as_tensor(f * eps, device=z.device).div(size).sqrt()
            for eps in epsilons
            for f in (1, 9)
        ]
        + [torch.as_tensor(0.5, device=z.device, dtype=torch.float64)]
    ).clamp_max(0.9)
    points = [torch.zeros_like(z), start, z]
    points += [(1 - a) * start + a * z for a in dot_alphas.to(z.dtype)]
    points += [a * z for a in zero_alphas.to(z.dtype)]
    # Some tokens are enough to tell, and all of them at every point could fill the memory.
    some = torch.linspace(0, len(z) - 1, min(len(z), 64), device=z.device).round().long()
    parts = [
        found
        for part in torch.stack(points).split(max(1, 4096 // len(z)))
        for found in in_halves(lambda part: [table[:, :, some] for table in pre(part)], part)
    ]
    z, start = z[some], start[some]
    tables = [torch.cat(table) for table in zip(*parts, strict=True)]
    tolerance = 1e-6 if z.dtype == torch.float64 else 2e-4

    def largest(norm: Norm) -> float:
        gap = 0.0
        for table in tables:
            gap = max(gap, _gap(norm, z, start, table, dot_alphas, zero_alphas))
            if gap > tolerance:  # it is none of them, whatever the other tables say
                break
        return gap

    # The best, not the first: where tokens have next to no mean, LayerNorm is almost RMSNorm.
    gaps = [largest(norm) for norm in candidates]
    best = min(range(len(gaps)), key=gaps.__getitem__)
    return candidates[best] if gaps[best] <= tolerance else None


def _gap(norm: Norm, z: Tensor, start: Tensor, table: Tensor, dots: Tensor, zeros: Tensor) -> float:
    """Largest error of the closed form, as part of the largest entry."""
    bias, from_start, from_end = table[0], table[1] - table[0], table[2] - table[0]
    c0, c1 = norm.center(start), norm.center(z)
    n0, n1, dot = (x.mean(-1) for x in (c0 * c0, c1 * c1, c0 * c1))  # (S,)
    between = norm.mixture(n0, n1, dot, dots)
    from_zero = norm.mixture(torch.zeros_like(n1), n1, torch.zeros_like(n1), zeros)

    def weigh(weights: Tensor, values: Tensor) -> Tensor:
        return weights.to(values.dtype).unsqueeze(1).unsqueeze(-1) * values

    predicted = torch.cat(
        [
            bias + weigh(between.start, from_start) + weigh(between.end, from_end),
            bias + weigh(from_zero.end, from_end),
        ]
    )
    gap = (predicted - table[3:]).abs().max() / table.abs().max().clamp_min(1e-30)
    return float(gap.nan_to_num(torch.inf))
