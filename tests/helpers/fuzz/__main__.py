"""``python -m tests.helpers.fuzz [--cases N] [--seed N] [--check] [NAME ...]``: a table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.common import stamp
from tests.helpers.fuzz.command_line import NAME, run_commands
from tests.helpers.fuzz.readers import READERS
from tests.helpers.fuzz.run import run_reader


def main() -> int:
    """Run what was asked for; 1 if there is a finding, and that is asked for."""
    parser = argparse.ArgumentParser(description="Hostile files and command lines.")
    parser.add_argument("names", nargs="*", help=", ".join([r.name for r in READERS] + [NAME]))
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="fail if there is a finding")
    given = parser.parse_args()
    failed = 0
    print(f"{stamp()}\n\n| reader | cases | refused | read | failures | slowest s | MB grown | s |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: |")
    for name in [reader.name for reader in READERS] + [NAME]:
        if given.names and name not in given.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if name == NAME:
                found = run_commands(Path(folder), given.cases, given.seed)
            else:
                (reader,) = (reader for reader in READERS if reader.name == name)
                found = run_reader(reader, Path(folder), given.cases, given.seed)
        print(found, flush=True)
        print(found, file=sys.stderr, flush=True)  # progress, where the table goes elsewhere
        for what, count in found.failures.most_common():
            print(f"    {count} x {what} ({found.example[what]})", file=sys.stderr, flush=True)
        failed += len(found.failures)
    return int(failed > 0 and given.check)


sys.exit(main())
