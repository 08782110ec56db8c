"""All benchmarks, and the page they fill: what ``make bench`` calls.

    python -m benchmarks.run [PART ...] [--authors PYTHON] [--check]

A part that is not named keeps what the page says of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks import load, long, loop, memory, passes, side_by_side, target_cost
from benchmarks.common import finish, say, use_threads
from benchmarks.worker import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"

PARTS = {
    part.__name__.rpartition(".")[2]: part
    for part in (loop, passes, memory, load, long, target_cost, side_by_side)
}

PREAMBLE = """# Benchmarks

Written by `make bench`, which measures all of this again in about ten minutes on two cores and
rewrites this page. One part alone: the command under its heading, from the root of the repository
with the environment of `make install`; `--check` makes it fail if a bound is missed, `--help`
shows the rest. `make bench` also builds `.venv-lig`, where the paper authors' package lives, which
needs an older transformers.

What is compared is measured in turns in one run; a ratio is the median of the ratios of the turns,
and ratios carry over to other machines better than seconds. One thread and processor time, so that
other work on the machine disturbs little: `--threads` takes more threads, and the time on the wall.
"""


def sections(page: str) -> dict[str, str]:
    """Sections of a page by their titles."""
    found = {}
    for section in page.split("\n## ")[1:]:
        found[section.split("\n", 1)[0]] = "## " + section.strip()
    return found


def write(page: dict[str, str]) -> None:
    """Write the page, its parts in their order."""
    PAGE.parent.mkdir(exist_ok=True)
    parts = [page[part.TITLE] for part in PARTS.values() if part.TITLE in page]
    PAGE.write_text("\n\n".join([PREAMBLE.strip(), *parts]) + "\n", encoding="utf-8")


def run(names: Iterable[str], authors: Path) -> list[str]:
    """Run some parts and put them on the page; the bounds that were missed."""
    use_threads(1)
    page = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    missed: list[str] = []
    for name in names:
        began = time.monotonic()
        part = PARTS[name]
        page[part.TITLE], over = part.run(authors) if part is side_by_side else part.run()
        missed += over
        write(page)
        say(f"{name}: {time.monotonic() - began:.0f} seconds")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--authors", type=Path, default=side_by_side.AUTHORS)
    parser.add_argument("--check", action="store_true", help="fail if a bound is missed")
    given = parser.parse_args()
    for name in set(given.part) - PARTS.keys():
        parser.error(f"there is no part {name!r}: name some of {', '.join(PARTS)}")
    return finish(run(given.part, given.authors), given.check)


if __name__ == "__main__":
    sys.exit(main())
