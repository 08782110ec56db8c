"""Gradients along one path of the whole model, times changes: attribution patching and EAP-IG.

Attribution patching: Nanda, "Attribution Patching: Activation Patching At Industrial Scale"
(2023); Syed et al., "Attribution Patching Outperforms Automated Circuit Discovery" (2023). The
gradient is that at the input (their clean run), so it is a first guess of "out".

EAP-IG: Hanna et al., "Have Faith in Faithfulness" (2024). The embeddings go from the baseline's
to the input's in m steps, the model runs as a whole at each, and the gradients of every node are
averaged: (1 / m) sum over k = 1..m of the gradient at z' + (k / m)(z - z').
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.patching.net import PLACES, Question, Run, Scores


def attribution_patching(question: Question) -> Scores:
    """One gradient, at the input."""
    return question.scores(question.gradients(question.input.stream[0]))


def integrated(question: Question, steps: int) -> Scores:
    """Gradients averaged over `steps` runs, the last of them at the input."""
    end, start = question.input.stream[0], question.baseline.stream[0]
    parts = torch.arange(1, steps + 1, dtype=end.dtype)[:, None, None] / steps
    found = question.gradients(start + parts * (end - start))

    def mean(place: str) -> list[Tensor]:
        return [value.mean(0, keepdim=True) for value in getattr(found, place)]

    return question.scores(Run(**{place: mean(place) for place in PLACES}, value=found.value))
