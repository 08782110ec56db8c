"""What a run over a corpus costs, and whether its memory grows: the figures of docs/corpus.md.

    python -m benchmarks.corpus en_ewt-ud-dev.conllu --limit 300 --workers 2 --out FOLDER

Runs ``captum_lig.corpus.run`` with all default measures and prints what it took, and the memory of
all its processes as texts are done, beside the longest text until then. A run that was cut off goes
on where it stopped.
"""

from __future__ import annotations

import argparse
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.recorded import Recorded
from captum_lig.corpus import run


def report(rows: list[dict[str, Any]], every: int) -> str:
    """The curve at some counts of texts, and what a text took."""

    def sums(name: str) -> list[float]:
        return list(accumulate(row[name] for row in rows))

    texts, seconds, processor = sums("texts"), sums("took"), sums("processor")
    longest = list(accumulate((row["longest"] for row in rows), max))
    lines, wanted = [], 0.0
    for at, row in enumerate(rows):
        if texts[at] >= wanted or at == len(rows) - 1:
            wanted = texts[at] + every
            spent = f"{seconds[at]:.0f} s", f"{processor[at]:.0f} s"
            lines.append([f"{texts[at]:.0f}", *spent, f"{row['memory']:.0f} MB", str(longest[at])])
    tokens, by = sum(row["tokens"] for row in rows), processor[-1]
    said = (
        f"{texts[-1]:.0f} texts, {tokens} tokens: {seconds[-1]:.0f} s, {by:.0f} processor seconds, "
        f"{texts[-1] / by:.2f} texts and {tokens / by:.1f} tokens a processor second."
    )
    return said + "\n\n" + table(["texts", "time", "processor", "memory", "longest"], lines)


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
    limits = {"corpus": given.corpus.name, "model": given.model, "limit": given.limit}
    engine = Recorded(given.out, limits)
    found = run(
        given.corpus,
        given.model,
        out=given.out,
        engine=engine,
        workers=given.workers,
        limit=given.limit,
        show_progress=True,
    )
    print(f"{engine.record.stamp()}\n\n{report(engine.rows(found), given.every)}")


if __name__ == "__main__":
    main()
