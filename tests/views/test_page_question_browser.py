"""The page of a number in a real Chromium: it opens, selects, shares its state and keeps notes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captum_lig import FlowGraph
from captum_lig.views.page import Known, Promoted, write_page
from captum_lig.views.page.question import strongest_nodes
from tests.helpers.browser import CHROMIUM, NO_CHROMIUM, Opened
from tests.helpers.target_flows import TARGET, target_flows

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
TOKENS = ["the", "Ġkeys", "<b>x</b>", "Ġit", "Ġare", *(f"Ġw{n}" for n in range(60))]
OTHER = ["the", "Ġbooks", *TOKENS[2:]]
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll("#graph button")].map((b) => [b.dataset.key,
    b.getBoundingClientRect()]);
  const found = [];
  for (const [a, p] of boxes) for (const [b, q] of boxes) {
    if (a < b && p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1
      && q.top < p.bottom - 1) found.push([a, b]);
  }
  const graph = document.getElementById("graph").getBoundingClientRect();
  for (const [a, p] of boxes) if (p.left < graph.left || p.right > graph.right
    || p.top < graph.top || p.bottom > graph.bottom) found.push([a, "outside"]);
  return found;
}"""


def made_graph() -> FlowGraph:
    return FlowGraph(target_flows([4, 3, 5], len(TOKENS), first=2), TOKENS)


def known(graph: FlowGraph) -> Known:
    layer, head, position = next(node for node in strongest_nodes(graph, 50) if node[1] is not None)
    row = {"kind": "heads", "layer": layer, "head": head, "position": position}
    likely = [("ĠParis", 2.5)], [("</script>", -1.5)]
    return Known(
        question='Why does it say " are" and not " is"?',
        other_tokens=OTHER,
        value=1.5,
        other_value=-0.5,
        favours=('" are"', '" is"'),
        options=[('" are"', 0.75, 0.25), ("</script>", 0.125, 0.0)],
        sums=2e-4,
        notes=["A note <b>of why</b>."],
        checked=[row | {"part": 1.0, "out": 0.75, "into": 1.25}],
        checked_says=["heads: 0.97"],
        promoted=Promoted(4, {f"{layer}.{head}.{position}": (likely, ([("Ġown", 1.0)], []))}),
    )


@pytest.fixture(scope="module")
def graph() -> FlowGraph:
    return made_graph()


