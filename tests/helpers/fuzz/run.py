"""Runs cases: what is no LigError, takes long or takes memory is a finding."""

from __future__ import annotations

import random
import resource
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from captum_lig import LigError
from tests.helpers.fuzz.readers import Fuzzed

__all__ = ["LONGEST", "Findings", "peak_megabytes", "run_reader"]

LONGEST = 1.0
"""Seconds of processor time that a case may take."""
LARGEST = 2**25
"""Bytes of a file: what is long grows by pieces that are long, to gigabytes at times."""
WARM = 200
"""Cases after which memory is looked at."""


@dataclass
class Findings:
    """What came of many cases."""

    name: str
    cases: int = 0
    accepted: int = 0
    """Files that were read, commands that reached the weights: the change made nothing invalid."""
    refused: int = 0
    slowest: float = 0.0
    """Seconds of processor time."""
    grown: float = 0.0
    """Megabytes by which the process' peak grew after the first cases."""
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    example: dict[str, str] = field(default_factory=dict)
    """How to have each failure again."""

    def fail(self, what: str, example: str) -> None:
        """Note a failure."""
        self.failures[what] += 1
        self.example.setdefault(what, example)

    def __str__(self) -> str:
        """One line of a table."""
        return (
            f"| {self.name} | {self.cases:,} | {self.refused:,} | {self.accepted:,} | "
            f"{sum(self.failures.values())} | {self.slowest:.2f} | {self.grown:.0f} | "
            f"{self.seconds:.0f} |"
        )


def peak_megabytes() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def where(error: BaseException) -> str:
    """An error and the last line of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "captum_lig" in f.filename and "/fuzz/" not in f.filename]
    last = ours[-1] if ours else frames[-1]
    return (
        f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:90]!r}"
    )


def run_reader(reader: Fuzzed, folder: Path, cases: int, seed: int) -> Findings:
    """Read files, each a valid one with changes drawn from ``seed`` and its number.

    Args:
        reader: of the files.
        folder: an empty one, for the file.
        cases: how many.
        seed: another gives other files.
    """
    path = folder / reader.file
    reader.write(path)
    valid = path.read_bytes()
    reader.read(path)
    found, began, peak = Findings(reader.name), time.perf_counter(), peak_megabytes()
    for number in range(cases):
        data = reader.mutate(random.Random(f"{reader.name} {seed} {number}"), valid)[:LARGEST]
        # A new file: one that is mapped must not change under its reader.
        path.unlink()
        path.write_bytes(data)
        start = time.process_time()
        try:
            reader.read(path)
            found.accepted += 1
        except LigError as error:
            found.refused += 1
            if len(str(error)) > 2000:
                found.fail(f"a message of {len(str(error))} characters", f"case {number}")
        except OSError as error:
            found.fail(where(error), f"case {number}")
        except Exception as error:
            found.fail(where(error), f"case {number}")
        taken = time.process_time() - start
        if taken > LONGEST:
            found.fail(f"takes over {LONGEST} s", f"case {number}: {taken:.2f} s")
        found.slowest = max(found.slowest, taken)
        found.cases += 1
        if number < WARM:
            peak = peak_megabytes()
    found.grown, found.seconds = peak_megabytes() - peak, time.perf_counter() - began
    return found
