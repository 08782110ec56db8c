"""One browser for all tests of pages, and the page of lengths in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captum_lig import FlowGraph
from tests.helpers.browser import chromium
from tests.helpers.lengths_page import LAPTOP, Opener, Shown


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Opener]:
    contexts = []

    def opened(
        given: FlowGraph, title: str | None = None, size: tuple[int, int] = LAPTOP, **options: Any
    ) -> Shown:
        rule, hide = options.pop("rule", "chain"), options.pop("hide_first_token", False)
        kind = options.pop("kind", None)
        path = given.to_html(tmp_path / "flow.html", title, rule, kind=kind, hide_first_token=hide)
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, offline=True, **options)
        contexts.append(context)
        shown = Shown.of(context, path)
        return shown

    yield opened
    for context in contexts:
        context.close()
