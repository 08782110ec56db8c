"""Graphs in files and in networkx hold what the graph holds."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import FlowGraph, LigError
from tests.helpers.graph_kinds import (
    GRAPHS,
    influence,
    signed,
)
from tests.helpers.synthetic import (
    HOSTILE,
    flows,
    layer_flow,
    signed_flow,
    signed_flows,
    with_influence,
)

SUFFIXES = [".json", ".safetensors"]


def bits(tensor: Tensor) -> Tensor:
    return tensor.flatten().clone().view(torch.uint8)


def assert_same(left: FlowGraph, right: FlowGraph) -> None:
    assert left.tokens == right.tokens
    assert torch.equal(left.positions, right.positions)
    assert left.positions.dtype == right.positions.dtype
    assert left.about == right.about
    assert len(left.layers) == len(right.layers)
    for one, other in zip(left.layers, right.layers, strict=True):
        assert (one.name, one.index, one.tolerance) == (other.name, other.index, other.tolerance)
        for had, has in ((one.tensors(), other.tensors()), (one.errors, other.errors)):
            assert had.keys() == has.keys()
            for name, a in had.items():
                assert (a.dtype, a.shape) == (has[name].dtype, has[name].shape), name
                assert torch.equal(bits(a), bits(has[name])), name


pytestmark = pytest.mark.filterwarnings("ignore::captum_lig.graph.CannotCarryWarning")


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> FlowGraph:
    return GRAPHS[request.param]()


def test_influence_of_a_graph_is_that_of_the_flows() -> None:
    for layer in influence().layers[:2]:
        flow = with_influence(layer_flow(layer.index, 6, baseline="zero"))
        assert torch.equal(layer.influence, flow.influence[0])
        assert torch.equal(layer.influence_sum, flow.influence[0].double().sum(-1))
    part = influence().subgraph([3, 0]).layers[1]
    whole = influence().layers[1]
    assert part.influence[0, 1] == whole.influence[3, 0]
    assert part.influence_sum[0] == whole.influence_sum[3]  # shares stay what they are
    assert influence().layers[2].influence[0].sum() == 0  # no target


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_keeps_every_bit(graph: FlowGraph, tmp_path: Path, suffix: str) -> None:
    path = graph.save(tmp_path / "new" / "folder" / f"graph{suffix}")
    assert path == tmp_path / "new" / "folder" / f"graph{suffix}"
    found = FlowGraph.load(path)
    assert_same(graph, found)
    assert found.edge_counts == graph.edge_counts
    assert torch.equal(found.rollout(rule="conserve"), graph.rollout(rule="conserve"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_that_are_hard_to_write(tmp_path: Path, suffix: str) -> None:
    graph = signed(torch.float32)
    hard = [1e-45, 3.4028235e38, 1 / 3, -0.0, 0.1, math.nan, -math.nan, math.inf, -math.inf]
    layer = graph.layers[0]
    numbers = torch.tensor(hard).repeat(9)[:75]
    tensors: dict[str, Any] = {
        name: numbers[: tensor.numel()].reshape(tensor.shape).to(tensor.dtype)
        for name, tensor in layer.tensors().items()
        if tensor.is_floating_point()
    }
    errors = {
        name: numbers[: e.numel()].reshape(e.shape).double() for name, e in layer.errors.items()
    }
    graph.layers[0] = replace(layer, **tensors, errors=errors)
    assert_same(graph, FlowGraph.load(graph.save(tmp_path / f"graph{suffix}")))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hostile_names_come_back(tmp_path: Path, suffix: str) -> None:
    made = [replace(flow, baseline="\ud800\n") for flow in flows(1, len(HOSTILE))]
    graph = FlowGraph([replace(made[0], name="<a>\x00")], HOSTILE)
    found = FlowGraph.load(graph.save(tmp_path / f"graph{suffix}"))
    assert_same(graph, found)
    assert found.tokens == HOSTILE


def test_a_graph_with_few_edges_takes_little_room(tmp_path: Path) -> None:
    graph = FlowGraph(signed_flows(3, 40, 4))
    whole = graph.save(tmp_path / "whole.safetensors")
    pruned = graph.prune(top_k=3).save(tmp_path / "pruned.safetensors")
    assert whole.stat().st_size < 1.1 * graph.nbytes
    assert pruned.stat().st_size < 0.2 * graph.nbytes


def test_zeros_with_a_sign_are_no_edges() -> None:
    # A product with 0 of a mask has the sign of the other factor.
    flow = signed_flow(0, 4, 2)
    assert flow.attention is not None
    plain = replace(flow, attention=flow.attention.tril())
    negative = replace(
        flow, attention=torch.where(flow.attention.tril() == 0, -0.0, flow.attention)
    )
    assert torch.signbit(negative.attention.triu(1)).any()  # type: ignore[union-attr]
    for graph in (FlowGraph(plain), FlowGraph(negative)):
        assert not torch.signbit(graph.layers[0].attention.triu(1)).any()


def from_json(tensor: dict[str, Any]) -> Tensor:
    """A tensor of the file by the format's description."""
    numbers = torch.tensor(tensor["values"], dtype=torch.float64)
    if "index" not in tensor:
        return numbers
    whole = torch.zeros(math.prod(tensor["shape"]), dtype=torch.float64)
    whole[torch.tensor(tensor["index"], dtype=torch.long)] = numbers
    return whole.reshape(tensor["shape"])


