"""Choosing the path of a block: the cheapest one that is what the block does along it.

A closed form, from tables at the ends of the path; else running the block up to its attention core
at each point; else running the block with its attention, by autograd, which assumes nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import QKV
from captum_lig.cost import PATHS, Meter
from captum_lig.errors import LigError
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
from captum_lig.paths.validate import Sample, mixes_tokens, observe

__all__ = [
    "Block",
    "Structure",
    "WholeBlock",
    "choose_structure",
    "floats_per_pair",
    "inspect_structure",
    "make_path",
    "run_attention",
]


class Block(Protocol):
    """What a path needs of a split block."""

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

    @property
    def tables(self) -> QKV:
        """``pre`` of the zero vector and of ``z``, two of them."""

    def inside(self, z: Tensor) -> list[Tensor]:
        """What its modules get on the way to the attention core, for ``z (1, S, D)``."""

    def attend(self, z: Tensor) -> Tensor:
        """Attention outputs ``(N, S, H, d)`` of ``z (N, S, D)``, differentiable."""

    def attend_at(self, z: Tensor, rows: Tensor) -> Tensor:
        """The same of the targets ``rows (R,)`` alone, ``(N, R, H, d)``."""

    def keys(self, z: Tensor) -> Tensor:
        """The keys that ``pre`` gives, ``(N, Hkv, S, d)``, with as little else as it can."""

    def keys_of(self, row: int) -> Tensor:
        """``(Hkv, S, d)`` the key that the content of token ``row`` has at each position."""

    @property
    def some(self) -> Block:
        """The block on a few of the text's tokens, to find out what is true of its code."""


class WholeBlock(Block, Protocol):
    """What is needed to validate paths of a block, too."""

    has_attention: bool
    """Whether it has an attention that is reached; without, it counts as one head."""
    epsilons: list[float]
    """Values of eps of the norms inside."""

    @property
    def some(self) -> WholeBlock:
        """The block on a few of the text's tokens, to find out what is true of its code."""

    @property
    def few(self) -> Tensor:
        """``(n,)`` the positions of the tokens that ``some`` has, if it is another block."""

    def post(self, u: Tensor, z: Tensor, positions: Tensor) -> Tensor:
        """What follows the attention: ``u (M, H, d)`` and ``z (M, D)`` to ``(M, D)``.

        ``positions (M,)`` are those of the tokens in the text.
        """

    def check_post(self, z: Tensor, rows: Tensor) -> Tensor | None:
        """Check at a point ``z (S, D)`` that ``post`` is what follows the attention, by token.

        Returns the heads' outputs there, ``(S, H, d)``, if all of them were had.
        """


@dataclass(frozen=True)
class Structure:
    """What the self-check found out about ``pre``."""

    norm: Norm | None
    """None: no closed form, the block has to be run along the path."""
    keys_know_position: bool = True
    """Whether a token's key depends on its position (rotary encodings), given its content."""
    values_know_position: bool = True
    rotary: RotaryMaps | None = None
    """What positions do to keys, if that was worth finding out."""
    normed_keys: NormedKeys | None = None
    """The norm that keys have of their own: then there is a closed form for target tokens alone."""
    opens: bool = True
    """Whether the attention is our arithmetic on queries, keys and values; if not, it is run."""

    def path(self, start: Start) -> str:
        """How the attention is had along paths from a start, one of ``PATHS``."""
        closed = self.norm is not None and (
            not self.values_know_position
            if start.is_target_token
            else start.shared is not None and self.normed_keys is None
        )
        return PATHS[0 if closed else 1] if self.opens else PATHS[2]


