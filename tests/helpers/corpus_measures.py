"""Measures of one's own: some fail on some texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables
from captum_lig.corpus.seen import Seen


class Length(Measure):
    """How many tokens a text has."""

    name = "length"
    about = "How many tokens a text has."
    tables: ClassVar[Tables] = {"texts": (Column("length", "int32", "tokens", "Tokens."),)}

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        return {"texts": {"length": seen.lengths}}


class Fails(Length):
    """Raises for texts with a cat."""

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        if any("cat" in text.text for text in seen.texts):
            raise ValueError("there is a cat")
        return super().rows(seen)


class Small(Length):
    """Has memory for two texts at once."""

    batches: ClassVar[list[int]] = []

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        if len(seen.texts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        self.batches.append(len(seen.texts))
        return super().rows(seen)
