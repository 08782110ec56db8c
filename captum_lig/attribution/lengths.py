"""Flows in lengths: how far tokens were moved inside a layer, whatever for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_lig._arguments import brief, index_list
from captum_lig._types import Parts
from captum_lig.cost import Cost, Meter
from captum_lig.errors import LigError
from captum_lig.flow.axes import stacked
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import warn_of_rows_not_converged
from captum_lig.integrals.block import attribute_cross, attribute_text
from captum_lig.integrals.kinds import KINDS, Asked
from captum_lig.integrals.settings import Settings
from captum_lig.model.call import BlockCall
from captum_lig.model.cross_attention import SplitCrossAttention, find_cross, without_cross
from captum_lig.model.feed_forward import without_feed_forward
from captum_lig.model.split import SplitBlock
from captum_lig.model.stages import AroundMlp, Stages
from captum_lig.paths.baselines import (
    Baseline,
    describe,
    encoder_start,
    read_baseline,
    start_of,
)

__all__ = ["BOUNDARIES", "Baselines", "Problem", "check_dtype", "one_for_each"]

Baselines = Baseline | Sequence[Baseline]

BOUNDARIES = ("attention", "mlp", "layer")
"""The default."""


@dataclass(frozen=True)
class Problem:
    """What is asked of a block."""

    asked: Asked
    settings: Settings
    scalarization: str
    output_indices: Sequence[int] | Tensor | None
    dtype: torch.dtype | None
    cross_baseline: Baseline

    def check(self) -> None:
        """Refuse what can be refused before the model runs."""
        check_dtype(self.dtype)
        shapes = [self.cross_baseline.shape] if isinstance(self.cross_baseline, Tensor) else []
        read_baseline(self.cross_baseline, torch.zeros(1), shapes, (), ("mean",), "cross_baseline")

    def only(self, names: frozenset[str]) -> Problem:
        """The same of some of the boundaries."""
        return replace(self, asked=replace(self.asked, boundaries=names))

    def for_each(self, blocks: list[BlockCall], everything: bool) -> list[Problem | None]:
        """What to ask of each block, None for nothing.

        If every block is meant, those without cross-attention, or without an MLP that is found, go
        without that boundary.

        Raises:
            LigError: if none of them has it.
        """
        of_encoder = {name for name in self.asked.boundaries if KINDS[name].of_encoder}
        lacks = [set[str]() for _ in blocks]
        if everything and of_encoder:
            for block, missing in zip(blocks, lacks, strict=True):
                missing |= of_encoder if find_cross(block) is None else set()
            if all(lacks):
                raise without_cross(blocks[-1])
        if "feed_forward" in self.asked.boundaries:
            there = [block.feed_forward is not None for block in blocks]
            if not any(there) or not (everything or all(there)):
                raise without_feed_forward(blocks[there.index(False)])
            for found, missing in zip(there, lacks, strict=True):
                missing |= set() if found else {"feed_forward"}
        rest = [self.asked.boundaries - missing for missing in lacks]
        return [self.only(names) if names else None for names in rest]

    def flow(self, call: BlockCall, baseline: Baseline, valid: Tensor) -> LayerFlow:
        """All boundaries of one block, for every text; none if all of its targets are padding.

        Args:
            call: the block and what it was called with.
            baseline: what the path of its input starts from.
            valid: ``(B, S)`` False at padding.

        Raises:
            LigError: masks, baselines or indices that do not fit, or a block that cannot be split.
        """
        _check_heads(call, self.asked.boundaries)
        began, meter = time.perf_counter(), Meter()
        half = call.hidden.dtype not in (torch.float32, torch.float64)
        call = call.in_dtype(self.dtype or (torch.float32 if half else call.hidden.dtype))
        batch, sources, _ = call.hidden.shape
        device = call.hidden.device
        targets = torch.arange(sources, device=device)
        if self.output_indices is not None:
            targets = index_list(self.output_indices, sources, device, "tokens")
        kept = [valid[text, targets].nonzero().squeeze(-1) for text in range(batch)]
        texts = [
            self._of_text(call, text, baseline, targets, rows, meter) if len(rows) else {}
            for text, rows in enumerate(kept)
        ]
        return LayerFlow(
            name=call.name,
            index=call.index,
            targets=targets,
            valid=valid,
            scalarization=self.scalarization,
            baseline=describe(baseline),
            tolerance=self.settings.tolerance,
            cost=Cost(
                path_points=meter.pairs / max(1, sum(map(len, kept))),
                forward_equivalents=meter.passed / (batch * sources),
                seconds=time.perf_counter() - began,
                path=meter.path,
            ),
            mlp_start=self.asked.mlp_start,
            cross_baseline=describe(self.cross_baseline)
            if any(KINDS[name].of_encoder for name in self.asked.boundaries)
            else None,
            tensors=stacked(texts, kept, len(targets)) if any(texts) else {},
        )

    def _of_text(
        self,
        call: BlockCall,
        text: int,
        baseline: Baseline,
        targets: Tensor,
        rows: Tensor,
        meter: Meter,
    ) -> Parts:
        """Results for the targets ``rows`` of one text, targets first."""
        of_encoder = frozenset(n for n in self.asked.boundaries if KINDS[n].of_encoder)
        inner, found = self.asked.boundaries - of_encoder, Parts()
        start = start_of(baseline, call.hidden[text], text, len(call.hidden), targets)
        if inner:
            split, asked = _split(call, text, meter, inner), self.only(inner).asked
            found |= attribute_text(split, start.select(rows), targets[rows], asked, self.settings)
        if of_encoder:
            cross = find_cross(call)
            if cross is None:
                raise without_cross(call)
            seen, asked = SplitCrossAttention(call, cross, text, meter), self.only(of_encoder).asked
            begin = encoder_start(self.cross_baseline, seen.states, seen.seen)
            found |= attribute_cross(seen, begin, targets[rows], asked, self.settings)
        _check_finite(found, call, text, targets[rows])
        return found

    def with_self_term(
        self, flow: LayerFlow, estimate: str, call: BlockCall, valid: Tensor
    ) -> LayerFlow:
        """The flow with an estimate of its self terms."""
        if estimate != "zero_ratio":
            return flow.with_self_term(estimate)
        names = self.asked.boundaries & set(BOUNDARIES)
        zero = self.only(frozenset(names)).flow(call, "zero", valid)
        warn_of_rows_not_converged([zero])
        assert flow.cost is not None and zero.cost is not None
        return replace(flow.with_self_term(estimate, zero), cost=flow.cost + zero.cost)


def _split(call: BlockCall, text: int, meter: Meter, boundaries: frozenset[str]) -> SplitBlock:
    """The block of one text, with its MLP's output as a node if that is asked for."""
    if "feed_forward" not in boundaries:
        return SplitBlock(call, text, meter)
    stages = Stages(call.for_text(text), call.feed_forward, None, meter)
    stages.split.around_mlp = AroundMlp(stages)
    return stages.split