@pytest.fixture(scope="module")
def file(graph: FlowGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(graph, tmp_path_factory.mktemp("page") / "why.html", known=known(graph))


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    made = browser.new_context(
        viewport={"width": 1280, "height": 900}, offline=True, accept_downloads=True
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def tab(context: Any, file: Path) -> Opened:
    return Opened.of(context, file)


@pytest.fixture
def shown(tab: Opened) -> Opened:
    """The one page, as it opens."""
    tab.tab.locator("#reset").click()
    tab.settle()
    return tab


def address(shown: Opened) -> str:
    return str(shown.tab.evaluate("window.location.hash")).removeprefix("#")


def pressed(shown: Opened) -> list[str]:
    return list(
        shown.tab.locator("#graph [aria-pressed=true]").evaluate_all(
            "(all) => all.map((b) => b.dataset.key)"
        )
    )


def node(graph: FlowGraph, head: bool = True) -> tuple[str, tuple[int, Any, int]]:
    found = next(one for one in strongest_nodes(graph, 10) if (one[1] is not None) == head)
    layer, number, position = found
    return f"{layer}.{'mlp' if number is None else number}.{position}", found


def click(shown: Opened, name: str) -> None:
    shown.tab.locator(f'#graph [data-key="{name}"]').click()
    shown.settle()


# --- it opens -------------------------------------------------------------------------------------


def test_the_question_is_on_top(shown: Opened, graph: FlowGraph) -> None:
    assert shown.text("h1") == 'Why does it say " are" and not " is"?'
    words = shown.tab.locator("#own-words .word").all_text_contents()
    assert [word.strip("\u2068\u2069 ") for word in words[:4]] == ["the", "keys", "<b>x</b>", "it"]
    assert shown.tab.locator("#own-words .differs").count() == 1
    assert "“ books” where the text has “ keys” (1)" in _plain(shown.text("#other-words"))
    assert shown.numbers("#facts") == [1.5, -0.5, graph.change]
    assert shown.numbers("#says") == [0.75, 0.25, 0.125, 0.0]
    assert shown.text("#sums").startswith("Sums converged to 2e−4 of the change. That says that")
    assert "A note <b>of why</b>." in shown.text("#facts")
    assert "Certified" not in shown.tab.locator("body").inner_text()
    assert shown.tab.locator("b, img").count() == 0


def _plain(text: str) -> str:
    return text.replace("\u2068", "").replace("\u2069", "")


def test_it_opens_on_few_nodes_and_shows_more(shown: Opened, graph: FlowGraph) -> None:
    assert shown.tab.locator("#nodes tbody tr").count() == 10
    assert shown.tab.locator("#graph .gap").count() > 0
    exact = []
    for layer, head, at in strongest_nodes(graph, 10):
        row = graph.layers[layer - 2]
        part = row.feed_forward_relevance[at] if head is None else row.heads_relevance[head, at]
        exact.append(float(part))
    found = shown.tab.locator("#nodes tbody tr").evaluate_all(
        "(rows) => rows.map((row) => Number(row.querySelector('data').value))"
    )
    assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, exact, strict=True))
    shown.tab.locator("#more").click()
    shown.settle()
    assert address(shown) == "n=20"
    assert shown.tab.locator("#nodes tbody tr").count() == 20
    shown.tab.locator("#count").fill("35")
    shown.settle()
    assert shown.tab.locator("#nodes tbody tr").count() == 35
    assert address(shown) == "n=35"
    shown.tab.locator("#first").select_option("1")
    shown.settle()
    assert address(shown) == "n=35&l=3-4"
    layers = {int(name.split()[-1].split(".")[0]) for name in
              shown.tab.locator("#nodes tbody td:first-child").all_inner_texts()}  # fmt: skip
    assert layers == {3, 4}


@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("state", ["", "n=60&s=t7", "n=150"])
def test_nothing_overlaps_or_sticks_out(tab: Opened, width: int, state: str) -> None:
    tab.tab.set_viewport_size({"width": width, "height": 900})
    tab.tab.evaluate(f"window.location.hash = '{state}'")
    tab.tab.wait_for_timeout(50)
    tab.settle()
    assert tab.tab.evaluate(WIDER) == 0
    assert tab.tab.evaluate(OVERLAPS) == []
    panel = tab.tab.locator("#panel").bounding_box()
    work = tab.tab.locator(".work > section").bounding_box()
    beside = panel["x"] >= work["x"] + work["width"]
    below = panel["y"] >= work["y"] + work["height"]
    assert below if width == 420 else beside
    tab.tab.set_viewport_size({"width": 1280, "height": 900})
    tab.settle()


# --- selecting ------------------------------------------------------------------------------------


def test_a_head_says_what_it_does(shown: Opened, graph: FlowGraph) -> None:
    name, (layer, head, at) = node(graph)
    click(shown, name)
    assert pressed(shown) == [name]
    assert address(shown) == f"s={name}"
    assert shown.text("#sentence").startswith(f"Head {layer}.{head} ")
    row = graph.layers[layer - 2]
    part, share, read, _, pattern, _ = shown.numbers("#panel table:first-of-type")[:6]
    assert part == pytest.approx(float(row.heads_relevance[head, at]), rel=1e-6)
    assert share == pytest.approx(part / 2, rel=1e-6)
    assert read + pattern == pytest.approx(part, rel=1e-5)
    assert read == pytest.approx(float(row.attention_value[head, at].sum()), abs=1e-5)
    text = shown.text("#panel")
    for title in ("Reads from", "Goes to", "Patched", "Promotes in the vocabulary", "Note"):
        assert title in text
    assert "“ Paris”" in _plain(shown.text("#promotes"))
    assert "</script>" in shown.text("#promotes")
    shown.tab.get_by_role("button", name="in the text", exact=True).click()
    shown.settle()
    assert "“ own”" in _plain(shown.text("#promotes"))
    click(shown, name)  # a second time lets go
    assert address(shown) == ""
    assert "Nothing selected" in shown.text("#panel-title")


