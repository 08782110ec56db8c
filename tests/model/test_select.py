"""What is remembered of a model's blocks from one call to the next, and what is left out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlow, LayerFlowIG, inspect_model
from captum_lig.errors import LigError
from tests.helpers.families import built, drawn, ids, noise, two_texts

DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}


def layers_of(lig: LayerFlowIG, inputs: Any, **given: Any) -> list[Tensor]:
    flows = lig.attribute(inputs, n_steps=4, tolerance=None, **given)
    flows = [flows] if isinstance(flows, LayerFlow) else flows
    return [x for flow in flows for x in (flow.layer, flow.attention) if x is not None]


def test_a_text_that_shows_nothing_is_not_remembered() -> None:
    """With one token no attention can be found; with the next text it is."""
    model = built("deberta-v2", **DEBERTA)()
    lig = LayerFlowIG(model)
    one = {"input_ids": torch.tensor([[5]])}
    with pytest.raises(LigError, match=r"one token does not show.*a longer text first"):
        layers_of(lig, one)
    layers_of(lig, one, boundaries=("layer",))
    found, expected = layers_of(lig, ids(model)), layers_of(LayerFlowIG(model), ids(model))
    assert len(found) == 4
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    assert len(layers_of(lig, one)) == 4


def test_nor_one_that_is_padding_but_for_a_token() -> None:
    model = built("deberta-v2", **DEBERTA)()
    lig = LayerFlowIG(model)
    one = {"input_ids": torch.tensor([[5, 0, 0]]), "attention_mask": torch.tensor([[1, 0, 0]])}
    with pytest.raises(LigError, match="one token does not show"):
        layers_of(lig, one)
    layers_of(lig, one, boundaries=("layer",))
    assert len(layers_of(lig, ids(model))) == 4


class PerHead(nn.Module):
    """Takes a mask for each head of each text, ``(B * H, S, S)``, as nn.MultiheadAttention does;
    without one it takes any number of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        u, _ = self.attention(x, x, x, attn_mask=mask, need_weights=False)
        return x + self.out(u)  # type: ignore[no-any-return]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([PerHead(), PerHead()])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


def test_what_is_remembered_is_true_of_what_comes_next() -> None:
    """How a block takes many sequences is another matter with a mask than without."""
    model = drawn(Masked())
    x = noise(1, 5, 32)
    mask = noise(4, 5, 5)
    lig = LayerFlowIG(model)
    layers_of(lig, x)
    found = layers_of(lig, (x, mask))
    expected = layers_of(LayerFlowIG(model), (x, mask))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "given", "left", "taken"),
    [
        ("longt5", {"local_radius": 2}, "encoder.block", "decoder.block"),
        ("led", {"attention_window": 4}, "decoder.layers", "encoder.layers"),
    ],
)
def test_stacks_that_are_left_out_are_named(
    kind: str, given: dict[str, Any], left: str, taken: str
) -> None:
    """Once by a warning, and in the report; what is named by the caller is not left out."""
    model = built(kind, **given)()
    inputs, lig = two_texts(model), LayerFlowIG(model)
    with pytest.warns(UserWarning, match=rf"'{left}' .*not attributed.*'{taken}'.*attention") as w:
        flows = lig.attribute(inputs, boundaries=("layer",), n_steps=2, tolerance=None)
    assert [x.filename for x in w] == [__file__]
    assert isinstance(flows, list)
    assert {flow.name.rpartition(".")[0] for flow in flows} == {taken}
    report = inspect_model(model, inputs)
    assert any(left in sentence for sentence in report.not_supported)
    assert any(left in sentence for sentence in report.to_json()["not_supported"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lig.attribute(inputs, boundaries=("layer",), n_steps=2, tolerance=None)
        named = LayerFlowIG(model, [f"{left}.0", f"{left}.1"])
        flows = named.attribute(inputs, boundaries=("layer",), n_steps=2, tolerance=None)
    assert len(flows) == 2


def test_nothing_is_left_out_of_other_models() -> None:
    model = built("bart")()
    assert inspect_model(model, two_texts(model)).left_out == ()
