"""The twin of the attribution graph against what follows from its definition, by itself.

Nothing of captum_lig is used: the twin that ``test_chain_twin.py`` compares the library with is
tested here.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise

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


@functools.cache
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
    for below, above in pairwise(graph.layers):
        same(below.mlp_total, above.entering)


@pytest.mark.parametrize("name", RECIPES)
def test_the_pieces_are_the_model(name: str) -> None:
    model = relevance_models.make(RECIPES[name])
    inputs, _ = relevance_models.make_inputs(RECIPES[name], texts=2)
    together = model(inputs)
    for text, expected in zip(inputs, together, strict=True):
        values = relevance_twin.run(model, text, [True] * len(model.blocks))
        torch.testing.assert_close(
            model.read(values[-1].leaving[None])[0], expected, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("causal", [True, False])
def test_the_model_of_a_padded_text_is_that_of_the_text(causal: bool) -> None:
    model = relevance_models.make(Recipe(causal=causal))
    inputs, _ = relevance_models.make_inputs(Recipe())
    mask = torch.tensor([[1] * (LENGTH - 1) + [0]])
    padded = model(inputs, mask)[:, : LENGTH - 1]
    torch.testing.assert_close(padded, model(inputs[:, : LENGTH - 1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_rows_columns_and_cuts(name: str) -> None:
    model, graph = graph_of(RECIPES[name])
    inputs, baselines = relevance_models.make_inputs(RECIPES[name])
    change = (number(model(inputs)) - number(model(baselines)))[0]
    torch.testing.assert_close(graph.change, change, rtol=1e-10, atol=1e-12)
    assert_laws(graph)


@pytest.mark.parametrize("name", ["sequential", "post-norm", "parallel", "between"])
def test_a_block_may_keep_its_mlp_within_the_last_stage(name: str) -> None:
    _, graph = graph_of(RECIPES[name], whole=(1,))
    _, apart = graph_of(RECIPES[name])
    assert_laws(graph)
    assert not graph.layers[1].feed_forward.any()
    assert apart.layers[1].feed_forward.any()
    assert off(graph.layers[2].entering, apart.layers[2].entering) < 1e-12
    # The MLP's output is added last, so its multiplier is constant; but not where a norm follows.
    difference = off(graph.layers[0].entering, apart.layers[0].entering)
    assert difference > 1e-4 if name == "post-norm" else difference < 1e-12


recipes = st.builds(
    Recipe,
    norm=st.sampled_from(["before", "after", "around"]),
    parallel=st.booleans(),
    mlp=st.sampled_from(["gelu", "swiglu", "soft experts", "none"]),
    rms=st.booleans(),
    key_heads=st.sampled_from([1, 2, 4]),
    causal=st.booleans(),
    gate=st.booleans(),
    attends=st.sampled_from([(True, True), (False, True), (True, False)]),
    classes=st.booleans(),
)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(recipe=recipes, seed=st.integers(0, 99))
def test_rows_columns_and_cuts_of_any_recipe(recipe: Recipe, seed: int) -> None:
    """Vectors half of the way to others, so that 64 nodes are enough wherever the norms lead."""
    recipe = replace(recipe, vectors=True)
    model = relevance_models.make(recipe, seed)
    inputs, baselines = relevance_models.make_inputs(recipe, seed, share=0.5)
    assert_laws(relevance_twin.relevance(model, number, inputs[0], baselines[0]))


# ---- single stages, and models whose graph is known -------------------------------------------


def test_multipliers_of_a_product_are_means_along_the_lines() -> None:
    """x y w: the mean of y w over a line is that of its ends, less a sixth of both changes."""
    x, y, w = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g = torch.arange(1.0, 6.0, dtype=torch.float64)
    found = relevance_twin.multipliers(
        lambda x, y, w: x * y * w, [x[0], y[0], w[0]], [x[1], y[1], w[1]], g, nodes=2
    )

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (a[0] * b[0] + a[1] * b[1]) / 2 - (a[1] - a[0]) * (b[1] - b[0]) / 6

    for multiplier, expected in zip(found, (mean(y, w), mean(x, w), mean(x, y)), strict=True):
        assert multiplier is not None
        torch.testing.assert_close(multiplier, g * expected, rtol=1e-12, atol=1e-12)


class LinearBlock:
    """Attention weights that do not move: everything is linear in z."""

    attends = has_mlp = True

    def __init__(self, generator: torch.Generator, width: int = 6, heads: int = 2) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.pattern = normal(heads, LENGTH, LENGTH).softmax(-1)
        self.value, self.out = normal(heads, width, 3), normal(heads, 3, width)
        self.to_m, self.heads_to_m = normal(width, width), normal(heads, 3, width)
        self.past, self.from_m = normal(width, width), normal(width, width)

    def queries_keys_values(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z @ self.value, z @ self.value, z @ self.value

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.pattern @ v + 0.0 * (q.sum() + k.sum())

    def feed_forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        assert u is not None
        return z @ self.to_m + (u @ self.heads_to_m).sum(0)

    def output(self, z: Tensor, u: Tensor | None, m: Tensor | None) -> Tensor:
        assert u is not None
        assert m is not None
        return z @ self.past + (u @ self.out).sum(0) + m @ self.from_m


class LinearModel:
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.blocks = [LinearBlock(generator) for _ in range(3)]
        self.unembed = torch.randn(6, 4, generator=generator, dtype=torch.float64)

    def embed(self, inputs: Tensor) -> Tensor:
        return inputs

    def read(self, z: Tensor) -> Tensor:
        return z @ self.unembed


def weighted(output: Tensor) -> Tensor:
    """A linear number of logits ``(B, S, 4)``."""
    weights = torch.arange(1.0, 1 + 4 * LENGTH, dtype=torch.float64).reshape(LENGTH, 4)
    return (output * weights).sum((-1, -2))


def test_a_linear_model_has_the_graph_of_its_matrices() -> None:
    model = LinearModel()
    generator = torch.Generator().manual_seed(4)
    text, baseline = torch.randn(2, LENGTH, 6, generator=generator, dtype=torch.float64)
    graph = relevance_twin.relevance(model, weighted, text, baseline, nodes=3)
    values, others = (relevance_twin.run(model, x, [True] * 3) for x in (text, baseline))

    weights = torch.arange(1.0, 1 + 4 * LENGTH, dtype=torch.float64).reshape(LENGTH, 4)
    g = weights @ model.unembed.T
    for block, value, other, layer in reversed(
        list(zip(model.blocks, values, others, graph.layers, strict=True))
    ):
        change = value.z - other.z
        g_m = g @ block.from_m.T
        to_m = g_m @ block.heads_to_m.mT  # (H, T, d)
        g_u = g @ block.out.mT + to_m
        moved = torch.einsum("hji,hid->hjid", block.pattern, change @ block.value)
        u_change = moved.sum(2)
        expected = {
            "mlp": (g_u * u_change).sum(-1).T,
            "feed_forward": (g_m * (value.m - other.m)).sum(-1),
            "feed_forward_heads": (to_m * u_change).sum(-1).T,
            "feed_forward_token": (g_m @ block.to_m.T * change).sum(-1),
            "residual": (g @ block.past.T * change).sum(-1),
            "mlp_total": (g * (value.leaving - other.leaving)).sum(-1),
        }
        for name, tensor in expected.items():
            assert off(getattr(layer, name), tensor) < 1e-12, name
        assert off(layer.edges.value, torch.einsum("hjd,hjid->hji", g_u, moved)) < 1e-12
        assert not layer.edges.key.any()
        assert not layer.edges.query.any()
        through_heads = torch.einsum("hji,hjd,hed->ie", block.pattern, g_u, block.value)
        g = g @ block.past.T + g_m @ block.to_m.T + through_heads
        assert off(layer.g_z, g) < 1e-12
        assert off(layer.entering, (g * change).sum(-1)) < 1e-12


def test_attention_edges_agree_with_the_formula_of_a_softmax() -> None:
    """Where no norm bends the lines of q, k, v: p_i g.v'_i, r_i q.k'_i, and r_i q'.k_i summed."""
    model, graph = graph_of(Recipe(norm="none", causal=True))
    inputs, baselines = relevance_models.make_inputs(Recipe())
    values, others = (relevance_twin.run(model, x[0], [True] * 3) for x in (inputs, baselines))
    for block, value, other, layer in zip(model.blocks, values, others, graph.layers, strict=True):
        ends, starts = (block.queries_keys_values(x.z) for x in (value, other))
        moves = [end - start for end, start in zip(ends, starts, strict=True)]
        assert layer.g_u is not None
        g = layer.g_u
        by_value = by_key = by_query = torch.zeros_like(layer.attention)
        for a, weight in relevance_twin.gauss_legendre(relevance_twin.NODES):
            q, k, v = (start + a * move for start, move in zip(starts, moves, strict=True))
            scale = q.shape[-1] ** -0.5
            hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
            p = (scale * q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1)
            read = g @ v.mT  # g_j . v_i
            r = p * (read - (p * read).sum(-1, keepdim=True))
            by_value = by_value + weight * p * (g @ moves[2].mT)
            by_key = by_key + weight * scale * r * (q @ moves[1].mT)
            of_query = (scale * r * (moves[0] @ k.mT)).sum(-1)
            by_query = by_query + weight * torch.diag_embed(of_query)
        assert off(layer.edges.value, by_value) < 1e-12
        assert off(layer.edges.key, by_key) < 1e-12
        assert off(layer.edges.query, by_query) < 1e-12


