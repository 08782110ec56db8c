"""The graph of an encoder-decoder: the twin against its laws, and the library against the twin."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers import relevance_encoder_decoder as twin
from tests.helpers.relevance_models import Recipe

RECIPES = {
    "norms before": Recipe(),
    "norms after": Recipe(norm="after"),
    "root mean squares, gated": Recipe(rms=True, mlp="swiglu"),
}
BOUND = 1e-8


def number(output: Tensor) -> Tensor:
    """The last token's first logit, bent, less the second; and the first token's third."""
    return output[:, -1, 0] * output[:, -1, 0].tanh() - output[:, -1, 1] + output[:, 0, 2]


def graph_of(name: str, seed: int = 0) -> tuple[twin.EncoderDecoder, twin.Relevance]:
    model = twin.make(RECIPES[name], seed)
    inputs, baselines = twin.make_inputs(seed)
    text, baseline = ((pair[0][0], pair[1][0]) for pair in (inputs, baselines))
    return model, twin.relevance(model, number, text, baseline)


@pytest.mark.parametrize("name", RECIPES)
def test_the_pieces_are_the_model(name: str) -> None:
    model = twin.make(RECIPES[name])
    inputs, _ = twin.make_inputs(texts=2)
    together = model(*inputs)
    for text, other, expected in zip(*inputs, together, strict=True):
        e = model.encoder.norm(twin.run_encoder(model, text)[-1].leaving)
        last = twin.run_decoder(model, other, e)[-1]
        torch.testing.assert_close(model.read(last.leaving), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_rows_columns_and_cuts(name: str) -> None:
    _, graph = graph_of(name)
    size = max(float(layer.mlp_total.abs().sum()) for layer in graph.decoder)

    def same(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=0.0, atol=BOUND * size)

    handed_to_states = torch.zeros_like(graph.states)
    for layer in reversed(graph.decoder):
        cross = layer.cross
        # rows
        same(layer.edges.total, layer.edges.value + layer.edges.key + layer.edges.query)
        same(layer.edges.total.sum(-1), layer.mlp.T)
        into_c = cross.states.sum(-1) + cross.token + cross.heads.sum(-1)
        same(into_c, layer.cross_total)
        into_m = layer.feed_forward_heads.sum(-1) + layer.feed_forward_cross.sum(-1)
        same(into_m + layer.feed_forward_token, layer.feed_forward)
        leaving = layer.past.sum(-1) + layer.past_cross.sum(-1)
        same(leaving + layer.feed_forward + layer.residual, layer.mlp_total)
        # columns
        same(layer.mlp, layer.past + layer.feed_forward_heads + cross.heads.sum(0))
        same(layer.cross_total.T, layer.past_cross + layer.feed_forward_cross)
        columns = layer.edges.total.sum((0, 1)) + layer.feed_forward_token + layer.residual
        same(layer.entering, columns + cross.token.sum(0))
        handed_to_states = handed_to_states + cross.states.sum((0, 1))
        # the cut below this block: its tokens, and what the blocks from here on hand to e
        same(layer.entering.sum() + handed_to_states.sum(), graph.change)
        # what a flow of the library has to add up to
        row = layer.mlp.sum(-1) + layer.residual + layer.feed_forward_token
        same(row + layer.fields["cross_token"] + layer.fields["cross_sum"], layer.mlp_total)
    same(handed_to_states, graph.states)
    for below, above in pairwise(graph.decoder):
        same(below.mlp_total, above.entering)
    same(graph.decoder[-1].mlp_total.sum(), graph.change)
    for layer_of_encoder in graph.encoder:
        same(layer_of_encoder.attention.sum(-1), layer_of_encoder.mlp.T)
        same(layer_of_encoder.mlp_total.sum(), graph.states.sum())
        same(layer_of_encoder.entering.sum(), graph.states.sum())
    same(graph.encoder[-1].mlp_total, graph.states)


@pytest.mark.parametrize("name", RECIPES)
def test_multipliers_near_the_input_are_gradients(name: str) -> None:
    """Two runs that hardly differ: what enters both stacks has F's gradient."""
    model = twin.make(RECIPES[name], seed=4)
    (source, target), _ = twin.make_inputs(seed=4)
    generator = torch.Generator().manual_seed(7)
    sides = {}
    for side, ids in ((model.encoder, source), (model.decoder, target)):
        z = side.embed(ids)[0]
        step = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        sides[side] = (z - 1e-6 * step, z + 1e-6 * step)
        # What the run starts from: the text's tokens moved a little, and back.
        side.embed = dict(enumerate(sides[side])).__getitem__  # type: ignore[method-assign,assignment]
    graph = twin.relevance(model, number, (1, 1), (0, 0), nodes=1)  # type: ignore[arg-type]

    def value(z: Tensor, other: Tensor) -> Tensor:
        for block in model.encoder.blocks:
            z = block(z)
        e = model.encoder.norm(z)
        for block in model.decoder.blocks:
            other = block(other, e)
        return number(model.read(other))[0]

    middle = [((a + b) / 2)[None].requires_grad_() for a, b in sides.values()]
    expected = torch.autograd.grad(value(*middle), middle)
    for layer, gradient in zip((graph.encoder[0], graph.decoder[0]), expected, strict=True):
        assert (layer.g_z - gradient[0]).norm() < 1e-6 * gradient.norm()


def flows_of(name: str) -> tuple[list[LayerFlow], twin.Relevance]:
    model, graph = graph_of(name, seed=1)
    inputs, baselines = twin.make_inputs(seed=1)
    flows = LayerFlowIG(model).attribute(
        inputs,
        baselines=baselines,
        target=number,
        dtype=torch.float64,
        n_steps=32,
        tolerance=1e-8,
    )
    assert isinstance(flows, list)
    return flows, graph


@pytest.mark.parametrize("name", RECIPES)
def test_flows_of_both_stacks(name: str) -> None:
    """The library's: the encoder's blocks, then the decoder's with their cross-attention."""
    flows, graph = flows_of(name)
    layers = [*graph.encoder, *graph.decoder]
    size = max(float(layer.mlp_total.abs().sum()) for layer in layers)
    for place, (flow, layer) in enumerate(zip(flows, layers, strict=True)):
        assert abs(flow.change - graph.change) < 1e-9 * size
        for field, expected in layer.fields.items():
            found = getattr(flow, field)
            assert found is not None, f"{field} of layer {place} is missing"
            assert found[0].shape == expected.shape, f"{field} of layer {place}"
            off = float((found[0] - expected).abs().max()) / size
            assert off < 1e-6, f"{field} of layer {place} is off by {off:.1e} of the sizes"


def test_rows_of_both_stacks_add_up() -> None:
    flows, graph = flows_of("norms before")
    size = max(float(layer.mlp_total.abs().sum()) for layer in graph.decoder)
    for place, flow in enumerate(flows):
        for boundary, error in flow.delta.items():
            assert error.abs().max() < 1e-6 * size, f"{boundary} of layer {place}"
