"""Graphs, traces and direct edges as tables, and their tokens by what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from captum_lig import FlowGraph, LigError
from captum_lig.graph import DirectEdges, Reader, Writer
from tests.helpers.synthetic import flows
from tests.helpers.target_flows import target_flows

pandas = pytest.importorskip("pandas")
WORDS = ["Ġthe", "Ġpain", "Ġin", "Ġthe", "Ġchest"]


@pytest.fixture(scope="module")
def lengths() -> FlowGraph:
    return FlowGraph(flows(3, tokens=5, baseline="zero"), WORDS)


@pytest.fixture(scope="module")
def towards() -> FlowGraph:
    return FlowGraph(target_flows(), WORDS)


@pytest.mark.parametrize("name", ["lengths", "towards"])
def test_edges_are_those_of_the_graph(name: str, request: pytest.FixtureRequest) -> None:
    graph: FlowGraph = request.getfixturevalue(name)
    table = graph.to_pandas()
    assert dict(table.kind.value_counts()) == graph.edge_counts
    for kind in graph.edge_counts:
        rows, edges = table[table.kind == kind], graph.edges(kind)
        for column, values in (
            ("layer", edges.layer),
            ("target_position", edges.target),
            ("source_position", edges.source),
            ("value", edges.value),
        ):
            assert rows[column].tolist() == values.tolist()
        assert rows["head"].fillna(-1).tolist() == edges.head.tolist()
        assert [" the", " pain", " in", " the", " chest"][edges.target[0]] == rows.target.iloc[0]
    made = {(a, b): about for a, b, about in graph.to_networkx().edges(data=True)}
    shares = sorted(about["share"] for about in made.values() if about["kind"] != "target")
    assert sorted(table.share.tolist()) == pytest.approx(shares, abs=1e-12)


def test_shares_into_a_token_add_up(lengths: FlowGraph) -> None:
    table = lengths.to_pandas()
    into = table[table.kind.isin(["mlp", "residual"])].groupby(["layer", "target_position"])
    assert abs(into.share.sum() - 1).max() < 1e-6
    heads = table[table.kind == "attention"].groupby(["layer", "head", "target_position"])
    assert abs(heads.share.sum() - 1).max() < 1e-6


def test_a_pruned_graph_has_fewer_rows(towards: FlowGraph) -> None:
    strong = towards.prune(threshold=0.1).to_pandas()
    whole = towards.to_pandas()
    assert len(strong) == (whole.value.abs() >= 0.1 * abs(towards.change or 0)).sum() > 0


def test_nodes_are_those_of_the_trace(towards: FlowGraph) -> None:
    trace = towards.relevance()
    table = trace.to_pandas()
    assert trace.feed_forward is not None
    tensors = {"tokens": trace.tokens, "heads": trace.heads, "feed_forward": trace.feed_forward}
    assert len(table) == sum(values.numel() for values in tensors.values())
    for kind, values in tensors.items():
        rows = table[table.kind == kind]
        assert torch.equal(torch.tensor(rows.value.to_numpy()).view(values.shape), values)
        assert rows.position.tolist() == list(range(5)) * (values.numel() // 5)
    (row,) = table.query(
        "kind == 'heads' and layer == 1 and head == 2 and position == 4"
    ).itertuples()
    assert row.value == float(trace.heads[1, 2, 4])
    assert row.token == " chest"
    leaving = table.query("kind == 'tokens' and layer == 3")
    assert leaving.value.tolist() == trace.tokens[-1].tolist()


def test_a_trace_of_lengths_has_no_mlps(lengths: FlowGraph) -> None:
    table = lengths.relevance("pain").to_pandas()
    assert set(table.kind) == {"tokens", "heads"}
    assert table.query("kind == 'tokens' and layer == 3 and position == 1").value.tolist() == [1.0]


def test_tokens_by_what_they_say(lengths: FlowGraph) -> None:
    assert lengths.find("chest") == 4
    named, numbered = lengths.relevance("pain"), lengths.relevance(1)
    assert torch.equal(named.heads, numbered.heads)
    both = lengths.relevance(["pain", "chest"])
    assert torch.equal(both.tokens, lengths.relevance([1, 4]).tokens)
    assert torch.equal(lengths.contributions("in").tokens, lengths.contributions(2).tokens)
    assert lengths.paths("chest", "pain") == lengths.paths(4, 1)
    assert lengths.subgraph(["chest", "pain"]).tokens == ["Ġchest", "Ġpain"]
    assert lengths.subgraph("chest").tokens == ["Ġchest"]
    for ask in (lengths.relevance, lengths.contributions, lengths.paths, lengths.find):
        with pytest.raises(LigError, match="is 2 tokens: 0 '␣the', 3 '␣the'"):
            ask("the")
    with pytest.raises(LigError, match="target='dog' is no token"):
        lengths.paths("pain", "dog")
    with pytest.raises(LigError, match="names a token twice"):
        lengths.relevance(["pain", 1])


def test_words_that_were_merged_are_found() -> None:
    graph = FlowGraph(flows(2, tokens=5, baseline="zero"), ["a", "da", "##chs", "##hund", "sat"])
    with pytest.raises(LigError, match="in pieces here: 1 'da'"):
        graph.relevance("dachshund")
    merged = graph.merge_tokens([0, 1, 1, 1, 2])
    assert merged.find("dachshund") == 1
    assert torch.equal(merged.relevance("dachshund").tokens, merged.relevance(1).tokens)


def test_a_graph_takes_its_tokens_from_the_flows() -> None:
    given = [replace(flow, tokens=[WORDS]) for flow in flows(2, tokens=5)]
    assert FlowGraph(given).tokens == WORDS
    assert FlowGraph(given, list("abcde")).tokens == list("abcde")
    assert FlowGraph(flows(2, tokens=5)).tokens == list("01234")


@pytest.fixture
def edges() -> DirectEdges:
    writers = (Writer("embedding"), Writer("heads", 0, 1), Writer("feed_forward", 0))
    readers = (Reader("key", 1, 0), Reader("output"))
    return DirectEdges(
        writers=writers,
        readers=readers,
        writer=torch.tensor([1, 0, 2]),
        reader=torch.tensor([0, 1, 1]),
        position=torch.tensor([4, 1, -1]),
        value=torch.tensor([-3.0, 2.0, 1.0], dtype=torch.float64),
        sums=torch.zeros(3, 2, dtype=torch.float64),
        reads=torch.ones(3, 2, dtype=torch.bool),
        count=30,
        size=12.0,
        change=4.0,
        target="a number",
        labels=tuple(WORDS),
    )


def test_direct_edges(edges: DirectEdges) -> None:
    table = edges.to_pandas()
    assert table.writer.tolist() == ["a0.h1", "embedding", "m0"]
    assert table.writer_kind.tolist() == ["heads", "embedding", "feed_forward"]
    assert table.writer_head.fillna(-1).tolist() == [1, -1, -1]
    assert table.writer_layer.fillna(-1).tolist() == [0, -1, 0]
    assert table.reader.tolist() == ["a1.h0.k", "output", "output"]
    assert table.position.fillna(-1).tolist() == [4, 1, -1]
    assert table.token.tolist()[:2] == [" chest", " pain"]
    assert table.token.isna().tolist() == [False, False, True]
    assert table.value.tolist() == [-3.0, 2.0, 1.0]
    assert table.share.tolist() == [-0.75, 0.5, 0.25]
    assert replace(edges, labels=None).to_pandas().token.isna().all()
    assert replace(edges, change=0.0).to_pandas().share.isna().all()


def test_direct_edges_at_a_token(edges: DirectEdges) -> None:
    assert edges.at("pain").value.tolist() == [2.0]
    assert edges.at(-1).value.tolist() == [-3.0]
    with pytest.raises(LigError, match="2 tokens"):
        edges.at("the")
    nameless = replace(edges, labels=None)
    assert nameless.at(4).value.tolist() == [-3.0]
    assert len(nameless.at(3)) == 0
    with pytest.raises(LigError, match="token=-1"):
        nameless.at(-1)  # how many tokens there are is not known
    with pytest.raises(LigError, match=r"edges at token 1, .* sums over all tokens"):
        edges.at(1).summed()
    with pytest.raises(LigError, match="sums over positions"):
        edges.summed().at(1)
    assert edges.words(0) == []
    assert edges.words(2) == edges.words()[:2]
    assert repr(edges).count("\n") == 0
    assert "a0.h1 -&gt; a1.h0.k" in edges._repr_html_()
