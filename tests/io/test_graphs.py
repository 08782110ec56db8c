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

import networkx
import pytest
import torch
from torch import Tensor

from captum_lig import FlowGraph, LigError
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


def everything() -> FlowGraph:
    """Direct maps, completeness errors, a tolerance, padding, and few targets at the end."""
    valid = [False, True, True, True, True, True, True]
    made = flows(2, 7, valid=valid)
    made += [replace(flow, index=2) for flow in flows(1, 7, valid=valid, targets=[2, 6])]
    made = [replace(flow, tolerance=1e-3) for flow in made]
    return FlowGraph(made, list("abcdefg"))


def signed(dtype: torch.dtype = torch.float64) -> FlowGraph:
    return FlowGraph([signed_flow(index, 5, 3, dtype=dtype) for index in range(4, 7)])


def mixed() -> FlowGraph:
    """Layers of different numbers of heads, with and without a chain."""
    first, second = signed_flow(0, 4, 2), signed_flow(1, 4, 3)
    return FlowGraph([replace(first, chain=None, chain_total=None), second])


def chain_alone() -> FlowGraph:
    """An attention edge of 0 through which the chain goes all the same."""
    flow = signed_flow(0, 4, 2)
    assert flow.attention is not None
    flow.attention[0, 1, 2, 3] = 0.0
    return FlowGraph([flow, signed_flow(1, 4, 2)])


def influence() -> FlowGraph:
    """Lengths beside the edges, also where there are few targets."""
    made = [*flows(2, 6, baseline="zero"), layer_flow(2, 6, baseline="zero", targets=[1, 4])]
    return FlowGraph([with_influence(flow) for flow in made], list("abcdef"))


def still() -> FlowGraph:
    """One token that nothing moves."""
    flow = signed_flow(0, 4, 2)
    for part in (flow.attention[:, :, 2], flow.attention_total[..., 2], flow.mlp[:, 2]):  # type: ignore[index]
        part.zero_()
    for part in (flow.residual[:, 2], flow.mlp_total[:, 2], flow.chain[:, :, 2]):  # type: ignore[index]
        part.zero_()
    return FlowGraph([flow, signed_flow(1, 4, 2)])


GRAPHS: dict[str, Callable[[], FlowGraph]] = {
    "everything": everything,
    "signed": signed,
    "float32": lambda: signed(torch.float32),
    "bfloat16": lambda: signed(torch.bfloat16),
    "mixed": mixed,
    "chain alone": chain_alone,
    "still": still,
    "influence": influence,
    "part of influence": lambda: influence().subgraph([3, 0], (0, 1)),
    "threshold": lambda: signed().prune(threshold=0.3),
    "top_k": lambda: everything().prune(top_k=2),
    "subgraph": lambda: signed().subgraph([3, 0, 2], (5, 6), [1, (6, 0)]),
    "words": lambda: signed().merge_tokens([0, 0, 1, 1, 2]),
    "pruned words": lambda: signed().prune(top_k=2).merge_tokens([0, 0, 1, 1, 2]),
    "one token": lambda: FlowGraph([replace(flow, chain=None) for flow in flows(2, 1)]),
}


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


# --- networkx -------------------------------------------------------------------------------------


def test_networkx_has_the_edges_of_the_graph(graph: FlowGraph) -> None:
    made = graph.to_networkx()
    assert type(made) is networkx.DiGraph
    assert networkx.is_directed_acyclic_graph(made)
    found: dict[str, dict[Any, float]] = {"attention": {}, "mlp": {}, "residual": {}}
    for source, target, data in made.edges(data=True):
        if data["value"] != 0:
            found[data["kind"]][source, target] = data["value"]
    for kind in found:
        columns = graph.edges(kind)
        wanted = {}
        for layer, head, j, i, value in zip(
            *(getattr(columns, name).tolist() for name in
              ("layer", "head", "target", "source", "value")), strict=True
        ):  # fmt: skip
            ends = {
                "attention": ((layer, "z", None, i), (layer, "u", head, j)),
                "mlp": ((layer, "u", head, j), (layer + 1, "z", None, j)),
                "residual": ((layer, "z", None, j), (layer + 1, "z", None, j)),
            }
            wanted[ends[kind]] = value
        assert found[kind] == wanted
    count = len(graph.tokens)
    tokens = [node for node in made if node[1] == "z"]
    assert len(tokens) == (len(graph.layers) + 1) * count
    assert all(made.in_degree(node) for node in made if node[1] == "u")


