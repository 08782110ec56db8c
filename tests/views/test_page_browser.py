"""The page in a real Chromium: what it shows and says is what the graph says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.flow.tokens import readable_token
from captum_lig.graph import Route
from tests.helpers.browser import CHROMIUM, NO_CHROMIUM
from tests.helpers.lengths_page import (
    LAPTOP,
    PHONE,
    RULES,
    WIDE,
    Opener,
    Shown,
    close,
    place_of,
    same,
)
from tests.helpers.models import tiny_bert
from tests.helpers.models import tokens as text_of
from tests.helpers.pages import graph
from tests.helpers.synthetic import ATTACK, flows, layer_flow

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)

EDGES = 3 * 5 * 5
"""Of the graph that is shown: layers, targets and sources."""


# --- it opens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PHONE, LAPTOP, WIDE])
def test_opens_without_a_complaint_or_a_request(show: Opener, size: tuple[int, int]) -> None:
    shown = show(graph(tokens=12, heads=2, influence=True), "a title", size)
    assert shown.text("h1") == "a title"
    shown.tab.locator("#controls").evaluate("(controls) => { controls.open = true; }")
    for name in ("boundary", "rule", "head", "target"):
        for option in shown.tab.locator(f"#{name} option").all():
            shown.choose(**{name: option.get_attribute("value")})
    assert shown.complaints == []
    assert [url.split("/")[-1] for url in shown.requests if url != "data:,"] == ["flow.html"]
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert shown.tab.evaluate(wider) == 0  # nothing sticks out of the page


@pytest.mark.parametrize("kind", ["one token", "pruned", "part", "words", "read back", "heads"])
def test_graphs_of_other_kinds_open(show: Opener, tmp_path: Path, kind: str) -> None:
    given = graph(tokens=4)
    few, many = layer_flow(0, 4, 2, baseline="zero"), layer_flow(1, 4, 5, baseline="zero")
    made = {
        "one token": lambda: FlowGraph(layer_flow(tokens=1, baseline="zero"), ["a"]),
        "pruned": lambda: given.prune(top_k=1),
        "part": lambda: given.subgraph([3, 1], layers=(3, 4), heads=[1]),
        "words": lambda: given.merge_tokens([0, 0, 1, 1]),
        "read back": lambda: FlowGraph.load(given.save(tmp_path / "graph.json")),
        "heads": lambda: FlowGraph([few, many], list("abcd")),
    }[kind]()
    shown = show(made)
    shown.choose(threshold=0, target=0)
    assert shown.lines()
    for index, target, source, (share, *_) in shown.lines():
        shares = made.layers[place_of(made, index)].shares("chain", False)
        assert close(share, float(shares.matrix[target, source]))
    shown.choose(boundary="attention", head=1)
    shown.tab.locator("#flow").focus()
    shown.tab.keyboard.press("ArrowLeft")
    assert shown.complaints == []


def test_what_is_hostile_shows_as_text(show: Opener) -> None:
    given = FlowGraph(flows(2, len(ATTACK), baseline="zero"), ATTACK)
    shown = show(given, "</title><script>hacked=1</script>")
    labels = shown.tab.locator(".names.left li").all_text_contents()
    assert labels == [readable_token(token) for token in ATTACK]
    assert labels[0] == ATTACK[0]
    assert labels[ATTACK.index("\u202e")] == "\\u202e"
    assert shown.text("h1") == "</title><script>hacked=1</script>"
    for token in range(len(ATTACK)):
        shown.choose(target=token)
        assert shown.text("#pinned-title bdi") == labels[token]
        assert labels[token] in shown.tab.locator("#target option:checked").text_content()
    assert shown.tab.evaluate("typeof hacked") == "undefined"
    assert shown.tab.locator("img, bdi b, script").count() == 3  # the page's own scripts
    assert shown.complaints == []


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_lines_of_the_composed_layers(show: Opener, rule: str) -> None:
    given = graph()
    shown = show(given, rule=rule)
    assert shown.tab.locator("#rule").input_value() == rule
    shown.choose(threshold=0, boundary="composed")
    found = shown.lines()
    assert len(found) == 3 * 5 * 5
    for index, target, source, (share, value) in found:
        layer = given.layers[place_of(given, index)]
        shares = layer.shares(rule, False)
        assert close(share, float(shares.matrix[target, source]))
        if rule != "product":
            total = layer.chain_sum if rule == "chain" else layer.mlp_sum
            assert close(value, share * float(total[target]))
        else:
            exact = layer.attention[:, target, source].double() @ layer.mlp[target].double()
            assert close(value, float(exact))
    strengths = [abs(numbers[0]) for *_, numbers in found]
    assert strengths == sorted(strengths, reverse=True)

    shown.choose(head=1)
    assert len(shown.lines()) == EDGES
    for index, target, source, (share, _) in shown.lines():
        heads = given.layers[place_of(given, index)].shares(rule, False).heads
        assert close(share, float(heads[1, target, source]))
    assert "head 1" in shown.text("#summary")


def test_lines_of_a_chain_whose_mlp_boundary_starts_at_zero(show: Opener) -> None:
    """There the chain's rows do not add up to those of the mlp boundary."""
    model = tiny_bert(dtype=torch.float32)
    made = LayerFlowIG(model).attribute(text_of(model, 1, 4), "zero", mlp_start="zero")
    given = FlowGraph(made, list("abcd"))
    (first, *_) = given.layers
    assert ((first.chain_sum - first.mlp_sum).abs() > 0.01 * first.mlp_sum).any()
    shown = show(given, rule="chain")
    shown.choose(threshold=0)
    found = shown.lines()
    assert len(found) == 2 * 4 * 4
    for index, target, source, (share, value) in found:
        layer = given.layers[place_of(given, index)]
        assert close(share, float(layer.shares("chain", False).matrix[target, source]))
        assert close(value, share * float(layer.chain_sum[target]))


