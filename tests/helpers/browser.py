"""A real Chromium for tests of pages, and what a page in it shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser"])), None)
NO_CHROMIUM = "there is no Chromium to open the page in: apt-get install chromium"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where playwright is not there to drive it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page in the browser, and all that it complained about or asked for."""

    tab: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, context: Any, path: Path, fragment: str = "") -> Opened:
        """Open a file."""
        opened = cls(context.new_page())
        opened.tab.set_default_timeout(20_000)
        opened.tab.on("console", lambda message: opened.complaints.append(message.text))
        opened.tab.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.tab.on("request", lambda request: opened.requests.append(request.url))
        opened.tab.goto(path.as_uri() + fragment)
        opened.tab.locator("#summary:not(:empty)").wait_for()
        return opened

    def settle(self) -> None:
        """Until what was asked for is drawn: the page draws once a frame."""
        self.tab.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(self.tab.locator(selector).inner_text())

    def numbers(self, selector: str) -> list[float]:
        """In full, as they stand behind what a person reads."""
        found = self.tab.locator(f"{selector} data").evaluate_all(
            "(all) => all.map((d) => d.value)"
        )
        return [float(value) for value in found]
