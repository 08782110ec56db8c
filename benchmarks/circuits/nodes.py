"""Scores of heads and MLPs at each token: gradients along one path of the model, and patching.

Attribution patching and integrated attribution patching (the path of EAP-IG) are those of
``benchmarks.patching``; patching is the mean of both effects of a node.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.patching.net import Question
from captum_lig import patching
from captum_lig.patching import Node

__all__ = ["integrated", "of_nodes", "patched"]

Places = tuple[Tensor, Tensor]
"""Numbers of heads ``(L, S, H)`` and of MLPs ``(L, S)``."""


def integrated(question: Question, steps: int) -> Places:
    """Mean gradient over runs, times the change; with one step that at the text."""
    end, start = question.input.stream[0], question.baseline.stream[0]
    parts = torch.arange(1, steps + 1, dtype=end.dtype)[:, None, None] / steps
    gradients = question.gradients(start + parts * (end - start))

    def times(place: str) -> Tensor:
        """``(L, S, width)``"""
        return torch.stack(
            [
                (g.mean(0) * (question.input.at(place, n) - question.baseline.at(place, n))[0])
                for n, g in enumerate(getattr(gradients, place))
            ]
        ).double()

    heads = times("heads").unflatten(-1, (question.net.heads, -1)).sum(-1)
    return heads, times("mlp").sum(-1)


def of_nodes(nodes: Sequence[Node], places: Places) -> Tensor:
    """The numbers of nodes at one token or at all ``(M,)``."""
    heads, mlps = places
    found = []
    for node in nodes:
        row = heads[node.layer, :, node.head] if node.kind == "heads" else mlps[node.layer]
        found.append(row.sum() if node.position is None else row[node.position])
    return torch.stack(found)


def patched(question: Question, nodes: Sequence[Node]) -> Tensor:
    """``(M,)`` the mean of a node's effects: taken out of the text's run, put into the other."""
    case = question.case
    found = patching.effects(
        question.net.model, case.inputs, case.baseline["input_ids"], case.read, nodes
    )
    assert found.put_in is not None
    return (found.taken_out + found.put_in) / 2
