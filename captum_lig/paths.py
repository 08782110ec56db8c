"""Choosing the path of a block: closed form where the self-check allows it, else by running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_lig.attention_path import (
    AttentionPath,
    ByRunning,
    ClosedForm,
    PerTargetPath,
    SharedPath,
    TargetTokenPath,
    target_token_weights,
)
from captum_lig.baselines import Start
from captum_lig.closed_form import QKV, Norm, recognise_norm
from captum_lig.positions import PlaceMaps, probes_needed

__all__ = ["Block", "Structure", "inspect_structure", "make_path"]


class Block(Protocol):
    """What a path needs of a block cut open."""

    z: Tensor
    mask: Tensor | None
    scaling: float

    def pre(self, z: Tensor) -> QKV:
        """Queries, keys and values of ``z (N, S, D)``."""


@dataclass(frozen=True)
class Structure:
    """What the self-check found out about ``pre``."""

    norm: Norm | None
    """None: no closed form, the block has to be run along the path."""
    keys_know_position: bool = True
    """Whether a token's key depends on its place (rotary encodings), given its content."""
    values_know_position: bool = True
    places: PlaceMaps | None = None
    """What places do to keys, if that was worth finding out."""


def inspect_structure(block: Block, epsilons: list[float], targets: int = 0) -> Structure:
    """Find the norm in ``pre``, and whether keys and values depend on a token's place.

    Args:
        block: the block.
        epsilons: values of eps that the norm may have.
        targets: number of targets whose content will have to be put at each place.
    """
    with torch.no_grad():
        norm = recognise_norm(block.pre, block.z, epsilons)
        flipped = block.pre(torch.stack([block.z, block.z.flip(0)]))
        keys, values = (not _same_flipped(table) for table in flipped[1:])
        if norm is None:
            return Structure(None, keys, values)
        _, key_heads, _, width = flipped[1].shape
        places = None
        if keys and not values and targets > 2 * probes_needed(key_heads, width):
            bias = block.pre(torch.zeros_like(block.z)[None])[1]
            places = PlaceMaps.find(lambda x: block.pre(x)[1] - bias, block.z, key_heads, width)
    return Structure(norm, keys, values, places)


def _same_flipped(table: Tensor) -> bool:
    gap = (table[0] - table[1].flip(1)).abs().max()
    return bool(gap <= (1e-6 if table.dtype == torch.float64 else 1e-4) * table.abs().max())


def make_path(block: Block, structure: Structure, start: Start, rows: Tensor) -> AttentionPath:
    """The path of the attention core for ``rows (R,)``, from ``start`` to the block's input."""
    z, mask, scaling, norm = block.z, block.mask, block.scaling, structure.norm
    frozen = start.frozen(z, rows)
    with torch.no_grad():
        if start.shared is not None:
            along = (
                ByRunning(block.pre, start.shared, z)
                if norm is None
                else ClosedForm.between(norm, block.pre, start.shared, z)
            )
            return SharedPath(along, rows, scaling, mask, frozen)
        if start.per_target is not None or norm is None or structure.values_know_position:
            own = start.per_target
            if own is None:
                own = z[rows][:, None].expand(-1, *z.shape)
            return PerTargetPath(ByRunning(block.pre, own, z), rows, scaling, mask, frozen)
        return _target_token_path(block, norm, structure, rows, frozen)


def _target_token_path(
    block: Block, norm: Norm, structure: Structure, rows: Tensor, frozen: Tensor
) -> TargetTokenPath:
    z, scaling = block.z, block.scaling
    q, k, v = (t[0] for t in block.pre(z[None]))
    _, key_bias, value_bias = (t[0] for t in block.pre(torch.zeros_like(z)[None]))
    groups = q.shape[0] // k.shape[0]
    q = scaling * q[:, rows]  # (H, R, d)

    def logits(keys: Tensor) -> Tensor:
        """``(Hkv, S, d)`` to ``(H, R, S)``."""
        return q @ keys.repeat_interleave(groups, 0).transpose(-1, -2)

    bias_logits, end_logits = logits(key_bias), logits(k - key_bias)
    if block.mask is not None:
        bias_logits = bias_logits + block.mask[:, rows]
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
        weights=target_token_weights(norm, z, rows),
        bias_logits=bias_logits,
        start_logits=start_logits,
        end_logits=end_logits,
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
