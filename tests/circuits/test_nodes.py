"""Circuits of heads and MLPs against runs with a hook at each module; which of them are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import FlowGraph, LayerFlowIG, LigError, circuits
from captum_lig.patching import Node
from tests.helpers import models
from tests.helpers.state import Unchanged

INPUTS = torch.tensor([[11, 45, 23, 8]])
OTHER = torch.tensor([[11, 7, 31, 8]])
SIZE = models.WIDTH // models.HEADS
Key = tuple[str, int]


def number(output: Any) -> Tensor:
    hidden: Tensor = output[0]
    return torch.tanh(hidden[:, -1] @ torch.linspace(-1, 2, hidden.shape[-1]).to(hidden) / 5)


class Twin:
    """A model whose heads enter one module, and whose MLP's output leaves one."""

    def __init__(self, kind: str) -> None:
        self.model: Any = models.MODELS[kind]()
        blocks: Any = models.blocks(self.model)
        out, mlp = {
            "llama": ("self_attn.o_proj", "mlp"),
            "gpt2": ("attn.c_proj", "mlp"),
            "bert": ("attention.output.dense", "output.dense"),
        }[kind]
        self.places: dict[Key, nn.Module] = {}
        for layer, block in enumerate(blocks):
            self.places["heads", layer] = block.get_submodule(out)
            self.places["feed_forward", layer] = block.get_submodule(mlp)

    @contextmanager
    def seen(self, change: Callable[[Key, Tensor], Tensor]) -> Iterator[None]:
        with ExitStack() as stack:
            for key, module in self.places.items():
                if key[0] == "heads":

                    def before(_: nn.Module, args: Any, key: Key = key) -> Any:
                        return (change(key, args[0]), *args[1:])

                    stack.enter_context(module.register_forward_pre_hook(before))
                else:

                    def after(_: nn.Module, args: Any, output: Any, key: Key = key) -> Any:
                        return change(key, output)

                    stack.enter_context(module.register_forward_hook(after))
            yield

    def circuit(self, dropped: list[Node]) -> float:
        other: dict[Key, Tensor] = {}

        def keep(key: Key, x: Tensor) -> Tensor:
            other[key] = x.clone()
            return x

        def drop(key: Key, x: Tensor) -> Tensor:
            x = x.clone()
            for node in dropped:
                if (node.kind, node.layer) == key:
                    where = slice(None) if node.position is None else node.position
                    channels = slice(None)
                    if node.kind == "heads":
                        assert node.head is not None
                        channels = slice(node.head * SIZE, (node.head + 1) * SIZE)
                    x[0, where, channels] = other[key][0, where, channels]
            return x

        with torch.no_grad():
            with self.seen(keep):
                self.model(OTHER)
            with self.seen(drop):
                return float(number(self.model(INPUTS)))


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_circuits_are_runs_with_hooks(kind: str, by_position: bool) -> None:
    twin = Twin(kind)
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": INPUTS}
    with (
        Unchanged(twin.model, inputs),
        circuits.of_nodes(twin.model, inputs, OTHER, number, by_position=by_position) as found,
    ):
        count = 2 * (models.HEADS + 1) * (4 if by_position else 1)
        assert len(found.nodes) == found.count == count
        kept = torch.rand(3, count, generator=generator) < torch.tensor([0.3, 0.6, 0.9])[:, None]
        values = found.values(kept)
        nodes = found.nodes
    for row, value in zip(kept.tolist(), values.tolist(), strict=True):
        dropped = [node for node, here in zip(nodes, row, strict=True) if not here]
        # Families' own attention takes its softmax in float32, fused attention does not.
        assert value == pytest.approx(twin.circuit(dropped), abs=1e-6)
    assert len({round(x, 4) for x in values.tolist()}) == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_is_the_text_and_nothing_the_counterfactual(kind: str) -> None:
    """The number reads the last token, which is the same in both: no embedding reaches it."""
    model = models.MODELS[kind]()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        clean, other = (float(number(model(ids))) for ids in (INPUTS, OTHER))
    with circuits.of_nodes(model, INPUTS, OTHER, number) as found:
        ends = torch.tensor([[True], [False]]).expand(-1, found.count)
        whole, none = found.values(ends).tolist()
    assert whole == pytest.approx(clean, abs=1e-9)
    assert none == pytest.approx(other, abs=1e-9)
    assert abs(clean - other) > 1e-3


