"""A block of a model with sources put to other values, by running its own code.

Two runs of the block are meant throughout: of the text's tokens and of the baseline's, which may
differ by target. An effect is what an intervention on one of them changes at a target, ``(D,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_lig.attribution.lengths import Baselines, one_for_each
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.call import BlockCall
from captum_lig.model.compare import nearly_equal
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.model.split import SplitBlock
from captum_lig.paths.baselines import Start, start_of

__all__ = ["Case", "Side", "cases", "edge_effects_of", "head_outputs", "source_effects"]

TOKENS_AT_ONCE = 4096
NUMBERS_AT_ONCE = 2**24
"""Weights of attention that are there at once."""


@dataclass(frozen=True)
class Case:
    """One text in one block, and where its baseline is."""

    call: BlockCall
    split: SplitBlock
    start: Start
    """For the targets ``rows``."""
    text: int
    rows: Tensor
    """``(R,)`` positions of its tokens that are not padding: the targets and the sources."""

    @property
    def moves(self) -> Tensor:
        """``(R, S)`` pairs whose source is not its baseline, can be seen, and is no padding."""
        length = len(self.split.z)
        seen = torch.ones(length, length, dtype=torch.bool, device=self.rows.device)
        if self.split.visible is not None:
            seen = self.split.visible.any(0) | torch.eye(length, dtype=torch.bool).to(seen.device)
        real = torch.zeros(length, dtype=torch.bool, device=self.rows.device)
        real[self.rows] = True
        return seen[self.rows] & real & ~self.start.frozen(self.split.z, self.rows)

    def baseline(self, row: int) -> Tensor:
        """``(S, D)`` the baseline's tokens for a target."""
        if self.start.shared is not None:
            return self.start.shared
        if self.start.per_target is not None:
            return self.start.per_target[row]
        return self.split.z[self.rows[row]].expand_as(self.split.z)


@contextmanager
def cases(
    finder: Finder,
    inputs: Any,
    baselines: Baselines,
    additional_forward_args: object = None,
) -> Iterator[list[list[Case]]]:
    """The texts in each of the blocks that are meant, in the context in which they can be run."""
    call = ModelCall.of(finder.model, inputs, additional_forward_args)
    with finder.blocks(call) as calls:
        starts = one_for_each(baselines, calls)
        found = []
        for block, baseline in zip(calls, starts, strict=True):
            half = block.hidden.dtype not in (torch.float32, torch.float64)
            own = block.in_dtype(torch.float32) if half else block
            batch, length = block.hidden.shape[:2]
            every = torch.arange(length, device=block.hidden.device)
            texts = []
            for text in range(batch):
                rows = block.valid[text].nonzero().squeeze(-1)
                start = start_of(baseline, own.hidden[text], text, batch, every).select(rows)
                texts.append(Case(own, SplitBlock(own, text, Meter()), start, text, rows))
            found.append(texts)
        yield found


@dataclass(frozen=True)
class Side:
    """What heads get in one of the two runs, for each of ``R`` targets."""

    query: Tensor
    """``(R, H, d)``"""
    key: Tensor
    """``(R or 1, H, S, d)``"""
    value: Tensor
    """``(R or 1, H, S, e)``"""
    residual: Tensor
    """``(R, D)`` the target's own token."""

    def select(self, chosen: slice) -> Side:
        """Some of the targets."""
        key, value = (x if len(x) == 1 else x[chosen] for x in (self.key, self.value))
        return Side(self.query[chosen], key, value, self.residual[chosen])


