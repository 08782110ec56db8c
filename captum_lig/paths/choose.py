"""Choosing the path of a block: closed form where the self-check allows it, else by running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.paths.autograd import AutogradPath
from captum_lig.paths.base import AttentionPath
from captum_lig.paths.baselines import Start
from captum_lig.paths.key_norm import NormedKeys
from captum_lig.paths.norm import Norm, recognise_norm
from captum_lig.paths.per_target import PerTargetPath
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.rotary import RotaryMaps, probes_needed
from captum_lig.paths.shared import SharedPath
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.target_token import PairWeights, TargetTokenPath

__all__ = ["Block", "Structure", "floats_per_pair", "inspect_structure", "make_path"]


class Block(Protocol):
    """What a path needs of a block cut open."""

    z: Tensor
    heads: int
    """Number of query heads."""
    mask: Tensor | None
    """``(1 or H, T, S)``"""
    scaling: float
    softcap: float | None
    """Largest size of the logits, before the mask."""
    sinks: Tensor | None
    """``(H,)`` one more logit of each head, without a value."""
    opens: bool
    """Whether queries, keys and values can be had; if not, there is ``attend`` alone."""
    meter: Meter

    def pre(self, z: Tensor) -> QKV:
        """Queries, keys and values of ``z (N, S, D)``."""

    def inside(self, z: Tensor) -> list[Tensor]:
        """What its modules get on the way to the attention core, for ``z (1, S, D)``."""

    def attend(self, z: Tensor) -> Tensor:
        """Attention outputs ``(N, S, H, d)`` of ``z (N, S, D)``, differentiable."""


@dataclass(frozen=True)
class Structure:
    """What the self-check found out about ``pre``."""

    norm: Norm | None
    """None: no closed form, the block has to be run along the path."""
    keys_know_position: bool = True
    """Whether a token's key depends on its place (rotary encodings), given its content."""
    values_know_position: bool = True
    places: RotaryMaps | None = None
    """What places do to keys, if that was worth finding out."""
    normed_keys: NormedKeys | None = None
    """The norm that keys have of their own: then there is a closed form for target tokens alone."""


def inspect_structure(block: Block, epsilons: list[float], targets: int = 0) -> Structure:
    """Find the norms in ``pre``, and whether keys and values depend on a token's place.

    Args:
        block: the block.
        epsilons: values of eps that the norms may have.
        targets: number of targets whose content will have to be put at each place.
    """
    if not block.opens:
        return Structure(None)
    with torch.no_grad():
        norm, normed_keys = recognise_norm(block.pre, block.z, epsilons), None
        if norm is None and targets:
            norm = recognise_norm(lambda x: block.pre(x)[2:], block.z, epsilons)
            normed_keys = None if norm is None else NormedKeys.find(block, norm, epsilons)
            if normed_keys is None:
                norm = None
        flipped = block.pre(torch.stack([block.z, block.z.flip(0)]))
        keys, values = (not _same_flipped(table) for table in flipped[1:])
        if norm is None:
            return Structure(None, keys, values)
        _, key_heads, _, width = flipped[1].shape
        places = None
        if keys and not values and targets > 2 * probes_needed(key_heads, width):
            bias = block.pre(torch.zeros_like(block.z)[None])[1]
            places = RotaryMaps.find(lambda x: block.pre(x)[1] - bias, block.z, key_heads, width)
    return Structure(norm, keys, values, places, normed_keys)


def _same_flipped(table: Tensor) -> bool:
    gap = (table[0] - table[1].flip(1)).abs().max()
    return bool(gap <= (1e-6 if table.dtype == torch.float64 else 1e-4) * table.abs().max())


def floats_per_pair(block: Block, structure: Structure, start: Start) -> int:
    """About how many numbers a pair of a path point and a target takes, to bound the memory."""
    sources, width = block.z.shape
    # The activations that the backward pass of what follows the attention core keeps: the hidden
    # layer is some times the width.
    after = 64 * width
    if not block.opens:
        return after
    core = 10 * block.heads * sources
    if structure.normed_keys is not None:
        core += 10 * block.heads * sources
    closed = start.shared is not None or (start.is_target_token and _in_closed_form(structure))
    # Its own residual stream, and queries, keys, values and their derivatives.
    return after + core + (0 if closed else 20 * sources * width)


