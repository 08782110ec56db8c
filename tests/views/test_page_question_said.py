"""What the page of a number says in sentences, of graphs in which they could be false."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_lig import FlowGraph
from captum_lig.views.page import Known, page
from tests.helpers.page_script import NODE, run_question
from tests.helpers.target_flows import target_flows

TOKENS = ["the", "Ġkeys", "Ġto", "Ġit", "Ġare"]
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node to run the script in")


def test_what_the_error_of_sums_is_a_share_of(tmp_path: Path) -> None:
    graph, still = (FlowGraph(target_flows(change=change), TOKENS) for change in (2.0, 0.0))
    found = run_question(page(graph, known=Known(sums=3.5e-2)), tmp_path, [])
    assert found["sums_said"].startswith("Sums converged to 4e−2 of the change. That")
    found = run_question(page(still, known=Known(sums=2e-4)), tmp_path, [])
    assert found["sums_said"].startswith("Sums converged to 2e−4 of the sizes of the parts. That")
    # Another number: of each node, not of all words at a depth.
    found = run_question(page(graph), tmp_path, [])
    assert found["sums_said"].startswith("What goes into a node adds up to its part, to within ")
    assert (
        "of the change (of the sizes of the parts where these cancel). That" in found["sums_said"]
    )


def test_amounts_where_the_named_sources_are_not_all(tmp_path: Path) -> None:
    """The sources of a sentence have the sign of the part, and add up to what it says."""
    graph = FlowGraph(target_flows(), TOKENS)
    found = run_question(page(graph), tmp_path, [])
    plain = amounts = 0
    for (_, head, _, value), said, edges in zip(
        found["nodes"], found["said"][0], found["into"], strict=True
    ):
        if head is None:
            continue
        own = [edge for edge in edges if edge[1] * value > 0]
        named = own[:1] if own[0][1] / value >= 0.8 else own[:2]
        brought = sum(edge[1] for edge in named)
        assert all(f"({source})" in said for source, _, _ in named)
        if abs(brought - value) <= 0.05 * abs(value):
            plain += 1
            assert "from the others" not in said
        else:
            amounts += 1
            for number in [*(edge[1] for edge in named), value - brought]:
                sign = "−" if number < 0 else "+"
                assert f"{sign}{float(f'{abs(number):.3g}'):g} from " in said
    assert plain + amounts > 20
    assert amounts > 5


def test_several_tokens_that_hold_more_than_half(tmp_path: Path) -> None:
    graph = FlowGraph(target_flows([2], change=0.1), TOKENS)
    tokens = graph.relevance().tokens / 0.1
    assert [int((row > 0.5).sum()) for row in tokens] == [3, 2]
    found = run_question(page(graph), tmp_path, [])
    assert found["held_said"].endswith("held by each of several tokens to the end.")
    for at, said in enumerate(found["said"][1]):
        assert ("holds more than half" in said) == bool((tokens[:, at] > 0.5).any())