def sides(case: Case) -> tuple[Side, Side]:
    """Of the text, and of the baseline.

    Raises:
        LigError: if queries, keys and values of the block cannot be had.
    """
    split, rows = case.split, case.rows
    if not split.opens:
        raise LigError(
            f"{case.call.describe()} does not show its queries, keys and values: single heads "
            "cannot be given the value of one source there. Ask for interventions on sources."
        )
    every = torch.arange(len(rows), device=rows.device)

    def spread(x: Tensor) -> Tensor:
        return x.repeat_interleave(split.heads // x.shape[1], 1)

    query, key, value = map(spread, split.pre(split.z[None]))
    text = Side(query[0][:, rows].transpose(0, 1), key, value, split.z[rows])
    if case.start.shared is not None:
        query, key, value = map(spread, split.pre(case.start.shared[None]))
        query = query[0][:, rows].transpose(0, 1)
    else:
        at_once = max(1, TOKENS_AT_ONCE // len(split.z))
        parts = []
        for some in every.split(at_once):
            tokens = torch.stack([case.baseline(row) for row in some.tolist()])
            q, k, v = map(spread, split.pre(tokens))
            parts.append((q[torch.arange(len(some)), :, rows[some]], k, v))
        query, key, value = map(torch.cat, zip(*parts, strict=True))
    return text, Side(query, key, value, case.start.residual(split.z, rows))


def head_outputs(split: SplitBlock, here: Side, rows: Tensor, there: Side | None = None) -> Tensor:
    """Heads' outputs at targets, ``(R, H, e)``; or, each source alone from elsewhere, one for each.

    Args:
        split: the block.
        here: what they get.
        rows: ``(R,)`` positions of the targets.
        there: where one source's key and value come from, all else being as it is here.

    Returns:
        ``(R, H, e)``, with ``there`` ``(R, H, S, e)``.
    """

    def logits(key: Tensor) -> Tensor:
        found = split.scaling * (here.query[:, :, None] @ key.transpose(-1, -2)).squeeze(2)
        if split.softcap is not None:
            found = split.softcap * torch.tanh(found / split.softcap)
        if split.mask is not None:
            found = found + split.mask[:, rows].transpose(0, 1)
        return found  # (R, H, S)

    own = logits(here.key)
    if there is not None:
        other = logits(there.key)
        own = own[:, :, None].repeat(1, 1, own.shape[-1], 1)
        own.diagonal(dim1=-2, dim2=-1).copy_(other)
    if split.sinks is not None:
        sinks = split.sinks.to(own).view(1, -1, *[1] * (own.dim() - 2))
        own = torch.cat([own, sinks.expand(*own.shape[:-1], 1)], -1)
    weights = own.softmax(-1)[..., : here.key.shape[-2]]
    if there is None:
        return (weights[:, :, None] @ here.value).squeeze(2)
    mixed = weights @ here.value
    own_weight = weights.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return mixed + own_weight * (there.value - here.value)


def after(
    split: SplitBlock, pairs: int, at: Callable[[slice], tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """What follows the attention for pairs, ``(pairs, D)``, some at a time."""
    chunks = [slice(n, n + TOKENS_AT_ONCE) for n in range(0, pairs, TOKENS_AT_ONCE)]
    return torch.cat([split.post(*at(chunk)) for chunk in chunks])


@torch.no_grad()
def source_effects(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """What one source does to one target, two ways.

    Returns:
        ``(R, S, D)`` what the target loses if the source is put to its baseline in the text;
        ``(R, S, D)`` what it gains if the source is put to its own value in the baseline; and
        ``(R, D)`` what changes at it from the baseline to the text.
    """
    if case.start.shared is not None:
        return _by_running(case, None)
    if case.start.is_target_token and case.split.opens:
        found = _by_target(case)
        if found is not None:
            return found
    each = [_by_running(case, row) for row in range(len(case.rows))]
    out, into, change = (torch.cat(parts) for parts in zip(*each, strict=True))
    return out, into, change


def _by_running(case: Case, row: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """By whole runs of the block, one for each source and direction: for one target, or for all."""
    split, rows = case.split, case.rows if row is None else case.rows[row : row + 1]
    runs = split.z, case.baseline(0 if row is None else row)
    ends = [split.whole(run[None])[0, rows] for run in runs]
    moved = case.moves.any(0) if row is None else case.moves[row]
    sources = moved.nonzero().squeeze(-1)
    found = []
    for sign, here, there, end in ((1, *runs, ends[0]), (-1, *runs[::-1], ends[1])):
        effects = split.z.new_zeros(len(rows), *split.z.shape)
        for some in sources.split(max(1, TOKENS_AT_ONCE // len(split.z))):
            tokens = here.repeat(len(some), 1, 1)
            tokens[torch.arange(len(some)), some] = there[some]
            effects[:, some] = sign * (end[:, None] - split.whole(tokens)[:, rows].transpose(0, 1))
        found.append(effects)
    return found[0], found[1], ends[0] - ends[1]


def _by_target(case: Case) -> tuple[Tensor, Tensor, Tensor] | None:
    """For target-token baselines, whose other sources reach a target as key and value alone.

    Keys, values and what follows the attention are the block's own code; whole runs of it for some
    of the pairs say whether that is all that there is. None if it is not.
    """
    split, rows = case.split, case.rows
    text, base = sides(case)
    start = split.post(head_outputs(split, base, rows), base.residual, rows)
    row, source = case.moves.nonzero().unbind(-1)
    effects = []
    at_once = max(1, NUMBERS_AT_ONCE // (split.heads * len(split.z) ** 2))
    for here, there, end, sign in (
        (text, base, split.output[rows], 1),
        (base, text, start, -1),
    ):
        u = torch.cat(
            [
                head_outputs(split, here.select(some), rows[some], there.select(some))
                for some in (slice(n, n + at_once) for n in range(0, len(rows), at_once))
            ]
        )
        found = split.z.new_zeros(len(rows), *split.z.shape)
        if len(row):

            def at(some: slice, u: Tensor = u, here: Side = here) -> tuple[Tensor, Tensor, Tensor]:
                return u[row[some], :, source[some]], here.residual[row[some]], rows[row[some]]

            found[row, source] = sign * (end[row] - after(split, len(row), at))
        effects.append(found)
    if not _confirmed(case, effects[0], effects[1]):
        return None
    return effects[0], effects[1], split.output[rows] - start


def _confirmed(case: Case, out: Tensor, into: Tensor, pairs: int = 4) -> bool:
    """Whether whole runs of the block give the same for some pairs."""
    split, rows = case.split, case.rows
    row, source = case.moves.nonzero().unbind(-1)
    some = torch.linspace(0, len(row) - 1, min(pairs, len(row))).long().to(row.device)
    for n in some.tolist():
        j, i = int(row[n]), int(source[n])
        base = case.baseline(j)
        without, alone = split.z.clone(), base.clone()
        without[i], alone[i] = base[i], split.z[i]
        runs = torch.stack([split.z, without, base, alone])
        whole, less, nothing, one = split.whole(runs)[:, rows[j]]
        for found, right in ((whole - out[j, i], less), (nothing + into[j, i], one)):
            if not nearly_equal(found[None], right[None], split.output):
                return False
    return True


@torch.no_grad()
def edge_effects_of(case: Case) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What one head's view of one source does to one target, two ways; head after head.

    Yields:
        For each head what :func:`source_effects` returns.

    Raises:
        LigError: if queries, keys and values of the block cannot be had.
    """
    split, rows = case.split, case.rows
    text, base = sides(case)
    if not split.attends(rows, head_outputs(split, text, rows)):
        raise LigError(
            f"{case.call.describe()} does not use plain softmax attention: single heads cannot be "
            "given the value of one source there. Ask for interventions on sources."
        )
    start = split.post(head_outputs(split, base, rows), base.residual, rows)
    row, source = case.moves.nonzero().unbind(-1)
    at_once = max(1, NUMBERS_AT_ONCE // (split.heads * len(split.z) ** 2))
    chunks = [slice(n, n + at_once) for n in range(0, len(rows), at_once)]
    directions = []
    for here, there, end, sign in ((text, base, split.output[rows], 1), (base, text, start, -1)):
        own = head_outputs(split, here, rows)
        other = torch.cat(
            [head_outputs(split, here.select(c), rows[c], there.select(c)) for c in chunks]
        )
        directions.append((here, own, other, end, sign))
    for head in range(split.heads):
        effects = []
        for here, own, other, end, sign in directions:

            def at(
                some: slice, here: Side = here, own: Tensor = own, other: Tensor = other
            ) -> tuple[Tensor, Tensor, Tensor]:
                u = own[row[some]].clone()
                u[:, head] = other[row[some], head, source[some]]  # noqa: B023 (called at once)
                return u, here.residual[row[some]], rows[row[some]]

            found = split.z.new_zeros(len(rows), *split.z.shape)
            if len(row):
                found[row, source] = sign * (end[row] - after(split, len(row), at))
            effects.append(found)
        yield effects[0], effects[1], split.output[rows] - start