def _in_closed_form(structure: Structure) -> bool:
    """Whether target-token paths have a closed form."""
    return structure.norm is not None and not structure.values_know_position


def make_path(block: Block, structure: Structure, start: Start, rows: Tensor) -> AttentionPath:
    """The path of the attention core for ``rows (R,)``, from ``start`` to the block's input."""
    z, norm = block.z, structure.norm
    frozen = start.frozen(z, rows)
    own = start.per_target
    if start.is_target_token and not _in_closed_form(structure):
        own = z[rows][:, None]
    if not block.opens:
        begin = own if start.shared is None else start.shared[None]
        assert begin is not None
        return AutogradPath(block.attend, begin, z, rows, frozen, block.meter)
    row = RowFunction(block.softcap, block.sinks)
    with torch.no_grad():
        if start.shared is not None:
            along = (
                QKVByRunning(block.pre, start.shared, z)
                if norm is None or structure.normed_keys is not None
                else QKVClosedForm.between(norm, block.pre, start.shared, z)
            )
            return SharedPath(along, rows, block.scaling, block.mask, row, frozen)
        if own is not None:
            along = QKVByRunning(block.pre, own, z)
            return PerTargetPath(along, rows, block.scaling, block.mask, row, frozen)
        assert norm is not None
        return _target_token_path(block, norm, structure, rows, row, frozen)


def _target_token_path(
    block: Block, norm: Norm, structure: Structure, rows: Tensor, row: RowFunction, frozen: Tensor
) -> TargetTokenPath:
    z, scaling = block.z, block.scaling
    q, k, v = (t[0] for t in block.pre(z[None]))
    _, key_bias, value_bias = (t[0] for t in block.pre(torch.zeros_like(z)[None]))
    groups = q.shape[0] // k.shape[0]
    q = scaling * q[:, rows]  # (H, R, d)

    def logits(keys: Tensor) -> Tensor:
        """``(Hkv, S, d)`` to ``(H, R, S)``."""
        return q @ keys.repeat_interleave(groups, 0).transpose(-1, -2)

    mask = None if block.mask is None else block.mask[:, rows]
    bias_logits, mask = row.folded(logits(key_bias), mask)
    if structure.places is not None:
        content = structure.places.contents(k - key_bias)[:, rows].repeat_interleave(groups, 0)
        start_logits = structure.places.logits(q, content)
    elif structure.keys_know_position:
        start_logits = _logits_of_moved_targets(block, key_bias, q, rows)
    else:
        own = (k - key_bias)[:, rows].repeat_interleave(groups, 0)
        start_logits = (q * own).sum(-1, keepdim=True)
    values = v - value_bias
    return TargetTokenPath(
        rows=rows,
        weights=PairWeights.of(norm, z, rows),
        keys=None if structure.normed_keys is None else structure.normed_keys.weights(rows),
        row=row,
        mask=mask,
        bias_logits=bias_logits,
        start_logits=start_logits,
        end_logits=logits(k - key_bias),
        start_values=values[:, rows].repeat_interleave(groups, 0),
        end_values=values,
        bias_values=value_bias[:, 0].repeat_interleave(groups, 0),
        frozen=frozen,
    )


def _logits_of_moved_targets(block: Block, key_bias: Tensor, q: Tensor, rows: Tensor) -> Tensor:
    """``scale q_j.(k_i(z_j) - b_i)`` ``(H, R, S)``: each target's content at each place."""
    groups = q.shape[0] // key_bias.shape[0]
    parts = []
    at_once = max(1, 4096 // len(block.z))
    for own, q_own in zip(rows.split(at_once), q.split(at_once, 1), strict=True):
        content = block.z[own][:, None].expand(-1, *block.z.shape)
        keys = block.pre(content)[1] - key_bias  # (R, Hkv, S, d)
        keys = keys.repeat_interleave(groups, 1)
        parts.append(torch.einsum("hrd,rhsd->hrs", q_own, keys))
    return torch.cat(parts, 1)