def test_json_is_what_the_module_documents(graph: FlowGraph, tmp_path: Path) -> None:
    """Relevance worked out from the file alone, edge by edge."""

    def refuse(literal: str) -> float:
        raise AssertionError(literal)

    document = json.loads(graph.save(tmp_path / "graph.json").read_text(), parse_constant=refuse)
    assert (document["format"], document["version"]) == ("captum_lig.graph", 3)
    assert document["tokens"] == graph.tokens
    assert document["tensors"]["positions"]["values"] == graph.positions.tolist()
    assert [layer["index"] for layer in document["layers"]] == list(graph.indices)
    count = len(graph.tokens)
    target = max(token for token in range(count) if graph.layers[-1].known[token])
    below = [float(token == target) for token in range(count)]
    for layer in reversed(document["layers"]):
        tensors = layer["tensors"]
        assert tensors["attention"]["axes"] == ["head", "target", "source"]
        assert tensors["error.mlp"]["axes"] == ["target"]
        read = {name: from_json(tensor).tolist() for name, tensor in tensors.items()}
        above, below = below, [0.0] * count
        for j, carried in enumerate(above):
            total = read["mlp_sum"][j]
            stays = float(read["stays"][j])
            below[j] += carried * (stays + (read["residual"][j] / total if total else 0.0))
            for head, edges in enumerate(read["attention"]):
                inner = read["attention_sum"][head][j]
                for i, edge in enumerate(edges[j]):
                    if inner and total:
                        below[i] += carried * edge / inner * read["mlp"][j][head] / total
    torch.testing.assert_close(
        torch.tensor(below, dtype=torch.float64),
        graph.relevance(target, rule="conserve").tokens[0],
        rtol=1e-9, atol=1e-9,
    )  # fmt: skip


# --- what cannot be done --------------------------------------------------------------------------


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(LigError, match=r"g\.csv' has no known suffix: .*\.safetensors, \.graphml"):
        signed().save(tmp_path / "new" / "g.csv")
    assert not (tmp_path / "new").exists()
    with pytest.raises(LigError, match=r"'g\.csv' has no known suffix: use one of \.json"):
        FlowGraph.load("g.csv")


def test_graphml_is_not_read(tmp_path: Path) -> None:
    path = signed().save(tmp_path / "g.graphml")
    with pytest.raises(LigError, match=r"g\.graphml': GraphML is written .* \.json or \.safe"):
        FlowGraph.load(path)


def test_without_networkx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(LigError, match=r"pip install 'captum-lig\[graph\]'"):
        signed().to_networkx()
    with pytest.raises(LigError, match=r"pip install 'captum-lig\[graph\]'"):
        signed().save(tmp_path / "g.graphml")
    signed().save(tmp_path / "g.json")  # needs none


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "captum_lig.flow", "version": 1}'])
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(LigError, match=r"other\.json' holds no graph"):
        FlowGraph.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_such_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_text("{")
    with pytest.raises(LigError, match=rf"broken{suffix}' is no "):
        FlowGraph.load(path)
    with pytest.raises(FileNotFoundError):
        FlowGraph.load(tmp_path / f"absent{suffix}")