def test_lines_of_the_attention_boundary(show: Opener) -> None:
    given = graph()
    shown = show(given)
    shown.choose(boundary="attention", threshold=0, head=2)
    assert len(shown.lines()) == EDGES
    for index, target, source, (share, value) in shown.lines():
        layer = given.layers[place_of(given, index)]
        exact = layer.attention[2, target, source].double()
        assert close(share, float(exact / layer.attention_sum[2, target]))
        assert math.isclose(value, float(exact), rel_tol=1e-6)
    shown.choose(head="")
    assert len(shown.lines()) == EDGES
    for index, target, source, (share, _) in shown.lines():
        layer = given.layers[place_of(given, index)]
        exact = layer.attention[:, target, source].double().sum()
        assert close(share, float(exact / layer.attention_sum[:, target].sum()))
    assert "attention boundary" in shown.text("#summary")


def test_lines_of_the_direct_layers(show: Opener) -> None:
    given = graph()
    shown = show(given)
    shown.choose(boundary="direct", threshold=0)
    assert shown.tab.locator("#head").is_disabled()
    assert len(shown.lines()) == EDGES
    for index, target, source, (share, value) in shown.lines():
        layer = given.layers[place_of(given, index)]
        assert layer.direct is not None
        assert layer.direct_total is not None
        exact = layer.direct[target, source].double()
        assert close(share, float(exact / layer.direct_total[target]))
        assert math.isclose(value, float(exact), rel_tol=1e-6)


