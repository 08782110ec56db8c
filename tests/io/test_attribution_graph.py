"""Graphs as the JSON of circuit-tracer and Neuronpedia, against their own models of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch
from torch import Tensor

from captum_lig import FlowGraph, LayerFlowIG, LigError
from captum_lig.graph.direct_edges import DirectEdges
from captum_lig.io.attribution_graph import INDEX, save_attribution_graph
from tests.helpers import models
from tests.helpers.synthetic import signed_flows
from tests.helpers.target_flows import TARGET, target_flows

INPUTS = torch.tensor([[11, 45, 23, 8]])
BASELINES = torch.tensor([[11, 7, 23, 31]])
TOKENS = ["The", "Ġcat", "▁sat", "<b>"]
ALL: dict[str, Any] = {"nodes": 10**6, "links": 10**6}
LAYERED: dict[str, Callable[[], FlowGraph]] = {
    "whole": lambda: FlowGraph(target_flows(first=2), list("abcde")),
    "some MLPs": lambda: FlowGraph(target_flows(mlp=[True, False, True])),
    "padding": lambda: FlowGraph(target_flows(valid=[False, True, True, True, False])),
    "no heads": lambda: FlowGraph(target_flows(heads=(2, 0, 1))),
}


def number(output: Any) -> Tensor:
    last = output[0][:, -1]
    return torch.tanh(last @ torch.linspace(-1, 2, last.shape[1]).to(last) / 5)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def attributed(request: pytest.FixtureRequest) -> tuple[FlowGraph, DirectEdges]:
    """Of a model whose heads have keys of their own, and of one whose heads share keys."""
    lig = LayerFlowIG(models.MODELS[request.param](layers=3))
    exact = {"n_steps": 32, "tolerance": 1e-6}
    flows = lig.attribute(INPUTS, BASELINES, number, **exact)
    edges = lig.direct_edges(INPUTS, BASELINES, number, keep=10**6, **exact)
    return FlowGraph(flows, TOKENS), edges


def written(folder: Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
    graph, *edges = arguments
    path = save_attribution_graph(graph, folder / "found.json", *edges, **settings)
    assert path == folder / "found.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    nodes = {node["node_id"]: node for node in document["nodes"]}
    assert len(nodes) == len(document["nodes"])
    return nodes


def assert_conserved(document: dict[str, Any], share: float) -> None:
    """What comes into a node, and what goes out of it, is its relevance."""
    nodes, into, out = by_name(document), defaultdict(float), defaultdict(float)
    for link in document["links"]:
        into[link["target"]] += link["weight"]
        out[link["source"]] += link["weight"]
    near = {"abs": share * max(abs(node["relevance"]) for node in nodes.values())}
    assert into.keys() | out.keys() <= nodes.keys()
    for name, node in nodes.items():
        if node["feature_type"] != "embedding":
            assert into[name] == pytest.approx(node["relevance"], **near), name
        if node["feature_type"] != "logit":
            assert out[name] == pytest.approx(node["relevance"], **near), name


# --- direct edges ---------------------------------------------------------------------------------


def test_direct_links_conserve(attributed: tuple[FlowGraph, DirectEdges], tmp_path: Path) -> None:
    graph, edges = attributed
    document = written(tmp_path, graph, edges, **ALL)
    assert_conserved(document, 1e-6)
    change = document["metadata"]["generation_settings"]["change"]
    into = sum(x["weight"] for x in document["links"] if x["target"] == "3_0_3")
    assert into == pytest.approx(change, rel=1e-5)
    pruning = document["metadata"]["pruning_settings"]
    assert pruning["nodes_kept"] == pruning["nodes_of"]
    assert pruning["links_kept"] == pruning["links_of"] == len(document["links"])
    assert pruning["share_of_relevance_kept"] == pytest.approx(1)
    assert pruning["share_of_weights_kept"] == pytest.approx(1)


def test_direct_links_are_the_edges(
    attributed: tuple[FlowGraph, DirectEdges], tmp_path: Path
) -> None:
    """Each link out of a writer is the sum of its edges into one reader's query, key and value."""
    graph, edges = attributed
    document = written(tmp_path, graph, edges, **ALL)
    nodes, heads = by_name(document), models.HEADS
    shared = heads // len({r.head for r in edges.readers if r.kind == "key"})
    expected: dict[tuple[str, str], float] = defaultdict(float)
    for edge, value in zip(edges, edges.value.tolist(), strict=True):
        at, w, r = edge.position, edge.writer, edge.reader
        group = None if r.head is None else r.head // shared if r.kind == "query" else r.head
        source = {
            "embedding": f"E_{at}_{at}",
            "heads": f"{w.layer}_{w.head}_{at}",
            "feed_forward": f"{w.layer}_{heads}_{at}",
        }[w.kind]
        target = {"output": "3_0_3", "feed_forward": f"{r.layer}_{heads}_{at}"}.get(
            r.kind, f"{r.layer}_{heads + 1 + (group or 0)}_{at}"
        )
        expected[source, target] += value
    found = {
        (x["source"], x["target"]): x["weight"]
        for x in document["links"]
        if nodes[x["source"]]["feature_type"] != "attention input"
    }
    assert found.keys() == {pair for pair, value in expected.items() if value}
    for pair, value in found.items():
        assert value == pytest.approx(expected[pair], abs=1e-12)


