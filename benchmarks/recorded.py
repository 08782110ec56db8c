"""An engine of a corpus run that notes what each batch took, in a record beside the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.records import Record
from captum_lig.corpus import Results, Settings
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.engines import local

MEGABYTE = 2**20


class Recorded:
    """The local engine; ``FOLDER.jsonl`` is its record, with which a run goes on.

    Args:
        folder: of the run.
        settings: have to be those of the record, if it is there.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.record = Record(folder.with_name(f"{folder.name}.jsonl"), settings)

    def __call__(
        self, settings: Settings, batches: Iterator[Batch], workers: int
    ) -> Iterator[Part]:
        began, spent = time.perf_counter(), 0.0
        for part in local(settings, batches, workers):
            own = psutil.Process()
            everyone = [own, *own.children(recursive=True)]
            used = [one.cpu_times() for one in everyone]
            now, processor = time.perf_counter(), sum(one.user + one.system for one in used)
            tokens = part.tables["texts"].column("tokens").to_pylist()
            counts = [len(one or ()) for one in tokens]
            row = {
                "batch": part.number,
                "texts": len(counts),
                "tokens": sum(counts),
                "longest": max(counts, default=0),
                "processor": processor - spent,
                "memory": sum(one.memory_info().rss for one in everyone) / MEGABYTE,
            }
            # Before the part is kept: a batch that is cut off here is done again, and noted again.
            self.record.add(row, now - began)
            began, spent = now, processor
            yield part

    def rows(self, found: Results) -> list[dict[str, Any]]:
        """A row a batch, in their order of time: of all that was found, or an error."""
        last = {row["batch"]: row for row in self.record.rows}
        rows = list(last.values())
        noted, there = sum(row["texts"] for row in rows), sum(found.counts.values())
        if noted != there:
            raise SystemExit(
                f"{self.record.path} is of {noted} texts, and the run beside it has {there}: "
                "it was begun without its record. Take a new folder."
            )
        return rows
