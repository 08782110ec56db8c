"""Attention rollout, our shares of lengths, and chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.patching.layer_ig import at_depth
from benchmarks.patching.net import Question, Scores
from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.graph.trace import shared_out


def rollout(question: Question) -> Scores:
    """Attention rollout: Abnar & Zuidema, "Quantifying Attention Flow in Transformers" (2020).

    Per layer the mean over heads of the patterns, with the identity added and rows divided by
    their sums; multiplied from the top down. It starts where the target reads: the last token of
    a decoder, all tokens alike of an encoder that takes their mean. It has neither sign nor unit,
    so it is given the change to share out.
    """
    net, inputs = question.net, question.case.inputs
    before = net.model.config._attn_implementation
    net.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            patterns = net.model(**inputs, output_attentions=True).attentions
    finally:
        net.model.set_attn_implementation(before)
    length = question.length
    row = torch.full((length,), 1 / length, dtype=torch.float64)
    if net.causal:
        row = torch.eye(length, dtype=torch.float64)[-1]
    rows = [row]
    for pattern in reversed(patterns):
        mixed = pattern[0].double().mean(0) + torch.eye(length, dtype=torch.float64)
        rows.append(rows[-1] @ (mixed / mixed.sum(-1, keepdim=True)))
    return {"tokens": torch.stack(rows[::-1]) * question.change}


def shares_of_lengths(question: Question, **settings: Any) -> Scores:
    """What ``FlowGraph.relevance`` hands down from the last layer's tokens, without a target.

    Each layer's path starts at the baseline run's tokens, the relevance of the tokens leaving the
    last layer is that of ``LayerIntegratedGradients``. MLPs are no nodes of it.
    """
    lig = LayerFlowIG(question.net.model)
    starts = question.baseline.stream[:-1]
    flows = lig.attribute(question.case.inputs, starts, boundaries=("attention", "mlp"), **settings)
    trace = shared_out(FlowGraph(flows), start=at_depth(question, len(starts)))
    heads = trace.heads.double()  # (L, H, T)
    return {"tokens": trace.tokens.double(), "attention": heads.sum(1), "heads": heads.sum(-1)}


def chance(question: Question) -> Scores:
    """Normal random numbers; in each layer their sizes add up to the size of the change."""
    depth, heads, length = len(question.net.blocks), question.net.heads, question.length
    generator = torch.Generator().manual_seed(sum(question.case.inputs["input_ids"][0].tolist()))
    shapes = {
        "tokens": (depth + 1, length),
        "attention": (depth, length),
        "mlp": (depth, length),
        "heads": (depth, heads),
    }

    def drawn(shape: tuple[int, int]) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values / values.abs().sum(-1, keepdim=True) * abs(question.change)

    return {kind: drawn(shape) for kind, shape in shapes.items()}
