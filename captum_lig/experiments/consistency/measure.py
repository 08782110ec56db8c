"""The pairings as measures of a run over a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar

import torch

from captum_lig.corpus import Results
from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables
from captum_lig.corpus.seen import Seen
from captum_lig.errors import LigError
from captum_lig.experiments.consistency.pairings import Record, measure_text
from captum_lig.flow.words import word_groups

__all__ = ["OF_TOKENS", "OF_WORDS", "Pairings", "PairingsOfWords", "records"]

TYPES = {"int": "int64", "str": "string", "float": "double"}


class Pairings(Measure):
    """Composed against direct maps for every pairing, see :func:`measure_text`."""

    name = "pairings"
    about = "Composed against direct maps, for every pairing of baselines, starts and rules."
    tables: ClassVar[Tables] = {
        "pairings": tuple(
            Column(one.name, TYPES[str(one.type).removesuffix(" | None")], "",
                   f"See captum_lig.experiments.consistency.Record.{one.name}.")
            for one in fields(Record)
        )
    }  # fmt: skip
    merge_words: ClassVar[bool] = False

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        settings, subject = seen.settings, seen.model.subject
        if settings.tolerance is None:
            raise LigError("tolerance=None: pairings count the rows that miss one, give it.")
        found: dict[str, list[Any]] = {"text": []}
        for text, encoding in enumerate(seen.encodings):
            words = None
            if self.merge_words:
                given = seen.texts[text].text
                words = word_groups(offsets=subject.offsets(given), text=given)
            measured = measure_text(
                seen.model.lig,
                encoding,
                words,
                n_steps=settings.n_steps,
                tolerance=settings.tolerance,
                max_steps=settings.max_steps,
            )
            found["text"] += [text] * len(measured)
            for record in measured:
                for name, value in vars(record).items():
                    found.setdefault(name, []).append(value)
        return {"pairings": {**found, "text": torch.tensor(found["text"])}}


class PairingsOfWords(Pairings):
    """The same between words instead of tokens."""

    merge_words: ClassVar[bool] = True


OF_TOKENS, OF_WORDS = (f"{one.__module__}:{one.__name__}" for one in (Pairings, PairingsOfWords))
"""As ``measures=`` of a run over a corpus names them."""


def records(results: Results) -> Iterator[dict[str, Any]]:
    """The records of a run, sentence by sentence."""
    for batch in results.dataset("pairings").to_batches():
        yield from batch.to_pylist()