@pytest.mark.parametrize("name", RECIPES)
def test_multipliers_near_the_input_are_gradients(name: str) -> None:
    """Two runs that hardly differ: at every depth g is F's gradient, here by finite differences."""
    recipe = replace(RECIPES[name], vectors=True)
    model = relevance_models.make(recipe, seed=5)
    inputs, baselines = relevance_models.make_inputs(recipe, seed=5, share=1e-6)
    graph = relevance_twin.relevance(model, number, inputs[0], baselines[0], nodes=1)
    values = relevance_twin.run(model, (inputs[0] + baselines[0]) / 2, [True] * 3)
    generator = torch.Generator().manual_seed(6)
    for depth, (value, layer) in enumerate(zip(values, graph.layers, strict=True)):
        for _ in range(3):
            direction = torch.randn(value.z.shape, generator=generator, dtype=torch.float64)

            def moved(step: float, depth: int = depth, along: Tensor = direction) -> Tensor:
                z = values[depth].z + step * along
                for block in model.blocks[depth:]:
                    z = block(z[None])[0]
                return number(model.read(z[None]))[0]

            expected = (moved(1e-4) - moved(-1e-4)) / 2e-4
            size = layer.g_z.norm() * direction.norm()
            assert abs((layer.g_z * direction).sum() - expected) < 1e-6 * size
        if depth:
            assert torch.equal(layer.g_z, graph.layers[depth - 1].g_leaving)


def test_the_laws_notice_a_wrong_edge() -> None:
    _, graph = graph_of(RECIPES["sequential"])
    layer = graph.layers[1]
    wrong: list[Layer] = [
        replace(layer, residual=layer.residual + 1e-6),
        replace(layer, feed_forward_token=layer.feed_forward_token * (1 + 1e-6)),
        replace(layer, edges=replace(layer.edges, key=layer.edges.key * (1 + 1e-6))),
        replace(layer, mlp_total=layer.mlp_total.flip(0)),
    ]
    for one in wrong:
        with pytest.raises(AssertionError):
            assert_laws(replace(graph, layers=[graph.layers[0], one, graph.layers[2]]))
