"""Blocks that call `torch.nn.functional.scaled_dot_product_attention` themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as by_name

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.model.sdpa import use_sdpa
from tests.helpers.families import drawn, noise
from tests.helpers.sdpa_blocks import HEADS, LENGTH, WIDTH, Attending, Model
from tests.helpers.twins import by_autograd


def flow_of(model: nn.Module, x: Tensor, **given: Any) -> LayerFlow:
    flow = LayerFlowIG(model, 0).attribute(x, **given)
    assert isinstance(flow, LayerFlow)
    return flow


def masks() -> dict[str, Tensor]:
    lower = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    added = torch.zeros(LENGTH, LENGTH, dtype=torch.float64).masked_fill(~lower, -torch.inf)
    by_head = torch.linspace(-1, 1, HEADS, dtype=torch.float64).view(1, HEADS, 1, 1)
    return {"bool": lower, "float": added, "each head": added + by_head * noise(LENGTH, LENGTH)}


@pytest.mark.parametrize("named", [True, False], ids=["imported by name", "as an attribute"])
@pytest.mark.parametrize(
    ("how", "key_heads"),
    [
        ({}, HEADS),
        ({"is_causal": True}, HEADS),
        ({"attn_mask": masks()["bool"]}, HEADS),
        ({"attn_mask": masks()["float"]}, HEADS),
        ({"attn_mask": masks()["each head"]}, HEADS),
        ({"scale": 0.9}, HEADS),
        ({"enable_gqa": True, "is_causal": True}, 2),
    ],
    ids=["plain", "causal", "bool", "float", "each head", "scale", "groups"],
)
def test_every_way_to_call_it(how: dict[str, Any], key_heads: int, named: bool) -> None:
    """The rows of the layer map add up, and are those of autograd through the block as it is."""
    model = drawn(Model(Attending(how, key_heads, named)))
    x = noise(1, LENGTH, WIDTH)
    flow = flow_of(model, x, n_steps=8, tolerance=None)
    assert flow.attention.shape == (1, HEADS, LENGTH, LENGTH)
    block = model.blocks[0]
    expected = by_autograd(block, x[0], 8)
    torch.testing.assert_close(flow.layer[0], expected, rtol=1e-8, atol=1e-10)
    if "attn_mask" in how or how.get("is_causal"):
        assert bool((flow.layer.triu(1) == 0).all())
        assert bool((flow.attention.triu(1) == 0).all())


def test_padding_of_torchs_encoder() -> None:
    """Its padding mask reaches the cut, the fused path or not; a padded source gives nothing."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.encoder(x, src_key_padding_mask=attention_mask == 0)
            return out

    model = drawn(Encoder())
    x = noise(2, LENGTH, WIDTH)
    keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    flow = LayerFlowIG(model, 1).attribute({"x": x, "attention_mask": keep})
    assert torch.equal(flow.valid, keep.bool())
    assert bool((flow.layer[1, :, 3:] == 0).all())
    assert bool((flow.attention[1, :, :, 3:] == 0).all())
    alone = LayerFlowIG(model, 1).attribute({"x": x[1:, :3], "attention_mask": keep[1:, :3]})
    torch.testing.assert_close(flow.layer[1, :3, :3], alone.layer[0], rtol=1e-3, atol=1e-5)


def test_tokens_first_is_refused() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 48), 1)
    with pytest.raises(LigError, match=r"batch_first=True.*\(B, S, D\)"):
        LayerFlowIG(drawn(encoder)).attribute(noise(LENGTH, 2, WIDTH))


def test_dropout_in_evaluation_mode_is_refused() -> None:
    model = drawn(Model(Attending({"dropout_p": 0.1})))
    with pytest.raises(LigError, match=r"dropout_p=0\.1"):
        LayerFlowIG(model).attribute(noise(1, LENGTH, WIDTH))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_function_is_put_back(error: type[BaseException] | None) -> None:
    before = functional.scaled_dot_product_attention
    q = noise(1, 2, 3, 4)
    expected = before(q, q, q, is_causal=True)
    try:
        with use_sdpa():
            assert functional.scaled_dot_product_attention is before, "others may call it"
            with pytest.raises(LigError, match="dropout_p"):
                by_name(q, q, q, dropout_p=0.1)
            torch.testing.assert_close(by_name(q, q, q, is_causal=True), expected)
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert functional.scaled_dot_product_attention is before
    by_name(q, q, q, dropout_p=0.1)  # refused by ours