def test_lines_of_influence(show: Opener) -> None:
    """Lengths, as shares of their row's sum, without a sign anywhere."""
    given = graph(influence=True)
    shown = show(given)
    assert shown.tab.locator("#boundary").input_value() == "influence"  # where it is held
    assert shown.tab.locator("#head").is_disabled()
    shown.choose(threshold=0)
    found = shown.lines()
    assert len(found) == 3 * 5 * 5
    for index, target, source, (share, length) in found:
        row = given.layers[place_of(given, index)].influence[target].tolist()
        assert math.isclose(share, row[source] / math.fsum(row), rel_tol=1e-12)
        assert math.isclose(length, row[source], rel_tol=1e-12)
    strengths = [numbers[0] for *_, numbers in found]
    assert strengths == sorted(strengths, reverse=True)
    texts = " ".join(shown.tab.locator("#table data").all_inner_texts())
    assert "+" not in texts
    assert "Length" in shown.text("#table thead")
    assert "lines of influence, how much each source moves a target" in shown.text("#summary")
    assert "of the sum of all lengths" in shown.text("#summary")
    assert "against it" not in shown.text("#legend")

    row = given.layers[1].influence[0].tolist()
    left, right = shown.place(1, 0, 4), shown.place(2, 0, 4)
    shown.tab.mouse.move((left[0] + right[0]) / 2, left[1])
    share, length = shown.numbers("#tip")
    assert math.isclose(share, row[0] / math.fsum(row), rel_tol=1e-12)
    assert math.isclose(length, row[0], rel_tol=1e-12)
    assert "lengths do not add up to a total" in shown.text("#tip")
    shown.tab.mouse.move(0, 0)
    shown.choose(boundary="composed")
    left, right = shown.place(1, 0, 4), shown.place(2, 0, 4)  # what is above has other lines now
    shown.tab.mouse.move((left[0] + right[0]) / 2, left[1])
    assert math.isclose(shown.numbers("#tip")[-1], share, rel_tol=1e-12)  # beside the composed
    shown.tab.locator("#maps").focus()
    shown.choose(map_layer=3)
    shown.tab.keyboard.press("ArrowDown")  # the first cell
    assert math.isclose(shown.numbers("#map-cell")[-1], share, rel_tol=1e-12)
    assert shown.tab.locator("#maps canvas").count() == 4


def test_influence_misses_the_change_by_so_much(show: Opener) -> None:
    shown = show(graph(influence=True))
    shown.choose(target=2)
    assert "influence 1e−5" in shown.text("#pinned-text")


def test_without_influence_it_cannot_be_chosen(show: Opener) -> None:
    shown = show(graph())
    assert shown.tab.locator("#boundary option[value=influence]").is_disabled()
    assert shown.tab.locator("#maps canvas").count() == 3


@pytest.mark.parametrize("kind", ["composed", "direct", "influence"])
def test_it_opens_with_the_map_that_is_asked_for(show: Opener, kind: str) -> None:
    assert show(graph(influence=True), kind=kind).tab.locator("#boundary").input_value() == kind


def test_threshold_range_and_own_lines(show: Opener) -> None:
    given = graph()
    shown = show(given)
    before = shown.picture("#lines")
    shown.choose(threshold=70)
    least = 10 ** (-3 + 3 * 69 / 99)
    matrices = [layer.shares("chain", False).matrix for layer in given.layers]
    expected = sum(int((matrix.abs() >= least).sum()) for matrix in matrices)
    assert len(shown.lines()) == expected
    assert shown.text("#summary").startswith(f"{expected} lines")
    assert shown.picture("#lines") != before
    shown.choose(threshold=0, own=False)
    assert len(shown.lines()) == 3 * 5 * 4
    shown.choose(first=3, last=3)
    assert {index for index, *_ in shown.lines()} == {3}
    shown.choose(first=4)
    assert shown.tab.locator("#last").input_value() == "4"
    shown.tab.locator("#reset").click()
    shown.settle()
    assert shown.tab.locator("#first").input_value() == "2"
    assert shown.picture("#lines") == before


# --- the pinned token -----------------------------------------------------------------------------


def told(route: Route) -> str:
    """A route as the page words it."""
    text = ""
    stays: list[int] = []

    def flush() -> str:
        if not stays:
            return ""
        ends = str(stays[0]) if len(stays) == 1 else f"{stays[0]}–{stays[-1]}"
        stays.clear()
        return f"stays in {ends} "

    text = f"{route.labels[0]} {route.steps[0].source} "
    for step, label in zip(route.steps, route.labels[1:], strict=True):
        if step.head is None:
            stays.append(step.layer)
            continue
        text += flush() + f"→ layer {step.layer} head {step.head} → {label} {step.target} "
    return " ".join((text + flush()).split())


