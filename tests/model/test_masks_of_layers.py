"""Masks that a block makes, takes from an encoder, or hides; arguments that all texts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, FNetConfig, FNetModel

from captum_lig import Block, LayerFlowIG
from tests.helpers import families, hand_written
from tests.helpers.padded import FAMILY, IDS, KEPT, flows_of, refused

# --- whose mask it is -----------------------------------------------------------------------------


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Written out, so that only the output projection can be reached."""
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -1e9)
    return logits.softmax(-1) @ v


def by_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Attend(nn.Module):
    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            f(t).unflatten(-1, (4, 8)).transpose(1, 2)
            for f, t in ((self.q, x), (self.k, states), (self.v, states))
        )
        out: Tensor = self.out(self.core(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    def __init__(self, core: Core, reads: str) -> None:
        super().__init__()
        self.reads = reads
        self.attention, self.cross = Attend(core), Attend(core)
        self.feed = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU())

    def forward(
        self, x: Tensor, mask: Tensor | None, states: Tensor | None, states_mask: Tensor | None
    ) -> Tensor:
        if self.reads != "states":
            x = x + self.attention(x, x, mask)
        if states is not None:
            x = x + self.cross(x, states, states_mask)
        return x + self.feed(x)  # type: ignore[no-any-return]


class TwoTexts(nn.Module):
    """An encoder that is padded, and a decoder without a mask of padding."""

    def __init__(self, core: Core, decoder: str, zeroed: bool = False) -> None:
        super().__init__()
        self.decoder_kind, self.zeroed = decoder, zeroed
        self.embed, self.places = nn.Embedding(60, 32), nn.Embedding(16, 32)
        self.encoder = nn.ModuleList(Layer(core, "itself") for _ in range(2))
        self.decoder = nn.ModuleList(Layer(core, decoder) for _ in range(2))

    def tokens(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.places.weight[: ids.shape[1]]  # type: ignore[no-any-return]

    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        x, y = self.tokens(input_ids), self.tokens(decoder_input_ids)
        kept = attention_mask.bool()[:, None, None]
        if self.zeroed:
            x = x * attention_mask[..., None]
        for layer in self.encoder:
            x = layer(x, kept, None, None)
        length = y.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for layer in self.decoder:
            y = layer(y, causal if self.decoder_kind == "causal" else None, x, kept)
        return y


@pytest.mark.parametrize("pads", [1, 2])
@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("decoder", ["causal", "full", "states"])
@pytest.mark.parametrize("core", [softmax_attention, by_torch])
def test_a_decoder_as_long_as_its_padded_encoder(
    core: Core, decoder: str, zeroed: bool, pads: int
) -> None:
    """With one padded token at the end a causal decoder looks as if it did not read that place.

    A decoder that only reads the encoder's states has an attention whose mask is the encoder's.
    """
    model = families.drawn(TwoTexts(core, decoder, zeroed))
    kept = torch.ones(2, 5, dtype=torch.bool)
    kept[1, 5 - pads :] = False
    inputs = {
        "input_ids": IDS["right"],
        "decoder_input_ids": torch.tensor([[1, 9, 23, 4, 7], [1, 8, 40, 6, 12]]),
        "attention_mask": kept.long(),
    }
    layers: list[Any] = [*model.encoder, *model.decoder]
    if decoder == "states" and core is by_torch:
        assert "other tokens than its own" in refused(model, inputs)
        layers = [*model.encoder, *map(Block, model.decoder)]
    flows = flows_of(model, inputs, layers)
    assert len(flows) == 4
    for flow in flows:
        expected = torch.ones_like(kept) if flow.name.startswith("decoder") else kept
        assert torch.equal(flow.valid, expected), flow.name
    short = {**inputs, "input_ids": IDS["right"][1:, : 5 - pads]}
    short |= {"attention_mask": kept[1:, : 5 - pads].long()}
    short |= {"decoder_input_ids": inputs["decoder_input_ids"][1:]}
    for flow, other in zip(flows, flows_of(model, short, layers), strict=True):
        count = other.valid.shape[1]
        assert flow.layer is not None
        torch.testing.assert_close(
            flow.layer[1, :count, :count], other.layer[0], rtol=1e-5, atol=1e-7
        )


def clip() -> tuple[nn.Module, dict[str, Any]]:
    """Four patches and a class token beside five tokens of text."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 16,
    }
    text = {"vocab_size": 60, "max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=sizes | text,
        vision_config=sizes | {"image_size": 8, "patch_size": 4},
        projection_dim=16,
    )
    pictures = families.noise(2, 3, 8, 8)
    return families.drawn(CLIPModel(config)), {
        "input_ids": IDS["right"],
        "attention_mask": KEPT["right"].long(),
        "pixel_values": pictures,
    }


def test_as_many_patches_as_tokens() -> None:
    model, inputs = clip()
    flows = flows_of(model, inputs)
    vision = [flow for flow in flows if flow.name.startswith("vision")]
    assert len(vision) == 2
    for flow in flows:
        expected = torch.ones(2, 5, dtype=torch.bool) if flow in vision else KEPT["right"]
        assert torch.equal(flow.valid, expected), flow.name
    unpadded = {**inputs, "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    for flow, other in zip(vision, flows_of(model, unpadded), strict=False):
        assert flow.name == other.name
        torch.testing.assert_close(flow.layer, other.layer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", IDS)
@pytest.mark.parametrize("name", ["deberta-v2", "mpnet", "gptj", "falcon", "qwen3_next", "mamba"])
def test_blocks_whose_mask_cannot_be_seen(name: str, side: str) -> None:
    inputs = {"input_ids": IDS[side], "attention_mask": KEPT[side].long()}
    for flow in flows_of(FAMILY[name].build(), inputs):
        assert torch.equal(flow.valid, KEPT[side]), flow.name


def test_what_the_model_reads_is_text() -> None:
    """FNet mixes all tokens, whatever the mask says."""
    config = FNetConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = FNetModel(config)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.net(input_ids)

    inputs = {"input_ids": IDS["right"], "attention_mask": KEPT["right"].long()}
    for flow in flows_of(families.drawn(Masked()), inputs):
        assert bool(flow.valid.all()), flow.name


def test_padding_after_a_causal_text_needs_no_mask() -> None:
    """Nothing reads it: the caller's mask tells."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = hand_written.HandGPT()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.net(input_ids)

    model = families.drawn(Masked())
    for side, expected in (("right", KEPT["right"]), ("left", torch.ones_like(KEPT["left"]))):
        inputs = {"input_ids": IDS[side], "attention_mask": KEPT[side].long()}
        for flow in flows_of(model, inputs):
            assert torch.equal(flow.valid, expected), side


def test_a_described_block_of_a_model_that_zeroes_its_padding() -> None:
    model = FAMILY["deberta-v2"].build()
    blocks = [
        Block(layer, attention=layer.attention.output.dense, heads=4)
        for layer in model.encoder.layer
    ]
    inputs = {"input_ids": IDS["left"], "attention_mask": KEPT["left"].long()}
    for flow in LayerFlowIG(model, layer=blocks).attribute(inputs, n_steps=4, tolerance=None):
        assert torch.equal(flow.valid, KEPT["left"])


# --- what all texts share -------------------------------------------------------------------------


class Biased(nn.Module):
    """Blocks that get a bias for each head, shared by the texts, and a table of positions."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4, length, length))
        self.table = nn.Parameter(torch.zeros(length, 32))
        self.layers = nn.ModuleList(BiasedLayer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.bias, self.table)
        return x


class BiasedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attend(self.core)
        self.bias: Tensor | None = None

    def core(self, q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)

    def forward(self, x: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        self.bias = bias
        return x + self.attention(x + table, x + table, None)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("batch", "length"), [(2, 3), (4, 3), (3, 3), (4, 4)])
def test_arguments_that_all_texts_share(batch: int, length: int) -> None:
    """Four heads for two or four texts; a table of three places for three texts."""
    model = families.drawn(Biased(length))
    x = families.noise(batch, length, 32)
    both = flows_of(model, x)
    for text in range(batch):
        for flow, other in zip(both, flows_of(model, x[text : text + 1]), strict=True):
            assert flow.layer is not None
            torch.testing.assert_close(flow.layer[text], other.layer[0], rtol=1e-6, atol=1e-9)