def test_networkx_carries_relevance(graph: FlowGraph) -> None:
    made = graph.to_networkx()
    target = int(graph.layers[-1].known.nonzero()[-1])
    relevance = dict.fromkeys(made, 0.0)
    relevance[graph.indices[-1] + 1, "z", None, target] = 1.0
    for node in reversed(list(networkx.topological_sort(made))):
        for source, _, data in made.in_edges(node, data=True):
            relevance[source] += data["share"] * relevance[node]
    trace = graph.relevance(target, rule="conserve")
    for level, layer in enumerate([*graph.indices, graph.indices[-1] + 1]):
        for token in range(len(graph.tokens)):
            wanted = float(trace.tokens[level, token])
            got = relevance[layer, "z", None, token]
            assert got == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_networkx_attributes() -> None:
    graph = signed()
    graph.tokens[3] = "a\n"
    made = graph.to_networkx()
    layer = graph.layers[1]
    assert made.nodes[5, "u", 2, 3] == {
        "layer": 5, "kind": "u", "head": 2, "token": 3, "label": "a\n", "position": 3,
        "sum": layer.attention_sum[2, 3].item(), "size": layer.attention_size[2, 3].item(),
    }  # fmt: skip
    assert made.nodes[6, "z", None, 3] == {
        "layer": 6, "kind": "z", "token": 3, "label": "a\n", "position": 3,
        "sum": layer.mlp_sum[3].item(), "size": layer.mlp_size[3].item(),
    }  # fmt: skip
    assert "sum" not in made.nodes[4, "z", None, 3]
    assert layer.chain is not None
    edge = made.edges[(5, "z", None, 1), (5, "u", 2, 3)]
    assert edge == {
        "kind": "attention",
        "value": layer.attention[2, 3, 1].item(),
        "share": (layer.attention[2, 3, 1] / layer.attention[2, 3].sum()).item(),
        "chain": layer.chain[2, 3, 1].item(),
    }
    assert made.graph == {"scalarization": "l2", "baseline": "zero"}


def test_a_token_that_stays_keeps_its_relevance_in_networkx() -> None:
    edge = still().to_networkx().edges[(0, "z", None, 2), (1, "z", None, 2)]
    assert edge == {"kind": "residual", "value": 0.0, "share": 1.0}


# --- GraphML --------------------------------------------------------------------------------------


def test_graphml_read_by_networkx_is_the_same(graph: FlowGraph, tmp_path: Path) -> None:
    made = graph.to_networkx()
    found = networkx.read_graphml(graph.save(tmp_path / "graph.graphml"))
    name = {
        node: f"z.{node[0]}.{node[3]}" if node[1] == "z" else f"u.{node[0]}.{node[2]}.{node[3]}"
        for node in made
    }
    assert found.graph == {
        "scalarization": "l2", "baseline": graph.baseline,
        "format": "captum_lig.graph", "version": 3,
        "node_default": {}, "edge_default": {},
    }  # fmt: skip
    assert dict(found.nodes(data=True)) == {
        name[node]: data for node, data in made.nodes(data=True)
    }
    assert {(a, b): data for a, b, data in found.edges(data=True)} == {
        (name[a], name[b]): data for a, b, data in made.edges(data=True)
    }


def test_graphml_of_hostile_tokens(tmp_path: Path) -> None:
    hostile = [*HOSTILE, "\x00", "\ufffe", "a\rb", "<&>\"'", "]]>", " ", "\t"]
    made = [replace(flow, baseline="\x00") for flow in flows(1, len(hostile))]
    found = networkx.read_graphml(FlowGraph(made, hostile).save(tmp_path / "g.graphml"))
    labels = [found.nodes[f"z.0.{place}"]["label"] for place in range(len(hostile))]
    changed = {"\x1b[31m": "\\x1b[31m", "\ud800": "\\ud800", "": "''", "\x00": "\\x00"}
    changed |= {"\ufffe": "\\ufffe", "a\rb": "a\\rb"}
    assert labels == [changed.get(token, token) for token in hostile]
    assert found.graph["baseline"] == "\\x00"


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
