"""What the page costs in a browser: to open, and to use. Run: python -m benchmarks.page

Needs Linux, Chromium and the tests' playwright. The flows are random numbers, 64 tokens, 30 layers
of 9 heads, causal and not. Seconds are processor time of all of the browser's processes together,
so that other work on the machine disturbs little: on idle cores the clock on the wall shows less.
Opening is from the request for the file until its lines and tables are there; the rest is until the
next frame is drawn. Median of some rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import sync_playwright

from benchmarks.common import stamp, table, use_threads
from benchmarks.graph import random_flow
from captum_lig import FlowGraph

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
CHANGE = """([id, value]) => new Promise((done) => {
  const control = document.getElementById(id);
  control.value = value;
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind));
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));
})"""
POINT = """async () => {
  const canvas = document.getElementById("marks");
  const box = canvas.getBoundingClientRect();
  for (let step = 1; step < 200; step++) {
    const clientX = box.left + (box.width * step) / 200;
    const clientY = box.top + (box.height * step) / 200;
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  }
  return 199;
}"""
STEPS = {
    "first rule change": ("rule", "chain"),
    "rule back": ("rule", "conserve"),
    "threshold, few lines": ("threshold", "60"),
    "threshold 0, all lines": ("threshold", "0"),
    "boundary": ("boundary", "attention"),
    "boundary back": ("boundary", "composed"),
    "pin, 5 routes": ("target", "63"),
    "20 routes": ("count", "20"),
}


def browser_seconds() -> float:
    """Processor time of this process's descendants, which are the browser and its driver."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    family.discard(os.getpid())
    return sum(ticks[pid] for pid in family) / os.sysconf("SC_CLK_TCK")


def once(browser: Any, path: Path) -> dict[str, float]:
    """Seconds of each step, on a fresh page."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    began, spent = time.perf_counter(), browser_seconds()
    tab.goto(path.as_uri())
    tab.locator("#table tbody tr").first.wait_for()
    found = {"open": browser_seconds() - spent, "open, on the wall": time.perf_counter() - began}
    spent = browser_seconds()
    moves = tab.evaluate(POINT)
    found["point at a token or a line"] = (browser_seconds() - spent) / moves
    for name, (control, value) in STEPS.items():
        spent = browser_seconds()
        tab.evaluate(CHANGE, [control, value])
        found[name] = browser_seconds() - spent
    tab.close()
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    use_threads(1)
    columns: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
        for name, causal in (("causal", True), ("not causal", False)):
            graph = FlowGraph([random_flow(index, 64, 9, causal) for index in range(30)])
            began = time.perf_counter()
            path = graph.to_html(Path(folder, f"{causal}.html"))
            written = time.perf_counter() - began
            rounds = [once(browser, path) for _ in range(asked.rounds)]
            columns[name] = {
                "size": f"{path.stat().st_size / 1e6:.1f} MB",
                "write": f"{written:.2f} s",
                **{
                    step: f"{1000 * median(times[step] for times in rounds):.0f} ms"
                    for step in rounds[0]
                },
            }
        version = browser.version
        browser.close()
    lines = [[step, *(column[step] for column in columns.values())] for step in columns["causal"]]
    print(f"{stamp()} Chromium {version}.\n\n{table(['', *columns], lines)}")


if __name__ == "__main__":
    main()