def inspect_structure(
    block: Block, epsilons: list[float], targets: int = 0, of_some: Structure | None = None
) -> Structure:
    """Find the norms in ``pre``, and whether keys and values depend on a token's position.

    Args:
        block: the block.
        epsilons: values of eps that the norms may have.
        targets: number of targets whose content will have to be put at each position.
        of_some: what is known of ``block.some``, if that is another block: its code is the same.
    """
    if not block.opens:
        return Structure(None, opens=False)
    with torch.no_grad():
        some = block.some
        if of_some is None:
            norm = recognise_norm(some.pre, some.z, epsilons)
            flipped = some.pre(some.z.flip(0)[None])
            pairs = zip(some.tables, flipped, strict=True)
            keys, values = [not _same_flipped(table[1], x[0]) for table, x in pairs][1:]
            of_values = norm is None and targets > 0
            if of_values:
                norm = recognise_norm(lambda x: some.pre(x)[2:], some.z, epsilons)
        else:
            norm, of_values = of_some.norm, of_some.normed_keys is not None
            keys, values = of_some.keys_know_position, of_some.values_know_position
        normed_keys = None
        if norm is not None and of_values:
            normed_keys = NormedKeys.find(block, norm, epsilons)
            if normed_keys is None:
                norm = None
        if norm is None:
            return Structure(None, keys, values)
        _, key_heads, _, width = block.tables[1].shape
        rotary = None
        if keys and not values and targets > 2 * probes_needed(key_heads, width):
            rotary = _rotary_maps(block, None if of_some is None else of_some.rotary)
    return Structure(norm, keys, values, rotary, normed_keys)


def _rotary_maps(block: Block, of_some: RotaryMaps | None = None) -> RotaryMaps | None:
    """What positions do to keys, by maps that a few tokens of a long text show the form of.

    ``of_some`` are the maps of these tokens, if they are known.
    """
    if block.some is not block and of_some is None:
        of_some = _rotary_maps(block.some)
        if of_some is None:
            return None
    entries = None if of_some is None else of_some.entries
    bias, own = block.tables[1]
    return RotaryMaps.find(lambda z: block.keys(z) - bias, block.z, own - bias, entries)


def choose_structure(
    block: WholeBlock, start: Start, rows: Tensor, with_output: bool = True
) -> Structure:
    """The structure whose paths are cheapest, of those that are what the block does along them.

    Args:
        block: the block.
        start: where the paths start, of each of the rows.
        rows: ``(R,)`` the rows that are going to be attributed.
        with_output: whether what follows the attention is going to be used, too.

    Raises:
        LigError: if what follows the attention does not treat each token by itself.
    """
    found = _validated(block, start, rows, with_output)
    block.meter.takes(found.path(start))
    return found


def run_attention(block: Block) -> Structure:
    """The structure of a block whose attention is run as it is, noted by its meter."""
    block.meter.takes(PATHS[2])
    return Structure(None, opens=False)


def _validated(block: WholeBlock, start: Start, rows: Tensor, with_output: bool) -> Structure:
    targets = len(rows) if start.is_target_token else 0
    with torch.no_grad():
        few = None if block.some is block else start.of_tokens(block.few)
        if few is not None:  # of a long text a few tokens all along the path, and the whole once
            there = torch.arange(len(block.few), device=block.z.device)
            on_few = _validated(block.some, few, there, with_output)
            if not on_few.opens:
                return on_few
            found = inspect_structure(block, block.epsilons, targets, on_few)
            seen = observe(block.attend_at, Sample.of(start, block.z, rows, block.epsilons, True))
        else:
            found = inspect_structure(block, block.epsilons, targets)
            if not block.has_attention or not (found.opens or with_output):
                return found
            sample = Sample.of(start, block.z, rows, block.epsilons)
            first = _checked_post(block, sample.z[0], rows) if with_output else None
            some = block.some
            at_few = sample.z[0] if some is block else sample.z[0, block.few]
            if not found.opens or mixes_tokens(some.pre, some.tables, some.z, at_few):
                return Structure(None, opens=False)
            seen = observe(block.attend_at, sample, first)
    run = Structure(None, found.keys_know_position, found.values_know_position)
    few = start.select(seen.sample.few)
    for structure in (found, run) if found.norm is not None else (run,):
        with contextlib.suppress(LigError):  # it cannot be differentiated along a direction
            if seen.agrees(make_path(block, structure, few, seen.sample.rows)):
                return structure
    return Structure(None, opens=False)


