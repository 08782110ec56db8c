"""The boundaries of one block for one text: preparing its rows, and integrating what is asked for.

Preparing finds the path of the block's input and evaluates its two ends; integrating knows only
the rows. A block comes split at its attention by :mod:`captum_lig.model`, of which nothing else is
known here than :class:`Split` and :class:`CrossSplit` say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import Parts
from captum_lig.integrals.adaptive import integrate
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.kinds import KINDS, Asked
from captum_lig.integrals.rows import AroundMlp, Rows
from captum_lig.integrals.settings import Settings
from captum_lig.paths import choose
from captum_lig.paths.baselines import Start
from captum_lig.paths.cross_attention import CrossBlock, cross_path
from captum_lig.paths.memory import in_halves

__all__ = ["CrossSplit", "Split", "attribute_cross", "attribute_text"]


class Split(choose.WholeBlock, Protocol):
    """A block split at its attention, for one text."""

    around_mlp: AroundMlp | None
    """What comes before and after its MLP's output, if that is to be a node."""

    @property
    def visible(self) -> Tensor | None:
        """``(1 or H, T, S)`` False where the mask forbids a source; None: nothing is forbidden."""

    def attends(self, rows: Tensor, u: Tensor) -> bool:
        """Whether its attention gives ``u (R, H, d)`` for rows of the text itself."""

    def check(
        self, rows: Tensor, u: Tensor, output: Tensor | None = None, attends: bool | None = None
    ) -> None:
        """Compare attention outputs ``u (R, H, d)`` at the text with the block's own.

        And ``output (R, D)``, what ``post`` makes of them, if it is used. ``attends`` is what
        :meth:`attends` said of ``u``, if it was asked.
        """


class CrossSplit(CrossBlock, Protocol):
    """The cross-attention of a block, for one text."""

    z: Tensor
    """``(1, T, D)`` the block's tokens."""
    visible: Tensor | None
    """``(1 or H, T, S)`` False where the mask forbids a source; None: nothing is forbidden."""

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
    with_outputs = any(KINDS[name].needs_outputs for name in asked.boundaries)
    structure = choose.choose_structure(split, start, targets, with_outputs)
    floats = choose.floats_per_pair(split, structure, start)
    at_once = settings.pairs_at_once(floats, len(targets), split.z)

    def of_chunk(chunk: Tensor) -> Parts:
        nonlocal structure
        positions, begin = targets[chunk], start.select(chunk)
        rows = _rows(split, structure, begin, positions, at_once, with_outputs)
        attends = None
        if structure.opens:
            attends = split.attends(positions, rows.u_start + rows.u_step)
            if not attends:
                structure, attends = choose.run_attention(split), None
                rows = _rows(split, structure, begin, positions, at_once, with_outputs)
        output = rows.y_start + rows.y_step if with_outputs else None
        split.check(positions, rows.u_start + rows.u_step, output, attends)
        found: Parts = {}
        if split.has_attention:
            found["attention_total"] = rows.attention_total
        if with_outputs:
            found["layer_total"] = rows.layer_total
        if "attention" in asked.boundaries and rows.self_weight is not None:
            found["self_weight"] = rows.self_weight
        return found | _integrated(rows, asked, settings)

    chunks = []
    for chunk in torch.arange(len(targets), device=targets.device).split(at_once):
        chunks += in_halves(of_chunk, chunk)
    return _joined(chunks, torch.cat)


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
    path = cross_path(split, start, targets)
    floats = 10 * split.query.shape[0] * len(split.states)
    if path.kind != "closed_form":
        floats += 20 * split.states.numel()
    at_once = settings.pairs_at_once(floats, len(targets), split.states)
    moves = (start != split.states).any(-1)

    def of_some(some: Tensor) -> Parts:
        own, chunk = path.select(some), targets[some]
        seen = moves.expand(len(chunk), -1)
        if split.visible is not None and own.kind != "autograd":
            seen = seen & split.visible[:, chunk].any(0)
        z = split.z[0, chunk]
        rows = Rows.between(
            path=own,
            post=lambda _, z, __: z,  # nothing of it is asked for
            positions=chunk,
            start=z,
            end=z,
            unmoved=~seen.any(-1),
            pairs_at_once=at_once,
            meter=split.meter,
            with_outputs=False,
        )
        split.check(chunk, rows.u_start + rows.u_step)
        return _integrated(rows, asked, settings)

    chunks = []
    for some in torch.arange(len(targets), device=targets.device).split(at_once):
        chunks += in_halves(of_some, some)
    return _joined(chunks, torch.cat)


def _joined(parts: Sequence[Parts], join: Callable[[list[Tensor]], Tensor]) -> Parts:
    """What all parts have: attention weights are hidden where the attention was run as it is."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: join([part[name] for part in parts]) for name in names}


def _integrated(rows: Rows, asked: Asked, settings: Settings) -> Parts:
    """Results of the boundaries that are asked for, those that others build on first."""
    found: Parts = {}
    names = [name for name in KINDS if name in asked.boundaries]
    while names:
        waiting = {name: set(KINDS[name].after) & set(names) for name in names}
        first = set().union(*waiting.values())
        # All that nobody waits for are integrated together: they share the points of the path.
        ready = [name for name in names if not waiting[name] and (name in first or not first)]
        together: list[Boundary] = []
        for name in ready:
            together += KINDS[name].build(rows, asked, found)
        found |= integrate(together, settings)
        names = [name for name in names if name not in ready]
    return {name: part for name, part in found.items() if not name.startswith("_")}


def _rows(
    split: Split,
    structure: choose.Structure,
    start: Start,
    positions: Tensor,
    at_once: int,
    with_outputs: bool,
) -> Rows:
    """The rows of the targets at ``positions (R,)``."""
    return Rows.between(
        path=choose.make_path(split, structure, start, positions),
        post=split.post,
        positions=positions,
        start=start.residual(split.z, positions),
        end=split.z[positions],
        unmoved=_unmoved(split, structure, start, positions),
        pairs_at_once=at_once,
        meter=split.meter,
        with_outputs=with_outputs,
        has_heads=split.has_attention,
        around_mlp=split.around_mlp,
    )


def _unmoved(split: Split, structure: choose.Structure, start: Start, rows: Tensor) -> Tensor:
    """``(R,)`` rows that see no source that the path moves, and are not moved themselves."""
    moves = ~start.frozen(split.z, rows)
    themselves = moves[torch.arange(len(rows), device=rows.device), rows]
    if split.visible is not None and structure.opens:
        moves = moves & split.visible[:, rows].any(0)
    return ~(moves.any(-1) | themselves)
