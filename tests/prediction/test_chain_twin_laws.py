"""The twin of the attribution graph against what follows from its definition, by itself.

Nothing of captum_lig is used: the twin that ``test_chain_twin.py`` compares the library with is
tested here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import relevance_models, relevance_twin
from tests.helpers.relevance_models import LENGTH, RECIPES, Model, Recipe
from tests.helpers.relevance_twin import Layer, Relevance

RELATIVE = 1e-8


def number(output: Tensor) -> Tensor:
    """Of a model's output ``(B, ..., n)``: the last token's first logit, bent, less the second."""
    last = output if output.dim() == 2 else output[:, -1]
    return last[:, 0].tanh() + 0.1 * last[:, 0] ** 2 - last[:, 1]


def graph_of(
    recipe: Recipe, seed: int = 0, nodes: int = relevance_twin.NODES, whole: tuple[int, ...] = ()
) -> tuple[Model, Relevance]:
    model = relevance_models.make(recipe, seed)
    inputs, baselines = relevance_models.make_inputs(recipe, seed)
    return model, relevance_twin.relevance(model, number, inputs[0], baselines[0], nodes, whole)


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the sum of sizes."""
    return float((found - expected).abs().max() / expected.abs().sum())


def assert_laws(graph: Relevance, bound: float = RELATIVE) -> None:
    """Rows into a node and columns out of it add up to it; so does every cut, to the change."""
    sizes = max(float(layer.mlp_total.abs().sum()) for layer in graph.layers)

    def same(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=0.0, atol=bound * sizes)

    for layer in graph.layers:
        edges = layer.edges
        same(edges.total, edges.value + edges.key + edges.query)
        same(layer.attention.sum(-1), layer.mlp.T)
        same(layer.mlp, layer.feed_forward_heads + layer.past)
        same(layer.feed_forward_heads.sum(-1) + layer.feed_forward_token, layer.feed_forward)
        same(layer.past.sum(-1) + layer.feed_forward + layer.residual, layer.mlp_total)
        same(layer.mlp.sum(-1) + layer.feed_forward_token + layer.residual, layer.mlp_total)
        columns = layer.attention.sum((0, 1)) + layer.feed_forward_token + layer.residual
        same(layer.entering, columns)
        same(layer.entering.sum(), graph.change)
        same(layer.mlp_total.sum(), graph.change)
    for below, above in zip(graph.layers, graph.layers[1:]):
        same(below.mlp_total, above.entering)


@pytest.mark.parametrize("name", RECIPES)
def test_the_pieces_are_the_model(name: str) -> None:
    model = relevance_models.make(RECIPES[name])
    inputs, _ = relevance_models.make_inputs(RECIPES[name], texts=2)
    together = model(inputs)
    for text, expected in zip(inputs, together):
        values = relevance_twin.run(model, text, [True] * len(model.blocks))
        torch.testing.assert_close(
            model.read(values[-1].leaving[None])[0], expected, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("name", RECIPES)
def test_rows_columns_and_cuts(name: str) -> None:
    model, graph = graph_of(RECIPES[name])
    inputs, baselines = relevance_models.make_inputs(RECIPES[name])
    change = (number(model(inputs)) - number(model(baselines)))[0]
    torch.testing.assert_close(graph.change, change, rtol=1e-10, atol=1e-12)
    assert_laws(graph)
