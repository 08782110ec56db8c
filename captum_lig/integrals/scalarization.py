"""Making a vector output a number: what a row's attributions add up to.

For a target with output ``y(a)`` along the path, and ``N = ||y(1) - y(0)||``:

- ``l2`` (Suzuki et al. 2026): ``A(a) = ||y(a) - y(0)||``;
- ``projection``: ``A(a) = <y(a) - y(0), e>`` with ``e = (y(1) - y(0)) / N``, linear in ``y`` and
  so smooth where the path starts.

Both are 0 at ``a = 0`` and ``N`` at ``a = 1``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = ["SCALARIZATIONS", "check", "cotangent", "unit", "value"]

SCALARIZATIONS = ("l2", "projection")


def check(scalarization: str, allowed: tuple[str, ...] = SCALARIZATIONS) -> str:
    """Return the name, or say which names there are."""
    if scalarization not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise LigError(f"scalarization {brief(scalarization)} is unknown: use one of {names}.")
    return scalarization


def unit(x: Tensor) -> Tensor:
    """``x / ||x||`` over the last dimension; the zero vector where ``x`` is 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, 0.0)


def value(scalarization: str, change: Tensor, direction: Tensor) -> Tensor:
    """``A`` from ``change = y(a) - y(0)`` ``(..., E)`` and ``direction = e`` ``(..., E)``."""
    if scalarization == "l2":
        length: Tensor = torch.linalg.vector_norm(change, dim=-1)
        return length
    return (change * direction).sum(-1)


def cotangent(scalarization: str, change: Tensor, direction: Tensor) -> Tensor:
    """``dA/dy`` ``(..., E)``, a unit vector.

    Where ``change`` is 0 the l2 norm has no gradient; the right limit at the start of a path
    is ``unit(y'(0))``, which the caller passes as ``change`` there.
    """
    return unit(change) if scalarization == "l2" else direction.expand_as(change)