def test_from_what_heads_read_to_what_they_give(
    attributed: tuple[FlowGraph, DirectEdges], tmp_path: Path
) -> None:
    graph, edges = attributed
    document = written(tmp_path, graph, edges, **ALL)
    nodes = by_name(document)
    shared = models.HEADS // len({r.head for r in edges.readers if r.kind == "key"})
    labels = {n["clerp"].split(" “")[0] for n in nodes.values() if n["layer"] == "1"}
    assert ("heads 1.0 to 1.1 read" if shared == 2 else "head 1.0 reads") in labels
    found = {
        (nodes[x["source"]]["ctx_idx"], x["target"]): (x["source"], x["weight"])
        for x in document["links"]
        if nodes[x["source"]]["feature_type"] == "attention input"
    }
    count = 0
    for layer in graph.layers:
        for head, target, source in layer.attention.nonzero().tolist():
            name, weight = found[source, f"{layer.index}_{head}_{target}"]
            assert name == f"{layer.index}_{models.HEADS + 1 + head // shared}_{source}"
            assert weight == float(layer.attention[head, target, source])
            count += 1
    assert count == len(found)


# --- from layer to layer --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERED)
def test_links_from_layer_to_layer_are_the_graphs_edges(name: str, tmp_path: Path) -> None:
    graph = LAYERED[name]()
    document = written(tmp_path, graph, **ALL)
    assert_conserved(document, 1e-12)
    nodes, first, last = by_name(document), graph.layers[0].index, graph.layers[-1].index

    def called(node: dict[str, Any]) -> tuple[Any, ...]:
        """As networkx has it."""
        layer = first if node["layer"] == "E" else int(node["layer"])
        kind, token = node["feature_type"], node["ctx_idx"]
        head = int(node["clerp"].split(" ")[1].split(".")[1]) if kind == "attention head" else None
        return {
            "embedding": (first, "token", None, token),
            "token": (layer + 1, "token", None, token),
            "attention head": (layer, "head", head, token),
            "mlp": (layer, "feed_forward", None, token),
            "logit": (last + 1, "target", None, None),
        }[kind]

    ours = {
        (called(nodes[x["source"]]), called(nodes[x["target"]])): x["weight"]
        for x in document["links"]
    }
    theirs: networkx.DiGraph[Any] = graph.to_networkx()
    expected = {(a, b): x["value"] for a, b, x in theirs.edges(data=True) if x["value"]}
    assert ours == expected


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    graph = LAYERED["whole"]()
    whole, part = written(tmp_path, graph, **ALL), written(tmp_path, graph, nodes=8, links=12)
    ends = {"embedding", "logit"}
    inner = [n for n in whole["nodes"] if n["feature_type"] not in ends]
    inner.sort(key=lambda node: -abs(node["relevance"]))
    kept, names = by_name(part), {node["node_id"] for node in inner[:8]}
    assert {n for n, node in kept.items() if node["feature_type"] not in ends} <= names
    assert {n for n, node in by_name(whole).items() if node["feature_type"] in ends} <= kept.keys()
    possible = names | {n for n, node in kept.items() if node["feature_type"] in ends}
    links = [x for x in whole["links"] if x["source"] in possible and x["target"] in possible]
    links.sort(key=lambda link: -abs(link["weight"]))
    assert sorted(part["links"], key=str) == sorted(links[:12], key=str)
    told, sizes = part["metadata"]["pruning_settings"], whole["nodes"]
    assert (told["nodes_kept"], told["nodes_of"]) == (len(kept), len(sizes))
    assert (told["links_kept"], told["links_of"]) == (12, len(whole["links"]))
    share = sum(abs(n["relevance"]) for n in kept.values())
    share /= sum(abs(n["relevance"]) for n in sizes)
    assert told["share_of_relevance_kept"] == pytest.approx(share)
    share = sum(abs(x["weight"]) for x in links[:12])
    share /= sum(abs(x["weight"]) for x in whole["links"])
    assert told["share_of_weights_kept"] == pytest.approx(share)
    # The slider of the viewers shows nodes whose share, with all larger ones, is below it.
    size, total = 0.0, sum(abs(node["relevance"]) for node in inner)
    for node in inner[:8]:
        size += abs(node["relevance"])
        if node["node_id"] in kept:
            assert kept[node["node_id"]]["influence"] == pytest.approx(size / total)
    assert max(n["influence"] or 0 for n in kept.values()) <= part["metadata"]["node_threshold"]


