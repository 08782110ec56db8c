"""What carries the change of an answer: its strongest parts, who holds it, the check."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_lig import Answer, why
from captum_lig.answers.parts import Held, held_at, worst_sum_error
from captum_lig.graph import Trace
from captum_lig.graph.target_layer import TargetLayer
from captum_lig.patching import effects
from tests.helpers.answers import OTHER, TEXT
from tests.helpers.target_flows import target_flows


def test_the_strongest_are_the_largest_of_the_flows(answer: Answer) -> None:
    heads, mlps = [], []
    for flow in answer.flows:
        total, mlp = flow.need("attention_total")[0], flow.need("feed_forward")[0]
        for head in range(total.shape[0]):
            for position in range(total.shape[1]):
                heads.append((float(total[head, position]), flow.index, head, position))
        for position in range(len(mlp)):
            mlps.append((float(mlp[position]), flow.index, position))
    heads.sort(key=lambda one: -abs(one[0]))
    mlps.sort(key=lambda one: -abs(one[0]))
    for found, expected in zip(answer.strongest_heads(4), heads[:4], strict=True):
        assert (found.layer, found.head, found.position) == expected[1:]
        assert found.value == pytest.approx(expected[0], rel=1e-3)
        assert found.share == pytest.approx(found.value / answer.change)
        assert found.token == answer.tokens[found.position]
        assert found.name == f"head {found.layer}.{found.head}"
        assert found.source is not None
        flow = answer.flows[found.layer]
        row = flow.need("attention")[0, found.head, found.position]
        assert found.source == int((row * expected[0]).argmax())
        pattern = row - flow.need("attention_value")[0, found.head, found.position]
        assert found.through_pattern == pytest.approx(float(pattern.sum()), rel=1e-2, abs=1e-5)
    for one, largest in zip(answer.strongest_mlps(4), mlps[:4], strict=True):
        assert (one.layer, one.position) == largest[1:]
        assert one.value == pytest.approx(largest[0], rel=1e-3)
    (token,) = answer.strongest_tokens()  # one word differs
    assert (token.position, token.token) == (1, " cat")
    assert token.value == pytest.approx(answer.change, rel=1e-3)


def test_how_well_it_adds_up_is_the_worst_depth(answer: Answer) -> None:
    worst = 0.0
    for flow in answer.flows:
        gap = abs(float(flow.need("entering")[0].sum()) - float(flow.need("change")[0]))
        worst = max(worst, gap / abs(float(flow.need("change")[0])))
    assert answer.sum_error == pytest.approx(worst)
    assert 0 < answer.sum_error < 1e-3


@pytest.mark.parametrize(("change", "expected"), [(0.02, 0.05), (-0.02, 0.05), (0.0, 1e-4)])
def test_where_parts_cancel_the_error_is_of_the_change(change: float, expected: float) -> None:
    """They are integrated until they are within a tolerance of the sum of their sizes."""
    off = change * 0.05 or 1e-3
    made = target_flows(change=change, error=0.0)
    flows = [
        replace(
            flow,
            scale=torch.full((1,), 10.0, dtype=torch.float64),
            tensors={**flow.tensors, "entering": flow.need("entering") + off / 5},
        )
        for flow in made
    ]
    assert worst_sum_error(flows) == pytest.approx(expected, rel=1e-6)


def test_where_most_of_it_is_held(answer: Answer) -> None:
    shares = answer.trace.tokens / answer.change
    largest = [int(row.argmax()) if int((row > 0.5).sum()) == 1 else None for row in shares]
    spread = [one.position for one in answer.held() for _ in range(one.first, one.last + 1)]
    assert spread == largest
    assert answer.held()[0].position == 1


def test_what_no_token_holds_or_one_works_against() -> None:
    """A token far on the other side of 0 holds nothing, and less than half is not most."""
    rows = [[1.0, 0.0, 0.0], [-3.0, 0.4, 3.6], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0]]
    trace = Trace(
        layers=(0, 1, 2), labels=("a", "b", "c"), tokens=-torch.tensor(rows).double(),
        heads=torch.zeros(3, 1, 3), residual=torch.zeros(3, 3), lost=torch.zeros(3),
    )  # fmt: skip
    assert held_at(trace, -1.0) == [
        Held(0, 0, 0, "a"), Held(1, 1, 2, "c"), Held(2, 2, None, None), Held(3, 3, 2, "c"),
    ]  # fmt: skip


def test_several_can_hold_more_than_half() -> None:
    rows = [[1.0, 0.9, -0.9], [0.9, -1.1, 1.2], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0]]
    trace = Trace(
        layers=(0, 1, 2), labels=("a", "b", "c"), tokens=torch.tensor(rows).double(),
        heads=torch.zeros(3, 1, 3), residual=torch.zeros(3, 3), lost=torch.zeros(3),
    )  # fmt: skip
    assert held_at(trace, 1.0) == [
        Held(0, 1, None, None, several=True), Held(2, 2, None, None), Held(3, 3, 2, "c"),
    ]  # fmt: skip


def test_settings_reach_the_attribution(gpt2: Path, answer: Answer) -> None:
    rough = why(TEXT, gpt2, OTHER, dtype="float64", n_steps=1, tolerance=None)
    assert rough.sum_error > 10 * answer.sum_error


def test_the_check_patches_and_is_kept(gpt2: Path) -> None:
    found = why(TEXT, gpt2, OTHER, dtype="float64")
    assert found.checked is None
    check = found.check(3)
    assert found.checked is check
    assert check.value == pytest.approx(found.says.value)
    head = next(row for row in check.rows if row.node.kind == "heads")
    part = found.strongest_heads(1)[0]
    assert head.attributed == pytest.approx(part.value)
    run = found.run
    truth = effects(run.model, run.inputs, run.other, run.target, [head.node])
    assert head.out == pytest.approx(float(truth.taken_out[0]), abs=1e-9)
    (line,) = [one for one in str(found).splitlines() if one.startswith(part.name)]
    shown_values = [float(value) for value in line.split()[-2:]]
    assert shown_values == pytest.approx([head.out, head.into], abs=abs(found.change) / 100)
    shown = " ".join(str(found).split())
    one = check.correlation("heads")
    assert "over the 3 strongest and 3 at random of each: tokens" in shown
    assert f"heads {one.mean:.2f} ({one.agreement:.2f})" in shown
    heads = [row for row in found.check(20).rows if row.node.kind == "heads"]
    best = sum(row.strongest for row in heads)
    assert len(heads) < 2 * best  # fewer are left
    shown = " ".join(str(found).split())
    rest = f"over the {best} strongest and {len(heads) - best} at random"
    assert re.search(rf"heads [^,]* {rest}\b", shown)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"by_position": False}, {"tokens", "heads", "feed_forward"}),
        ({"kinds": "attention"}, {"attention"}),
        ({"kinds": ("attention", "heads"), "by_position": False}, {"attention", "heads"}),
        ({}, {"tokens", "heads", "feed_forward"}),
    ],
)
def test_what_was_patched_is_in_the_table(gpt2: Path, settings: Any, kinds: set[str]) -> None:
    """Nodes that are none of the graph's, too: heads at all tokens, the attention's outputs."""
    found = why(TEXT, gpt2, OTHER, dtype="float64")
    before = found.to_pandas()
    check = found.check(2, **settings)
    table = found.to_pandas()
    assert table["value"][: len(before)].tolist() == before["value"].tolist()
    patched = table[table["out"].notna()]
    assert set(patched["kind"]) == kinds
    expected = sorted((row.attributed, row.out, row.into) for row in check.rows)
    columns = zip(patched["value"], patched["out"], patched["into"], strict=True)
    assert sorted(columns) == [pytest.approx(row) for row in expected]
    assert table["share"].tolist() == pytest.approx((table["value"] / found.change).tolist())
    (header,) = [line for line in str(found).splitlines() if line.startswith("Heads ")]
    assert ("taken out" in header) == (not settings)


def test_a_head_s_source_has_its_sign(gpt2: Path) -> None:
    """A larger edge works against the part in some head; the screen says what is no majority."""
    answer = why("the cat sat on the mat", gpt2, "a dog and a dog sat", tolerance=None)
    against = 0
    for part in answer.strongest_heads(1000):
        assert part.source_value is not None
        assert part.source_value * part.value > 0
        assert part.layer is not None
        layer = answer.graph.layers[part.layer]
        assert isinstance(layer, TargetLayer)
        row = layer.attention[part.head, part.position]
        against += int(row.abs().argmax()) != part.source
    assert against
    shown = str(answer.sections(1000)[-3].rows)
    some = [p for p in answer.strongest_heads(1000) if (p.source_value or 0) / p.value < 0.495]
    assert some
    assert shown.count("%'") > len(some)
    for part in some:
        assert f"({part.source}): {(part.source_value or 0) / part.value:.0%}" in shown
    assert "at most half of its part" in str(answer.sections(1000)[-3].notes)
