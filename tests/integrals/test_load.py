"""Many texts and layers: beside the record of the model's run, no more is held than for one."""

from __future__ import annotations

import pytest
import torch

from captum_lig import LayerFlowIG
from tests.helpers import models
from tests.helpers.largest import Held

TOKENS = 16
TEXT = models.WIDTH * TOKENS * 4
"""Bytes of a text's tokens."""


def most(texts: int, layers: int, at_once: int, baseline: str = "zero") -> int:
    """Bytes of tensors held at once by a call with ``internal_batch_size=at_once``."""
    model = models.tiny_bert(torch.float32, layers=layers)
    ids = torch.randint(3, models.VOCABULARY, (texts, TOKENS), generator=torch.Generator())
    with Held() as held:
        LayerFlowIG(model).attribute(
            ids,
            baseline,
            n_steps=16 if texts == layers == 1 else 4,
            internal_batch_size=at_once,
            boundaries=("layer",),
            tolerance=None,
        )
    return held.peak


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_portions(baseline: str) -> None:
    """A pair of a path point and a target takes a share of the memory, whatever the batch."""
    few, many = (most(1, 1, at_once, baseline) for at_once in (16, 256))
    pair = (many - few) / (256 - 16)
    assert pair > 0
    # What `internal_batch_size` promises: so many pairs, of about so many numbers.
    assert pair <= 4 * (64 * models.WIDTH + 10 * models.HEADS * TOKENS)


@pytest.mark.parametrize(("texts", "layers"), [(8, 1), (1, 12), (4, 3)])
def test_texts_and_layers(texts: int, layers: int) -> None:
    """Each adds what the model's run leaves, and its map, and no path points."""
    one, all_of_them = most(1, 1, 64), most(texts, layers, 64)
    # The tokens entering and leaving, the attention's own inputs, its mask.
    heads = models.HEADS
    record = 10 * TEXT + 4 * heads * TOKENS * TOKENS
    results = 4 * TOKENS * (TOKENS + 2 * heads)
    each = record + results
    # While a batch runs, a layer's activations are those of all texts.
    running = texts * (8 * TEXT + 4 * 4 * heads * TOKENS * TOKENS)
    assert all_of_them - one <= texts * layers * each + running
