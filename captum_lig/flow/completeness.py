"""Making rows add up exactly: what a quadrature left over is spread over the entries."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["make_complete"]


def make_complete(parts: Tensor, total: Tensor) -> Tensor:
    """Spread what is missing to ``total (...)`` over ``parts (..., n)``, by their size."""
    size = parts.abs().sum(-1, keepdim=True)
    missing = (total - parts.sum(-1)).unsqueeze(-1)
    return parts + torch.where(size > 0, parts.abs() / size, 0.0) * missing
