"""Graphs for networkx, and as GraphML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import pytest

from captum_lig import FlowGraph
from tests.helpers.graph_kinds import (
    GRAPHS,
    signed,
    still,
)
from tests.helpers.synthetic import (
    HOSTILE,
    flows,
)

# --- networkx -------------------------------------------------------------------------------------


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> FlowGraph:
    return GRAPHS[request.param]()


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
