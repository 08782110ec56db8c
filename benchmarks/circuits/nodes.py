"""Scores of heads and MLPs at each token: gradients along one path of the model, and patching.

Attribution patching and integrated attribution patching (the path of EAP-IG) are those of
``benchmarks.patching``; patching is the mean of both effects of a node at all tokens at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.patching.net import Question
from benchmarks.patching.truth import Patch, run_patched
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


@torch.no_grad()
def patched(question: Question) -> Places:
    """A node's mean effect at all tokens at once, told at the first one: taken out of the text's
    run, and put into the other.

    Args:
        question: may be of the tokens from the first that differs on.
    """
    net, runs = question.net, (question.input, question.baseline)
    depth, width = len(net.blocks), runs[0].heads[0].shape[-1] // net.heads
    heads = torch.zeros(depth, question.length, net.heads, dtype=torch.float64)
    mlps = heads[..., 0].clone()
    everything = slice(None)
    parts = [(everything, slice(h * width, (h + 1) * width)) for h in range(net.heads)]
    chosen = [Patch("heads", h, "heads", part) for h, part in enumerate(parts)]
    chosen.append(Patch("mlp", 0, "mlp", everything))
    for layer in range(depth):
        for direction, sign in enumerate((1, -1)):
            here, there = runs[direction], runs[1 - direction]
            value = run_patched(question, layer, chosen, here, there).double()
            effects = sign * (here.value.double() - value) / 2
            heads[layer, 0] += effects[:-1]
            mlps[layer, 0] += effects[-1]
    return heads, mlps
