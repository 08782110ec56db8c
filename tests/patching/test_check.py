"""A graph's numbers beside patched nodes: which nodes, which correlations, what is said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_lig import LigError, patching
from captum_lig.patching import Check, CheckedNode, Node
from tests.helpers import models


@dataclass
class Numbers:
    """What a trace holds."""

    layers: tuple[int, ...]
    labels: tuple[str, ...]
    tokens: Tensor
    heads: Tensor
    feed_forward: Tensor | None


@dataclass
class Graph:
    numbers: Numbers
    positions: Tensor | None = None

    def relevance(self) -> Any:
        return self.numbers


def number(output: Any) -> Tensor:
    hidden: Tensor = output[0]
    return torch.tanh(hidden[:, -1] @ torch.linspace(-1, 2, hidden.shape[-1]).to(hidden) / 5)


INPUTS = torch.tensor([[11, 45, 23, 8]])
BASELINES = torch.tensor([[11, 7, 23, 31]])
LABELS = ("a", "b<", "c", "d")


@pytest.fixture(scope="module")
def model() -> Any:
    return models.tiny_bert()


def graph_of(effects: patching.NodeValues, factor: float = 1.0) -> Graph:
    assert effects.tokens is not None
    assert effects.heads is not None
    assert effects.feed_forward is not None
    each = (factor * x for x in (effects.tokens, effects.heads, effects.feed_forward))
    return Graph(Numbers(effects.layers, LABELS, *each))


def test_the_effects_themselves_pass(model: Any) -> None:
    whole = patching.effects(model, INPUTS, BASELINES, number)
    found = patching.check(graph_of(whole.mean, 3.0), model, INPUTS, BASELINES, number, k=4)
    assert found.kinds == ["tokens", "heads", "feed_forward"]
    for kind in found.kinds:
        rows = [row for row in found.rows if row.node.kind == kind]
        best = [row for row in rows if row.strongest]
        others = [row for row in rows if not row.strongest]
        assert len(best) == 4
        assert 0 < len(others) <= 4
        sizes = [abs(row.attributed) for row in best]
        assert sizes == sorted(sizes, reverse=True)
        assert max(abs(row.attributed) for row in others) <= sizes[-1]
        values = getattr(whole.mean, kind)
        assert sizes[0] == pytest.approx(3 * float(values.abs().max()), rel=1e-12)
    for row in found.rows:
        assert row.out == pytest.approx(whole.out.of(row.node), abs=1e-9)
        assert row.into == pytest.approx(whole.into.of(row.node), abs=1e-9)
        assert row.attributed == pytest.approx(3 * row.mean, abs=1e-9)
    assert len({row.node for row in found.rows}) == len(found.rows)
    for kind in [*found.kinds, None]:
        one = found.correlation(kind)
        assert one.mean == pytest.approx(1, abs=1e-9)
        assert one.reason == ""
    out = patching.check(graph_of(whole.out), model, INPUTS, BASELINES, number, k=4)
    assert out.correlation("tokens").out == pytest.approx(1, abs=1e-9)
    assert out.correlation("tokens").mean < 1 - 1e-6


def test_all_tokens_at_once_and_the_seed(model: Any) -> None:
    at_once = patching.effects(model, INPUTS, BASELINES, number, by_position=False)
    each = patching.effects(model, INPUTS, BASELINES, number)
    graph = graph_of(each.mean)
    found = patching.check(
        graph, model, INPUTS, BASELINES, number, kinds=["heads", "attention"], by_position=False
    )
    heads = graph.numbers.heads
    for row in found.rows:
        node = row.node
        assert node.position is None
        of = heads[node.layer].sum(0) if node.head is None else heads[node.layer, node.head]
        assert row.attributed == pytest.approx(float(of.sum()), rel=1e-12)
        if node.kind == "heads":
            assert row.out == pytest.approx(at_once.out.of(node), abs=1e-9)
    one, same, other = (
        patching.check(graph, model, INPUTS, BASELINES, number, k=3, kinds="heads", seed=seed)
        for seed in (0, 0, 1)
    )
    assert one.rows == same.rows
    assert {row.node for row in one.rows} != {row.node for row in other.rows}
    assert [r.node for r in one.rows if r.strongest] == [r.node for r in other.rows if r.strongest]


def test_nodes_that_do_not_change_are_left_out() -> None:
    model = models.tiny_gpt2()
    other = INPUTS.clone()
    other[:, 2] = 30
    zeros = Graph(Numbers((0, 1), LABELS, torch.ones(3, 4), torch.ones(2, 4, 4), torch.ones(2, 4)))
    found = patching.check(zeros, model, INPUTS, other, number, k=100)
    assert found.rows
    assert all(row.node.position is not None and row.node.position >= 2 for row in found.rows)
    entering = [row.node for row in found.rows if row.node.kind == "tokens"]
    assert [node for node in entering if node.layer == 0] == [Node("tokens", 0, 2)]
    assert all(row.strongest for row in found.rows)
    one = found.correlation()
    assert math.isnan(one.mean)
    assert one.reason == "all have the same number in attributed"
    assert "all: no correlation, all have the same number in attributed." in found.says()
    with pytest.raises(LigError, match="there is nothing to patch"):
        patching.check(zeros, model, INPUTS, INPUTS, number)


def by_hand(out: list[float], into: list[float], attributed: list[float]) -> Check:
    rows = tuple(
        CheckedNode(Node("heads", 0, n, 2), n < 2, *numbers)
        for n, numbers in enumerate(zip(attributed, out, into, strict=True))
    )
    return Check(rows, LABELS, 1.5, 0.25, "logit(' are')")


def test_correlations_and_words() -> None:
    out, into, attributed = [1.0, 2.0, 3.0, -1.0], [2.0, -1.0, 0.5, 1.0], [1.0, 0.5, 2.0, 0.0]
    found = by_hand(out, into, attributed)
    one = found.correlation("heads")
    mean = np.add(out, into) / 2
    for value, expected in (
        (one.mean, np.corrcoef(attributed, mean)[0, 1]),
        (one.out, np.corrcoef(attributed, out)[0, 1]),
        (one.into, np.corrcoef(attributed, into)[0, 1]),
        (one.agreement, np.corrcoef(out, into)[0, 1]),
    ):
        assert value == pytest.approx(expected)
    assert one.nodes == 4
    says = "\n".join(found.says())
    assert "a change of +1.25" in says
    assert f"the effects out and into disagree, they correlate at {one.agreement:.2f}" in says
    agreeing = by_hand(out, out, attributed)
    assert "disagree" not in str(agreeing)
    table = str(found).splitlines()
    assert table[0].split() == ["node", "chosen", "attributed", "out", "into", "mean"]
    assert table[2].split() == [
        "head",
        "0.2",
        "at",
        "1",
        "'b<'",
        "strongest",
        "+0.5",
        "+2",
        "-1",
        "+0.5",
    ]
    assert table[3].split()[5] == "random"
    page = found._repr_html_()
    assert page.count("<tr>") == 5
    assert "b&lt;" in page
    assert "b<" not in page
    few = by_hand([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]).correlation()
    assert math.isnan(few.mean)
    assert few.reason == "2 nodes are too few"


def test_refused(model: Any) -> None:
    whole = patching.effects(model, INPUTS, BASELINES, number)
    graph = graph_of(whole.mean)
    with pytest.raises(LigError, match=r"the graph is of 4 tokens .* inputs of 3"):
        patching.check(graph, model, INPUTS[:, :3], BASELINES[:, :3], number)
    with pytest.raises(LigError, match="k=0: give a whole number, at least 1"):
        patching.check(graph, model, INPUTS, BASELINES, number, k=0)
    graph.positions = torch.tensor([0, 2, 1, 3])
    with pytest.raises(LigError, match=r"in another order than the text, \[0, 2, 1, 3\]"):
        patching.check(graph, model, INPUTS, BASELINES, number)
    graph.positions = torch.tensor([2, 3, 5, 8])  # the text stands in a batch with padding
    graph.numbers.feed_forward = None
    found = patching.check(graph, model, INPUTS, BASELINES, number, k=1)
    assert found.kinds == ["tokens", "heads"]
    with pytest.raises(LigError, match="the graph has no MLPs"):
        patching.check(graph, model, INPUTS, BASELINES, number, kinds=["feed_forward"])
    with pytest.raises(LigError, match="give some of tokens"):
        patching.check(graph, model, INPUTS, BASELINES, number, kinds=["edges"])
