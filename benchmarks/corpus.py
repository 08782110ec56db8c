"""What a run over a corpus costs, and whether its memory grows: the figures of docs/corpus.md.

    python -m benchmarks.corpus en_ewt-ud-dev.conllu --limit 300 --workers 2 --out FOLDER

Runs ``captum_lig.corpus.run`` with all default measures and prints what it took, and the memory of
all its processes as texts are done, beside the longest text until then.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.common import stamp, table
from captum_lig.corpus import Results, Settings, run
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.engines import local

MEGABYTE = 2**20


@dataclass(frozen=True)
class Sample:
    """After a batch."""

    texts: int
    seconds: float
    memory: float
    """Resident, of all processes, in MB."""
    processor: float
    """Seconds of all processes."""
    longest: int
    """Tokens of the longest text so far."""


class Measured:
    """The local engine, with a sample after each part."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def __call__(
        self, settings: Settings, batches: Iterator[Batch], workers: int
    ) -> Iterator[Part]:
        began, texts, longest = time.perf_counter(), 0, 0
        for part in local(settings, batches, workers):
            yield part
            rows = part.tables["texts"].column("tokens").to_pylist()
            texts += len(rows)
            longest = max([longest, *(len(tokens or ()) for tokens in rows)])
            own = psutil.Process()
            everyone = [own, *own.children(recursive=True)]
            used = [one.cpu_times() for one in everyone]
            self.samples.append(
                Sample(
                    texts,
                    time.perf_counter() - began,
                    sum(one.memory_info().rss for one in everyone) / MEGABYTE,
                    sum(one.user + one.system for one in used),
                    longest,
                )
            )


def report(samples: list[Sample], found: Results, every: int) -> str:
    """The curve at some counts of texts, and what a text took."""
    rows, wanted = [], 0
    for sample in samples:
        if sample.texts >= wanted or sample is samples[-1]:
            wanted = sample.texts + every
            rows.append(
                [
                    str(sample.texts),
                    f"{sample.seconds:.0f} s",
                    f"{sample.processor:.0f} s",
                    f"{sample.memory:.0f} MB",
                    str(sample.longest),
                ]
            )
    last = samples[-1]
    tokens = sum(len(one) for one in found.to_pandas("texts")["tokens"] if one is not None)
    by = last.processor
    said = (
        f"{last.texts} texts, {tokens} tokens: {last.seconds:.0f} s, {by:.0f} processor seconds, "
        f"{last.texts / by:.2f} texts and {tokens / by:.1f} tokens a processor second."
    )
    return said + "\n\n" + table(["texts", "time", "processor", "memory", "longest"], rows)


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=int, default=25)
    given = parser.parse_args()
    measured = Measured()
    found = run(
        given.corpus,
        given.model,
        out=given.out,
        engine=measured,
        workers=given.workers,
        limit=given.limit,
        show_progress=True,
    )
    print(f"{stamp()}\n\n{report(measured.samples, found, given.every)}")


if __name__ == "__main__":
    main()
