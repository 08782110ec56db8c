"""Flows written to files come back as they were."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_lig.errors import LigError
from captum_lig.explain import Explanation
from captum_lig.flow.flows import Flows
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.io.flows import flows_to_json, load_flows, save_flows
from tests.helpers.synthetic import HOSTILE, flows, layer_flow

SUFFIXES = [".json", ".safetensors"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().clone().view(torch.uint8)


def assert_same(left: LayerFlow, right: LayerFlow) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    for name in ("targets", "valid", *left.tensors):
        a, b = getattr(left, name), getattr(right, name)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(bits(a), bits(b)), name
    for name in ("name", "index", "scalarization", "baseline", "mlp_start", "tolerance", "cost"):
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


HARD = [1e-45, 3.4028235e38, 1 / 3, -0.0, 1.17549435e-38, 16777217.0, 0.1]
HARD += [math.nan, -math.nan, math.inf, -math.inf, 0.0]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("zeros", [0, 200])
def test_numbers_that_are_hard_to_write(
    tmp_path: Path, suffix: str, dtype: torch.dtype, zeros: int
) -> None:
    """Dense, and with so many zeros that only the others are written."""
    tokens = len(HARD) + 1 + zeros
    numbers = torch.tensor([*HARD, 1.0], dtype=dtype)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    numbers.view(integers)[-1] = torch.tensor(math.nan, dtype=dtype).view(integers) + 3
    assert numbers[-1].isnan()
    layer = torch.zeros(1, 1, tokens, dtype=dtype)
    layer[0, 0, : len(numbers)] = numbers
    flow = LayerFlow(
        name="", index=0, targets=torch.tensor([0]), valid=torch.ones(1, tokens).bool(),
        scalarization="l2", baseline="zero", layer=layer, layer_total=numbers[None, -1:],
    )  # fmt: skip
    path = save_flows(Explanation([flow], ["a"] * tokens), tmp_path / f"flow{suffix}")
    assert_same(flow, load_flows(path).flows[0])


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
    )
    path = save_flows(Explanation([flow], list("abcd")), tmp_path / f"flow{suffix}")
    assert_same(flow, load_flows(path).flows[0])


def test_flows_without_their_tokens_are_refused(tmp_path: Path) -> None:
    layers = Flows(flows(2, 4))
    for given in (layers, layers[0], list(layers)):
        with pytest.raises(
            LigError, match=r"give captum_lig\.explain\.Explanation\(flows, tokens\)"
        ):
            save_flows(given, tmp_path / "flow.safetensors")  # type: ignore[arg-type]
    with pytest.raises(LigError, match="is a Flows"):
        flows_to_json(layers)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


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
    assert document["version"] == 3
    assert document["tokens"] == list("abcd")
    (layer,) = document["layers"]
    assert (layer["index"], layer["name"]) == (5, "encoder.layer.5")
    attention = layer["tensors"]["attention"]
    assert attention["axes"] == ["text", "head", "target", "source"]
    assert attention["shape"] == [1, 2, 2, 4]
    assert attention["values"][0][1][0][3] == flow.attention[0, 1, 0, 3].item()
    assert layer["tensors"]["targets"]["values"] == [2, 0]
    assert layer["tensors"].keys() == {"targets", "valid", *flow.tensors}


def test_json_has_no_literal_that_json_does_not_know(tmp_path: Path) -> None:
    total = torch.tensor([[math.nan, math.inf, 1.0]])
    flow = replace(layer_flow(tokens=3), layer_total=total)
    path = save_flows(Explanation([flow], list("abc")), tmp_path / "f.json")

    def refuse(literal: str) -> float:
        raise AssertionError(literal)

    document = json.loads(path.read_text(), parse_constant=refuse)
    written = document["layers"][0]["tensors"]["layer_total"]["values"]
    assert written == [["NaN", "Infinity", 1.0]]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_file_is_warned_of_with_its_size(
    tmp_path: Path, suffix: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_lig.io.codec.LARGE", 10_000)
    flow = layer_flow(tokens=64, heads=2, dtype=dtype)
    with pytest.warns(UserWarning, match=r"will be about .* MB\. To make it smaller: .*prune"):
        path = save_flows(Explanation([flow], ["a"] * 64), tmp_path / f"f{suffix}")
    monkeypatch.setattr("captum_lig.io.codec.LARGE", 1.3 * path.stat().st_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_flows(Explanation([flow], ["a"] * 64), path)
    monkeypatch.setattr("captum_lig.io.codec.LARGE", path.stat().st_size / 1.3)
    with pytest.warns(UserWarning, match=r"f\.(json|safetensors)"):
        save_flows(Explanation([flow], ["a"] * 64), path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, suffix: str) -> None:
    path = save_flows(Explanation(flows(1), list("abcdef")), tmp_path / f"f{suffix}")
    before = path.read_bytes()
    with pytest.raises(LigError, match="give facts in JSON's types"):
        save_flows(Explanation(flows(1), list("abcdef"), settings={"x": math.nan}), path)
    wrong = replace(flows(1)[0], layer=flows(1)[0].layer.to(torch.complex64))
    with pytest.raises(LigError, match="complex64"):
        save_flows(Explanation([wrong], list("abcdef")), path)
    with pytest.raises(LigError, match=r"5 tokens were given for flows of \[6\] sources"):
        save_flows(Explanation(flows(1), list("abcde")), path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


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


@pytest.mark.parametrize("version", [1, 2, 4, None, "3"])
def test_other_version_is_refused(tmp_path: Path, version: object) -> None:
    path = save_flows(Explanation(flows(1), list("abcdef")), tmp_path / "f.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": version}))
    said = "make it anew" if version in (1, 2) else "read it with the captum_lig that wrote it"
    with pytest.raises(LigError, match=rf"has version '?{version}'? of the format.*{said}"):
        load_flows(path)


def test_what_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text("[" * 200_000)
    with pytest.raises(LigError, match="nested too deeply"):
        load_flows(path)
    path = save_flows(Explanation(flows(1), list("abcdef")), path)
    document = path.read_text()
    path.write_text(document.replace('"settings": {}', '"settings": ' + "[" * 200_000))
    with pytest.raises(LigError, match="nested too deeply"):
        load_flows(path)


Edit = Callable[[dict[str, Any], dict[str, Any]], object]

EDITS: list[Edit] = [
    lambda document, layer: document.pop("tokens"),
    lambda document, layer: document["tokens"].pop(),
    lambda document, layer: document["tokens"].__setitem__(0, 7),
    lambda document, layer: document.__setitem__("layers", None),
    lambda document, layer: document["layers"].append(layer),
    lambda document, layer: layer.__setitem__("index", "first"),
    lambda document, layer: layer.__setitem__("index", True),
    lambda document, layer: layer.__setitem__("mlp_start", "middle"),
    lambda document, layer: layer.__setitem__("tolerance", "small"),
    lambda document, layer: layer.__setitem__("cost", {"speed": 1.0}),
    lambda document, layer: layer["tensors"].pop("layer_total"),
    lambda document, layer: layer["tensors"].pop("valid"),
    lambda document, layer: layer["tensors"]["targets"]["values"].__setitem__(0, -1),
    lambda document, layer: layer["tensors"]["targets"]["values"].__setitem__(0, 6),
    lambda document, layer: layer["tensors"]["targets"]["values"].__setitem__(0, 1.5),
    lambda document, layer: layer["tensors"]["layer"].__setitem__("dtype", "float33"),
    lambda document, layer: layer["tensors"]["layer"].__setitem__("dtype", "quint8"),
    lambda document, layer: layer["tensors"]["layer"].__setitem__("dtype", "float16"),
    lambda document, layer: layer["tensors"]["layer"].__setitem__("dtype", "int64"),
    lambda document, layer: layer["tensors"]["layer"]["axes"].reverse(),
    lambda document, layer: layer["tensors"]["layer"]["axes"].__setitem__(1, "head"),
    lambda document, layer: layer["tensors"]["layer"].__setitem__("shape", [1, 3, 12]),
    lambda document, layer: layer["tensors"]["layer"].__setitem__("shape", [10**9] * 3),
    lambda document, layer: layer["tensors"]["layer"].__setitem__("shape", [1, 6, -6]),
    lambda document, layer: layer["tensors"]["layer"]["values"][0][0].pop(),
    lambda document, layer: layer["tensors"]["layer"]["values"][0][0].__setitem__(0, "many"),
    lambda document, layer: layer["tensors"]["layer"]["values"][0][0].__setitem__(0, "NaN:0"),
    lambda document, layer: layer["tensors"]["layer"]["values"][0][0].__setitem__(0, None),
    lambda document, layer: layer["tensors"]["layer"]["values"][0][0].__setitem__(0, True),
    lambda document, layer: layer["tensors"]["layer"]["values"][0][0].__setitem__(0, 10**400),
    lambda document, layer: layer["tensors"]["layer"]["values"][0][0].__setitem__(0, 1e300),
    lambda document, layer: layer["tensors"]["layer"].pop("values"),
    lambda document, layer: layer["tensors"].__setitem__("layer", [1.0]),
]


@pytest.mark.parametrize("edit", EDITS)
def test_edited_json_is_refused(tmp_path: Path, edit: Edit) -> None:
    path = save_flows(Explanation(flows(1), list("abcdef")), tmp_path / "f.json")
    document = json.loads(path.read_text())
    edit(document, document["layers"][0])
    path.write_text(json.dumps(document))
    with pytest.raises(LigError, match=r"f\.json' is damaged: save it again \("):
        load_flows(path)


def test_a_field_that_nobody_declared_is_refused(tmp_path: Path) -> None:
    path = save_flows(Explanation(flows(1), list("abcdef")), tmp_path / "f.json")
    document = json.loads(path.read_text())
    tensors = document["layers"][0]["tensors"]
    tensors["colour"] = tensors["layer"]
    path.write_text(json.dumps(document))
    with pytest.raises(LigError, match=r"field 'colour' is not declared: .* declare it with"):
        load_flows(path)


def test_safetensors_with_other_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = save_flows(Explanation(flows(1), list("abcdef")), tmp_path / "f.safetensors")
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    layer = tensors["layers.0.layer"]
    for edited in (
        {name: tensor for name, tensor in tensors.items() if name != "layers.0.layer"},
        {**tensors, "layers.0.layer": layer.half()},
        {**tensors, "layers.0.layer": layer[..., :3].clone()},
        {**tensors, "layers.0.other": layer.clone()},
    ):
        save_file(edited, path, metadata=about)
        with pytest.raises(LigError, match=r"f\.safetensors' is damaged"):
            load_flows(path)
