"""What paths start from: one reader of what callers give, and the start of a block's path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = ["Baseline", "Start", "describe", "encoder_start", "read_baseline", "start_of"]

Baseline = str | float | Tensor | None
"""``"target_token"``, ``"zero"`` (or None), a number, or a tensor."""

TARGET_TOKEN = "target_token"


def read_baseline(
    baseline: object,
    like: Tensor,
    shapes: Iterable[Sequence[int]],
    per_target: Iterable[Sequence[int]] = (),
    names: tuple[str, ...] = (TARGET_TOKEN,),
    argument: str = "baseline",
) -> Tensor | str:
    """What a caller gave as a baseline, checked.

    Args:
        baseline: ``"zero"`` or None, a number, a tensor, or one of ``names``.
        like: what the path leads to; zeros and numbers get its shape, everything its dtype.
        shapes: shapes that a tensor may have.
        per_target: and of a tensor that holds a baseline for each target.
        names: names besides ``"zero"`` that the caller of this function gives a meaning.
        argument: what the user knows the baseline as, for messages.

    Returns:
        A tensor, finite, of one of ``shapes`` or like ``like``; or one of ``names``.

    Raises:
        LigError: anything else; the message repeats it and says what there is.
    """
    if baseline is None or (isinstance(baseline, str) and baseline == "zero"):
        return torch.zeros_like(like)
    known = ", ".join(map(repr, ("zero", *names)))
    if isinstance(baseline, str):
        if baseline not in names:
            raise LigError(
                f"{argument} {baseline!r} is unknown: use {known}, a number or a tensor."
            )
        return baseline
    if isinstance(baseline, Real) and not isinstance(baseline, bool):
        if not math.isfinite(baseline):
            raise LigError(f"{argument} {baseline} is not finite: give a finite number.")
        return torch.full_like(like, float(baseline))
    if not isinstance(baseline, Tensor):
        raise LigError(
            f"{argument} {brief(baseline)} is a {type(baseline).__name__}: use None, {known}, a "
            "number or a tensor."
        )
    shape = tuple(baseline.shape)
    shared, own = ([tuple(x) for x in some] for some in (shapes, per_target))
    if shape not in (*shared, *own):
        use = " or ".join(map(str, dict.fromkeys(shared)))
        if own:
            use += f", or {' or '.join(map(str, dict.fromkeys(own)))} for a baseline per target"
        raise LigError(
            f"{argument} tensor of shape {shape} does not fit {tuple(like.shape)}: use {use}."
        )
    value = baseline.to(like)
    if not bool(torch.isfinite(value).all()):
        raise LigError(
            f"{argument} tensor of shape {shape} holds values that are not finite (NaN or "
            "infinity): give finite numbers."
        )
    return value


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

    def of_tokens(self, few: Tensor) -> Start | None:
        """The start for some of the tokens ``(n,)``, each of them a target; None if it has none."""
        if self.per_target is not None:
            return None
        return self if self.shared is None else Start(self.shared[few])

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
    sources, width = z.shape
    shapes = [(width,), (batch, sources, width), (1, sources, width)]
    per_target = [(n, len(targets), sources, width) for n in (batch, 1)]
    value = read_baseline(baseline, z, shapes, per_target)
    if isinstance(value, str):
        return Start()
    if value.dim() < 3:
        return Start(shared=value.expand_as(z))
    own = value[text if len(value) == batch else 0]
    return Start(shared=own) if own.dim() == 2 else Start(per_target=own)


def encoder_start(baseline: Baseline, states: Tensor, seen: Tensor) -> Tensor:
    """Where the path of an encoder's states starts, ``(S, D)``.

    Args:
        baseline: what the caller gave; ``"mean"`` is the mean of the states that are no padding.
        states: ``(S, D)`` the encoder's states.
        seen: ``(S,)`` False at padding.

    Raises:
        LigError: as :func:`read_baseline` does; a tensor has to be ``(D,)`` or ``(S, D)``.
    """
    shapes = (states.shape[1:], states.shape)
    value = read_baseline(baseline, states, shapes, (), ("mean",), "cross_baseline")
    return (states[seen].mean(0) if isinstance(value, str) else value).expand_as(states)
