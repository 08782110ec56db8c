"""The page of lengths, opened in a browser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from captum_lig import FlowGraph
from tests.helpers.browser import Opened

PHONE, LAPTOP, WIDE = (390, 844), (1280, 800), (1920, 1080)
RULES = ["conserve", "chain", "product"]


class Shown(Opened):
    """The page of lengths."""

    def choose(self, **choices: object) -> None:
        for name, value in choices.items():
            control = self.tab.locator(f"#{name.replace('_', '-')}")
            if control.get_attribute("type") == "range":
                control.fill(str(value))
            elif control.get_attribute("type") == "checkbox":
                control.set_checked(bool(value))
            else:
                control.select_option(str(value))
        self.settle()

    def lines(self) -> list[tuple[int, int, int, list[float]]]:
        """Rows of the table of lines: index of the layer, target, source, numbers."""
        rows = self.tab.locator("#table tbody tr").evaluate_all(
            """(rows) => rows.map((row) => [
                 row.cells[0].textContent,
                 ...[...row.querySelectorAll(".place")].map((place) => place.textContent),
                 [...row.querySelectorAll("data")].map((d) => Number(d.value))])"""
        )
        return [(int(a), int(b), int(c), found) for a, b, c, found in rows]

    def routes(self) -> list[tuple[float, str]]:
        texts = self.tab.locator("#routes li").all_inner_texts()
        return list(zip(self.numbers("#routes"), texts, strict=True))

    def picture(self, canvas: str) -> str:
        return str(self.tab.locator(canvas).evaluate("(canvas) => canvas.toDataURL()"))

    def becomes(self, canvas: str, picture: str) -> None:
        """Wait until a canvas shows a picture: it hears of the system's theme later."""
        drawn = "([canvas, picture]) => document.querySelector(canvas).toDataURL() === picture"
        self.tab.wait_for_function(drawn, arg=[canvas, picture])

    def place(self, column: int, token: int, columns: int) -> tuple[float, float]:
        """Where on the screen a token of a column is, from its name's row."""
        box = self.tab.locator("#marks").bounding_box()
        row = self.tab.locator(".names.left li").nth(token).bounding_box()
        x = box["x"] + 18 + column * (box["width"] - 36) / (columns - 1)
        return x, row["y"] + row["height"] / 2


Opener = Callable[..., Shown]


def place_of(given: FlowGraph, index: int) -> int:
    return given.indices.index(index)


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)


def same(found: Sequence[float], expected: Sequence[float]) -> bool:
    """As many numbers, and all of them close."""
    return len(found) == len(expected) and all(map(close, found, expected))
