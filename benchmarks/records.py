"""Runs of hours: a file of what was measured, with which a run that was cut off goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import COMMIT, UNKNOWN, stamp


class Record:
    """A file of JSON lines: settings first, then a row for each thing that was measured.

    Args:
        path: the file; None: nothing is kept.
        settings: have to be those of the file, if it is there.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        first = json.dumps(settings)
        if path is None:
            return
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # the last one may have been cut off
                    kept.append(line)
        if kept and json.loads(kept[0]) != json.loads(first):
            raise SystemExit(f"{path} is of a run with other settings: {kept[0].strip()}")
        path.write_text("".join(kept) or f"{first}\n", encoding="utf-8")
        self.rows = [json.loads(line) for line in kept[1:]]

    def add(self, row: dict[str, Any], took: float) -> None:
        """Keep a row, with the commit and the seconds that it took."""
        whole = {"commit": COMMIT, "took": round(took, 3), **row}
        self.rows.append(json.loads(json.dumps(whole)))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(whole) + "\n")

    def stamp(self) -> str:
        """Of all rows."""
        return stamp_of(self.rows)


def stamp_of(rows: list[dict[str, Any]]) -> str:
    """Commits and seconds of rows of a record."""
    took = [row.get("took") for row in rows]
    spent = None if None in took or not took else sum(took)  # type: ignore[arg-type]
    return stamp((row.get("commit", UNKNOWN) for row in rows), spent)
