"""What of a block's arguments belongs to which text of a batch, found by running texts alone."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice, product

import torch

from captum_lig.cost import Meter
from captum_lig.errors import out_of_memory
from captum_lig.model.call import BlockCall
from captum_lig.model.compare import deviation, nearly_equal
from captum_lig.model.split import SplitBlock

__all__ = ["with_readings"]

MOST_TRIED = 64
"""Combinations of what arguments can be that are tried."""


def with_readings(call: BlockCall) -> BlockCall:
    """The block with what the first axes of its arguments count.

    Sizes do not tell: a tensor of eight may be for two texts of four heads, or for eight tokens.
    So the block runs on each text alone, with each reading of its arguments that their sizes
    allow, until it gives what it gave for the batch. If none does, the nearest is kept, and what
    is wrong with the block is for its validation to say.
    """
    possible = call.possible_readings()
    if all(len(readings) == 1 for readings in possible):
        return call
    best, gap = call, math.inf
    for readings in islice(product(*possible), MOST_TRIED):
        tried = replace(call, readings=readings)
        found = _gap(tried, gap)
        if found < gap:
            best, gap = tried, found
        if gap == 0:
            break
    return best


def _gap(call: BlockCall, enough: float) -> float:
    """How far texts alone are from the batch: 0 if they are the same up to rounding."""
    worst = 0.0
    for text in range(len(call.hidden)):
        try:
            one = SplitBlock(call, text, Meter())
            with torch.no_grad():
                output = one.whole(one.z[None])[0]
            finite = torch.isfinite(one.output).all(-1)
            output, expected = output[finite], one.output[finite]
            if len(expected) and not nearly_equal(output, expected):
                worst = max(worst, deviation(output, expected))
        except Exception as error:  # sizes that do not go together, as the block puts it
            if out_of_memory(error):
                raise
            return math.inf
        if worst >= enough:
            break
    return worst