# --- what the viewers want ------------------------------------------------------------------------


def their_models() -> Any:
    """The module of circuit-tracer alone: the package would import an older transformers."""
    package = importlib.util.find_spec("circuit_tracer")
    if package is None or not package.submodule_search_locations:
        pytest.skip(
            "circuit-tracer is not installed: "
            "pip install --no-deps --require-hashes -r tests/requirements.txt"
        )
    pytest.importorskip("pydantic", reason="pydantic is not installed: pip install pydantic")
    file = Path(package.submodule_search_locations[0]) / "frontend" / "graph_models.py"
    spec = importlib.util.spec_from_file_location("circuit_tracer_graph_models", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("direct", [True, False])
def test_circuit_tracer_reads_it(
    attributed: tuple[FlowGraph, DirectEdges], direct: bool, tmp_path: Path
) -> None:
    theirs = their_models()
    graph, edges = attributed
    document = written(tmp_path, graph, edges if direct else None, model="m", probability=0.25)
    read = theirs.Model.model_validate(document, strict=True)
    assert [link for link in document["links"] if not theirs.Link.model_validate(link)] == []
    again = read.model_dump()
    assert again["metadata"]["slug"] == "found"
    assert again["metadata"]["prompt_tokens"] == ["The", " cat", " sat", "\u2039b\u203a"]
    assert again["metadata"]["prompt"] == "The cat sat\u2039b\u203a"
    assert again["links"] == document["links"]
    for node in document["nodes"]:
        if node["feature_type"] in ("embedding", "logit"):
            continue
        layer, what, token = node["node_id"].split("_")
        own = theirs.Node.feature_node(int(layer), int(token), int(what))
        assert (own.node_id, own.layer, own.ctx_idx) == (node["node_id"], layer, int(token))
        assert own.feature == node["feature"]


# What Neuronpedia's graph-schema.json (version 1.0.0) requires, and of which types.
NODE = {
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}
METADATA = {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str}


def test_neuronpedia_reads_it(attributed: tuple[FlowGraph, DirectEdges], tmp_path: Path) -> None:
    document = written(tmp_path, *attributed, model="m", probability=0.25)
    metadata, state = document["metadata"], document["qParams"]
    assert all(type(metadata[name]) is kind for name, kind in METADATA.items())
    assert type(metadata["node_threshold"]) is float
    assert type(metadata["info"]["description"]) is str
    assert all(
        type(node[name]) is kind for node in document["nodes"] for name, kind in NODE.items()
    )
    nodes = by_name(document)
    assert {node["ctx_idx"] for node in nodes.values()} <= set(range(4))
    assert state["clickedId"] == "3_0_3"
    assert set(state["pinnedIds"]) <= nodes.keys()
    # Both viewers take these apart: the name between quotation marks, and the probability.
    label = nodes["3_0_3"]["clerp"]
    assert label.split('"')[1]
    assert float(label.split("(p=")[1].split(")")[0]) == 0.25
    assert nodes["3_0_3"]["token_prob"] == 0.25


def test_labels_hold_no_html(tmp_path: Path) -> None:
    flows = target_flows()
    graph = FlowGraph(flows, ["a", "b", "<img src=x onerror=alert(1)>", "d", 'e"'])
    graph.about = replace(graph.about, target='logit of "<script>"')
    document = written(tmp_path, graph, prompt="<i>a", model="m", **ALL)
    text = json.dumps([document["nodes"], document["metadata"]["prompt"]], ensure_ascii=False)
    assert "<" not in text + "".join(document["metadata"]["prompt_tokens"])
    assert "img src=x" in text
    assert "\u2039i\u203aa" in text


def test_the_list_of_a_folder(tmp_path: Path) -> None:
    graph = LAYERED["whole"]()
    for name in ("one.json", "two.json", "one.json"):
        save_attribution_graph(graph, tmp_path / "graphs" / name, model=name)
    listed = json.loads((tmp_path / "graphs" / INDEX).read_text())["graphs"]
    assert [one["slug"] for one in listed] == ["two", "one"]
    for one in listed:
        file = json.loads((tmp_path / "graphs" / f"{one['slug']}.json").read_text())
        assert file["metadata"] == one
    (tmp_path / "graphs" / INDEX).write_text("[1]")
    with pytest.raises(LigError, match="is no list of graphs"):
        save_attribution_graph(graph, tmp_path / "graphs" / "three.json")


def test_what_cannot_be_written(attributed: tuple[FlowGraph, DirectEdges], tmp_path: Path) -> None:
    graph, edges = attributed
    other = FlowGraph(target_flows())
    for name in ("a b.json", "a.txt", INDEX):
        with pytest.raises(LigError, match=name):
            save_attribution_graph(graph, tmp_path / name)
    with pytest.raises(LigError, match="attribute a target"):
        save_attribution_graph(FlowGraph(signed_flows(2, 4, 2)), tmp_path / "a.json")
    with pytest.raises(LigError, match=r"which changes by 2: give both the same text"):
        save_attribution_graph(other, tmp_path / "a.json", edges)
    backwards = graph.subgraph(range(len(graph.tokens))[::-1])
    with pytest.raises(LigError, match="tokens in another order than the text"):
        save_attribution_graph(backwards, tmp_path / "a.json", edges)
    with pytest.raises(LigError, match="before tokens are merged or left out"):
        save_attribution_graph(graph.subgraph([0, 1]), tmp_path / "a.json", edges)
    with pytest.raises(LigError, match="the layers 1 to 2, and the edges those up to 2"):
        save_attribution_graph(graph.subgraph(layers=(1, 2)), tmp_path / "a.json", edges)
    with pytest.raises(LigError, match=r"before summed\(\)"):
        save_attribution_graph(graph, tmp_path / "a.json", edges.summed())
    with pytest.raises(LigError, match="nodes=0"):
        save_attribution_graph(graph, tmp_path / "a.json", nodes=0)
    for wrong in (2, -0.1, float("nan"), "some", True):
        with pytest.raises(LigError, match="probability="):
            save_attribution_graph(graph, tmp_path / "a.json", probability=wrong)
    assert list(tmp_path.iterdir()) == []
    assert TARGET in str(other.target)
    for certain in (0.0, 1, None):
        save_attribution_graph(graph, tmp_path / "a.json", probability=certain)
