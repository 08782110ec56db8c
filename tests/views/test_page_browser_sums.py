"""The page in a real Chromium: how sums converged, maps that are far apart, parts not there."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

from captum_lig import FlowGraph, LayerFlow
from captum_lig.graph import CannotCarryWarning
from tests.helpers.browser import CHROMIUM, NO_CHROMIUM
from tests.helpers.lengths_page import RULES, Opener, Shown
from tests.helpers.pages import graph
from tests.helpers.synthetic import flows

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


@pytest.mark.parametrize("rule", RULES)
def test_distances_are_those_of_the_flows(show: Opener, rule: str) -> None:
    given = flows(3, baseline="zero")
    shown = show(FlowGraph(given), rule=rule)
    expected = [float(flow.agreement(rule).mean()) for flow in given]
    for place, distance in enumerate(expected):
        shown.choose(map_layer=place)
        assert math.isclose(shown.numbers("#distance")[0], distance, rel_tol=1e-5)
    rows = [shown.numbers(f"#layers tbody tr:nth-child({place + 1})") for place in range(3)]
    assert [row[3] for row in rows] == pytest.approx(expected, rel=1e-5)


def test_sums_that_converged(show: Opener) -> None:
    shown = show(FlowGraph(flows(2, tokens=6, baseline="zero")))
    # a layer: 2 heads x 6 targets of attention and of the chain, 6 of mlp, 6 direct
    assert shown.text("#certificate").startswith("Sums converged to ")
    assert "each of the 72 rows adds up. Maps composed by chain are " in shown.text("#certificate")
    assert [row[:2] for row in (shown.numbers("#layers tbody tr:first-child"),)] == [[36, 0]]
    shown.choose(target=0)
    assert "Sums converged" in shown.text("#pinned-text")
    assert "◇" not in shown.text("#legend")


def test_rows_that_did_not_converge_are_marked(show: Opener) -> None:
    good, bad = flows(2, baseline="zero")
    bad.residual[0, 3] += 0.003 * bad.mlp_total[0, 3] - bad.delta["mlp"][0, 3]
    plain = show(FlowGraph(flows(2, baseline="zero"))).picture("#lines")
    shown = show(FlowGraph([good, bad]))
    assert shown.text("#certificate").startswith("Not all sums converged: 1 of 72 rows")
    assert shown.picture("#lines") != plain
    assert "◇ not converged" in shown.text("#legend")
    assert shown.numbers("#layers tbody tr:nth-child(2)")[1:3] == pytest.approx(
        [1, 0.003], rel=1e-3
    )
    shown.choose(target=3)
    assert "◇ Not converged; completeness errors: attention" in shown.text("#pinned-text")
    assert "mlp 0.00300" in shown.text("#pinned-text")
    shown.choose(target=2)
    assert "Not converged" not in shown.text("#pinned-text")


@pytest.mark.parametrize("off_by", [0.45, 0.55])
def test_it_opens_with_the_direct_maps_where_composed_ones_are_far_off(
    show: Opener, off_by: float
) -> None:
    given = []
    for flow in flows(3, baseline="zero"):
        direct = flow.compose("chain") / (1 + off_by)
        maps = {"layer": direct, "layer_total": direct.sum(-1)}
        given.append(replace(flow, tensors={**flow.tensors, **maps}))
    whole = of_lengths(given)
    shown = show(whole)
    said = shown.text("#certificate")
    assert f"Maps composed by chain are {100 * off_by:.1f}\u00a0% off the direct maps" in said
    far = off_by > 0.5
    assert shown.tab.locator("#boundary").input_value() == ("direct" if far else "composed")
    assert ("so the page opens with the direct maps" in said) == far
    assert shown.tab.locator("#certificate").get_attribute("class") == ("bad" if far else "good")
    shown.choose(boundary="composed")
    assert ("do not say what the layers do" in shown.text("#certificate")) == far
    pruned = show(whole.prune(top_k=1))  # cannot add up to the direct maps, and was asked for
    assert pruned.tab.locator("#boundary").input_value() == "composed"


def test_lines_from_the_only_possible_source_are_not_listed(show: Opener) -> None:
    shown = show(of_lengths([causal(flow) for flow in flows(2, 4)]))
    shown.choose(threshold=0)
    links = {(target, source) for _, target, source, _ in shown.lines() if target != source}
    assert links == {(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
    shown.choose(target=1)
    assert "one possible source" in shown.text("#pinned-text")
    shown.choose(target=2)
    assert "one possible source" not in shown.text("#pinned-text")


def test_the_first_token_is_named_where_it_dominates_and_can_be_hidden(show: Opener) -> None:
    first, last = flows(2, 4, baseline="zero")
    last.need("chain")[..., 1:] *= 1e-3  # of the rest next to nothing
    last = replace(last, tensors={**last.tensors, "layer": last.compose("chain")})
    shown = show(of_lengths([first, last]))
    parts = [float(graph_part(flow)) for flow in (first, last)]
    assert parts[0] < 0.5 < parts[1]
    said = f"is {100 * parts[1]:.1f}\u00a0% of what reaches the others in layer 1: a sink."
    assert shown.text("#sink").endswith(said)
    shown.choose(threshold=0)
    before = shown.lines()
    shown.choose(hide_first=True)
    after = shown.lines()
    assert after == [line for line in before if line[2] != 0 or line[1] == 0]
    assert len(after) == len(before) - 6
    assert "hidden here" in shown.text("#sink")
    assert show(FlowGraph(first)).text("#sink") == ""
    hidden = show(of_lengths([first, last]), hide_first_token=True)
    assert hidden.tab.locator("#hide-first").is_checked()


def of_lengths(given: list[LayerFlow]) -> FlowGraph:
    """Their graph; some of them cannot carry, which is what is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CannotCarryWarning)
        return FlowGraph(given)


