"""The boundaries of one block for one text: preparing its rows, and integrating what is asked for.

Preparing finds the path of the block's input and evaluates its two ends; integrating knows only
the rows. A block comes split at its attention by :mod:`captum_lig.model`, of which nothing else is
known here than :class:`Split` and :class:`CrossSplit` say.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import QKV, Parts
from captum_lig.cost import Meter
from captum_lig.integrals.adaptive import integrate
from captum_lig.integrals.boundaries import KINDS, Asked
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.rows import Rows
from captum_lig.integrals.settings import Settings
from captum_lig.paths import choose
from captum_lig.paths.baselines import Start
from captum_lig.paths.cross_attention import CrossPath
from captum_lig.paths.norm import recognise_norm
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.softmax import RowFunction

__all__ = ["CrossSplit", "Split", "attribute_cross", "attribute_text"]


class Split(choose.Block, Protocol):
    """A block split at its attention, for one text."""

    has_attention: bool
    """Whether it has an attention that is reached; without, it counts as one head."""
    epsilons: list[float]
    """Values of eps of the norms inside."""
    visible: Tensor | None
    """``(1 or H, T, S)`` False where the mask forbids a source; None: nothing is forbidden."""

    def post(self, u: Tensor, z: Tensor) -> Tensor:
        """What follows the attention: ``u (M, H, d)`` and ``z (M, D)`` to ``(M, D)``."""

    def check(self, rows: Tensor, u: Tensor, with_post: bool = True) -> None:
        """Compare attention outputs ``u (R, H, d)`` at the text with the block's own."""


class CrossSplit(Protocol):
    """The cross-attention of a block, for one text."""

    z: Tensor
    """``(1, T, D)`` the block's tokens."""
    states: Tensor
    """``(S, D)`` the encoder's states."""
    query: Tensor
    """``(H, T, d)``"""
    mask: Tensor | None
    """``(1 or H, T, S)``"""
    visible: Tensor | None
    """``(1 or H, T, S)`` False where the mask forbids a source; None: nothing is forbidden."""
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    epsilons: list[float]
    meter: Meter

    def pre(self, states: Tensor) -> QKV:
        """Queries, keys and values of ``states (N, S, D)``."""

    def check(self, rows: Tensor, u: Tensor) -> None:
        """Compare attention outputs ``u (R, H, d)`` with the block's own."""


def attribute_text(
    split: Split, start: Start, targets: Tensor, asked: Asked, settings: Settings
) -> Parts:
    """All boundaries of a block's own tokens.

    Args:
        split: the block.
        start: where the path of its input starts, for each of the targets.
        targets: ``(T,)`` positions of the targets, none of them padding.
        asked: the boundaries.
        settings: how to integrate.

    Returns:
        Results by name, targets first.
    """
    moved = len(targets) if start.is_target_token else 0
    structure = choose.inspect_structure(split, split.epsilons, moved)
    floats = choose.floats_per_pair(split, structure, start)
    at_once = settings.pairs_at_once(floats, split.z.element_size())
    with_outputs = any(KINDS[name].needs_outputs for name in asked.boundaries)
    chunks = []
    for chunk in torch.arange(len(targets), device=targets.device).split(at_once):
        positions, begin = targets[chunk], start.select(chunk)
        rows = Rows.between(
            path=choose.make_path(split, structure, begin, positions),
            post=split.post,
            start=begin.residual(split.z, positions),
            end=split.z[positions],
            unmoved=_unmoved(split, begin, positions),
            pairs_at_once=at_once,
            meter=split.meter,
            with_outputs=with_outputs,
            has_heads=split.has_attention,
        )
        split.check(positions, rows.u_start + rows.u_step, with_outputs)
        found: Parts = {}
        if split.has_attention:
            found["attention_total"] = rows.attention_total
        if with_outputs:
            found["layer_total"] = rows.layer_total
        if "attention" in asked.boundaries and rows.self_weight is not None:
            found["self_weight"] = rows.self_weight
        chunks.append(found | _integrated(rows, asked, settings))
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def attribute_cross(
    split: CrossSplit, start: Tensor, targets: Tensor, asked: Asked, settings: Settings
) -> Parts:
    """The boundaries from an encoder's states to the heads of a block's cross-attention.

    The states go from ``start (S, D)`` to themselves, and with them keys and values. The queries
    are held where they are in the model: a map says what the encoder's tokens gave to a decoder's
    token as it was, not what that token asked for.

    Args:
        split: the block's cross-attention.
        start: ``(S, D)`` where the path of the states starts.
        targets: ``(T,)`` positions of the targets, none of them padding.
        asked: the boundaries.
        settings: how to integrate.

    Returns:
        Results by name, targets first.
    """
    with torch.no_grad():
        norm = recognise_norm(lambda x: split.pre(x)[1:], split.states, split.epsilons)
        qkv = (
            QKVByRunning(split.pre, start, split.states)
            if norm is None
            else QKVClosedForm.between(norm, split.pre, start, split.states)
        )
    floats = 10 * split.query.shape[0] * len(split.states)
    if norm is None:
        floats += 20 * split.states.numel()
    at_once = settings.pairs_at_once(floats, split.states.element_size())
    chunks = []
    for chunk in targets.split(at_once):
        mask = None if split.mask is None else split.mask[:, chunk]
        moves = (start != split.states).any(-1).expand(len(chunk), -1)
        seen = moves if split.visible is None else moves & split.visible[:, chunk].any(0)
        query, row = split.scaling * split.query[:, chunk], RowFunction(split.softcap, split.sinks)
        z = split.z[0, chunk]
        rows = Rows.between(
            path=CrossPath(qkv, query, mask, row, ~moves),
            post=lambda _, z: z,  # nothing of it is asked for
            start=z,
            end=z,
            unmoved=~seen.any(-1),
            pairs_at_once=at_once,
            meter=split.meter,
            with_outputs=False,
        )
        split.check(chunk, rows.u_start + rows.u_step)
        chunks.append(_integrated(rows, asked, settings))
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _integrated(rows: Rows, asked: Asked, settings: Settings) -> Parts:
    """Results of the boundaries that are asked for, those that others build on first."""
    found: Parts = {}
    names = [name for name in KINDS if name in asked.boundaries]
    while names:
        ready = [name for name in names if not set(KINDS[name].after) & set(names)]
        together: list[Boundary] = []
        for name in ready:
            together += KINDS[name].build(rows, asked, found)
        found |= integrate(together, settings)
        names = [name for name in names if name not in ready]
    return {name: part for name, part in found.items() if not name.startswith("_")}


def _unmoved(split: Split, start: Start, rows: Tensor) -> Tensor:
    """``(R,)`` rows that see no source that the path moves, and are not moved themselves."""
    moves = ~start.frozen(split.z, rows)
    themselves = moves[torch.arange(len(rows), device=rows.device), rows]
    if split.visible is not None:
        moves = moves & split.visible[:, rows].any(0)
    return ~(moves.any(-1) | themselves)