def check_routes(shown: Shown, expected: list[Route]) -> None:
    found = shown.routes()
    assert len(found) == len(expected)
    for (share, text), route in zip(found, expected, strict=True):
        assert close(share, route.share)
        assert " ".join(text.split()).endswith(told(route))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_routes_are_those_of_the_graph(show: Opener, rule: str, seed: int) -> None:
    given = graph(layers=4, seed=seed)
    shown = show(given, rule=rule)
    shown.choose(target=4)
    every = [r for source in range(5) for r in given.paths(source, 4, 20, rule=rule)]
    every.sort(key=lambda route: -abs(route.share))
    check_routes(shown, every[:5])
    shown.choose(count=20)
    check_routes(shown, every[:20])
    shown.choose(source=1, count=10)
    check_routes(shown, given.paths(1, 4, 10, rule=rule))
    shown.choose(first=3, last=4)
    check_routes(shown, given.paths(1, 4, 10, rule=rule, layers=(3, 4)))


def test_routes_through_a_token_in_the_middle(show: Opener) -> None:
    given = graph(layers=4)
    shown = show(given)
    shown.choose(target=2)
    shown.choose(column=2, source=0, count=20)
    low = given.paths(0, 2, 20, layers=(2, 3))
    high = [route for end in range(5) for route in given.paths(2, end, 20, layers=(4, 5))]
    both = [
        Route(a.share * b.share, (*a.steps, *b.steps), (*a.labels, *b.labels[1:]))
        for a in low
        for b in high
    ]
    both.sort(key=lambda route: -abs(route.share))
    check_routes(shown, both[:20])


@pytest.mark.parametrize("rule", RULES)
def test_what_a_pinned_token_carries(show: Opener, rule: str) -> None:
    given = graph(layers=4)
    shown = show(given, rule=rule)
    shown.choose(target=3, boundary="composed")
    shown.choose(column=2, threshold=0, last=4)
    below = given.relevance(target=3, rule=rule, layers=(2, 3))
    above = given.contributions(3, rule=rule, layers=(4, 4))
    order = sorted(range(5), key=lambda token: -abs(below.tokens[0, token]))
    *shares, total = shown.numbers("#comes-from")
    assert same(shares, [float(below.tokens[0, token]) for token in order])
    assert close(total, float(below.tokens[0].sum()))
    order = sorted(range(5), key=lambda token: -abs(above.tokens[-1, token]))
    exact = [float(above.tokens[-1, token]) for token in order if above.tokens[-1, token] != 0]
    assert same(shown.numbers("#goes-to"), exact)

    seen = set()
    for index, target, source, (share, _, weight) in shown.lines():
        place = place_of(given, index)
        if place < 2:  # what goes to the line's source by way of its target
            exact_weight = share * float(below.tokens[place + 1, target])
        else:
            exact_weight = share * float(above.tokens[place - 2, source])
        assert close(weight, exact_weight)
        seen.add(place)
    assert seen == {0, 1, 2}


def test_a_click_pins_and_a_second_one_lets_go(show: Opener) -> None:
    shown = show(graph())
    plain, free = shown.picture("#lines"), shown.picture("#marks")
    assert shown.text("#pinned-title") == "Nothing pinned"
    x, y = shown.place(2, 1, 4)
    shown.tab.mouse.click(x, y)
    shown.settle()
    assert shown.text("#pinned-title") == "b 1 entering layer 4"
    assert shown.tab.locator("#target").input_value() == "1"
    assert shown.tab.locator("#column").input_value() == "2"
    assert shown.picture("#lines") != plain
    shown.tab.mouse.click(*shown.place(2, 1, 4))  # what is above has other lines now
    shown.tab.mouse.move(0, 0)
    shown.settle()
    assert shown.text("#pinned-title") == "Nothing pinned"
    assert (shown.picture("#lines"), shown.picture("#marks")) == (plain, free)


