"""Batches: texts of about one length, always the same ones for a corpus and its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from captum_lig.corpus.texts import Text

__all__ = ["Batch", "Part", "batches_of"]

PADDING = 0.25
"""The longest text of a batch is longer than the shortest by at most this part of it."""


@dataclass(frozen=True)
class Batch:
    """Texts that are worked on together. Picklable."""

    number: int
    """In the run, from 0."""
    window: int
    """The stretch of the corpus that they are of."""
    texts: tuple[Text, ...]

    @property
    def digest(self) -> str:
        """Of everything that its texts hold, 16 hex digits."""
        content = json.dumps([asdict(text) for text in self.texts], sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """What a batch gave: rows of each table, and the maps that were asked for. Picklable."""

    number: int
    window: int
    digest: str
    """Those of the batch."""
    tables: dict[str, Any]
    """``pyarrow.Table`` by name, see ``docs/corpus.md``; a table without rows is there, too."""
    maps: dict[str, Tensor] | None = None
    """By ``"NUMBER.LAYER.MAP"``, without padding, on the CPU."""


def batches_of(
    texts: Iterable[Text], length: Callable[[str], int], window: int, batch_size: int
) -> Iterator[Batch]:
    """Cut a corpus into batches, of which each depends on the texts of its window alone.

    A window is sorted by length, and cut where a batch is full or padding would be more than a
    quarter. Texts with a problem go with the first batch of their window.

    Args:
        texts: in the order of the corpus; read as far as batches are taken.
        length: a text's number of tokens.
        window: how many texts are sorted together.
        batch_size: most texts of a batch.
    """
    source, number, stretch = iter(texts), 0, 0
    while some := list(islice(source, window)):
        bad = [text for text in some if text.problem is not None]
        good = [(length(text.text), text.number, text) for text in some if text.problem is None]
        good.sort(key=lambda one: one[:2])
        groups: list[list[Text]] = []
        shortest = 0
        for size, _, text in good:
            if not groups or len(groups[-1]) == batch_size or size > shortest * (1 + PADDING):
                groups.append([])
                shortest = size
            groups[-1].append(text)
        if bad:
            groups = [[*bad, *(groups[0] if groups else [])], *groups[1:]]
        for group in groups:
            yield Batch(number, stretch, tuple(group))
            number += 1
        stretch += 1
