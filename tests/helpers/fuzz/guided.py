"""The readers under atheris, which keeps the files that reach lines none reached before.

    pip install atheris
    python -m tests.helpers.fuzz.guided [--runs N] [--seed N] [NAME ...]

A file is changed as in :mod:`tests.helpers.fuzz.mutate` or by libFuzzer, from a valid one and from
those that were kept. A finding is what it is in :mod:`tests.helpers.fuzz.run`, or half a gigabyte.
Each reader has a process of its own, which libFuzzer ends.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["captum_lig"]):
    from captum_lig import LigError
    from tests.helpers.fuzz.readers import READERS, Fuzzed

from benchmarks.common import say, stamp, table

TOO_LONG, TOO_MUCH = 10, 512
"""Seconds and megabytes, under instrumentation."""
LONGEST = 2000
"""Characters of a message."""
STATUS = re.compile(r"^#(\d+)\s.* (?:ft|cov): (\d+)(?: ft: \d+)? corp: (\d+)", re.M)


def fuzz(reader: Fuzzed, runs: int, seed: int) -> None:
    """Does not return."""
    folder = Path(tempfile.mkdtemp())
    path, kept = folder / reader.file, folder / "kept"
    reader.write(path)
    valid = path.read_bytes()
    kept.mkdir()
    (kept / "valid").write_bytes(valid)

    def read(data: bytes) -> None:
        path.unlink()  # one that is mapped must not change under its reader
        path.write_bytes(data)
        try:
            reader.read(path)
        except LigError as error:
            if len(str(error)) > LONGEST:
                raise RuntimeError(f"a message of {len(str(error))} characters") from error

    def changed(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        try:
            return reader.mutate(draw, data)[:most]
        except (ValueError, RecursionError):  # what was kept is not JSON, say
            return reader.mutate(draw, valid)[:most]

    limits = [f"-timeout={TOO_LONG}", f"-malloc_limit_mb={TOO_MUCH}", f"-max_len={2**20}"]
    where = f"-artifact_prefix={folder}/"
    options = [f"-runs={runs}", f"-seed={seed + 1}", *limits, where, str(kept)]
    atheris.Setup([sys.argv[0], *options], read, custom_mutator=changed)
    atheris.Fuzz()


def main() -> int:
    """Run what was asked for; 1 if there is a finding."""
    names = [reader.name for reader in READERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(names))
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        fuzz(READERS[names.index(given.names[0])], given.runs, given.seed)
    rows, failed = [], 0
    for name in given.names or names:
        options = [f"--runs={given.runs}", f"--seed={given.seed}", "--alone", name]
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.helpers.fuzz.guided", *options]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        counts = STATUS.findall(done.stderr)
        if done.returncode or not counts:
            failed += 1
            say(f"{name}:\n{done.stderr[-3000:]}")
        count, reached, files = map(int, counts[-1]) if counts else (0, 0, 0)
        numbers = [f"{n:,}" for n in (count, reached, files, int(done.returncode != 0))]
        rows.append([name, *numbers])
        say(f"{name}: {numbers}, {time.monotonic() - began:.0f} s")
    header = ["reader", "files", "edges of the code", "kept", "failures"]
    print(f"{stamp()}\n\n{table(header, rows)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