def test_an_mlp_a_word_an_edge_and_the_end(shown: Opened, graph: FlowGraph) -> None:
    name, (layer, _, _) = node(graph, head=False)
    click(shown, name)
    assert shown.text("#sentence").startswith(f"MLP {layer} brings")
    assert "Not there: it was worked out for the strongest" in shown.text("#promotes")
    shown.tab.locator("#own-words .word").nth(1).click()
    shown.settle()
    assert address(shown) == "s=t1"
    assert "In the other text it is “ books”." in _plain(shown.text("#panel"))
    head, (_, _, at) = node(graph)
    click(shown, head)
    shown.tab.locator("#panel h3:text('Reads from') + table button").first.click()
    shown.settle()
    assert address(shown).startswith(f"s={head}<") or address(shown).startswith(f"s={head}%3C")
    assert shown.tab.evaluate("document.activeElement.id") == "panel"  # it is read anew
    assert "(query and key)" in shown.text("#sentence")
    assert f"({at})" in shown.text("#sentence")
    click(shown, "end")
    assert TARGET in shown.text("#sentence")


def test_folded_tokens_open(shown: Opened) -> None:
    shown.tab.locator("#graph .gap").first.click()
    shown.settle()
    assert address(shown).startswith("c=")
    opened = {f"t{at}" for at in address(shown).removeprefix("c=").split("_")}
    columns = shown.tab.locator("#graph .column")
    assert opened <= set(columns.evaluate_all("(all) => all.map((one) => one.dataset.key)"))
    assert shown.tab.evaluate(OVERLAPS) == []


# --- the address ----------------------------------------------------------------------------------


def test_back_works_and_a_view_can_be_shared(
    shown: Opened, context: Any, file: Path, graph: FlowGraph
) -> None:
    first, _ = node(graph)
    second, _ = node(graph, head=False)
    click(shown, first)
    click(shown, second)
    shown.tab.go_back()
    shown.settle()
    assert pressed(shown) == [first]
    shown.tab.go_forward()
    shown.settle()
    assert pressed(shown) == [second]
    other = Opened.of(context, file, f"#s={first}&n=25")
    assert pressed(other) == [first]
    assert other.text("#count-text") == "25"
    assert other.text("#sentence").startswith("Head")
    assert other.complaints == []
    other.tab.close()


# --- keys -----------------------------------------------------------------------------------------


def test_the_graph_can_be_used_without_a_pointer(shown: Opened) -> None:
    keyboard = shown.tab.keyboard
    assert shown.tab.locator("#graph button[tabindex='0']").count() == 1
    shown.tab.locator("#reset").focus()
    keyboard.press("Tab")
    key = "document.activeElement.dataset.key"
    assert shown.tab.evaluate(key) is not None
    seen = set()
    for way in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        keyboard.press(way)
        seen.add(shown.tab.evaluate(key))
    assert len(seen) > 3
    here = shown.tab.evaluate(key)
    assert shown.tab.evaluate("document.activeElement.getAttribute('aria-label').length") > 5
    keyboard.press("Enter")
    shown.settle()
    if not here.startswith("gap"):
        assert pressed(shown) == [here]
        assert shown.tab.evaluate(key) == here  # what has the focus keeps it
        assert (
            shown.tab.locator("#said").text_content()
            == shown.tab.locator("#sentence").text_content()
        )
    keyboard.press("Escape")
    shown.settle()
    assert pressed(shown) == []
    assert shown.tab.evaluate(
        "[...document.querySelectorAll('.scroll')].every((one) => one.tabIndex === 0)"
    )


def test_one_word_is_reached_by_tab_and_the_graph_can_be_skipped_to(shown: Opened) -> None:
    assert shown.tab.locator("#own-words [tabindex='0']").count() == 1
    shown.tab.locator("#own-words [tabindex='0']").focus()
    for key in ("Home", "ArrowLeft", "ArrowRight", "ArrowRight", "Enter"):
        shown.tab.keyboard.press(key)
    shown.settle()
    assert address(shown) == "s=t2"
    shown.tab.keyboard.press("End")
    at = "document.activeElement.dataset.at"
    assert shown.tab.evaluate(at) == str(len(TOKENS) - 1)
    shown.tab.locator(".skip").focus()
    shown.tab.keyboard.press("Enter")
    assert shown.tab.evaluate("document.activeElement.closest('#graph') !== null")
    assert address(shown) == "s=t2"


