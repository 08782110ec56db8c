"""The table and the numbers in it."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from captum_lig.errors import LigError
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import shares, summarize
from captum_lig.views.flow_table import flow_table
from tests.helpers.synthetic import HOSTILE, flows, layer_flow


def small_flow(error: float = 0.0) -> LayerFlow:
    """Two heads, two targets of three sources; every number can be checked by hand.

    Target 0: head 0 carries 3 of its total 4, all from source 1; head 1 carries 1, all from 2.
    Target 2: head 0 carries 1 of its total 2, head 1 carries -1, the residual 2; both heads read
    half from source 0 and half from source 1.
    """
    attention = torch.tensor([[[[0, 5, 0], [2, 2, 0]], [[0, 0, 7], [1, 1, 0]]]]).float()
    mlp = torch.tensor([[[3.0, 1.0], [1.0, -1.0]]])
    residual = torch.tensor([[0.0, 2.0]])
    layer = torch.tensor([[[0.0, 3.0, 1.0], [1.0, 0.0, 1.0]]])
    return LayerFlow(
        name="block",
        index=4,
        targets=torch.tensor([0, 2]),
        valid=torch.ones(1, 3, dtype=torch.bool),
        scalarization="l2",
        baseline="zero",
        attention=attention,
        attention_total=attention.sum(-1),
        mlp=mlp,
        residual=residual,
        layer=layer,
        layer_total=torch.tensor([[4.0, 2.0]]),
        mlp_total=torch.tensor([[4.0, 2.0 / (1 + error)]]),
        chain=torch.tensor([[[[0, 3.0, 0], [0, 1.0, 0]], [[0, 0, 1.0], [-1.0, 0, 0]]]]),
        chain_total=mlp.transpose(1, 2),
    )


def printed(
    given: Sequence[LayerFlow], tokens: Sequence[str], rule: str = "conserve", **settings: Any
) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(flow_table(given, tokens, rule, **settings))
    return file.getvalue()


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def test_shares_add_up_to_one() -> None:
    expected = torch.tensor([[0.0, 0.75, 0.25], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(shares(small_flow(), "conserve"), expected)
    expected = torch.tensor([[0.0, 0.75, 0.25], [-0.5, 0.5, 1.0]])
    torch.testing.assert_close(shares(small_flow(), "chain"), expected)
    expected = torch.tensor([[0.0, 0.75, 0.25], [0.5, 0.0, 0.5]])
    torch.testing.assert_close(shares(small_flow(), None), expected)
    # 3*5 and 1*7 of 22; 2*1 + 1*-1 = 1 each of 2
    expected = torch.tensor([[0.0, 15 / 22, 7 / 22], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(shares(small_flow(), "product"), expected)


def test_a_target_that_nothing_moves_has_no_shares() -> None:
    flow = replace(small_flow(), layer_total=torch.zeros(1, 2))
    assert shares(flow, None).tolist() == [[0.0] * 3] * 2


def test_summary_numbers() -> None:
    summary = summarize(small_flow(error=0.0005), "chain")
    assert summary.index == 4
    assert summary.total == 3.0
    assert summary.rows == 4 + 2 + 2 + 4  # attention, mlp, layer, chain
    assert summary.completeness_error == pytest.approx(0.0005, rel=1e-3)  # float32
    assert summary.converged
    assert summary.via_heads == pytest.approx(6 / 8)
    # target 0 agrees; target 2: direct (1, 0, 1), composed (-1, 1, 2)
    agreement = summarize(small_flow(), "chain").agreement
    assert agreement == pytest.approx((6 / 2) ** 0.5 / 2)


def test_strongest_links_name_source_target_and_head() -> None:
    links = summarize(small_flow(), "chain").links
    assert [(x.source, x.target, x.head) for x in links] == [(1, 0, 0), (0, 2, 1), (1, 2, 0)]
    assert [x.share for x in links] == pytest.approx([0.75, -0.5, 0.5])


def test_links_of_a_token_to_itself_do_not_count() -> None:
    links = summarize(small_flow(), "conserve", links=9).links
    assert [(x.source, x.target) for x in links] == [(1, 0), (2, 0)]


def test_padding_counts_for_nothing() -> None:
    keep = [True, True, True, True, False, False]
    padded = summarize(layer_flow(tokens=6, valid=keep), links=99)
    assert padded.rows == 4 * (2 + 1 + 1 + 2)
    assert all(max(link.source, link.target) < 4 for link in padded.links)
    total = layer_flow(tokens=6, valid=keep).layer_total
    assert total is not None
    assert padded.total == pytest.approx(total[0, :4].mean().item())


def test_table_says_what_adds_up_and_how_far_maps_are_apart() -> None:
    given = flows(3, error=1e-6)
    text = printed(given, list("abcdef"))
    worst = max(float(f.completeness_error(b).max()) for f in given for b in f.checked)
    off = statistics.median(float(f.agreement("conserve").mean()) for f in given)
    said = f"Sums converged to {worst:.0e}: each of the 108 rows adds up to its total. Maps"
    assert f"{said} composed by conserve are {off:.0%} off the direct maps" in in_one_line(text)
    assert "not that the map is" in in_one_line(text)
    assert "1e-06" in text
    assert "!" not in text
    assert "via" not in text  # nothing passes the heads on target-token paths


def test_table_says_what_does_not_add_up() -> None:
    text = printed([small_flow(error=0.078)], list("abc"))
    assert "0.078 !" in text
    assert "Not all sums converged: 1 of 12 rows" in text
    assert "Sums converged" not in text
    assert "75%" in text  # via heads


def test_links_in_the_table() -> None:
    text = printed([small_flow()], ["same", "same", "other"], "chain", kind="composed")
    assert "same·1 → same·0 (0, +75%)" in text  # told apart by position
    assert "same·0 → other (1, -50%)" in text


def test_tokens_that_look_alike_when_shortened_are_told_apart() -> None:
    text = printed([small_flow()], ["internationally", "international-", "x"], "chain")
    assert "internation…·1 → internation…·0" in text


def test_table_fits_80_columns_without_colour_codes() -> None:
    tokens = [token + "x" * 30 for token in HOSTILE]
    text = printed(flows(2, len(tokens), baseline="zero", error=0.5), tokens)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]xxxxxx…" in text  # no markup


def sink_flow(index: int) -> LayerFlow:
    """Three tokens; composed and direct say that the first is 80 % of what reaches the others."""
    matrix = torch.tensor([[[0.0, 0.9, 0.1], [0.9, 0.0, 0.1], [0.7, 0.3, 0.0]]])
    total = matrix.sum(-1)
    return LayerFlow(
        name="block",
        index=index,
        targets=torch.arange(3),
        valid=torch.ones(1, 3, dtype=torch.bool),
        scalarization="l2",
        baseline="target_token",
        attention=matrix[:, None],
        attention_total=total[:, None],
        mlp=total[..., None],
        residual=torch.zeros(1, 3),
        layer=matrix,
        layer_total=total,
        mlp_total=total,
        chain=matrix[:, None],
        chain_total=total[:, None],
    )


def test_a_sink_is_named_under_the_table_and_can_be_hidden() -> None:
    given, tokens = [sink_flow(index) for index in (3, 4, 6)], ["[CLS]", "b", "c"]
    text = in_one_line(printed(given, tokens))
    assert "The first token, [CLS], is 80% of what reaches the others in layers 3-4, 6:" in text
    assert "--hide-first-token" in text
    assert "[CLS] → b" in text
    hidden = in_one_line(printed(given, tokens, hide_first_token=True))
    assert "[CLS] →" not in hidden
    assert "its links are hidden here" in hidden
    assert "b → c" in hidden
    assert "The first token" not in printed([small_flow()], ["[CLS]", "b", "c"])


def test_the_table_opens_with_direct_maps_where_composed_ones_are_far_off() -> None:
    flow = small_flow()  # by chain off by 0 and by sqrt(3), 87 % in the mean
    text = in_one_line(printed([flow], list("abc"), "chain"))
    assert "Maps composed by chain are 87% off the direct maps (median layer)" in text
    assert "so the direct maps are shown" in text
    assert "b → a (+75%)" in text
    assert "a → c (+50%)" in text
    asked = in_one_line(printed([flow], list("abc"), "chain", kind="composed"))
    assert "a → c (1, -50%)" in asked
    assert "they do not say what the layers do" in asked


def test_the_table_opens_with_influence_where_flows_hold_it() -> None:
    lengths = torch.tensor([[[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]]], dtype=torch.float64)
    missing = torch.zeros(1, 2, dtype=torch.float64)
    flow = replace(small_flow(), influence=lengths, influence_missing=missing)
    text = in_one_line(printed([flow], list("abc")))
    assert "strongest links, influence" in text
    assert "b → a (75%)" in text
    assert "they add up to no total" in text
    assert "--show influence" not in text
    assert "--show influence" in in_one_line(printed([small_flow()], list("abc")))


def test_a_single_token_has_no_links() -> None:
    text = printed([layer_flow(tokens=1, baseline="zero")], ["a"])
    assert "none" in text


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LigError, match="5 tokens were given for layer 0, which has 6 sources"):
        flow_table(flows(1), list("abcde"))
    with pytest.raises(LigError, match="holds the flow of 2 texts"):
        flow_table([layer_flow(texts=2)], list("abcdef"))
    with pytest.raises(LigError, match="list of flows is empty"):
        flow_table([], [])
    with pytest.raises(LigError, match="every target of layer 0 is padding"):
        flow_table([layer_flow(targets=[5], valid=[True] * 5 + [False])], list("abcdef"))
    with pytest.raises(LigError, match="rule 'sum' is unknown"):
        flow_table(flows(1), list("abcdef"), "sum")
    with pytest.raises(LigError, match="no 'mlp' boundary"):
        flow_table([replace(layer_flow(), mlp=None)], list("abcdef"))
