"""Timing, memory and tables for the benchmarks: only the standard library and torch.

Other work may share the machine, so nothing here trusts a single figure: what is compared is
measured in turns, and a ratio is the median of the ratios of the turns. With one thread, which is
what the scripts choose, the clock is the processor time of this process: it does not run while
others run. With more threads it is the time on the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Work = Callable[[], object]
GIB = 2**30
UNKNOWN = "an unknown commit"
PACKAGES = ("torch", "transformers", "captum")
"""What does the work."""


def use_threads(count: int) -> None:
    """Choose the threads, and with them the clock."""
    torch.set_num_threads(count)


def now() -> float:
    """Seconds on the clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Work, at_least: float = 0.0) -> float:
    """Median seconds of one call; short work is called again until ``at_least`` is spent."""
    times: list[float] = []
    while not times or sum(times) < at_least:
        began = now()
        work()
        times.append(now() - began)
    return median(times)


def in_turns(
    works: Mapping[str, Work], rounds: int, at_least: float = 0.0, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each work, once a round, one after the other."""
    if warm:
        for work in works.values():
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, at_least))
    return taken


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over rounds of ``over / under``."""
    return median(a / b for a, b in zip(over, under, strict=True))


def resident_bytes() -> int:
    """Memory this process holds now, or the most it has held where that cannot be asked."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_bytes()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most memory this process has held since ``forget_peak``, or ever."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells there begins with the parent's peak
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Begin anew with ``peak_bytes``, where the system can; else it keeps what was before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measured(work: Callable[[], T]) -> tuple[T, float, int]:
    """What a call gives, its seconds, and the most bytes held meanwhile beyond those before."""
    forget_peak()
    before, began = resident_bytes(), now()
    done = work()
    return done, now() - began, peak_bytes() - before


def machine() -> str:
    """The machine in words, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    packages = ", ".join(f"{n} {version(n).split('+')[0]}" for n in PACKAGES)
    threads = torch.get_num_threads()
    clock = "one thread, processor time" if threads == 1 else f"{threads} threads, wall time"
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}),"
        f" {memory:.0f} GiB of memory, {clock}, float32;"
        f" Python {platform.python_version()}, {packages}"
    )


def _commit() -> str:
    """Of the sources, ``"... and changes"`` if one was edited since. Pages do not count: each
    table that is put on one would change them for the next."""

    def git(*words: str) -> str:
        asked = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    try:
        found = git("rev-parse", "--short=7", "HEAD")
        edited = git("diff", "--name-only", "HEAD", "--", ":/", ":!/docs/*.md", ":!/*.md")
        return f"{found} and changes" if edited else found
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


COMMIT = _commit()
"""Of when this was imported: what is measured does not change when the folder does."""


def stamp(commits: Iterable[str] | None = None, took: float | None = None) -> str:
    """Command, date, commit and machine.

    Args:
        commits: those of a record that went on over several runs.
        took: seconds of all these runs together; of a single one `benchmarks.retake` adds them.
    """
    code = ", ".join(dict.fromkeys([COMMIT] if commits is None else commits))
    spent = "" if took is None else f"; took {took:,.0f} s"
    return f"`{called()}`. Measured on {date.today().isoformat()}, of {code}: {machine()}{spent}."


def called() -> str:
    """The command that runs, paths without their folders."""
    words = [Path(word).name if os.sep in word else word for word in sys.orig_argv[1:]]
    return shlex.join(["python", *words])


def short(number: float) -> str:
    """Three digits."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left."""
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def say(text: str) -> None:
    """Progress, apart from what the benchmark prints as its result."""
    print(text, file=sys.stderr, flush=True)


def section(title: str, *paragraphs: str) -> str:
    """A section of docs/benchmarks.md."""
    return "\n\n".join([f"## {title}", stamp(), *paragraphs])


def finish(missed: Sequence[str], check: bool) -> int:
    """Name the bounds that were missed; an exit status that is not 0 only if they are checked."""
    for one in missed:
        print(f"missed: {one}", file=sys.stderr)
    return 1 if missed and check else 0


def command(
    doc: str, run: Callable[..., tuple[str, list[str]]], options: Mapping[str, Mapping[str, Any]]
) -> int:
    """Run a part of docs/benchmarks.md from the command line and print its section.

    Args:
        doc: the script's own description.
        run: gives the section and the bounds that were missed; its arguments are the options.
        options: by name, what argparse takes.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="fail if a bound is missed")
    given = vars(parser.parse_args())
    check = given.pop("check")
    use_threads(given.pop("threads"))
    text, missed = run(**given)
    print(text)
    return finish(missed, check)
