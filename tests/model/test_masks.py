"""Which tokens are padding: whatever a mask's form or dtype, and whatever lengths coincide.

Numbers are held to the twins' integrals, in float64, of the text without its padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, FNetConfig, FNetModel, SwinConfig, SwinModel

from captum_lig import Block, LayerFlow, LayerFlowIG, LigError, inspect_model
from captum_lig.model.attention_call import added, allowed, forbidden, read_sources, reads_nothing
from tests.helpers import families, hand_written, models, twin_blocks, twins

FAMILY = {family.name: family for family in families.FAMILIES}
IDS = {
    "right": torch.tensor([[11, 45, 23, 8, 30], [7, 19, 5, 0, 0]]),
    "left": torch.tensor([[11, 45, 23, 8, 30], [0, 0, 7, 19, 5]]),
}
KEPT = {side: ids != 0 for side, ids in IDS.items()}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def flows_of(
    model: nn.Module, inputs: Any, layers: list[Any] | None = None, **given: Any
) -> list[LayerFlow]:
    given = {"boundaries": ("layer",), "n_steps": 4, "tolerance": None, **given}
    flows = LayerFlowIG(model, layers).attribute(inputs, **given)
    assert isinstance(flows, list)
    return flows


def refused(model: nn.Module, inputs: Any) -> str:
    with pytest.raises(LigError) as caught:
        flows_of(model, inputs)
    return str(caught.value)


def mask_of(kind: str, kept: Tensor, causal: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    """A mask (B, 1, S, S) in one of the forms that are in use."""
    length = kept.shape[1]
    open_ = kept[:, None, None].expand(-1, 1, length, length)
    if causal:
        open_ = open_ & torch.ones(length, length, dtype=torch.bool).tril()
    if kind == "bool":
        return open_.clone()
    least = {"min": torch.finfo(dtype).min, "-inf": -torch.inf, "-1e4": -1e4, "-1e9": -1e9}[kind]
    return torch.zeros(open_.shape, dtype=dtype).masked_fill(~open_, least)


# --- masks of any dtype and form ------------------------------------------------------------------


def layer_map(model: Any, layer: int, z: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The twin's map of a text ``z (S, D)`` whose other tokens are masked."""
    block = twin_blocks.twin_block(model, layer, kept.long())
    return twins.layer_map(block, z, "target_token", "l2", *twins.gauss_legendre(24, power=2))


@pytest.mark.parametrize("side", IDS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_in_any_precision(dtype: torch.dtype, family: str, side: str) -> None:
    model = models.MODELS[family](dtype=dtype)
    inputs = {"input_ids": IDS[side], "attention_mask": KEPT[side].long()}
    given: dict[str, Any] = {"n_steps": 32, "boundaries": ("attention", "mlp", "layer")}
    flows = flows_of(model, inputs, **given)
    exact = models.MODELS[family](dtype=dtype).double()
    for layer, flow in enumerate(flows):
        assert torch.equal(flow.valid, KEPT[side])
        assert flow.layer is not None
        assert flow.layer_total is not None
        assert flow.attention is not None
        for total in (flow.layer_total, flow.attention_total.transpose(1, 2)):
            assert bool((total[~KEPT[side]] == 0).all())
        assert bool((flow.layer[1][:, ~KEPT[side][1]] == 0).all())
        if layer:
            continue  # what enters the second block was rounded on the way
        entering, _ = models.block_input_output(model, 0, **inputs)
        for text in (0, 1):
            kept = KEPT[side][text]
            phi, totals = layer_map(exact, 0, entering[text].double(), kept)
            scale = totals[kept].max()
            gap = (flow.layer[text] - phi)[kept].abs().max() / scale
            assert float(gap) <= 1e-5


@pytest.mark.parametrize("side", IDS)
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("bert", kind) for kind in ("bool", "min", "-inf", "-1e4", "-1e9")),
        *((family, kind) for family in sorted(models.CAUSAL) for kind in ("bool", "min")),
    ],
)
def test_a_mask_of_four_axes(family: str, kind: str, side: str) -> None:
    """Its padding is what it hides; what is left is as with a mask (B, S)."""
    model = models.MODELS[family]()
    usual = flows_of(model, {"input_ids": IDS[side], "attention_mask": KEPT[side].long()})
    given = mask_of(kind, KEPT[side], family in models.CAUSAL)
    places = KEPT[side].long().cumsum(-1).sub(1).clamp_min(0)
    inputs = {"input_ids": IDS[side], "attention_mask": given}
    if family != "bert":
        inputs["position_ids"] = places
        usual = flows_of(
            model,
            {"input_ids": IDS[side], "attention_mask": KEPT[side], "position_ids": places},
        )
    for flow, other in zip(flows_of(model, inputs), usual, strict=True):
        assert torch.equal(flow.valid, KEPT[side])
        torch.testing.assert_close(flow.layer, other.layer, rtol=1e-6, atol=1e-8)