@pytest.mark.parametrize("by_position", [False, True])
def test_graphs_are_ranked_by_their_relevances(by_position: bool) -> None:
    model = models.tiny_llama()
    graph = FlowGraph(LayerFlowIG(model).attribute(INPUTS, OTHER, number), list("abcd"))
    trace = graph.relevance()
    with circuits.of_nodes(model, INPUTS, OTHER, number, by_position=by_position) as found:
        scores = found.scores(graph)
        for node, score in zip(found.nodes, scores.tolist(), strict=True):
            row = trace.feed_forward[node.layer]
            if node.kind == "heads":
                row = trace.heads[node.layer, node.head]
            expected = row.sum() if node.position is None else row[node.position]
            assert score == pytest.approx(float(expected))
        curve = found.curve(graph, shares=[0.0, 0.2, 1.0])
        kept = scores.abs().argsort(descending=True)[: curve.kept[1]]
        mask = torch.zeros(found.count, dtype=torch.bool)
        mask[kept] = True
        assert float(curve.values[1]) == pytest.approx(float(found.values(mask)))
        assert curve.values[[0, 2]].tolist() == [curve.none, curve.whole]
        assert found.curve(scores, shares=[0.2, 1.0]).values[0] == curve.values[1]


def test_layers_that_are_not_meant_are_kept() -> None:
    model = models.tiny_gpt2()
    with circuits.of_nodes(model, INPUTS, OTHER, number, layers=1, by_position=False) as found:
        assert {node.layer for node in found.nodes} == {1}
        none = float(found.values(torch.zeros(found.count).bool()))
        twin = Twin("gpt2")
        assert none == pytest.approx(twin.circuit(list(found.nodes)), abs=1e-6)


# --- which are kept -----------------------------------------------------------------------------


def test_the_best_are_kept_first() -> None:
    scores = torch.tensor([0.5, -3.0, 2.0, float("nan"), -0.1])
    by_size = circuits.kept_by_score(scores, [0.0, 0.2, 0.4, 0.8, 1.0])
    assert [row.nonzero().flatten().tolist() for row in by_size] == [
        *([], [1], [1, 2], [0, 1, 2, 4], [0, 1, 2, 3, 4])
    ]
    signed = circuits.kept_by_score(scores, [0.2, 0.4, 0.6, 0.8], "signed")
    assert [row.nonzero().flatten().tolist() for row in signed] == [
        *([2], [0, 2], [0, 2, 4], [0, 1, 2, 4])
    ]


def test_a_curve_says_what_it_holds() -> None:
    curve = circuits.Curve(
        (0.01, 0.1, 1.0), (1, 10, 100), 100, torch.tensor([1.0, 2.0, 3.0]), 1.0, 3.0, "a logit"
    )
    assert curve.faithfulness.tolist() == [0, 0.5, 1]
    # 0.25 on a tenth of k, 0.75 on nine; a half of log k each.
    assert curve.cpr() == pytest.approx((0.09 * 0.25 + 0.9 * 0.75) / 0.99)
    assert curve.cmd() == pytest.approx(1 - curve.cpr())
    assert curve.cpr("log") == pytest.approx(0.5)
    assert curve.rows()[1] == {"share": 0.1, "kept": 10, "value": 2.0, "faithfulness": 0.5}
    text = str(curve)
    assert "a logit: 1 with nothing kept, 3 with all" in text
    assert "10.0%          10           2  0.500" in text
    assert text.endswith("over log k 0.500 / 0.500")


@pytest.mark.parametrize("shares", [(0.1,), (0.0, 1.0), (1.0, 0.1)])
def test_shares_without_an_area_can_be_shown(shares: tuple[float, ...]) -> None:
    values = torch.tensor([1.0, 2.0])[: len(shares)]
    curve = circuits.Curve(shares, (1, 10)[: len(shares)], 100, values, 1.0, 3.0, "a logit")
    assert len(str(curve).splitlines()) == 2 + len(shares)


def test_graphs_of_something_else_are_refused() -> None:
    """Fewer tokens or layers would give numbers of other nodes."""
    model = models.tiny_gpt2()
    short = FlowGraph(LayerFlowIG(model).attribute(INPUTS[:, :-1], OTHER[:, :-1], number))
    with circuits.of_nodes(model, INPUTS, OTHER, number, by_position=False) as found:
        with pytest.raises(LigError, match=r"the graph is of 3 tokens .* the inputs of 4"):
            found.curve(short)
        for layer in (0, 1):
            graph = FlowGraph(LayerFlowIG(model, [layer]).attribute(INPUTS, OTHER, number))
            with pytest.raises(LigError, match=r"graph is of the layers .*circuits of \(0, 1\)"):
                found.curve(graph)


def test_what_does_not_fit_is_refused() -> None:
    model = models.tiny_gpt2()
    with circuits.of_nodes(model, INPUTS, OTHER, number) as found:
        with pytest.raises(LigError, match=r"scores have the shape \(3,\): give \(40,\)"):
            found.curve(torch.ones(3))
        with pytest.raises(LigError, match="kept has the shape"):
            found.values(torch.ones(2, 3).bool())
    with (
        pytest.raises(LigError, match="internal_batch_size=0"),
        circuits.of_nodes(model, INPUTS, OTHER, number, internal_batch_size=0),
    ):
        pass
