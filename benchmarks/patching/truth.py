"""The effect of every node, by patching it: one run a node and direction, in batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.patching.net import Question, Run, Scores

COPIES = 64
"""Patched runs at once."""


class Patch(NamedTuple):
    """A part of a place that is that of the other run."""

    kind: str
    node: int
    place: str
    part: Any
    """Index of ``(T, width)``."""


def patches(question: Question, layer: int) -> list[Patch]:
    """Those of one layer; of what leaves the last block the tokens alone."""
    tokens = range(question.input.stream[0].shape[1])
    found = [Patch("tokens", j, "stream", j) for j in tokens]
    if layer == len(question.net.blocks):
        return found
    found += [Patch("attention", j, "heads", j) for j in tokens]
    found += [Patch("mlp", j, "mlp", j) for j in tokens]
    width = question.input.heads[0].shape[-1] // question.net.heads
    for head in range(question.net.heads):
        part = (slice(None), slice(head * width, (head + 1) * width))
        found.append(Patch("heads", head, "heads", part))
    return found


def run_patched(
    question: Question, layer: int, chosen: list[Patch], here: Run, there: Run
) -> Tensor:
    """``(len(chosen),)`` the target of run `here` with each patch taken from `there`.

    What is below the layer stays as it was, so the run starts there.
    """

    def edit(place: str, at: int, value: Tensor) -> Tensor:
        rows = [row for row, patch in enumerate(chosen) if patch.place == place and at == layer]
        if rows:
            value = value.clone()
        for row in rows:
            part = chosen[row].part
            value[row][part] = there.at(place, at)[0][part]
        return value

    return question.value(here.stream[layer].repeat(len(chosen), 1, 1), layer, edit)


@torch.no_grad()
def effects(question: Question) -> tuple[Scores, Scores]:
    """What the target loses if a node is put back to the baseline's value ("out"), and what the
    baseline's target gains if the node is put into the baseline run ("into")."""
    runs = question.input, question.baseline
    found: list[dict[str, list[Tensor]]] = [{}, {}]
    for layer in range(len(question.net.blocks) + 1):
        chosen = patches(question, layer)
        for direction, sign in enumerate((1, -1)):
            here, there = runs[direction], runs[1 - direction]
            values = [
                run_patched(question, layer, chosen[at : at + COPIES], here, there)
                for at in range(0, len(chosen), COPIES)
            ]
            effect = sign * (here.value.double() - torch.cat(values).double())
            for kind in dict.fromkeys(patch.kind for patch in chosen):
                rows = [row for row, patch in enumerate(chosen) if patch.kind == kind]
                found[direction].setdefault(kind, []).append(effect[rows])
    out, into = (
        question.padded({kind: torch.stack(rows) for kind, rows in one.items()}) for one in found
    )
    return out, into
