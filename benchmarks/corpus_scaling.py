"""The constants of the scaling model in docs/corpus-cluster.md, in processor seconds.

    python -m benchmarks.corpus_scaling rates en_ewt-ud-dev.conllu --model smollm2 --lengths 16,32
    python -m benchmarks.corpus_scaling driver en_ewt-ud-dev.conllu
    python -m benchmarks.corpus_scaling workers en_ewt-ud-dev.conllu --limit 96

``rates``: what a text of each length takes one core. ``driver``: what the one process that reads
and writes does for a batch. ``workers``: the same run over Ray with one and with two workers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow

from benchmarks.common import stamp, table
from captum_lig.corpus import Settings
from captum_lig.corpus.batches import Batch, Part, batches_of
from captum_lig.corpus.ray_engine import ray_engine
from captum_lig.corpus.store import Store
from captum_lig.corpus.texts import Text, open_corpus
from captum_lig.corpus.worker import Worker


def rates(corpus: Path, model: str | None, lengths: list[int], size: int) -> str:
    """A batch of ``size`` texts of each length, of the corpus' sentences one after the other."""
    worker = Worker(Settings(model=model))
    tokenizer = worker.model.subject.tokenizer
    words = " ".join(text.text for text in islice(open_corpus(corpus), 200))
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    rows = []
    for length in lengths:
        texts = tuple(
            Text(i, str(i), tokenizer.decode(ids[i * length : (i + 1) * length - 2]))
            for i in range(size)
        )
        worker(Batch(0, 0, texts[:1]))
        began = time.process_time()
        part = worker(Batch(0, 0, texts))
        took = time.process_time() - began
        done = part.tables["texts"].to_pylist()
        tokens = sum(len(row["tokens"]) for row in done)
        kept = sum(one.nbytes for one in part.tables.values())
        rows.append(
            [
                f"{tokens / size:.0f}",
                f"{took / size:.2f} s",
                f"{tokens / took:.0f}",
                f"{kept / tokens:.0f}",
            ]
        )
    return table(["tokens of a text", "a text", "tokens a second", "bytes a token"], rows)


def driver(corpus: Path, count: int) -> str:
    """Processor milliseconds and milliseconds of a batch in the driver, part by part."""
    worker = Worker(Settings())
    texts = list(islice(open_corpus(corpus), 64 * count))
    marks: list[tuple[str, float, float]] = []

    def took(what: str, work: Callable[[], object], times: int) -> object:
        began, processor = time.perf_counter(), time.process_time()
        found = work()
        marks.append(
            (
                what,
                (time.process_time() - processor) / times * 1e3,
                (time.perf_counter() - began) / times * 1e3,
            )
        )
        return found

    length = worker.model.subject.count_tokens
    cut: list[Batch] = []
    took("cutting, of a text", lambda: cut.extend(batches_of(texts, length, 64, 16)), len(texts))
    parts = [worker(batch) for batch in cut[:4]]
    many = [
        Part(number, number, part.digest, part.tables)
        for number, part in enumerate(parts * (count // 4))
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "out", Settings(), worker.columns) as store,
    ):
        took("writing", lambda: [store.keep(part) for part in many], len(many))
        took("joining at the end", store.finish, len(many))

    def hand_out() -> None:
        run = ray_engine(Settings(), iter(cut), 1, load=_returns(parts[0]))
        next(run)
        took("Ray, there and back", lambda: list(run), len(cut) - 1)

    hand_out()
    rows = [[what, f"{processor:.2f} ms", f"{wall:.2f} ms"] for what, processor, wall in marks]
    return table(["", "processor", "time"], rows)


def _returns(part: Part) -> Callable[[Settings], Callable[[Batch], Part]]:
    return lambda settings: lambda batch: part


def _timed(settings: Settings) -> Callable[[Batch], Part]:
    """The worker, with a table of what loading it and a batch took."""
    worker = Worker(settings)
    loaded = time.process_time()  # since the process began: its imports as well

    def work(batch: Batch) -> Part:
        began, processor = time.perf_counter(), time.process_time()
        part = worker(batch)
        part.tables["took"] = pyarrow.table(
            {
                "time": [time.perf_counter() - began],
                "processor": [time.process_time() - processor],
                "start": [loaded],
            }
        )
        return part

    return work


def workers(corpus: Path, limit: int) -> str:
    """Rate from the first part to the last, with one worker and with two."""
    texts = list(islice(open_corpus(corpus), limit))
    cut = list(batches_of(texts, len, limit, 4))
    rows = []
    for count in (1, 2):
        began, processor = time.perf_counter(), time.process_time()
        first, parts = 0.0, []
        for part in ray_engine(Settings(), iter(cut), count, load=_timed):
            first = first or time.perf_counter()
            parts.append(part)
        last = time.perf_counter()
        took = [row for part in parts for row in part.tables["took"].to_pylist()]
        rest = took[count:]
        done = sum(part.tables["texts"].num_rows for part in parts[count:])
        busy = sum(row["time"] for row in rest)
        cores = sum(row["processor"] for row in rest)
        rows.append(
            [
                str(count),
                f"{first - began:.1f} s",
                f"{took[0]['start']:.1f} s",
                f"{done / (last - first):.2f}",
                f"{cores / done:.2f} s",
                f"{busy / (last - first) / count:.0%}",
                f"{cores / (last - first):.2f}",
                f"{(time.process_time() - processor) / len(parts) * 1e3:.0f} ms",
            ]
        )
    head = ["workers", "first part after", "processor to start one", "texts a second"]
    head += ["processor of a text", "a worker works", "cores had", "driver, of a batch"]
    return table(head, rows)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rates", "driver", "workers"))
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--lengths", default="8,16,32,64,128")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--limit", type=int, default=96)
    given = parser.parse_args()
    if given.what == "rates":
        lengths = [int(one) for one in given.lengths.split(",")]
        text = rates(given.corpus, given.model, lengths, given.size)
    elif given.what == "driver":
        text = driver(given.corpus, 40)
    else:
        text = workers(given.corpus, given.limit)
    print(f"{stamp()}\n\n{text}")


if __name__ == "__main__":
    main()
