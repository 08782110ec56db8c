"""The page of a number as a file, and its script in node: it says what the graph says."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_lig import FlowGraph, LigError
from captum_lig.graph.target_layer import TargetLayer
from captum_lig.views.page import Known, Promoted, page
from captum_lig.views.page.question import strongest_nodes
from tests.helpers.page_script import NODE, run_question
from tests.helpers.pages import Elements, header, numbers
from tests.helpers.synthetic import ATTACK
from tests.helpers.target_flows import TARGET, target_flows

TOKENS = ["the", "Ġkeys", "Ġto", "Ġit", "Ġare"]
in_node = pytest.mark.skipif(NODE is None, reason="there is no node to run the script in")


def given(**settings: Any) -> FlowGraph:
    return FlowGraph(target_flows(**settings), TOKENS)


def layers_of(graph: FlowGraph) -> list[TargetLayer]:
    return [layer for layer in graph.layers if isinstance(layer, TargetLayer)]


def single(values: torch.Tensor) -> list[float]:
    return list(values.float().flatten().tolist())


# --- the file -------------------------------------------------------------------------------------


def test_the_header_names_the_target() -> None:
    said = header(page(given(change=-0.5)))
    assert (said["format"], said["version"]) == ("captum_lig.question", 1)
    assert (said["target"], said["change"]) == (TARGET, -0.5)
    assert said["title"] == f"{TARGET}: -0.5"
    assert said["question"] == f"What does the change of {TARGET} come from?"
    assert said["tokens"] == ["the", "␣keys", "␣to", "␣it", "␣are"]
    assert said["promotes"]["why_not"].startswith("only why()")
    assert header(page(given(), "mine"))["question"] == "mine"


def test_what_is_known_beside_the_graph() -> None:
    known = Known(
        question="Why?",
        other_tokens=["the", "Ġkey", "Ġto", "Ġit", "Ġis"],
        value=3.0,
        other_value=1.0,
        favours=('" are"', '" is"'),
        options=[('" are"', 0.7, 0.1)],
        sums=2e-4,
        promoted=Promoted(4, {"0.1.2": (([("Ġa", 1.0)], [("Ġb", -1.0)]), ([], []))}),
    )
    said = header(page(given(), known=known))
    assert said["question"] == said["title"] == "Why?"
    assert said["differs"] == [1, 4]
    assert said["other_tokens"][1] == "␣key"
    assert said["sums"] == 2e-4
    assert said["promotes"]["nodes"]["0.1.2"]["change"] == {"up": [["␣a", 1]], "down": [["␣b", -1]]}
    assert header(page(given(), known=Known(promoted="it is post-norm")))["promotes"] == {
        "why_not": "it is post-norm",
        "nodes": {},
    }


def test_numbers_are_those_of_the_graph() -> None:
    graph = given(mlp=[True, False, True])
    found = numbers(page(graph))
    layers = layers_of(graph)
    for place, layer in enumerate(layers):
        assert found.pop((place, "entering")) == single(layer.entering)
        assert found.pop((place, "heads")) == single(layer.heads_relevance)
        if layer.feed_forward_relevance is not None:
            assert layer.feed_forward_heads is not None
            assert layer.feed_forward_token is not None
            assert found.pop((place, "mlp")) == single(layer.feed_forward_relevance)
            assert found.pop((place, "mlp_heads")) == single(layer.feed_forward_heads)
            assert found.pop((place, "mlp_token")) == single(layer.feed_forward_token)
        index = torch.tensor(found.pop((place, "edge_index"))).long()
        assert index.tolist() == sorted(set(index.tolist()))
        assert len(index) == int((layer.attention != 0).sum())
        assert found.pop((place, "edge_value")) == single(layer.attention.flatten()[index])
        assert layer.attention_value is not None
        assert found.pop((place, "edge_read")) == single(layer.attention_value.flatten()[index])
    assert found.pop((2, "leaving")) == single(layers[-1].leaving)
    assert found == {}


def test_of_many_edges_the_strongest_are_kept_and_the_cutoff_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = given()
    every = torch.cat([layer.attention.abs().flatten() for layer in graph.layers])
    order = every.sort(descending=True).values
    monkeypatch.setattr("captum_lig.views.page.question.MOST_EDGES", 20)
    made = page(graph)
    said, found = header(made)["edges"], numbers(made)
    values = [v for (_, name), all_ in found.items() if name == "edge_value" for v in all_]
    assert sorted(map(abs, values), reverse=True) == pytest.approx(order[:20].tolist(), rel=1e-6)
    assert (said["kept"], said["all"]) == (20, int((every != 0).sum()))
    assert said["cutoff"] == pytest.approx(float(order[19]))
    assert said["share"] == pytest.approx(float(order[:20].sum() / every.sum()))
    assert found[0, "heads"] == single(layers_of(graph)[0].heads_relevance)  # nodes are whole


def test_strongest_nodes_are_those_of_the_trace() -> None:
    graph = given(mlp=[True, False, True], first=2)
    trace = graph.relevance()
    assert trace.feed_forward is not None
    every = {
        (2 + layer, head, at): abs(float(trace.heads[layer, head, at]))
        for layer in range(3)
        for head in range(3)
        for at in range(5)
    } | {
        (2 + layer, None, at): abs(float(trace.feed_forward[layer, at]))
        for layer in range(3)
        for at in range(5)
    }
    expected = sorted((n for n in every if every[n]), key=lambda n: -every[n])
    assert strongest_nodes(graph, 7) == expected[:7]
    assert strongest_nodes(graph, 1000) == expected


def test_a_rule_is_refused() -> None:
    with pytest.raises(LigError, match="rule='product'"):
        page(given(), rule="product")


def test_hostile_text_stays_text() -> None:
    attack = "</script><script>hacked=1</script>"
    flows = target_flows()
    for flow in flows:
        object.__setattr__(flow, "target", attack)
    tokens = [attack, "<!-- <script>", *ATTACK[:3]]
    known = Known(question=attack, other_tokens=tokens[::-1], options=[(attack, 0.5, 0.5)],
                  notes=[attack], checked_says=[attack], favours=(attack, attack),
                  promoted=Promoted(0, {"0.0.0": (([(attack, 1.0)], []), ([], []))}))  # fmt: skip
    document = page(FlowGraph(flows, tokens), known=known)
    elements = Elements(document)
    assert json.loads(elements.text("script", id="page-header"))["target"] == attack
    assert [name for name, _, _ in elements.found].count("script") == 4
    assert elements.text("script", id="page-notes") == "{}"


# --- the script -----------------------------------------------------------------------------------


def made_graph(kind: str) -> FlowGraph:
    return {
        "whole": lambda: given(first=2),
        "pruned": lambda: given().prune(top_k=2),
        "words": lambda: given().merge_tokens([0, 0, 1, 2, 2]),
        "no change": lambda: given(change=0.0),
        "encoder": lambda: given(cross=True),
        "no MLP": lambda: given(mlp=False),
        "no heads": lambda: given(heads=[0, 2]),
    }[kind]()


KINDS = ["whole", "pruned", "words", "no change", "encoder", "no MLP", "no heads"]


@in_node
@pytest.mark.parametrize("kind", KINDS)
def test_the_script_gives_the_graph_s_numbers(tmp_path: Path, kind: str) -> None:
    graph = made_graph(kind)
    found = run_question(page(graph), tmp_path, [])
    trace = graph.relevance()
    assert graph.change is not None
    for row, exact in zip(found["tokens"], trace.tokens.tolist(), strict=True):
        assert row == pytest.approx(exact, rel=1e-6, abs=1e-9)
    expected = strongest_nodes(graph, 150)
    assert [tuple(node[:3]) for node in found["nodes"]] == expected
    layers = {layer.index: layer for layer in layers_of(graph)}
    for (index, head, at), edges, pattern in zip(
        expected, found["into"], found["pattern"], strict=True
    ):
        if head is None:
            assert edges == []
            continue
        row = layers[index].attention[head, at]
        values = layers[index].attention_value
        assert values is not None
        assert {source for source, _, _ in edges} == set(row.nonzero().flatten().tolist())
        for source, value, read in edges:
            assert value == pytest.approx(float(row[source]), rel=1e-6)
            assert read == pytest.approx(float(values[head, at, source]), rel=1e-6, abs=1e-9)
        sizes = [abs(value) for _, value, _ in edges]
        assert sizes == sorted(sizes, reverse=True)
        exact = float((row - values[head, at]).sum())
        assert pattern is None if not edges else pattern == pytest.approx(exact, abs=1e-6)
    for source, edges in enumerate(found["from"]):
        there = sum(int((layer.attention[..., source] != 0).sum()) for layer in layers.values())
        assert len(edges) == there
    for one in found["held"]:
        for depth in range(one["from"], one["to"] + 1):
            shares = trace.tokens[depth] * graph.change
            most = int(shares.argmax())
            half = (shares > graph.change**2 / 2).nonzero().flatten().tolist()
            assert one["all"] == half
            assert one["at"] == (most if len(half) == 1 else None)
    assert found["held"][0]["from"] == 0
    assert found["held"][-1]["to"] == len(graph.layers)


@in_node
def test_sentences(tmp_path: Path) -> None:
    graph = given(first=2)
    found = run_question(page(graph), tmp_path, [])
    layers = {layer.index: layer for layer in layers_of(graph)}
    for (index, head, at, value), said, edges in zip(
        found["nodes"], found["said"][0], found["edges"], strict=True
    ):
        name = f"MLP {index}" if head is None else f"Head {index}.{head}"
        assert said.startswith(name)
        size = abs(value)
        sign = "−" if value < 0 else "+"
        assert f"{sign}{float(f'{size:.3g}'):g} ({_rounded(value / 2)} of the change)" in said
        assert f"({at})" in said
        if head is not None:
            row = layers[index].attention[head, at]
            best = int((row * value).argmax())
            assert f"({best})" in said
            assert f"({int(row.abs().argmax())})" in edges[0]
            assert "(value)" in edges[0]
    assert len(found["said"][1]) == 5
    assert all("of the change" in said for said in found["said"][1])


def _rounded(share: float) -> str:
    percent = 100 * share
    text = f"{percent:.0f}" if abs(percent) >= 1 else f"{float(f'{percent:.1g}'):g}"
    return f"{text.replace('-', '−')}\u00a0%"


@in_node
def test_fragments_of_the_address(tmp_path: Path) -> None:
    kept = ["", "s=t3", "s=2.1.4", "s=2.mlp.0", "s=3.0.4<2", "s=end", "s=g0", "n=40", "c=1_4",
            "l=3-4", "s=t1&n=20&c=0&l=2-3"]  # fmt: skip
    lost = ["s=t9", "s=7.0.1", "s=2.x.1", "s=2.9.1", "s=g7", "s=<script>", "n=-3", "n=a", "c=99_x",
            "l=4-3", "l=9-12", "%", "s=%E0%A4%A", "=", "&&"]  # fmt: skip
    found = run_question(page(given(first=2)), tmp_path, [*kept, *lost])
    assert found["fragments"] == [*kept, *[""] * len(lost)]


@in_node
@pytest.mark.parametrize("width", [360, 800, 1500])
@pytest.mark.parametrize("count", [5, 60])
def test_nothing_overlaps(tmp_path: Path, width: int, count: int) -> None:
    graph = FlowGraph(target_flows([6, 9, 3], count), [f"w{n}" for n in range(count)])
    made = run_question(page(graph), tmp_path, [], width)["layout"]
    columns, nodes, levels = made["columns"], made["nodes"], made["levels"]
    covered = []
    for column in columns:
        covered += (
            [column["at"]] if "at" in column else list(range(column["from"], column["to"] + 1))
        )
    assert covered == list(range(count))  # each token has its column or is folded, in order
    for left, right in pairwise(columns):
        assert left["x"] + left["width"] / 2 <= right["x"] - right["width"] / 2 + 1e-6
    assert columns[-1]["x"] + columns[-1]["width"] / 2 <= width + 1e-6
    for a in nodes:
        assert levels[a["place"]] > a["y"] + 12
        assert a["y"] - 12 > levels[a["place"] + 1] - 1e-6
        for b in nodes:
            if a is not b:
                assert abs(a["x"] - b["x"]) >= 36 or abs(a["y"] - b["y"]) >= 24
    assert len(nodes) + made["left"] == min(150, 21 * count)
