"""Which tokens are padding: whatever a mask's form or dtype, and whatever lengths coincide.

Numbers are held to the twins' integrals, in float64, of the text without its padding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from captum_lig import inspect_model
from captum_lig.model.attention_call import added, allowed, forbidden, read_sources, reads_nothing
from tests.helpers import families, models, twin_blocks, twins
from tests.helpers.padded import FAMILY, IDS, KEPT, flows_of, refused

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


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
