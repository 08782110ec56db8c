"""A process that measures one case whenever it is asked to: the two ends of the pipe.

A worker loads its model, runs it once, says that it is ready, and answers each line it is sent
with a line of JSON. So several can take turns, each with libraries and memory of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from benchmarks.common import measured, say, use_threads

ROOT = Path(__file__).resolve().parent.parent
STEPS = 32
"""Path points of every loop."""


@dataclass(frozen=True)
class Case:
    """What a worker is to do."""

    who: str
    boundary: str
    baseline: str
    layer: int
    text: str
    model: str
    """Folder of the model."""
    threads: int


@dataclass(frozen=True)
class Done:
    """What a worker did: rows of the map, and what each of them adds up to."""

    rows: list[list[int]]
    """Target of each row; head and target at the attention boundary."""
    sums: list[float]
    share: float
    """Part of the whole map that these rows are."""


@dataclass(frozen=True)
class Answer:
    """What the parent hears."""

    done: Done
    seconds: float
    peak: int
    """Bytes beyond the loaded model."""

    @property
    def whole(self) -> float:
        """Seconds of the whole map, if it goes on like this."""
        return self.seconds / self.done.share


def serve(ready: Callable[[Case], Callable[[], Done]]) -> None:
    """Be a worker. What is printed meanwhile goes to stderr.

    Args:
        ready: loads what a case needs, runs the model once, and gives the work to time.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case = Case(**json.loads(sys.argv[1]))
    use_threads(case.threads)
    work = ready(case)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        done, taken, peak = measured(work)
        answer = {"done": asdict(done), "seconds": taken, "peak": peak}
        print(json.dumps(answer), file=answers, flush=True)


@dataclass
class Worker:
    """The parent's end of a worker."""

    name: str
    process: subprocess.Popen[str]
    log: IO[str]

    def ready(self) -> bool:
        """Wait until it is; False if it ended instead."""
        return self._line() is not None

    def run(self) -> Answer | None:
        """Have the case measured once; None if the worker ended instead."""
        assert self.process.stdin is not None
        print("run", file=self.process.stdin, flush=True)
        line = self._line()
        if line is None:
            return None
        found = json.loads(line)
        return Answer(Done(**found["done"]), found["seconds"], found["peak"])

    def _line(self) -> str | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return line
        self.log.seek(0)
        said = self.log.read().strip().splitlines()
        say(f"{self.name} ended: {said[-1] if said else 'without a word'}")
        return None


@contextmanager
def started(python: Path, module: str, case: Case) -> Iterator[Worker]:
    """A worker, which ends with the context. It may not be ready yet."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [python, "-m", module, json.dumps(asdict(case))],
            cwd=ROOT,
            env=os.environ | quiet,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield Worker(case.who, process, log)
        finally:
            process.kill()
