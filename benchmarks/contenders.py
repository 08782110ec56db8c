"""This library, and the loop over targets that a user of Captum writes: workers.

The loop cuts a BERT layer by hand, at its own modules. For one target the output of a boundary is
made a number, its distance from where the path starts, and attributed with Captum's Integrated
Gradients as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from benchmarks.worker import STEPS, Case, Done, serve
from captum_lig import LayerFlow, LayerFlowIG

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Bert:
    """A BERT layer cut by hand at a text."""

    model: nn.Module
    inputs: BatchEncoding
    block: nn.Module
    z: Tensor
    """``(1, T, D)`` tokens that enter the layer."""

    @classmethod
    def load(cls, case: Case) -> Bert:
        """Load the model and run it once."""
        model = AutoModel.from_pretrained(case.model).eval()
        inputs = AutoTokenizer.from_pretrained(case.model)(case.text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        return cls(model, inputs, model.encoder.layer[case.layer], states[case.layer])

    @property
    def heads(self) -> int:
        return int(self.block.attention.self.num_attention_heads)

    def double(self) -> Bert:
        """In float64."""
        return Bert(self.model.double(), self.inputs, self.block, self.z.double())

    def start(self, baseline: str, target: int) -> Tensor:
        """``(1, T, D)`` where the path of a target starts."""
        if baseline == "zero":
            return torch.zeros_like(self.z)
        return self.z[:, target : target + 1].expand_as(self.z).clone()

    def layer(self, z: Tensor) -> Tensor:
        """``(B, T, D)`` tokens that leave the layer."""
        out = self.block(z)
        return out if isinstance(out, Tensor) else out[0]

    def attention(self, z: Tensor) -> Tensor:
        """``(B, T, H, d)`` attention outputs by head, before the output projection."""
        u: Tensor = self.block.attention.self(z)[0]
        return u.unflatten(-1, (self.heads, -1))

    def mlp(self, u: Tensor, z: Tensor) -> Tensor:
        """``(..., D)`` what leaves the layer, from attention outputs and the residual stream."""
        between = self.block.attention.output(u, z)
        out: Tensor = self.block.output(self.block.intermediate(between), between)
        return out


def ours(case: Case) -> Callable[[], Done]:
    """``LayerFlowIG`` as it comes, or with the loop's path points and nothing more."""
    bert = Bert.load(case)
    lig = LayerFlowIG(bert.model, layer=case.layer)
    same = {"n_steps": STEPS, "tolerance": None} if case.who == "same points" else {}

    def work() -> Done:
        flow = lig.attribute(
            bert.inputs, baselines=case.baseline, boundaries=(case.boundary,), **same
        )
        return _rows_of(flow, case.boundary)

    return work


def _rows_of(flow: LayerFlow, boundary: str) -> Done:
    if boundary == "mlp":
        sums = flow.mlp.sum(-1) + flow.residual
    else:
        sums = getattr(flow, boundary).sum(-1)
    return Done(torch.ones_like(sums[0]).nonzero().tolist(), sums[0].flatten().tolist(), 1.0)


SOME = 3
"""Targets that the slow maps are measured on."""


def captum_loop(case: Case) -> Callable[[], Done]:
    """The loop over targets, and heads at the attention boundary (over some of the targets)."""
    bert = Bert.load(case)
    count = bert.z.shape[1]
    few = torch.linspace(0, count - 1, SOME).long().tolist()
    targets = few if case.boundary == "attention" else list(range(count))
    heads = range(bert.heads) if case.boundary == "attention" else [None]
    rows = [(head, target) for target in targets for head in heads]

    def work() -> Done:
        sums = [
            sum(float(a.sum()) for a in captum_row(bert, case.boundary, case.baseline, *row))
            for row in rows
        ]
        return Done([[i for i in row if i is not None] for row in rows], sums, len(targets) / count)

    return work


def captum_row(bert: Bert, boundary: str, baseline: str, head: int | None, target: int) -> Tensors:
    """One row of a map by Captum, an attribution for each input of the boundary."""
    inputs, starts, function = _problem(bert, boundary, baseline, head, target)
    return attribute_distance(function, inputs, starts, STEPS)


def attribute_distance(
    function: Callable[..., Tensor], inputs: Tensors, starts: Tensors, n_steps: int
) -> Tensors:
    """Captum's attributions of how far an output is from where it starts."""
    with torch.no_grad():
        y_start = function(*starts)

    def distance(*at: Tensor) -> Tensor:
        return torch.linalg.vector_norm(function(*at) - y_start, dim=-1)

    found: Tensors = IntegratedGradients(distance).attribute(inputs, starts, n_steps=n_steps)
    return found


def _problem(
    bert: Bert, boundary: str, baseline: str, head: int | None, target: int
) -> tuple[Tensors, Tensors, Callable[..., Tensor]]:
    """Inputs, where their path starts, and the output of one target."""
    z, start = bert.z, bert.start(baseline, target)
    if boundary == "layer":
        return (z,), (start,), lambda at: bert.layer(at)[:, target]
    if boundary == "attention":
        return (z,), (start,), lambda at: bert.attention(at)[:, target, head]
    with torch.no_grad():
        u, u_start = (bert.attention(at).flatten(2)[:, target] for at in (z, start))
    return (u, z[:, target]), (u_start, start[:, target]), bert.mlp


def ready(case: Case) -> Callable[[], Done]:
    return captum_loop(case) if case.who == "captum" else ours(case)


if __name__ == "__main__":
    serve(ready)
