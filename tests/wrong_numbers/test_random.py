"""What is random, or reaches other texts, is refused; so is a question that means nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import FlowGraph, LayerFlowIG, SetToSetIG, circuits, patching
from captum_lig.metrics import erasure
from captum_lig.prediction import compare_with_layer_integrated_gradients, log_probability
from tests.helpers.wrong_numbers import IDS, LAST, OTHER, Dropping, decoder, last, refused


def test_dropout_between_the_blocks_and_the_number() -> None:
    model = decoder()
    model.transformer.ln_f = Dropping(model.transformer.ln_f)
    asked: dict[str, Callable[[], Any]] = {
        "flows": lambda: LayerFlowIG(model).attribute(IDS, OTHER, LAST),
        "edges": lambda: LayerFlowIG(model).direct_edges(IDS, OTHER, LAST),
        "patching": lambda: patching.effects(model, IDS, OTHER, LAST),
        "erasure": lambda: erasure(model, IDS, torch.rand(1, 5), LAST, OTHER),
    }
    for ask in asked.values():
        torch.manual_seed(1)
        with refused("random"):
            ask()
    with refused("random"), circuits.of_nodes(model, IDS, OTHER, LAST):
        pass


@pytest.mark.parametrize("kind", ["dropout", "training", "batch norm"])
def test_sets_that_are_random_or_reach_each_other(kind: str) -> None:
    model: nn.Module = {
        "dropout": Dropping(nn.Identity()),
        "training": nn.Dropout(0.5),
        "batch norm": nn.BatchNorm1d(3, dtype=torch.float64),
    }[kind]
    with refused("forward_func", "random", ".eval()"):
        SetToSetIG(model).attribute(torch.rand(2, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("baselines", [None, "target_token"])
def test_path_points_of_sets_that_reach_each_other(batch: int, baselines: Any) -> None:
    x = torch.rand(batch, 3, 4, dtype=torch.float64)

    def centred(x: Tensor) -> Tensor:
        return (x - x.mean(0)).tanh() + x**2

    for function in (centred, nn.BatchNorm1d(3, dtype=torch.float64)):
        with refused("forward_func", "reach each other"):
            SetToSetIG(function).attribute(x, baselines)


def test_sets_that_are_worked_on_in_place() -> None:
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    kept = x.clone()

    def in_place(x: Tensor) -> Tensor:
        x[:, 1] += 1
        return x.mul_(2).tanh().cumsum(1)

    def plain(x: Tensor) -> Tensor:
        return (2 * torch.stack([x[:, 0], x[:, 1] + 1, x[:, 2]], 1)).tanh().cumsum(1)

    found, wanted = (SetToSetIG(f).attribute(x) for f in (in_place, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, kept)


def centred(output: Any) -> Tensor:
    each = last(output)
    return each - each.mean()


def largest(output: Any) -> Tensor:
    each = last(output)
    return each / each.abs().max()


@pytest.mark.parametrize("target", [centred, largest])
def test_numbers_that_read_other_texts(target: Any) -> None:
    """Path points and patched copies of a text run together."""
    model = decoder()
    with refused(target.__name__):
        LayerFlowIG(model).attribute(IDS, OTHER, target)
    with refused(target.__name__, "the texts beside it", "internal_batch_size=1"):
        patching.effects(model, IDS, OTHER, target)
    with refused(target.__name__), circuits.of_nodes(model, IDS, OTHER, target):
        pass
    patching.effects(model, IDS, OTHER, target, "tokens", internal_batch_size=1)
    with circuits.of_nodes(model, IDS, OTHER, largest, internal_batch_size=1) as found:
        assert float(found.values(torch.ones(found.count, dtype=torch.bool))) == pytest.approx(
            float(largest(model(IDS))), rel=1e-9
        )


def test_patching_a_number_without_a_gradient() -> None:
    def likeliest(output: Any) -> Tensor:
        return output[0][:, -1].argmax(-1).double()  # type: ignore[no-any-return]

    found = patching.effects(decoder(), IDS, OTHER, likeliest, "tokens")
    assert found.value == float(likeliest(decoder()(IDS)))


def test_a_continuation_is_the_baselines_too() -> None:
    """Patching runs from the padding that the flows start from."""
    model, target = decoder(), log_probability(IDS[0, -2:].tolist())
    flows = LayerFlowIG(model).attribute(IDS, None, target)
    assert isinstance(flows, list)
    found = patching.effects(model, IDS, None, target, "tokens")
    assert found.baseline_value is not None
    assert float(flows[0].tensors["change"]) == pytest.approx(found.value - found.baseline_value)


def first(output: Any) -> Tensor:
    """Another number."""
    return output[0][:, 0, 5] + output[0][:, 2, 7]  # type: ignore[no-any-return]


def test_graphs_of_another_question() -> None:
    """Of as many tokens: its text, its baseline or its number is another one."""
    model, third = decoder(), (3 * IDS + 1) % 45 + 4
    graph = FlowGraph(LayerFlowIG(model).attribute(IDS, OTHER, last))
    own: tuple[Any, ...] = IDS, OTHER, last
    patching.check(graph, model, *own, k=1)
    with circuits.of_nodes(model, *own) as found:
        found.scores(graph)
    compare_with_layer_integrated_gradients(graph, model, last, IDS, OTHER)
    for asked in ((third, OTHER, last), (IDS, third, last), (IDS, OTHER, first)):
        with refused("the same", "changes by"):
            patching.check(graph, model, *asked, k=1)
        with refused("the same", "changes by"), circuits.of_nodes(model, *asked) as found:
            found.scores(graph)
        with refused("the same", "changes by"):
            compare_with_layer_integrated_gradients(graph, model, asked[2], *asked[:2])


def test_arguments_that_would_do_nothing() -> None:
    model = decoder()
    projecting = LayerFlowIG(model, scalarization="projection")
    for ask in (projecting.attribute, projecting.direct_edges):
        with refused("scalarization='projection'", "without a target"):
            ask(IDS, OTHER, last)
    with refused("n_steps=0"):
        LayerFlowIG(model).direct_edges(IDS, OTHER, last, n_steps=0)