def causal(flow: LayerFlow) -> LayerFlow:
    """The flow with each token's maps 0 at those after it."""
    mask = torch.ones(flow.valid.shape[1], flow.valid.shape[1]).tril()
    kept = {name: flow.need(name) * mask for name in ("attention", "chain", "layer")}
    return replace(flow, tensors={**flow.tensors, **kept})


def graph_part(flow: LayerFlow) -> torch.Tensor:
    """Of what comes to tokens 1 to 3 from others, by the composed map: the part of token 0."""
    shares = FlowGraph(flow).layers[0].shares("chain", False).matrix.abs()
    shares.fill_diagonal_(0)
    return shares[1:, 0].sum() / shares[1:].sum()


def test_a_token_that_was_no_target(show: Opener) -> None:
    first, last = flows(2, baseline="zero")
    [part] = flows(1, baseline="zero", targets=[1, 4])
    part = replace(part, index=1, name=last.name)
    shown = show(FlowGraph([first, part]))
    shown.choose(target=0)
    assert "was no target in layer 1" in shown.text("#pinned-text")
    assert "No route carries anything" in shown.text("#pinned-text")
    shown.choose(target=4)
    assert shown.tab.locator("#routes li").count() == 5
    assert shown.complaints == []


def test_without_a_direct_map_and_a_chain(show: Opener) -> None:
    given = [replace(flow, layer=None, chain=None) for flow in flows(2, baseline="zero")]
    shown = show(FlowGraph(given), rule="conserve")
    assert shown.tab.locator("#rule option").all_inner_texts() == ["conserve", "product"]
    assert shown.tab.locator("#boundary option[value=direct]").is_disabled()
    assert "hold no direct map" in shown.text("#map-text")
    assert shown.tab.locator("#maps canvas").count() == 1
    assert shown.complaints == []


# --- colours --------------------------------------------------------------------------------------


def test_light_and_dark(show: Opener) -> None:
    def paper(shown: Shown) -> str:
        return str(shown.tab.evaluate("getComputedStyle(document.documentElement).backgroundColor"))

    light, dark = show(graph(), color_scheme="light"), show(graph(), color_scheme="dark")
    assert (paper(light), paper(dark)) == ("rgb(255, 255, 255)", "rgb(21, 24, 28)")
    assert light.picture("#lines") != dark.picture("#lines")
    drawn = light.picture("#lines")
    light.choose(theme="dark")
    assert paper(light) == paper(dark)
    light.becomes("#lines", dark.picture("#lines"))
    light.tab.emulate_media(color_scheme="dark")
    light.choose(theme="light dark")
    light.tab.emulate_media(color_scheme="light")
    light.becomes("#lines", drawn)
