"""Relevances as Captum's ``visualize_text`` shows them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from captum.attr import visualization

from captum_lig import FlowGraph, LigError
from captum_lig.views.captum_records import captum_record
from tests.helpers.target_flows import target_flows

TOKENS = ["Ġa", "<img src=x onerror=alert(1)>", "[CLS]", "<s>", "e&f"]


class Marks(HTMLParser):
    """The words that are marked, their colours, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.colors: list[str] = []
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "mark":
            style = dict(attributes)["style"] or ""
            self.colors += re.findall(r"background-color: (hsl\([^)]*\))", style)
            self.words.append("")
        self.inside = self.inside or tag == "mark"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "mark"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.words[-1] += data
        else:
            self.cells.append(data)


def test_a_trace_as_captum_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("IPython", reason="visualize_text needs IPython")
    graph = FlowGraph(target_flows(), TOKENS)
    trace = graph.relevance()
    records = [
        captum_record(
            trace.tokens[depth],
            trace.labels,
            predicted='" <b>Paris"',
            probability=0.77,
            target=graph.target or "",
            delta=1e-4,
        )
        for depth in (0, -1)
    ]
    shown = Marks(visualization.visualize_text(records).data)
    capsys.readouterr()
    assert [word.strip() for word in shown.words] == 2 * [
        "␣a",
        "<img␣src=x␣onerror=alert(1)>",
        "[CLS]",
        "<s>",
        "e&f",
    ]
    assert shown.tags <= {"table", "tr", "th", "td", "text", "b", "div", "span", "mark", "font"}
    assert shown.cells.count('" <b>Paris" (0.77)') == 2
    assert shown.cells.count(f"{graph.change:.2f}") == 2  # what all tokens have, at each depth
    assert shown.cells.count(graph.target) == 2


def test_signs_have_their_colours_and_the_largest_is_full() -> None:
    record = captum_record([0.5, -2.0, 0.0, 1.0, 1e-9], TOKENS)
    assert record.word_attributions.tolist() == [0.25, -1.0, 0.0, 0.5, 5e-10]
    assert record.attr_score == pytest.approx(-0.5)
    words = visualization.format_word_importances(record.raw_input_ids, record.word_attributions)
    green, red, none, half, _ = Marks(words).colors
    assert (green, red) == ("hsl(120, 75%, 88%)", "hsl(0, 75%, 60%)")
    assert (none, half) == ("hsl(0, 75%, 100%)", "hsl(120, 75%, 75%)")
    zero = captum_record(torch.zeros(5), TOKENS)
    assert zero.word_attributions.tolist() == [0.0] * 5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LigError, match=r"shape \(1, 5\) and 5 tokens"):
        captum_record(torch.zeros(1, 5), TOKENS)
    with pytest.raises(LigError, match="not finite"):
        captum_record([0.0, float("nan"), 0, 0, 0], TOKENS)
