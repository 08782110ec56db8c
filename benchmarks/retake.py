"""The measured tables of the documentation: which there are, and take them again.

    python -m benchmarks.retake                                  # list them
    python -m benchmarks.retake benchmarks.md convergence.md     # take those of some pages again
    python -m benchmarks.retake all --corpus en_ewt-ud-dev.conllu --records records
    python -m benchmarks.retake all --stale ...                  # those of other code than this

A page holds, between two comments, what a command prints, and the first comment is the command::

    <!-- measured: python -m benchmarks.passes -->
    <!-- measured: end -->

``CORPUS`` and ``RECORDS`` in it stand for the options of these names: a treebank in CoNLL-U, and a
folder for runs of hours, which go on where they stopped. Take a new folder for new code: what a
record holds is not measured again. What a command printed that failed is kept there, too.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import say

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs"
BLOCK = re.compile(r"<!-- measured: (python -m .+?) -->\n(.*?)\n?<!-- measured: end -->", re.S)
STAMP = re.compile(r"Measured on ([\d-]+), of ([^:\n]+):(.*)")
DATE = re.compile(r"Measured on ([\d-]+)")
TOOK = re.compile(r"; took ([\d,]+) s\b")


@dataclass(frozen=True)
class Block:
    """What a command printed on a page."""

    page: Path
    command: str
    text: str

    def asked(self, names: list[str]) -> bool:
        """Whether a page, or a part of a command, is named."""
        return "all" in names or any(n == self.page.name or n in self.command for n in names)

    def words(self, places: dict[str, Path | None]) -> list[str]:
        """The command, with what the placeholders stand for."""
        words = shlex.split(self.command)[1:]
        for name, place in places.items():
            if place is None and any(re.search(rf"\b{name}\b", word) for word in words):
                raise SystemExit(f"{self.command} needs --{name.lower()}.")
            words = [re.sub(rf"\b{name}\b", str(place), word) for word in words]
        return words

    def changes(self) -> int | None:
        """How many commits changed the package since; None of what has no known commit."""
        found = STAMP.search(self.text)
        commits = re.findall(r"\b[0-9a-f]{7,40}\b", found[2]) if found else []
        asked = ["git", "rev-list", "--count", "HEAD", *(f"^{c}" for c in commits), "--"]
        done = subprocess.run([*asked, "captum_lig"], cwd=ROOT, capture_output=True, text=True)
        return int(done.stdout) if commits and not done.returncode else None

    def stale(self) -> bool:
        """Whether it may be of another code than this."""
        found = STAMP.search(self.text)
        return self.changes() != 0 or found is None or "changes" in found[2]

    def age(self) -> str:
        """Of which commits it is, how many changed the package since, and how long it took."""
        found, took = STAMP.search(self.text), TOOK.search(self.text)
        spent = f", took {took[1]} s" if took else ""
        if found is None:
            earlier = DATE.search(self.text)
            return (f"{earlier[1]}, of no known commit" if earlier else "never measured") + spent
        changes = self.changes()
        since = "not in git" if changes is None else f"{changes} changes since"
        return f"{found[1]}, of {found[2]}, {since}{spent}"


def blocks(page: Path) -> list[Block]:
    """Those of a page, in their order."""
    return [Block(page, *found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def every() -> list[Block]:
    """Those of all pages."""
    return [block for page in sorted(PAGES.glob("*.md")) for block in blocks(page)]


def take(block: Block, words: list[str], kept: Path | None = None) -> bool:
    """Run the command and put what it prints on the page, if it ends well.

    Args:
        block: on a page.
        words: the command.
        kept: a folder for what it prints if it does not end well; None is that of temporary files.
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - began
    spent = f"{seconds:.0f} s"
    if done.returncode or not STAMP.search(done.stdout):
        why = f"exit code {done.returncode}" if done.returncode else "no stamp in what it printed"
        where = ""
        if done.stdout.strip():
            with tempfile.NamedTemporaryFile(
                "w", dir=kept, prefix="not-taken-", suffix=".md", delete=False, encoding="utf-8"
            ) as file:
                file.write(f"<!-- measured: {block.command} -->\n\n{done.stdout}")
            where = f" What it printed: {file.name}"
        say(f"{block.command}: {why}, {spent}; {block.page.name} is as it was.{where}")
        return False
    page = block.page.read_text(encoding="utf-8")
    begin, end = f"<!-- measured: {block.command} -->\n", "<!-- measured: end -->"
    head, _, rest = page.partition(begin)
    tail = rest.partition(end)[2]
    text = timed(done.stdout.strip(), seconds)
    block.page.write_text(f"{head}{begin}\n{text}\n\n{end}{tail}", encoding="utf-8")
    say(f"{block.command}: {spent}")
    return True


def timed(text: str, seconds: float) -> str:
    """With the seconds in its stamp, if it does not say them itself."""
    if TOOK.search(text):
        return text
    return STAMP.sub(lambda line: f"{line[0].rstrip('. ')}; took {seconds:,.0f} s.", text, count=1)


def main() -> int:
    """List or take again what is named; 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help='pages, parts of commands, or "all"')
    for name in ("corpus", "records"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--stale", action="store_true", help="only what is of other code than this")
    given = parser.parse_args()
    there = every()
    if not given.names:
        for block in there:
            print(f"{block.page.name}: {block.command}\n    {block.age()}")
        return 0
    for name in given.names:
        if not any(block.asked([name]) for block in there):
            parser.error(f"no page and no command has {name!r}; without names they are listed.")
    places = {
        name.upper(): path and path.resolve()
        for name, path in (("corpus", given.corpus), ("records", given.records))
    }
    if places["RECORDS"]:
        places["RECORDS"].mkdir(parents=True, exist_ok=True)
    work = [(block, block.words(places)) for block in there if block.asked(given.names)]
    if given.stale:
        work = [(block, words) for block, words in work if block.stale()]
    failed = sum(not take(block, words, places["RECORDS"]) for block, words in work)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
