"""What pages cost in a browser: to open, and to use. Run: python -m benchmarks.page

Needs Linux, Chromium and the tests' playwright. The numbers are random, 30 layers of 9 heads: flows
of lengths of 64 tokens, causal and not, with direct maps and chains; and flows with a target of 64
and 512 tokens, causal. Seconds are processor time of all of the browser's processes together,
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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from playwright.sync_api import sync_playwright

from benchmarks.common import say, stamp, table, use_threads
from benchmarks.graph import random_flow
from captum_lig import FlowGraph
from tests.helpers.target_flows import target_flows

Use = Callable[[Any, Path], dict[str, float]]

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
CLICK = """(selector) => new Promise((done) => {
  document.querySelector(selector).click();
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));
})"""
CLICKS = {
    "select a head": "#graph .node.head",
    "select a word": "#own-words .word:last-of-type",
    "open folded tokens": "#graph .gap",
    "10 more nodes": "#more",
}
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
        # With what those took that it waited for: a tab that is closed ends some time later.
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    family.discard(os.getpid())
    return sum(ticks[pid] for pid in family) / os.sysconf("SC_CLK_TCK")


def opened(browser: Any, path: Path, ready: str) -> tuple[Any, dict[str, float]]:
    """A fresh page, and the seconds that it took to open."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    began, spent = time.perf_counter(), browser_seconds()
    tab.goto(path.as_uri())
    tab.locator(ready).first.wait_for()
    found = {"open": browser_seconds() - spent, "open, on the wall": time.perf_counter() - began}
    return tab, found


def lengths(browser: Any, path: Path) -> dict[str, float]:
    """Seconds of each step with a page of lengths."""
    tab, found = opened(browser, path, "#table tbody tr")
    spent = browser_seconds()
    moves = tab.evaluate(POINT)
    found["point at a token or a line"] = (browser_seconds() - spent) / moves
    for name, (control, value) in STEPS.items():
        spent = browser_seconds()
        tab.evaluate(CHANGE, [control, value])
        found[name] = browser_seconds() - spent
    tab.close()
    return found


def question(browser: Any, path: Path) -> dict[str, float]:
    """Seconds of each step with a page of a number."""
    tab, found = opened(browser, path, "#nodes tbody tr")
    for name, selector in CLICKS.items():
        spent = browser_seconds()
        tab.evaluate(CLICK, selector)
        found[name] = browser_seconds() - spent
    spent = browser_seconds()
    tab.evaluate(CHANGE, ["count", "150"])
    found["150 nodes"] = browser_seconds() - spent
    tab.close()
    return found


def measured(browser: Any, rounds: int, use: Use, graph: FlowGraph, folder: str) -> dict[str, str]:
    """A column of the table."""
    began = time.perf_counter()
    path = graph.to_html(Path(folder, "page.html"))
    written = time.perf_counter() - began
    found = [use(browser, path) for _ in range(rounds)]
    return {
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "write": f"{written:.2f} s",
        **{step: f"{1000 * median(times[step] for times in found):.0f} ms" for step in found[0]},
    }


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    use_threads(1)
    pages: dict[str, dict[str, tuple[Use, Callable[[], FlowGraph]]]] = {
        "lengths": {
            "causal": (lengths, lambda: random_graph(True)),
            "not causal": (lengths, lambda: random_graph(False)),
        },
        "a number": {
            "64 tokens": (question, lambda: random_target_graph(64)),
            "512 tokens": (question, lambda: random_target_graph(512)),
        },
    }
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
        print(f"{stamp()} Chromium {browser.version}.")
        for kind, columns in pages.items():
            made = {}
            for name, (use, graph) in columns.items():
                made[name] = measured(browser, asked.rounds, use, graph(), folder)
                say(f"{kind}, {name}: {made[name]}")
            steps = next(iter(made.values()))
            lines = [[step, *(column[step] for column in made.values())] for step in steps]
            print(f"\nThe page of {kind}:\n\n{table(['', *made], lines)}", flush=True)
        browser.close()


def random_graph(causal: bool) -> FlowGraph:
    """Lengths of 64 tokens."""
    return FlowGraph([random_flow(index, 64, 9, causal) for index in range(30)])


def random_target_graph(tokens: int) -> FlowGraph:
    """Parts of a number, of so many tokens."""
    return FlowGraph(target_flows([9] * 30, tokens, causal=True, dtype=torch.float32))


if __name__ == "__main__":
    main()
