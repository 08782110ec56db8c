"""Names of types that several modules share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["QKV", "Attend", "Parts", "Post", "Pre"]

QKV = tuple[Tensor, Tensor, Tensor]
"""Queries ``(N, H, S, d)``, keys ``(N, Hkv, S, d)`` and values ``(N, Hkv, S, d')``."""

Pre = Callable[[Tensor], QKV]
"""The residual stream ``(N, S, D)`` to queries, keys and values."""

Attend = Callable[[Tensor], Tensor]
"""The residual stream ``(N, S, D)`` to per-head attention outputs ``(N, S, H, d)``."""

Post = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(M, H, d)`` attention outputs, ``(M, D)`` residual stream and ``(M,)`` positions in the text to
``(M, D)``."""

Parts = dict[str, Tensor]
"""Results by name, rows first."""
