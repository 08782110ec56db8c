"""What the path of a block starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = ["Baseline", "Start", "describe", "start_of"]

Baseline = str | float | Tensor | None
"""``"target_token"``, ``"zero"`` (or None), a number, or a tensor."""

NAMES = ("zero", "target_token")


@dataclass(frozen=True)
class Start:
    """Where the path of a block's input starts, for one text.

    ``shared (S, D)`` for all targets, ``per_target (R, S, D)`` for each row, or neither: then
    every source starts as the target token.
    """

    shared: Tensor | None = None
    per_target: Tensor | None = None

    @property
    def is_target_token(self) -> bool:
        """Whether every source starts as the target token."""
        return self.shared is None and self.per_target is None

    def select(self, rows: Tensor) -> Start:
        """The start for some of the targets: ``(R',)`` indices into them."""
        return self if self.per_target is None else Start(per_target=self.per_target[rows])

    def residual(self, z: Tensor, rows: Tensor) -> Tensor:
        """Start ``(R, D)`` of the residual stream of the targets themselves."""
        if self.shared is not None:
            return self.shared[rows]
        if self.per_target is not None:
            return self.per_target[torch.arange(len(rows), device=rows.device), rows]
        return z[rows]

    def frozen(self, z: Tensor, rows: Tensor) -> Tensor:
        """``(R, S)`` True where the path does not move a source at all."""
        if self.shared is not None:
            start: Tensor = (self.shared == z).all(-1)
            return start.expand(len(rows), -1)
        if self.per_target is not None:
            equal: Tensor = (self.per_target == z).all(-1)
            return equal
        # Equal tokens get equal numbers.
        number: Tensor = torch.unique(z, dim=0, return_inverse=True)[1]
        return number[rows][:, None] == number[None]


def describe(baseline: Baseline) -> str:
    """The baseline in words."""
    if baseline is None:
        return "zero"
    return "tensor" if isinstance(baseline, Tensor) else str(baseline)


def start_of(baseline: Baseline, z: Tensor, text: int, batch: int, targets: Tensor) -> Start:
    """Where the path of one text starts.

    Args:
        baseline: what the caller gave.
        z: ``(S, D)`` the residual stream of the text.
        text: place of the text in its batch.
        batch: number of texts ``B``.
        targets: ``(T,)`` positions of the targets.

    Raises:
        LigError: unknown name, or a tensor that fits neither ``(D,)``, ``(B or 1, S, D)`` nor
            ``(B or 1, T, S, D)``.
    """
    if baseline is None:
        baseline = "zero"
    if isinstance(baseline, str):
        if baseline not in NAMES:
            names = ", ".join(repr(name) for name in NAMES)
            raise LigError(f"baseline {baseline!r} is unknown: use {names}, a number or a tensor.")
        return Start() if baseline == "target_token" else Start(shared=torch.zeros_like(z))
    if isinstance(baseline, Real) and not isinstance(baseline, bool):
        if not math.isfinite(baseline):
            raise LigError(f"baseline {baseline} is not finite: give a finite number.")
        return Start(shared=torch.full_like(z, float(baseline)))
    if not isinstance(baseline, Tensor):
        raise LigError(
            f"baseline {brief(baseline)} is a {type(baseline).__name__}: use 'zero', "
            "'target_token', a number or a tensor."
        )
    if not bool(torch.isfinite(baseline).all()):
        raise LigError(
            f"baseline tensor of shape {tuple(baseline.shape)} holds values that are not finite "
            "(NaN or infinity): give finite numbers."
        )
    sources, width = z.shape
    shape, value = tuple(baseline.shape), baseline.to(z)
    if shape == (width,):
        return Start(shared=value.expand_as(z))
    if shape in ((1, sources, width), (batch, sources, width)):
        return Start(shared=value[text if shape[0] == batch else 0])
    per_target = (len(targets), sources, width)
    if shape in ((1, *per_target), (batch, *per_target)):
        return Start(per_target=value[text if shape[0] == batch else 0])
    raise LigError(
        f"baseline tensor of shape {shape} does not fit the block's input: use ({width},), "
        f"({batch} or 1, {sources}, {width}), or ({batch} or 1, {len(targets)}, {sources}, "
        f"{width}) for a baseline per target."
    )
