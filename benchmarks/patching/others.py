"""Attention rollout, our shares of lengths, our chain, and chance."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.patching.net import Question, Scores
from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.prediction import last_layer_relevance, layer_baselines


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


def shares_of_lengths(question: Question) -> Scores:
    """What ``FlowGraph.relevance`` hands down from the last layer's tokens, without a target.

    Each layer's path starts at the baseline run's tokens.
    """
    model, case = question.net.model, question.case
    ids = case.baseline["input_ids"]
    start = last_layer_relevance(model, lambda **kw: case.read(model(**kw)), case.inputs, ids)
    matched = layer_baselines(model, case.inputs, ids)
    flows = LayerFlowIG(model).attribute(case.inputs, matched, boundaries=("attention", "mlp"))
    trace = FlowGraph(flows).relevance(start=start)
    heads = trace.heads.double()  # (L, H, T)
    return {
        "tokens": trace.tokens.double(),
        "attention": heads.sum(1),
        "heads": heads.sum(-1),
    }


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
