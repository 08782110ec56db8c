"""Ours: relevances of the flows towards the target."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.patching.net import Question, Scores
from captum_lig import LayerFlowIG


def available() -> bool:
    """Whether flows can have a target."""
    return "target" in inspect.signature(LayerFlowIG.attribute).parameters


def chain(question: Question, **settings: Any) -> Scores:
    """The library's flows with their defaults."""
    case = question.case
    flows = LayerFlowIG(question.net.model).attribute(
        case.inputs, baselines=case.baseline["input_ids"], target=case.read, **settings
    )
    return scores_of(flows)


def scores_of(flows: Sequence[Any]) -> Scores:
    """Relevances of the nodes in the flows of all layers, of one text without padding."""
    heads = torch.stack([flow.mlp[0].double() for flow in flows])  # (L, T, H)
    tokens = [flow.entering[0].double() for flow in flows]
    return {
        "tokens": torch.stack([*tokens, flows[-1].mlp_total[0].double()]),
        "attention": heads.sum(-1),
        "mlp": torch.stack([flow.feed_forward[0].double() for flow in flows]),
        "heads": heads.sum(1),
    }
