"""The cross boundary of a decoder's block: encoder tokens to the heads of decoder tokens.

``e -> u_cross``: the encoder's states ``e (S, D)`` go from a baseline to themselves, and with them
the keys and values of the cross-attention. The queries are held where they are in the model, so
the map says what the encoder's tokens gave to a decoder token as it was, not what that token asked
for. What of ``z'`` came through the cross-attention is not attributed: the mlp boundary counts it,
with all else that follows the self-attention, by the heads of the self-attention.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig._types import Parts
from captum_lig.errors import LigError
from captum_lig.integrals.boundaries import AttentionBoundary
from captum_lig.integrals.rows import Rows
from captum_lig.model.attention_call import allowed
from captum_lig.model.cross_attention import SplitCrossAttention
from captum_lig.paths.baselines import Baseline
from captum_lig.paths.cross_attention import CrossPath
from captum_lig.paths.norm import recognise_norm
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.softmax import RowFunction

if TYPE_CHECKING:
    from captum_lig.integrals.block import Settings

__all__ = ["CROSS", "attribute_cross", "check_cross_baseline"]

CROSS = "cross"
"""Only blocks that attend to an encoder's states have it, so only when it is asked for."""

NAMES = ("zero", "mean")


def check_cross_baseline(baseline: Baseline) -> None:
    """Refuse what is no baseline of an encoder's states, whatever they are.

    Raises:
        LigError: an unknown name, or a number or tensor that is not finite.
    """
    names = " or ".join(map(repr, NAMES))
    if isinstance(baseline, Tensor):
        finite = bool(torch.isfinite(baseline).all())
    elif isinstance(baseline, Real) and not isinstance(baseline, bool):
        finite = math.isfinite(baseline)
    elif isinstance(baseline, str) and baseline in NAMES:
        finite = True
    else:
        raise LigError(
            f"cross_baseline={brief(baseline)}: use {names}, a number or a tensor (D,) or (S, D) "
            "for the encoder's S tokens."
        )
    if not finite:
        raise LigError(f"cross_baseline={brief(baseline)} is not finite: give finite numbers.")


def _start(baseline: Baseline, states: Tensor, seen: Tensor) -> Tensor:
    """Where the path of the encoder's states starts, ``(S, D)``.

    Args:
        baseline: what the caller gave: ``"zero"``; ``"mean"``, of the states that are not padding;
            a number; or a tensor ``(D,)`` or ``(S, D)``.
        states: ``(S, D)`` the encoder's states.
        seen: ``(S,)`` those that are not padding.

    Raises:
        LigError: if a tensor has another shape.
    """
    if isinstance(baseline, Tensor):
        shape, whole = tuple(baseline.shape), tuple(states.shape)
        if shape not in (whole, whole[1:]):
            raise LigError(
                f"cross_baseline tensor of shape {shape} does not fit the encoder's states: use "
                f"({whole[1]},) or {whole}."
            )
        return baseline.to(states).expand_as(states)
    if baseline == "mean":
        return states[seen].mean(0).expand_as(states)
    value = 0.0 if baseline is None or baseline == "zero" else float(baseline)
    return torch.full_like(states, value)


def attribute_cross(
    cut: SplitCrossAttention,
    settings: Settings,
    targets: Tensor,
    valid: Tensor,
    epsilons: list[float],
) -> Parts:
    """The cross boundary of one block for one text.

    Args:
        cut: the block's cross-attention.
        settings: what is asked for.
        targets: ``(T,)`` positions of the targets.
        valid: ``(L,)`` the decoder's tokens that are not padding.
        epsilons: values of eps that norms inside the block have.

    Returns:
        Rows first: ``cross (T, H, S)`` and ``cross_total (T, H)``; zeros for padded targets.

    Raises:
        LigError: if the cross-attention is not the softmax of scaled dot products plus a mask, or
            if the baseline does not fit.
    """
    states, heads = cut.states, cut.heads
    cross = states.new_zeros(len(targets), heads, len(states))
    total = states.new_zeros(len(targets), heads)
    start = _start(settings.cross_baseline, states, cut.seen)
    kept = valid[targets].nonzero().squeeze(-1)
    if len(kept):
        with torch.no_grad():
            along = _along(cut, start, epsilons)
        floats = 10 * heads * len(states)
        if isinstance(along, QKVByRunning):
            floats += 20 * states.numel()
        at_once = settings.pairs_at_once(floats, states.element_size())
        for chunk in kept.split(at_once):
            rows = _rows(cut, along, start, targets[chunk], settings.scalarization, at_once)
            boundary = AttentionBoundary(rows)
            parts = boundary.sweep(settings.alphas, settings.weights)
            cross[chunk] = settings.refined(boundary, parts)["attention"]
            total[chunk] = rows.attention_total
    return {CROSS: cross, f"{CROSS}_total": total}


def _along(
    cut: SplitCrossAttention, start: Tensor, epsilons: list[float]
) -> QKVClosedForm | QKVByRunning:
    """Keys and values along the path: in closed form if that reproduces them."""
    norm = recognise_norm(lambda states: cut.pre(states)[1:], cut.states, epsilons)
    if norm is None:
        return QKVByRunning(cut.pre, start, cut.states)
    return QKVClosedForm.between(norm, cut.pre, start, cut.states)


def _rows(
    cut: SplitCrossAttention,
    along: QKVClosedForm | QKVByRunning,
    start: Tensor,
    targets: Tensor,
    scalarization: str,
    pairs_at_once: int,
) -> Rows:
    """Some targets, made sure of against the block itself."""
    mask = None if cut.mask is None else cut.mask[:, targets]
    moves = (start != cut.states).any(-1).expand(len(targets), -1)
    visible = moves if mask is None else moves & allowed(mask).any(0)
    query, row = cut.scaling * cut.query[:, targets], RowFunction(cut.softcap, cut.sinks)
    z = cut.z[0, targets]
    rows = Rows.between(
        path=CrossPath(along, query, mask, row, ~moves),
        post=lambda _, z: z,  # nothing is asked of what follows the attention
        start=z,
        end=z,
        still=~visible.any(-1),
        scalarization=scalarization,
        pairs_at_once=pairs_at_once,
        meter=cut.meter,
        with_outputs=False,
    )
    cut.check(targets, rows.u_start + rows.u_step)
    return rows
