"""What a corpus costs on a cluster: the tables of docs/corpus-cluster.md.

    python -m benchmarks.corpus_scaling en_ewt-ud-dev.conllu

What a text of each length takes one core; what the one process that reads and writes does for a
batch; the same run over Ray with one and with two workers; and what follows from these for larger
corpora. Some ten minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import pyarrow

from benchmarks.common import say, stamp, table
from captum_lig.corpus import Settings
from captum_lig.corpus.batches import Batch, Part, batches_of
from captum_lig.corpus.ray_engine import ray_engine
from captum_lig.corpus.store import Store
from captum_lig.corpus.texts import Text, open_corpus
from captum_lig.corpus.worker import Worker

LENGTHS, OF_SMOLLM2 = (8, 16, 32, 64, 128), 25
WORKERS = 64
CUT, WRITE, JOIN, RAY = "cutting, of a text", "writing", "joining at the end", "Ray, there and back"


def rates(
    corpus: Path, model: str | None, lengths: Sequence[int], size: int
) -> tuple[list[list[str]], list[float]]:
    """A batch of ``size`` texts of each length, of the corpus' sentences one after the other.

    Returns:
        Rows of the table, and seconds of a text.
    """
    worker = Worker(Settings(model=model))
    tokenizer = worker.model.subject.tokenizer
    words = " ".join(text.text for text in islice(open_corpus(corpus), 200))
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    rows, seconds = [], []
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
        seconds.append(took / size)
        rows.append(
            [
                "MiniLM" if model is None else "SmolLM2",
                f"{tokens / size:.0f}",
                f"{took / size:.2f} s",
                f"{tokens / took:.0f}",
                f"{kept / tokens:.0f}",
            ]
        )
        say(f"corpus_scaling: {', '.join(rows[-1])}")
    return rows, seconds


def driver(corpus: Path, count: int) -> tuple[str, dict[str, float]]:
    """Processor milliseconds and milliseconds of a batch in the driver, part by part.

    Returns:
        The table, and processor seconds of each part; ``"b"`` is texts of a batch.
    """
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
        say(f"corpus_scaling: {what}, {marks[-1][1]:.2f} ms")
        return found

    length = worker.model.subject.count_tokens
    cut: list[Batch] = []
    took(CUT, lambda: cut.extend(batches_of(texts, length, 64, 16)), len(texts))
    parts = [worker(batch) for batch in cut[:4]]
    many = [
        Part(number, number, part.digest, part.tables)
        for number, part in enumerate(parts * (count // 4))
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "out", Settings(), worker.columns) as store,
    ):
        took(WRITE, lambda: [store.keep(part) for part in many], len(many))
        took(JOIN, store.finish, len(many))

    def hand_out() -> None:
        run = ray_engine(Settings(), iter(cut), 1, load=_returns(parts[0]))
        next(run)
        took(RAY, lambda: list(run), len(cut) - 1)

    hand_out()
    rows = [[what, f"{processor:.2f} ms", f"{wall:.2f} ms"] for what, processor, wall in marks]
    constants = {what: processor / 1e3 for what, processor, _ in marks}
    return table(["", "processor", "time"], rows), constants | {"b": len(texts) / len(cut)}


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


def workers(corpus: Path, limit: int) -> tuple[str, dict[str, float]]:
    """Rate from the first part to the last, with one worker and with two.

    Returns:
        The table, and of one worker the seconds of a text ``"t"``, its ``"tokens"``, and the
        seconds to start it ``"s"``.
    """
    texts = list(islice(open_corpus(corpus), limit))
    cut = list(batches_of(texts, len, limit, 4))
    rows, found = [], dict[str, float]()
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
        if not found:
            words = [
                t for part in parts[count:] for t in part.tables["texts"]["tokens"].to_pylist()
            ]
            tokens = sum(map(len, words)) / done
            found = {"t": cores / done, "tokens": tokens, "s": took[0]["start"]}
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
        say(f"corpus_scaling: {', '.join(rows[-1])}")
    head = ["workers", "first part after", "processor to start one", "texts a second"]
    head += ["processor of a text", "a worker works", "cores had", "driver, of a batch"]
    return table(head, rows), found


def hours(seconds: float) -> str:
    """In hours, two digits."""
    return f"{float(f'{seconds / 3600:.2g}'):,g} h"


def projected(name: str, texts: float, t: float, of: dict[str, float]) -> list[str]:
    """What so many texts take, each ``t`` seconds of a core, by the formula of the page."""
    served = of[CUT] + (of[RAY] + of[WRITE]) / of["b"]
    joining = texts * of[JOIN] / of["b"]
    run = 2 * of["s"] + max(texts * t / WORKERS, texts * served) + joining
    return [
        name,
        f"{texts:.2g}",
        hours(texts * t),
        hours(run),
        hours(joining),
        f"{t / served:,.0f}",
    ]


def report(corpus: Path, size: int, limit: int) -> str:
    """All tables."""
    lines, seconds = rates(corpus, None, LENGTHS, size)
    of_smollm, (smollm,) = rates(corpus, "smollm2", [OF_SMOLLM2], 1)
    cost, of = driver(corpus, 40)
    scaling, found = workers(corpus, limit)
    of |= found
    t, tokens = of["t"], of["tokens"]
    constants = [
        [f"*t*: a sentence of the corpus, {tokens:.0f} tokens, MiniLM", f"{t:.2f} s"],
        ["*s*: a worker starts, its imports and MiniLM", f"{of['s']:.1f} s"],
        ["*c*: the driver cuts batches, a text", f"{1e3 * of[CUT]:.1f} ms"],
        ["*r*: the driver hands a batch to Ray and takes its part", f"{1e3 * of[RAY]:.1f} ms"],
        ["*w*: the driver writes a part, six files and a folder", f"{1e3 * of[WRITE]:.1f} ms"],
        ["*j*: the driver joins the parts at the end, a part", f"{1e3 * of[JOIN]:.1f} ms"],
        ["*b*: texts in a batch (windows of 64, at most 16)", f"{of['b']:.1f}"],
    ]
    rows = [
        projected("1e6 sentences like these", 1e6, t, of),
        projected(f"1e6 of {of_smollm[0][1]} tokens, SmolLM2", 1e6, smollm, of),
        projected("1e9 tokens in sentences like these", 1e9 / tokens, t, of),
        *(
            projected(f"1e9 tokens in texts of {length}", 1e9 / length, each, of)
            for length, each in zip(LENGTHS, seconds, strict=True)
            if length >= 64
        ),
    ]
    head = ["model", "tokens of a text", "a text", "tokens a second", "bytes a token"]
    return "\n\n".join(
        [
            stamp(),
            "What a text takes of one core, with all default measures, in float32:",
            table(head, [*lines, *of_smollm]),
            "What the driver takes of one core for a batch:",
            cost,
            f"From one worker to two, {limit} sentences:",
            scaling,
            "So the constants are, of one core:",
            table(["", ""], constants),
            f"and by the formula above, with *W* = {WORKERS} workers (*serves*: as many workers as "
            "the driver keeps busy):",
            table(["", "texts", "core hours", f"{WORKERS} workers", "joining", "serves"], rows),
        ]
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--size", type=int, default=8, help="texts of each length")
    parser.add_argument("--limit", type=int, default=36, help="texts of one worker and of two")
    given = parser.parse_args()
    print(report(given.corpus, given.size, given.limit))


if __name__ == "__main__":
    main()