def _checked_post(block: WholeBlock, z: Tensor, rows: Tensor) -> Tensor | None:
    """The heads' outputs at ``z (S, D)``, or beside it None, where the block was compared."""
    try:
        return block.check_post(z, rows)
    except LigError:
        # Rounding can send a token to another expert, but hardly at three points in turn.
        beside = z + 1e-2 * (block.z - z)
        with contextlib.suppress(LigError):
            block.check_post(beside, rows)
            return None
        block.check_post(z - 1e-2 * (block.z - z), rows)
        return None


def _same_flipped(table: Tensor, flipped: Tensor) -> bool:
    gap = (table - flipped.flip(1)).abs().max()
    return bool(gap <= (1e-6 if table.dtype == torch.float64 else 1e-4) * table.abs().max())


def floats_per_pair(block: Block, structure: Structure, start: Start) -> int:
    """About how many numbers a pair of a path point and a target takes, to bound the memory."""
    sources, width = block.z.shape
    # The activations that the backward pass of what follows the attention core keeps: the hidden
    # layer is some times the width.
    after = 64 * width
    if not structure.opens:
        return after
    core = 10 * block.heads * sources
    if structure.normed_keys is not None:
        core += 10 * block.heads * sources
    closed = start.shared is not None or structure.path(start) == PATHS[0]
    # Its own residual stream, and queries, keys, values and their derivatives.
    return after + core + (0 if closed else 20 * sources * width)


def make_path(block: Block, structure: Structure, start: Start, rows: Tensor) -> AttentionPath:
    """The path of the attention core for ``rows (R,)``, from ``start`` to the block's input."""
    z, norm = block.z, structure.norm
    frozen = start.frozen(z, rows)
    own, closed = start.per_target, structure.path(start) == PATHS[0]
    if start.is_target_token and not closed:
        own = z[rows][:, None]
    if not structure.opens:
        begin = own if start.shared is None else start.shared[None]
        assert begin is not None
        return AutogradPath(block.attend, begin, z, rows, frozen, block.meter)
    row = RowFunction(block.softcap, block.sinks)
    with torch.no_grad():
        if start.shared is not None:
            along = (
                QKVClosedForm.between(norm, block.pre, start.shared, z, block.tables)
                if closed and norm is not None
                else QKVByRunning(block.pre, start.shared, z)
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
    (_, q), (key_bias, k), (value_bias, v) = (t.unbind() for t in block.tables)
    groups = q.shape[0] // k.shape[0]
    q = scaling * q[:, rows]  # (H, R, d)

    def logits(keys: Tensor) -> Tensor:
        """``(Hkv, S, d)`` to ``(H, R, S)``."""
        return q @ keys.repeat_interleave(groups, 0).transpose(-1, -2)

    mask = None if block.mask is None else block.mask[:, rows]
    bias_logits, mask = row.folded(logits(key_bias), mask)
    if structure.rotary is not None:
        content = structure.rotary.contents[:, rows].repeat_interleave(groups, 0)
        start_logits = structure.rotary.logits(q, content)
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
    """``scale q_j.(k_i(z_j) - b_i)`` ``(H, R, S)``: each target's content at each position."""
    groups = q.shape[0] // key_bias.shape[0]
    parts = []
    at_once = max(1, 4096 // len(block.z))
    for own, q_own in zip(rows.split(at_once), q.split(at_once, 1), strict=True):
        if at_once <= 4:  # of a path that is validated it will be asked again
            keys = torch.stack([block.keys_of(row) for row in own.tolist()])
        else:
            keys = block.keys(block.z[own][:, None].expand(-1, *block.z.shape))
        keys = (keys - key_bias).repeat_interleave(groups, 1)  # (R, H, S, d)
        parts.append(torch.einsum("hrd,rhsd->hrs", q_own, keys))
    return torch.cat(parts, 1)
