"""Graphs of flows with a target as files and for networkx."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch

from captum_lig import FlowGraph, LigError
from tests.helpers.synthetic import signed_flows
from tests.helpers.target_flows import TARGET, target_flows

GRAPHS: dict[str, Callable[[], FlowGraph]] = {
    "whole": lambda: FlowGraph(target_flows(first=2), list("abcde")),
    "some MLPs": lambda: FlowGraph(target_flows(mlp=[True, False, True], dtype=torch.float32)),
    "padding": lambda: FlowGraph(target_flows(valid=[False, True, True, True, False])),
    "encoder": lambda: FlowGraph(target_flows(cross=True)),
    "no heads": lambda: FlowGraph(target_flows(heads=(2, 0, 1))),
    "pruned": lambda: FlowGraph(target_flows()).prune(threshold=0.1),
    "words": lambda: FlowGraph(target_flows()).prune(top_k=3).merge_tokens([0, 0, 1, 2, 2]),
    "part": lambda: FlowGraph(target_flows()).subgraph([1, 3], (1, 2), [0]),
}


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> FlowGraph:
    return GRAPHS[request.param]()


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_round_trip_keeps_every_bit(graph: FlowGraph, tmp_path: Path, suffix: str) -> None:
    found = FlowGraph.load(graph.save(tmp_path / f"graph{suffix}"))
    assert found.about == graph.about
    assert (found.target, found.change) == (TARGET, 2.0)
    assert found.tokens == graph.tokens
    assert torch.equal(found.positions, graph.positions)
    for one, other in zip(graph.layers, found.layers, strict=True):
        assert type(one) is type(other)
        for had, has in ((one.tensors(), other.tensors()), (one.errors, other.errors)):
            assert had.keys() == has.keys()
            for name, tensor in had.items():
                assert tensor.dtype == has[name].dtype
                assert tensor.shape == has[name].shape
                assert tensor.numpy().tobytes() == has[name].numpy().tobytes()
    assert repr(found) == repr(graph)
    assert torch.equal(found.relevance().tokens, graph.relevance().tokens)
    assert found.paths(k=5) == graph.paths(k=5)


def test_json_is_what_the_module_documents(tmp_path: Path) -> None:
    """Rows and columns of the numbers in the file add up to the relevances in it."""
    graph = GRAPHS["whole"]()
    document = json.loads(graph.save(tmp_path / "graph.json").read_text())
    assert (document["version"], document["target"], document["change"]) == (3, TARGET, 2.0)
    above = None
    for layer in reversed(document["layers"]):
        read = {
            name: torch.tensor(tensor["values"], dtype=torch.float64)
            for name, tensor in layer["tensors"].items()
        }
        assert layer["tensors"]["feed_forward_heads"]["axes"] == ["target", "head"]
        if above is not None:
            assert torch.equal(read["leaving"], above)
        rows = read["heads_past"].sum(1) + read["feed_forward"] + read["residual"]
        torch.testing.assert_close(rows, read["leaving"])
        torch.testing.assert_close(read["attention"].sum(-1), read["heads_relevance"])
        columns = read["attention"].sum((0, 1)) + read["feed_forward_token"] + read["residual"]
        torch.testing.assert_close(columns, read["entering"])
        above = read["entering"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(change=None), "the target .* has the change None"),
        (lambda d: d.update(target=None), "the target None has the change 2.0"),
        (lambda d: d.pop("change"), "'change' is None"),
        (lambda d: d["layers"][0]["tensors"].pop("feed_forward"), "is there without feed_forward"),
        (lambda d: d["layers"][0]["tensors"].pop("leaving"), "leaving"),
    ],
)
def test_damage_is_told(tmp_path: Path, spoil: Any, message: str) -> None:
    path = GRAPHS["whole"]().save(tmp_path / "graph.json")
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(LigError, match=f"damaged: .*{message}"):
        FlowGraph.load(path)


def test_values_that_a_block_hides(tmp_path: Path) -> None:
    flows = target_flows()
    hidden = [
        replace(flow, tensors={n: x for n, x in flow.tensors.items() if n != "attention_value"})
        for flow in flows
    ]
    graph = FlowGraph(hidden)
    assert bool(graph.edges("attention").value_part.isnan().all())
    for name in ("graph.json", "graph.safetensors"):
        again = FlowGraph.load(graph.save(tmp_path / name))
        assert again.layers[0].attention_value is None
        torch.testing.assert_close(again.relevance().tokens, FlowGraph(flows).relevance().tokens)
    assert not any("value_part" in about for *_, about in graph.to_networkx().edges(data=True))
    assert graph.to_html(tmp_path / "page.html").stat().st_size > 0


def test_tensors_of_the_other_kind_are_told(tmp_path: Path) -> None:
    path = FlowGraph(signed_flows(1, 3, 2)).save(tmp_path / "graph.json")
    document = json.loads(path.read_text())
    document.update(target="x", change=1.0)
    path.write_text(json.dumps(document))
    with pytest.raises(LigError, match="damaged"):
        FlowGraph.load(path)


# --- networkx -------------------------------------------------------------------------------------


def test_networkx_has_the_edges_of_the_graph(graph: FlowGraph) -> None:
    made = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(made)

    def mlp(layer: int, token: int) -> tuple[int, str, None, int]:
        return layer, "feed_forward", None, token

    found: dict[str, set[Any]] = {kind: set() for kind in graph.edge_counts}
    found["target"] = set()
    for source, to, data in made.edges(data=True):
        found[data["kind"]].add((source, to, data["value"], data.get("value_part")))
    ends = {
        "attention": lambda n, h, j, i: ((n, "token", None, i), (n, "head", h, j)),
        "feed_forward_heads": lambda n, h, j, i: ((n, "head", h, j), mlp(n, j)),
        "heads_past": lambda n, h, j, i: ((n, "head", h, j), (n + 1, "token", None, j)),
        "feed_forward_token": lambda n, h, j, i: ((n, "token", None, j), mlp(n, j)),
        "feed_forward": lambda n, h, j, i: (mlp(n, j), (n + 1, "token", None, j)),
        "residual": lambda n, h, j, i: ((n, "token", None, j), (n + 1, "token", None, j)),
    }
    for kind, between in ends.items():
        columns = graph.edges(kind)
        parts = columns.value_part
        rows = (columns.layer, columns.head, columns.target, columns.source, columns.value)
        value_parts = [None] * len(columns.value) if parts is None else parts.tolist()
        lists = [row.tolist() for row in rows]
        wanted = {
            (*between(layer, h, j, i), value, part)
            for layer, h, j, i, value, part in zip(*lists, value_parts, strict=True)
        }
        assert found[kind] == wanted
    end = (graph.indices[-1] + 1, "target", None, None)
    assert {one[1] for one in found["target"]} == {end}
    trace = graph.relevance()
    assert sum(one[2] for one in found["target"]) == pytest.approx(float(trace.tokens[-1].sum()))


def test_networkx_nodes_and_shares() -> None:
    graph = GRAPHS["whole"]()
    made = graph.to_networkx()
    trace = graph.relevance()
    assert trace.feed_forward is not None
    assert made.graph == {
        "scalarization": "target", "baseline": "counterfactual", "target": TARGET, "change": 2.0
    }  # fmt: skip
    for (layer, kind, head, token), data in made.nodes(data=True):
        row = layer - 2
        relevance = {
            "token": lambda row, head, token: trace.tokens[row, token],
            "head": lambda row, head, token: trace.heads[row, head, token],
            "feed_forward": lambda row, head, token: trace.feed_forward[row, token],
            "target": lambda row, head, token: 2.0,
        }[kind](row, head, token)
        assert data["relevance"] == float(relevance)
        assert data["label"] == (TARGET if kind == "target" else "abcde"[token])
        into = list(made.in_edges((layer, kind, head, token), data=True))
        if into:
            size = sum(abs(edge["value"]) for *_, edge in into)
            assert data["size"] == pytest.approx(size)
            assert sum(edge["share"] for *_, edge in into) == pytest.approx(1)
            value = sum(edge["value"] for *_, edge in into)
            assert value == pytest.approx(data["relevance"], rel=1e-9, abs=1e-9)


def test_graphml_names_the_target(graph: FlowGraph, tmp_path: Path) -> None:
    found = networkx.read_graphml(graph.save(tmp_path / "graph.graphml"))
    assert found.graph["target"] == TARGET
    assert found.graph["version"] == 3
    kinds = {data["kind"] for _, data in found.nodes(data=True)}
    assert {"token", "head", "target"} <= kinds
    last = graph.indices[-1] + 1
    assert found.nodes[f"target.{last}"]["relevance"] == 2.0
    assert len(found) == len(graph.to_networkx())
