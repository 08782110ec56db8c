"""Flows written to files come back as they were."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from captum_lig.errors import LigError
from captum_lig.explain import Explanation
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.io.flows import load_flows, save_flows
from tests.helpers.synthetic import HOSTILE, flows, layer_flow

SUFFIXES = [".json", ".safetensors"]
TENSORS = [
    "targets",
    "valid",
    "attention",
    "attention_total",
    "mlp",
    "residual",
    "layer",
    "layer_total",
    "mlp_total",
    "chain",
    "chain_total",
    "self_weight",
]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def assert_same(left: LayerFlow, right: LayerFlow) -> None:
    for name in TENSORS:
        a, b = getattr(left, name), getattr(right, name)
        if a is None:
            assert b is None, name
            continue
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert torch.equal(bits(a), bits(b)), name
    assert left.delta.keys() == right.delta.keys()
    for name, delta in left.delta.items():
        assert torch.equal(bits(delta), bits(right.delta[name])), name
    for name in ("name", "index", "scalarization", "baseline", "mlp_start"):
        assert getattr(left, name) == getattr(right, name)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip_keeps_every_bit(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    tokens = HOSTILE
    given = Explanation(
        flows=flows(3, len(tokens), targets=[1, 4, 5], dtype=dtype),
        tokens=tokens,
        text='a "text"\nwith \ud800 and 😀',
        model="some/model",
        settings={"baseline": 0.1, "layers": [0, 1, 2], "n_steps": 16},
    )
    path = save_flows(given, tmp_path / "new" / "folder" / f"flow{suffix}")
    found = load_flows(path)
    assert (found.tokens, found.text, found.model) == (given.tokens, given.text, given.model)
    assert found.settings == given.settings
    assert len(found.flows) == 3
    for left, right in zip(given.flows, found.flows, strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flow_whose_mlp_boundary_starts_at_zero(tmp_path: Path, suffix: str) -> None:
    flow = layer_flow(tokens=3)
    assert flow.layer_total is not None
    flow = replace(flow, mlp_start="zero", mlp_total=flow.layer_total * 2)
    path = save_flows(Explanation([flow], list("abc")), tmp_path / f"flow{suffix}")
    assert_same(flow, load_flows(path).flows[0])


def test_files_of_before_there_was_a_start(tmp_path: Path) -> None:
    flow = layer_flow(tokens=3)
    path = save_flows(Explanation([flow], list("abc")), tmp_path / "flow.json")
    document = json.loads(path.read_text())
    (layer,) = document["layers"]
    del layer["mlp_start"], layer["tensors"]["mlp_total"], layer["tensors"]["chain_total"]
    del layer["tensors"]["self_weight"]
    path.write_text(json.dumps(document))
    found = load_flows(path).flows[0]
    assert found.mlp_start == "attention"
    assert found.self_weight is None
    assert torch.equal(found.mlp_total, flow.layer_total)  # type: ignore[arg-type]
    assert torch.equal(found.chain_total, flow.mlp.transpose(1, 2))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_that_are_hard_to_print(tmp_path: Path, suffix: str) -> None:
    flow = layer_flow(tokens=3)
    hard = torch.tensor([1e-45, 3.4028235e38, 1 / 3, -0.0, 1.17549435e-38, 16777217.0, 0.1])
    total = hard.repeat(2)[: flow.layer_total.numel()].reshape(flow.layer_total.shape)  # type: ignore[union-attr]
    flow = replace(flow, layer_total=total)
    path = save_flows(Explanation([flow], ["a", "b", "c"]), tmp_path / f"flow{suffix}")
    assert torch.equal(bits(load_flows(path).flows[0].layer_total), bits(total))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_boundaries_stay_missing(tmp_path: Path, suffix: str) -> None:
    flow = layer_flow(tokens=4)
    flow = replace(
        flow,
        attention=None,
        attention_total=None,
        chain=None,
        mlp=None,
        residual=None,
        delta={"layer": flow.delta["layer"]},
    )
    path = save_flows(Explanation([flow], list("abcd")), tmp_path / f"flow{suffix}")
    assert_same(flow, load_flows(path).flows[0])


def test_flows_may_share_a_tensor(tmp_path: Path) -> None:
    first, second = flows(2, 4)
    second = replace(second, valid=first.valid, targets=first.targets)
    path = save_flows(Explanation([first, second], list("abcd")), tmp_path / "flow.safetensors")
    assert_same(second, load_flows(path).flows[1])


def test_json_schema_is_what_the_module_documents(tmp_path: Path) -> None:
    flow = layer_flow(index=5, tokens=4, heads=2, targets=[2, 0])
    assert flow.attention is not None
    path = save_flows(Explanation([flow], list("abcd"), "a b", "m", {"x": 1}), tmp_path / "f.json")
    document = json.loads(path.read_text())
    assert document["format"] == "captum_lig.flow"
    assert document["version"] == 1
    assert document["tokens"] == list("abcd")
    (layer,) = document["layers"]
    assert (layer["index"], layer["name"]) == (5, "encoder.layer.5")
    attention = layer["tensors"]["attention"]
    assert attention["axes"] == ["text", "head", "target", "source"]
    assert attention["shape"] == [1, 2, 2, 4]
    assert attention["values"][0][1][0][3] == flow.attention[0, 1, 0, 3].item()
    assert layer["tensors"]["targets"]["values"] == [2, 0]
    assert layer["tensors"]["delta.attention"]["axes"] == ["text", "head", "target"]
    assert set(layer["tensors"]) == {*TENSORS, "delta.attention", "delta.mlp", "delta.layer"}


def test_json_has_no_literal_that_json_does_not_know(tmp_path: Path) -> None:
    flow = layer_flow(tokens=3)
    delta = {**flow.delta, "layer": torch.tensor([[math.nan, math.inf, 1.0]])}
    path = save_flows(Explanation([replace(flow, delta=delta)], list("abc")), tmp_path / "f.json")

    def refuse(literal: str) -> float:
        raise AssertionError(literal)

    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["layers"][0]["tensors"]["delta.layer"]["values"] == [[None, None, 1.0]]
    assert load_flows(path).flows[0].delta["layer"].isnan().tolist() == [[True, True, False]]


def test_unknown_suffix() -> None:
    with pytest.raises(LigError, match=r"'flow\.csv' has no known suffix: use one of \.json"):
        save_flows(Explanation(flows(1), list("abcdef")), "flow.csv")
    with pytest.raises(LigError, match=r"'flow\.csv' has no known suffix"):
        load_flows("flow.csv")


def test_one_flow_a_layer(tmp_path: Path) -> None:
    with pytest.raises(LigError, match=r"\[0, 0\] repeat"):
        save_flows(Explanation([layer_flow(), layer_flow()], list("abcdef")), tmp_path / "f.json")


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}'])
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(LigError, match=r"other\.json' holds no flows"):
        load_flows(path)


def test_what_is_no_json_and_no_safetensors_is_refused(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"broken{suffix}"
        path.write_text("{")
        with pytest.raises(LigError, match=rf"broken{suffix}' is no "):
            load_flows(path)


def test_other_version_is_refused(tmp_path: Path) -> None:
    path = save_flows(Explanation(flows(1), list("abcdef")), tmp_path / "f.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": 2}))
    with pytest.raises(LigError, match=r"has version 2 of the format.*reads version 1"):
        load_flows(path)
