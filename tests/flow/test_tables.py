"""Flows as tables: every number of the tensors is in a row of its own, and only there."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import LayerFlow, LigError
from captum_lig.flow.axes import FIELDS
from captum_lig.flow.flows import Flows
from tests.helpers.synthetic import flows, layer_flow
from tests.helpers.target_flows import target_flows

pandas = pytest.importorskip("pandas")
WORDS = ["[CLS]", "the", "cat", "saw", "the", "[SEP]"]
COLUMNS = ["text", "layer", "boundary", "head", "target_position", "target"]
COLUMNS += ["source_position", "source", "value", "share", "converged"]


def put_back(table: Any, flow: LayerFlow, name: str) -> Tensor:
    """The tensor of a field, from the rows of a table."""
    found = torch.zeros_like(flow.tensors[name])
    places = {int(position): row for row, position in enumerate(flow.targets)}
    for row in table[(table.layer == flow.index) & (table.boundary == name)].itertuples():
        where = {"text": row.text, "head": row.head, "target": places[row.target_position]}
        where |= {"source": row.source_position, "encoder": row.source_position}
        place = tuple(int(where[axis]) for axis in FIELDS[name].axes)
        assert found[place] == 0, "a number is there twice"
        found[place] = row.value
    return found


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: flows(2), id="lengths"),
        pytest.param(lambda: flows(2, baseline="zero", texts=2), id="two texts"),
        pytest.param(lambda: flows(2, targets=[4, 1]), id="some targets"),
        pytest.param(lambda: flows(2, valid=[True] * 4 + [False] * 2), id="padding"),
        pytest.param(lambda: target_flows(cross=True), id="a target"),
    ],
)
def test_every_number_is_a_row(made: Any) -> None:
    given = Flows(made())
    table = given.to_pandas()
    assert list(table) == COLUMNS
    count = 0
    for flow in given:
        for name in flow.checked:
            for one in (name, *FIELDS[name].beside, *FIELDS[name].also):
                if one in flow.tensors:
                    assert torch.equal(put_back(table, flow, one), flow.tensors[one]), one
        names = set(table[table.layer == flow.index].boundary)
        assert names <= set(flow.tensors) - {FIELDS[name].total for name in flow.checked} | {
            "feed_forward"
        }
        count += sum(int((flow.tensors[name] != 0).sum()) for name in names)
    assert len(table) == count


def test_shares_of_a_row_add_up_to_one() -> None:
    given = Flows(flows(2, baseline="zero", dtype=torch.float64))  # rows miss by 1e-6
    table = given.to_pandas()
    layer = table[table.boundary == "layer"].groupby(["layer", "target_position"]).share.sum()
    assert len(layer) == 12
    assert abs(layer - 1).max() < 2e-6
    mlp = table[table.boundary.isin(["mlp", "residual"])]
    sums = mlp.groupby(["layer", "target_position"]).share.sum()
    assert abs(sums - 1).max() < 2e-6
    heads = table[table.boundary == "attention"].groupby(["layer", "head", "target_position"])
    assert abs(heads.share.sum() - 1).max() < 2e-6


def test_shares_of_flows_with_a_target_are_of_its_change() -> None:
    given = Flows(target_flows(change=-3.0))
    table = given.to_pandas()
    assert abs(table.share * -3.0 - table.value).max() < 1e-12


def test_words_stand_beside_positions() -> None:
    flow = replace(layer_flow(), tokens=[WORDS])
    table = flow.to_pandas(["layer"])
    assert [WORDS[i] for i in table.target_position] == list(table.target)
    assert [WORDS[i] for i in table.source_position] == list(table.source)
    assert table.target.dtype == table.source.dtype == "category"
    unnamed = layer_flow().to_pandas(["layer"])
    assert unnamed.target.isna().all()
    assert unnamed.source.isna().all()
    assert flow.to_pandas(["mlp"]).query("boundary == 'mlp'").source.isna().all()


def test_a_mark_for_a_space_is_a_space_and_control_characters_are_escaped() -> None:
    flow = replace(layer_flow(tokens=3), tokens=[["Ġa", "\x1b[31m", "c"]])
    assert set(flow.to_pandas().target) == {" a", "\\x1b[31m", "c"}


def test_converged_is_of_the_row() -> None:
    flow = replace(layer_flow(error=1e-4), tolerance=1e-3)
    assert flow.to_pandas().converged.all()
    missed = replace(flow, tolerance=1e-5).to_pandas(["attention", "chain"])
    assert not missed[missed.boundary == "attention"].converged.any()
    assert missed[missed.boundary == "chain"].converged.all()  # which are exact
    assert layer_flow().to_pandas().converged.isna().all()


def test_a_threshold_and_the_largest_of_each_row() -> None:
    flow = layer_flow(baseline="zero")
    whole = flow.to_pandas()
    strong = flow.to_pandas(threshold=0.2)
    assert 0 < len(strong) < len(whole)
    assert strong.share.abs().min() >= 0.2
    assert len(strong) == (whole.share.abs() >= 0.2).sum()
    two = flow.to_pandas(["layer"], top_k=2)
    size = flow.need("layer")[0].abs()
    for row, found in two.groupby("target_position"):
        assert set(found.source_position) == set(size[int(row)].topk(2).indices.tolist())
    with pytest.raises(LigError, match="threshold=2"):
        flow.to_pandas(threshold=2)
    with pytest.raises(LigError, match="top_k=0"):
        flow.to_pandas(top_k=0)
    with pytest.raises(LigError, match="is not declared"):
        flow.to_pandas(["gate"])
    with pytest.raises(LigError, match="add up to no total"):
        flow.to_pandas(["layer_total"])


def test_thirty_layers_take_seconds() -> None:
    given = Flows(layer_flow(index, tokens=112, heads=9) for index in range(30))
    start = time.process_time()
    table = given.to_pandas(["attention"])
    assert time.process_time() - start < 10
    assert len(table) == 30 * 9 * 112 * 111  # the diagonal is 0
    assert table.memory_usage(deep=True).sum() < 100 * len(table)


def test_a_list_of_flows_is_a_list() -> None:
    given = Flows(flows(3))
    assert isinstance(given, list)
    assert [flow.index for flow in given] == [0, 1, 2]
    assert isinstance(given[1:], Flows)
    assert [flow.index for flow in given[1:]] == [1, 2]
    assert given[-1].index == 2
    assert repr(given[:2]).startswith("Flows(layers 0 to 1: attention")
    assert repr(Flows()) == "Flows(none)"
    both = Flows(flows(2, texts=2)).select(1)
    assert [flow.valid.shape for flow in both] == [(1, 6), (1, 6)]


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LigError, match=r"captum-lig\[notebook\]"):
        layer_flow().to_pandas()


def test_a_flow_finds_its_tokens() -> None:
    flow = replace(layer_flow(texts=2), tokens=[WORDS, [*WORDS[:2], "dog", *WORDS[3:]]])
    assert flow.find("cat") == 2
    assert flow.find("dog", text=1) == 2
    assert flow.find(3) == 3
    assert flow.select(1).tokens == (("[CLS]", "the", "dog", "saw", "the", "[SEP]"),)
    with pytest.raises(LigError, match="is no token"):
        flow.find("dog")
    with pytest.raises(LigError, match="1 'the', 4 'the'"):
        flow.find("the")
    with pytest.raises(LigError, match="does not know its tokens"):
        layer_flow().find("cat")
    with pytest.raises(LigError, match="2 texts of 6"):
        replace(layer_flow(texts=2), tokens=[WORDS])