def test_a_route_can_be_shown_alone(show: Opener) -> None:
    shown = show(graph())
    shown.choose(target=0)
    before = shown.picture("#marks")
    button = shown.tab.locator("#routes button").nth(1)
    button.focus()
    shown.tab.keyboard.press("Enter")
    shown.settle()
    assert button.get_attribute("aria-pressed") == "true"
    assert button.evaluate("(button) => button === document.activeElement")
    assert shown.picture("#marks") != before
    shown.tab.keyboard.press("Enter")
    shown.settle()
    assert shown.picture("#marks") == before


# --- pointer and keys -----------------------------------------------------------------------------


def test_pointing_shows_numbers(show: Opener) -> None:
    given = graph()
    shown = show(given)
    shown.choose(threshold=0)
    tip = shown.tab.locator("#tip")
    assert tip.is_hidden()
    shown.tab.mouse.move(*shown.place(2, 3, 4))
    assert shown.text("#tip").startswith("d 3 entering layer 4")
    layer = given.layers[1]
    row = layer.shares("chain", False).matrix[3]
    total, error, *shares = shown.numbers("#tip")
    assert close(total, float(layer.mlp_sum[3]))
    assert close(error, max(float(errors[..., 3].max()) for errors in layer.errors.values()))
    assert same(shares, sorted(row.tolist(), key=lambda share: -abs(share)))

    left, right = shown.place(1, 0, 4), shown.place(2, 0, 4)
    shown.tab.mouse.move((left[0] + right[0]) / 2, left[1])  # the first token's line to itself
    assert shown.text("#tip").startswith("layer 3: a 0 → a 0")
    own = layer.shares("chain", False)
    share, value, *parts = shown.numbers("#tip")
    assert close(share, float(own.matrix[0, 0]))
    assert close(value, share * float(layer.chain_sum[0]))
    heads = sorted(own.heads[:, 0, 0].tolist(), key=lambda part: -abs(part))
    exact = [*heads, float(own.residual[0]), float(layer.direct[0, 0] / layer.direct_total[0])]
    assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(parts, exact, strict=True))
    shown.tab.mouse.click((left[0] + right[0]) / 2, left[1])
    shown.settle()
    assert shown.text("#pinned-title") == "Nothing pinned"  # a line is no token
    shown.tab.mouse.move(0, 0)
    assert tip.is_hidden()


def test_the_flow_can_be_used_without_a_pointer(show: Opener) -> None:
    shown = show(graph())
    keyboard = shown.tab.keyboard
    for _ in range(40):
        keyboard.press("Tab")
        if shown.tab.evaluate("document.activeElement.id") == "flow":
            break
    flow = shown.tab.locator("#flow")
    assert flow.evaluate("(flow) => getComputedStyle(flow).outlineStyle") == "solid"
    said = shown.tab.locator("#said")
    assert said.text_content().startswith("a 0 leaving layer 4")
    for key in ("ArrowLeft", "ArrowDown", "ArrowDown"):
        keyboard.press(key)
    assert said.text_content().startswith("c 2 entering layer 4; moved by")
    assert "from:" in said.text_content()
    keyboard.press("Home")
    assert said.text_content() == "c 2 entering layer 2"
    keyboard.press("End")
    keyboard.press("ArrowRight")  # there is nothing further
    keyboard.press("Enter")
    shown.settle()
    assert shown.text("#pinned-title") == "c 2 leaving layer 4"
    keyboard.press("ArrowLeft")
    assert "of the pinned token" in said.text_content()
    keyboard.press("Escape")
    shown.settle()
    assert shown.text("#pinned-title") == "Nothing pinned"
    assert shown.tab.locator("#tip").is_hidden()
    assert flow.get_attribute("aria-describedby") == "flow-help"


def test_the_maps_can_be_used_without_a_pointer(show: Opener) -> None:
    given = graph()
    shown = show(given)
    shown.choose(map_layer=3)
    shown.tab.locator("#maps").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):
        shown.tab.keyboard.press(key)
    assert shown.text("#map-cell").startswith("c 2 from b 1: composed")
    layer = given.layers[1]
    composed = float(layer.shares("chain", False).matrix[2, 1])
    direct = float(layer.direct[2, 1].double() / layer.direct_total[2])
    found = shown.numbers("#map-cell")[:3]
    assert same(found, [composed, direct, direct - composed])