def _check_finite(found: Parts, call: BlockCall, text: int, targets: Tensor) -> None:
    """Refuse results, targets first, that are not finite: both ends of their paths are."""
    for name, part in found.items():
        wrong = ~torch.isfinite(part).flatten(1).all(-1) if part.dim() > 1 else ~part.isfinite()
        if bool(wrong.any()):
            wide = call.hidden.dtype == torch.float64
            raise LigError(
                f"{call.describe()}: {name} of target {int(targets[wrong][0])} of text {text} is "
                f"not finite ({int(wrong.sum())} of {len(wrong)} targets). Values or gradients on "
                "the path are not: there may be a root or a norm of 0, or numbers too large for "
                f"{str(call.hidden.dtype).removeprefix('torch.')}. Give another baseline"
                f"{'' if wide else ', or dtype=torch.float64'}."
            )


def check_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """Refuse a precision that path integrals cannot have."""
    if dtype not in (None, torch.float32, torch.float64):
        raise LigError(
            f"dtype={brief(dtype)}: give torch.float32, torch.float64 or None; half "
            "precision is too coarse for path integrals."
        )
    return dtype


def _check_heads(call: BlockCall, boundaries: frozenset[str]) -> None:
    """Refuse boundaries of heads in a block whose attention is not reached."""
    asked = tuple(name for name in KINDS if name in boundaries and KINDS[name].needs_heads)
    if call.attention is None and asked:
        if int(call.valid.sum(-1).max()) == 1:
            raise LigError(
                f"one token does not show where {call.describe()} attends: boundaries={asked} "
                "need to know. Attribute a longer text first, with the same LayerFlowIG, or ask "
                "for boundaries=('layer',)."
            )
        raise LigError(
            f"{call.describe()} has no attention that can be reached: boundaries={asked} need "
            "one, and it has the layer boundary alone. Ask for boundaries=('layer',), name the "
            "blocks with attention in layer=[...], or describe this one with captum_lig.Block."
        )


def one_for_each(baselines: Baselines, calls: list[BlockCall]) -> list[Baseline]:
    """A baseline for each block; None, also among several, is the target's own token.

    Raises:
        LigError: if there are more or fewer than blocks, or for a text.
    """
    if not isinstance(baselines, (list, tuple)):
        return [_named(baselines)] * len(calls)  # type: ignore[arg-type]
    if len(baselines) != len(calls):
        raise LigError(
            f"{len(baselines)} baselines for {len(calls)} layers: give one, or one for each."
        )
    return list(map(_named, baselines))


def _named(baseline: Baseline) -> Baseline:
    if baseline is None:
        return "target_token"
    if isinstance(baseline, str) and baseline not in ("zero", "target_token"):
        raise LigError(
            f"baseline {baseline!r} is unknown: use 'zero', 'target_token', a number or a tensor. "
            "A text, or 'padding', is a baseline only with target=; without one, give what "
            "captum_lig.prediction.layer_baselines makes of it."
        )
    return baseline