def test_a_boolean_mask_that_is_added_is_refused_for_that() -> None:
    model = models.tiny_gpt2()
    model.set_attn_implementation("eager")
    inputs = {"input_ids": IDS["right"], "attention_mask": mask_of("bool", KEPT["right"], True)}
    said = refused(model, inputs)
    assert "boolean mask" in said
    assert "attn_implementation='sdpa'" in said
    assert "random" not in said


@pytest.mark.parametrize(("axes", "word"), [(4, "integers"), (3, "(2, 5, 5)")])
def test_integer_masks_and_three_axes(axes: int, word: str) -> None:
    mask = mask_of("bool", KEPT["right"], causal=False).long()
    if axes == 3:
        mask = mask[:, 0]
    said = refused(models.tiny_bert(), {"input_ids": IDS["right"], "attention_mask": mask})
    assert word in said
    assert "Give" in said


@pytest.mark.parametrize("kind", ["min", "bool"])
def test_a_token_that_is_read_and_may_read_nothing(kind: str) -> None:
    mask = mask_of(kind, KEPT["right"], causal=False)
    mask[0, :, 2] = torch.finfo(torch.float64).min if kind == "min" else False
    said = refused(models.tiny_bert(), {"input_ids": IDS["right"], "attention_mask": mask})
    assert "target 2 of text 0" in said
    assert "let it read itself" in said