# --- notes and groups -----------------------------------------------------------------------------


def test_notes_and_groups_stay_in_a_saved_copy(
    browser: Any, file: Path, graph: FlowGraph, tmp_path: Path
) -> None:
    attack = "</script><script>hacked=1</script><b>bold</b>"
    context = browser.new_context(offline=True, accept_downloads=True)
    name, _ = node(graph)
    other, _ = node(graph, head=False)
    given = Opened.of(context, file, f"#s={name}")
    given.tab.locator("#group").fill(attack)
    given.tab.locator("#note").fill(attack)
    given.tab.get_by_role("button", name="Add").click()  # while the note has the focus
    given.settle()
    click(given, other)
    given.tab.locator("#group").fill(attack)
    given.tab.locator("#group").press("Enter")
    given.settle()
    with given.tab.expect_download() as download:
        given.tab.locator("#save").click()
    copy = tmp_path / download.value.suggested_filename
    assert copy.name == "why.html"
    download.value.save_as(copy)
    assert given.complaints == []
    assert [url.split("/")[-1].split("#")[0] for url in given.requests
            if url != "data:,"] == ["why.html"]  # fmt: skip
    again = Opened.of(context, copy, f"#s={name}")
    assert again.tab.locator("#note").input_value() == attack
    assert attack in _plain(again.text("#notes"))
    again.tab.locator("#notes button", has_text="group").click()
    again.settle()
    assert again.text("#sentence").startswith("2 nodes with")
    assert again.tab.locator("#graph .marked").count() == 2
    assert again.tab.evaluate("typeof hacked") == "undefined"
    assert again.tab.locator("b").count() == 0
    assert again.complaints == []
    click(again, name)
    again.tab.get_by_role("button", name="take out").click()
    again.settle()
    assert again.tab.locator("#graph .marked").count() == 0
    context.close()


# --- colours --------------------------------------------------------------------------------------


def test_light_and_dark(shown: Opened) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    ink = "getComputedStyle(document.querySelector('#graph .node')).borderTopColor"
    shown.tab.emulate_media(color_scheme="light")
    light = [shown.tab.evaluate(one) for one in (paper, ink)]
    shown.tab.emulate_media(color_scheme="dark")
    dark = [shown.tab.evaluate(one) for one in (paper, ink)]
    assert (light[0], dark[0]) == ("rgb(255, 255, 255)", "rgb(21, 24, 28)")
    assert light[1] != dark[1]
    shown.tab.locator("#theme").select_option("light")
    assert [shown.tab.evaluate(one) for one in (paper, ink)] == light
    shown.tab.locator("#theme").select_option("light dark")
    shown.tab.emulate_media(color_scheme="light")


def test_nothing_was_complained_of_or_asked_for(tab: Opened) -> None:
    """Over all that the tests above did with the one page."""
    assert tab.complaints == []
    assert {url.split("/")[-1].split("#")[0] for url in tab.requests if url != "data:,"} == {
        "why.html"
    }


@pytest.mark.parametrize("kind", ["one token", "words", "no MLP", "no change", "no heads"])
def test_graphs_of_other_kinds_open(context: Any, tmp_path: Path, kind: str) -> None:
    given = {
        "one token": lambda: FlowGraph(target_flows(tokens=1), ["a"]),
        "words": lambda: FlowGraph(target_flows(), list("abcde")).merge_tokens([0, 0, 1, 1, 2]),
        "no MLP": lambda: FlowGraph(target_flows(mlp=False), list("abcde")),
        "no change": lambda: FlowGraph(target_flows(change=0.0), list("abcde")),
        "no heads": lambda: FlowGraph(target_flows(heads=[0, 0]), list("abcde")),
    }[kind]()
    shown = Opened.of(context, given.to_html(tmp_path / "page.html"))
    for name in ("t0", "end"):
        shown.tab.evaluate(f"window.location.hash = 's={name}'")
        shown.tab.wait_for_timeout(30)
        assert shown.text("#sentence")
    assert shown.complaints == []
    shown.tab.close()
