"""Flows towards a number, every node and edge, against the literal twin in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers import relevance_models, relevance_twin
from tests.helpers.relevance_models import LENGTH, RECIPES, Model
from tests.helpers.relevance_twin import Relevance

BOUND = 1e-6
"""Of the sizes of the relevances in the widest cut through the graph, added up."""
NAMES = (
    "attention",
    "attention_value",
    "attention_total",
    "mlp",
    "feed_forward",
    "feed_forward_heads",
    "feed_forward_token",
    "residual",
    "mlp_total",
    "entering",
)
Number = Callable[[Tensor], Tensor]


def difference(output: Tensor) -> Tensor:
    """Two logits of the last token, or of the text."""
    last = output if output.dim() == 2 else output[:, -1]
    return last[:, 2] - last[:, 0]


def log_probability(output: Tensor) -> Tensor:
    last = output if output.dim() == 2 else output[:, -2]
    return last.log_softmax(-1)[:, 1]


def cosine(output: Tensor) -> Tensor:
    """With a fixed direction, of all logits: every token counts."""
    flat = output.flatten(1)
    direction = torch.linspace(-1.0, 2.0, flat.shape[1], dtype=torch.float64)
    return functional.cosine_similarity(flat, direction[None])


NUMBERS: dict[str, Number] = {
    "difference": difference,
    "log-probability": log_probability,
    "cosine": cosine,
}


def captums(model: Model) -> tuple[Any, Number]:
    """Captum's own target: a class, or a position and a token; and the same as a function."""
    if model.recipe.classes:
        return 2, lambda output: output[:, 2]
    return (LENGTH - 1, 5), lambda output: output[:, LENGTH - 1, 5]


def flows_of(
    model: Model,
    inputs: Tensor,
    baselines: Tensor,
    target: Any,
    n_steps: int = 32,
    tolerance: float = 1e-8,
    mask: Tensor | None = None,
) -> list[LayerFlow]:
    found = LayerFlowIG(model).attribute(
        inputs,
        baselines=baselines,
        additional_forward_args=mask,
        target=target,
        dtype=torch.float64,
        n_steps=n_steps,
        tolerance=tolerance,
    )
    assert isinstance(found, list)
    return found


def assert_same(flows: list[LayerFlow], graph: Relevance, text: int = 0) -> None:
    """All fields of all layers, and no others; what is longer than the text is padding: 0."""
    size = max(float(layer.mlp_total.abs().sum()) for layer in graph.layers)
    assert len(flows) == len(graph.layers)
    for number, (flow, layer) in enumerate(zip(flows, graph.layers, strict=True)):
        assert flow.scalarization == "target"
        assert isinstance(flow.target, str)
        for boundary, error in flow.delta.items():
            assert error.abs().max() < BOUND * size, f"{boundary} of layer {number}"
        torch.testing.assert_close(flow.change[text], graph.change, rtol=1e-9, atol=1e-9 * size)
        for name in NAMES:
            found, expected = getattr(flow, name), layer.fields.get(name)
            if expected is None:
                assert found is None or not found.numel(), f"{name} of layer {number}"
                continue
            assert found is not None, f"{name} of layer {number} is missing"
            missing = [a - b for a, b in zip(found[text].shape, expected.shape, strict=True)]
            assert min(missing) >= 0, f"{name} of layer {number}: {found[text].shape}"
            behind = [side for more in reversed(missing) for side in (0, more)]
            off = float((found[text] - functional.pad(expected, behind)).abs().max()) / size
            assert off < BOUND, f"{name} of layer {number} is off by {off:.1e} of the sizes"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe(name: str) -> None:
    """Captum's targets and functions of the output, by turns from one model to the next."""
    place = list(RECIPES).index(name)
    model = relevance_models.make(RECIPES[name], seed=place % 2)
    inputs, baselines = relevance_models.make_inputs(RECIPES[name], seed=place % 2)
    target, number = captums(model)
    if place % 2:
        target = number = list(NUMBERS.values())[place // 2 % len(NUMBERS)]
    flows = flows_of(model, inputs, baselines, target)
    expected = relevance_twin.relevance(model, number, inputs[0], baselines[0], nodes=40)
    assert_same(flows, expected)


@pytest.mark.parametrize("function", NUMBERS)
@pytest.mark.parametrize("name", ["llama", "post-norm classifier"])
def test_every_function(name: str, function: str) -> None:
    number = NUMBERS[function]
    model = relevance_models.make(RECIPES[name], seed=2)
    inputs, baselines = relevance_models.make_inputs(RECIPES[name], seed=2)
    flows = flows_of(model, inputs, baselines, number)
    assert_same(flows, relevance_twin.relevance(model, number, inputs[0], baselines[0]))


@pytest.mark.parametrize("name", ["sequential", "vision"])
def test_texts_of_a_batch_each_by_themselves(name: str) -> None:
    model = relevance_models.make(RECIPES[name], seed=3)
    inputs, baselines = relevance_models.make_inputs(RECIPES[name], seed=3, texts=2)
    flows = flows_of(model, inputs, baselines, difference)
    for text in range(2):
        graph = relevance_twin.relevance(model, difference, inputs[text], baselines[text])
        assert_same(flows, graph, text)


@pytest.mark.parametrize("name", ["sequential", "llama", "post-norm"])
def test_padding_changes_nothing(name: str) -> None:
    """Beside a longer text; the number is of a token that both have."""

    def number(output: Tensor) -> Tensor:
        return output[:, 2, 1] - output[:, 1, 4] ** 2

    model = relevance_models.make(RECIPES[name], seed=4)
    inputs, baselines = relevance_models.make_inputs(RECIPES[name], seed=4, texts=2)
    mask = torch.ones_like(inputs)
    mask[1, LENGTH - 1] = 0
    flows = flows_of(model, inputs, baselines, number, mask=mask)
    for text, length in ((0, LENGTH), (1, LENGTH - 1)):
        own, other = inputs[text, :length], baselines[text, :length]
        assert_same(flows, relevance_twin.relevance(model, number, own, other), text)


@pytest.mark.parametrize("name", ["sequential", "post-norm", "llama", "vision"])
def test_what_few_nodes_give_is_right_beyond_its_sums(name: str) -> None:
    """Sums alone are certified, to 1e-3; single nodes and edges must not hide errors in them."""
    model = relevance_models.make(RECIPES[name], seed=11)
    inputs, baselines = relevance_models.make_inputs(RECIPES[name], seed=11)
    flows = flows_of(model, inputs, baselines, difference, n_steps=4, tolerance=1e-3)
    graph = relevance_twin.relevance(model, difference, inputs[0], baselines[0])
    for flow, layer in zip(flows, graph.layers, strict=True):
        for field, expected in layer.fields.items():
            off = (getattr(flow, field)[0] - expected).abs().sum() / expected.abs().sum()
            assert off < 5e-3, field