@pytest.mark.parametrize("version", [1, 2, 4])
def test_other_version_is_refused(tmp_path: Path, version: int) -> None:
    path = signed().save(tmp_path / "g.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": version}))
    with pytest.raises(LigError, match=rf"has version {version} of the format.*reads version 3"):
        FlowGraph.load(path)


def tensor_of(document: Any, name: str) -> Any:
    return document["layers"][0]["tensors"][name]


EDITS: list[Callable[[Any], object]] = [
    lambda document: document.pop("tokens"),
    lambda document: document["tokens"].pop(),
    lambda document: document.__setitem__("baseline", None),
    lambda document: document.__setitem__("layers", []),
    lambda document: document["layers"].reverse(),
    lambda document: document["tensors"].pop("positions"),
    lambda document: document["tensors"]["positions"]["values"].__setitem__(0, -1),
    lambda document: document["tensors"]["positions"]["values"].__setitem__(0, 1),
    lambda document: document["layers"][0]["tensors"].pop("mlp_sum"),
    lambda document: document["layers"][0]["tensors"].pop("attention"),
    lambda document: document["layers"][0]["tensors"].pop("chain_sum"),
    lambda document: document["layers"][0]["tensors"].__setitem__("colour", {}),
    lambda document: tensor_of(document, "mlp")["values"].pop(),
    lambda document: tensor_of(document, "mlp")["values"][0].__setitem__(0, "many"),
    lambda document: tensor_of(document, "mlp").__setitem__("dtype", "float33"),
    lambda document: tensor_of(document, "mlp").__setitem__("dtype", "float32"),
    lambda document: tensor_of(document, "known").__setitem__("dtype", "int64"),
    lambda document: tensor_of(document, "attention")["axes"].reverse(),
    lambda document: tensor_of(document, "attention").__setitem__("shape", [3, 25, 1]),
    lambda document: tensor_of(document, "attention")["index"].__setitem__(0, -1),
    lambda document: tensor_of(document, "attention")["index"].__setitem__(-1, 75),
    lambda document: tensor_of(document, "attention")["index"].__setitem__(1, 0.5),
    lambda document: tensor_of(document, "attention")["index"].reverse(),
    lambda document: tensor_of(document, "attention")["index"].pop(),
    lambda document: tensor_of(document, "attention")["values"].pop(),
]


@pytest.mark.parametrize("edit", EDITS)
def test_edited_json_is_refused(tmp_path: Path, edit: Callable[[Any], object]) -> None:
    path = signed().prune(top_k=1).save(tmp_path / "g.json")
    document = json.loads(path.read_text())
    assert "index" in tensor_of(document, "attention")
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(LigError, match=r"g\.json' is damaged: save it again \("):
        FlowGraph.load(path)


def test_what_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text('{"layers": ' + "[" * 200_000)
    with pytest.raises(LigError, match="nested too deeply"):
        FlowGraph.load(path)


def test_edited_safetensors_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = signed().prune(top_k=1).save(tmp_path / "g.safetensors")
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    index = tensors["layers.1.attention.index"]
    for edited in (
        {name: tensor for name, tensor in tensors.items() if name != "layers.1.mlp"},
        {**tensors, "layers.1.mlp": tensors["layers.1.mlp"].float()},
        {**tensors, "layers.1.attention.index": index - 1 - index[0]},
        {**tensors, "layers.1.attention.index": index + 1000},
        {**tensors, "layers.1.attention.values": torch.zeros(len(index) + 1)},
    ):
        save_file(edited, path, metadata=about)
        with pytest.raises(LigError, match=r"g\.safetensors' is damaged"):
            FlowGraph.load(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".graphml"])
def test_a_large_file_is_warned_of_with_its_size(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = FlowGraph(signed_flows(2, 20, 4))
    path = graph.save(tmp_path / f"g{suffix}")
    monkeypatch.setattr("captum_lig.io.codec.LARGE", path.stat().st_size / 1.5)
    with pytest.warns(UserWarning, match=r"will be about .* MB\. To make it smaller: .*prune"):
        graph.save(path)
    monkeypatch.setattr("captum_lig.io.codec.LARGE", 1.5 * path.stat().st_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph.save(path)