def test_a_row_under_one_small_constant_reads_everything() -> None:
    """-1e4 on all of a row's logits is no mask: the row is what it is without."""
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    ids = IDS["right"][:1]
    plain = flows_of(models.tiny_bert(), {"input_ids": ids, "attention_mask": mask})
    mask = mask.clone()
    mask[0, :, 2] = -1e4
    for flow, other in zip(
        flows_of(models.tiny_bert(), {"input_ids": ids, "attention_mask": mask}), plain, strict=True
    ):
        torch.testing.assert_close(flow.layer, other.layer, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("least", ["bool", "min", -torch.inf, -1e4])
def test_what_a_mask_forbids(dtype: torch.dtype, least: Any) -> None:
    open_ = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    given = open_
    if least != "bool":
        value = torch.finfo(dtype).min if least == "min" else least
        given = torch.zeros(3, 3, dtype=dtype).masked_fill(~open_, value)
    query = torch.zeros(1, 2, 3, 4, dtype=dtype)
    mask = added(given, query, query)
    assert mask is not None
    assert mask.shape == (1, 1, 3, 3)
    assert bool(torch.isfinite(mask).all())
    assert torch.equal(~forbidden(mask)[0, 0], open_)
    assert torch.equal(allowed(mask)[0, 0, :2], open_[:2])
    assert bool(allowed(mask)[0, 0, 2].all())
    assert read_sources(mask).tolist() == [[True, True, False]]
    lost = least != -1e4 or dtype in (torch.float16, torch.bfloat16)
    assert reads_nothing(mask).tolist() == [[False, False, lost]]
    biased = mask.clone()
    biased[..., 0, :] += torch.tensor([-90.0, 0.0, 0.0]).to(dtype)  # a bias is no mask
    assert torch.equal(~forbidden(biased)[0, 0], open_)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_both_sides_padded(name: str, dtype: torch.dtype) -> None:
    """T5 adds a bias of positions to its mask."""
    model = FAMILY[name].build().to(dtype)
    inputs = {
        "input_ids": IDS["right"],
        "attention_mask": KEPT["right"].long(),
        "decoder_input_ids": torch.tensor([[1, 9, 23, 4, 7], [1, 8, 40, 6, 0]]),
    }
    alone = flows_of(model, inputs)
    inputs["decoder_attention_mask"] = (inputs["decoder_input_ids"] != 0).long()
    for flow, other in zip(flows_of(model, inputs), alone, strict=True):
        if flow.name.startswith("decoder"):
            assert torch.equal(flow.valid, inputs["decoder_input_ids"] != 0)
            assert bool(other.valid.all())
        else:
            assert torch.equal(flow.valid, KEPT["right"])
            assert torch.equal(other.valid, KEPT["right"])


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


# --- what belongs to which text -------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 4, 8, 2])
def test_bloom_whatever_its_lengths(length: int) -> None:
    """Two texts of four heads: eight biases, as many as one of the texts has tokens."""
    model = FAMILY["bloom"].build()
    ids = torch.arange(3, 3 + 2 * length).view(2, length)
    both = flows_of(model, {"input_ids": ids}, boundaries=("attention", "layer"))
    for text in (0, 1):
        alone = flows_of(
            model, {"input_ids": ids[text : text + 1]}, boundaries=("attention", "layer")
        )
        for flow, other in zip(both, alone, strict=True):
            assert flow.layer is not None
            assert flow.attention is not None
            torch.testing.assert_close(flow.layer[text], other.layer[0], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(
                flow.attention[text], other.attention[0], rtol=1e-4, atol=1e-6
            )


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


# --- torch's own encoder, windows, tokens first ---------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, **given: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, **given)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)  # type: ignore[no-any-return]


@pytest.mark.parametrize("side", IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_torchs_encoder_with_its_defaults(norm_first: bool, dtype: torch.dtype, side: str) -> None:
    """It drops the padding between its layers where it can (nested tensors)."""
    model = families.drawn(Encoder(norm_first=norm_first)).to(dtype)
    x, kept = families.noise(2, 5, 32).to(dtype), KEPT[side]
    flows = flows_of(model, {"x": x, "padding": ~kept})
    short = {"x": x[1:, kept[1]], "padding": torch.zeros(1, 3, dtype=torch.bool)}
    for flow, other in zip(flows, flows_of(model, short), strict=True):
        assert torch.equal(flow.valid, kept)
        assert flow.layer is not None
        found = flow.layer[1][kept[1]][:, kept[1]]
        torch.testing.assert_close(found, other.layer[0], rtol=1e-4, atol=1e-5)
    assert all(not block.not_supported for block in inspect_model(model, (x, ~kept)).blocks)


@pytest.mark.parametrize(("window", "word"), [(1, "windows of one token"), (2, "windows")])
def test_windows(window: int, word: str) -> None:
    config = SwinConfig(
        image_size=8, patch_size=2, embed_dim=16, depths=[2], num_heads=[4], window_size=window
    )
    said = refused(families.drawn(SwinModel(config)), {"pixel_values": families.noise(1, 3, 8, 8)})
    assert word in said
    assert "boundaries=('layer',)" in said
    assert "gets tokens first" not in said


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_tokens_first(batch: int) -> None:
    """Also with as many texts as tokens."""
    encoder = families.drawn(nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48), 1))
    assert "batch_first=True" in refused(encoder, families.noise(4, batch, 32))
