"""Flows in lengths for a batch of texts, and for halves of it where memory is short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_lig._arguments import brief
from captum_lig.attribution.lengths import Baselines, Problem, one_for_each
from captum_lig.cost import Cost
from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.paths.baselines import Baseline
from captum_lig.paths.memory import in_halves

__all__ = ["BatchOfTexts"]


@dataclass(frozen=True)
class BatchOfTexts:
    """What is asked of some layers, for all texts of a call."""

    finder: Finder
    call: ModelCall
    problem: Problem
    baselines: Baselines
    self_term: str | None
    everything: bool
    """Whether all layers are meant, and none was named."""
    show_progress: bool

    def flows(self) -> list[LayerFlow]:
        """One flow for each layer.

        The model runs on the whole batch. If there is no memory for that, or for a single path
        point beside what the run holds, it runs on halves of the batch.

        Raises:
            LigError: for anything that cannot be worked with; the message says what to do.
        """
        parts = in_halves(self._flows_of, torch.arange(self.call.batch))
        flows = [_joined(layer) for layer in zip(*parts, strict=True)]
        if not all(flow.tensors for flow in flows):
            raise LigError(
                f"output_indices={brief(self.problem.output_indices)}: in every text the tokens "
                "there are padding, choose others."
            )
        return flows

    def _flows_of(self, texts: Tensor) -> list[LayerFlow]:
        call, batch, flows = self.call.of_texts(texts), self.call.batch, []
        with self.finder.blocks(call) as blocks:
            if "feed_forward" in self.problem.asked.boundaries:
                blocks = [self.finder.with_feed_forward(block) for block in blocks]
            starts = one_for_each(self.baselines, blocks)
            asked = self.problem.for_each(blocks, self.everything)
            work = [one for one in zip(blocks, starts, asked, strict=True) if one[2] is not None]
            for block, start, own in tqdm(
                work, desc="layers", unit="layer", disable=not self.show_progress
            ):
                assert own is not None
                start = _of_texts(start, texts, batch)
                flow = own.flow(block, start, block.valid)
                if self.self_term is not None and flow.tensors:
                    flow = own.with_self_term(flow, self.self_term, block, block.valid)
                flows.append(flow)
        return flows


def _of_texts(baseline: Baseline, texts: Tensor, batch: int) -> Baseline:
    """A baseline ``(B, ..., S, D)`` of some texts; others are the same for each."""
    each = isinstance(baseline, Tensor) and baseline.dim() >= 3 and len(baseline) == batch
    return baseline[texts.to(baseline.device)] if each and len(texts) < batch else baseline  # type: ignore[index, union-attr]


def _joined(parts: Sequence[LayerFlow]) -> LayerFlow:
    """The flow of a layer from those of parts of a batch, some of which may have no targets."""
    if len(parts) == 1:
        return parts[0]
    some = [part.tensors for part in parts if part.tensors]
    names = [name for name in some[0] if all(name in own for own in some)] if some else []

    def whole(name: str) -> Tensor:
        like = some[0][name]
        empty = (like.new_zeros(len(part.valid), *like.shape[1:]) for part in parts)
        return torch.cat([p.tensors.get(name, e) for p, e in zip(parts, empty, strict=True)])

    return replace(
        parts[0],
        valid=torch.cat([part.valid for part in parts]),
        cost=_mean([part.cost for part in parts], [len(part.valid) for part in parts]),
        tensors={name: whole(name) for name in names},
    )


def _mean(costs: Sequence[Cost | None], texts: Sequence[int]) -> Cost:
    """Of parts with so many texts: what a text cost on average, and the seconds of all."""
    found = Cost(0.0, 0.0, 0.0)
    for cost, count in zip(costs, texts, strict=True):
        if cost is not None:
            share = count / sum(texts)
            points, passes = share * cost.path_points, share * cost.forward_equivalents
            found += replace(cost, path_points=points, forward_equivalents=passes)
    return found
