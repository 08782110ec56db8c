"""Masks, padding and ids that would give wrong numbers are refused or warned of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import BartConfig, BartForConditionalGeneration

from captum_lig import FlowGraph, LayerFlow, LayerFlowIG, patching
from captum_lig.metrics import erasure
from captum_lig.prediction import last_layer_relevance, logit, target_value
from tests.helpers import models
from tests.helpers.wrong_numbers import IDS, LAST, NAN, OTHER, decoder, last, refused


@pytest.mark.parametrize("value", [0.5, 2, -1, -1e9, NAN])
@pytest.mark.parametrize("target", [None, last])
def test_masks_that_are_read_another_way(value: float, target: Any) -> None:
    mask = torch.ones(1, 5, dtype=torch.float64)
    mask[0, 3] = value
    given = {} if target is None else {"baselines": OTHER, "target": target}
    shown = "NaN" if value != value else f"{value:g}"
    with refused("attention_mask", shown, "1 for tokens and 0 for padding"):
        LayerFlowIG(models.tiny_gpt2()).attribute(
            {"input_ids": IDS, "attention_mask": mask}, **given
        )


@pytest.mark.parametrize("shape", [(), (5,)])
def test_masks_without_texts(shape: tuple[int, ...]) -> None:
    inputs = {"input_ids": IDS, "attention_mask": torch.ones(shape)}
    with refused("attention_mask", str(shape), "(B, S)"):
        LayerFlowIG(models.tiny_gpt2()).attribute(inputs)


@pytest.mark.parametrize("family", models.MODELS)
def test_padding_before_a_text(family: str) -> None:
    """Rotary positions are relative, the others are counted from the padding."""
    ids = torch.cat([torch.zeros(1, 2, dtype=torch.long), IDS], 1)
    mask = (ids != 0).long()
    given = {"input_ids": ids, "attention_mask": mask}
    lig = LayerFlowIG(models.MODELS[family](), 1)
    if family == "llama":
        lig.attribute(given)
    else:
        with pytest.warns(UserWarning, match="text 0 has padding before it.*position_ids") as seen:
            lig.attribute(given)
        assert seen[-1].filename == __file__
        other = torch.where(ids > 5, ids - 1, ids)
        with pytest.warns(UserWarning, match="text 0 has padding before it") as seen:
            LayerFlowIG(models.MODELS[family]()).attribute(given, other, last)
        assert {Path(one.filename).name for one in seen} <= {Path(__file__).name, "_script.py"}
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = LayerFlowIG(models.MODELS[family](), 1).attribute({**given, "position_ids": places})
    assert isinstance(found, LayerFlow)
    wanted = LayerFlowIG(models.MODELS[family](), 1).attribute(IDS)
    torch.testing.assert_close(found.layer[:, 2:, 2:], wanted.layer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", models.CAUSAL)
def test_positions_that_start_anew(family: str) -> None:
    """One text with a cache, two packed ones without."""
    model = models.MODELS[family]()
    ids, places = IDS[:, :4], torch.tensor([[0, 1, 0, 1]])
    given = {"input_ids": ids, "position_ids": places}
    with torch.no_grad():
        one, packed = (model(**given, use_cache=use)[0] for use in (True, False))
        seen = model(**given, attention_mask=torch.ones_like(ids))[0]
    assert not torch.allclose(one, packed)
    assert torch.equal(one, seen)
    with refused("position_ids", "attention_mask", "use_cache=False"):
        LayerFlowIG(model).attribute(given)
    with refused("position_ids"):
        target_value(model, last, given)
    whole = {**given, "attention_mask": torch.ones_like(ids)}
    for asked, output in ((whole, one), ({**given, "use_cache": False}, packed)):
        torch.testing.assert_close(target_value(model, last, asked), last((output,)))
    flow = LayerFlowIG(model, 0).attribute({**given, "use_cache": False}, "zero")
    assert isinstance(flow, LayerFlow)
    assert not flow.layer[:, 2:, :2].any()


def test_a_text_that_no_token_of_can_be_read() -> None:
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    mask[1] = -torch.inf
    inputs = {"input_ids": IDS.expand(2, -1), "attention_mask": mask}
    with pytest.warns(UserWarning, match="every token of text 1 is padding"):
        flow = LayerFlowIG(models.tiny_gpt2(), 0).attribute(inputs, "zero")
    assert not flow.layer[1].any()
    assert flow.layer[0].any()


@pytest.mark.parametrize("sides", [(2, 0), (0, 2)])
def test_numbers_that_read_padding(sides: tuple[int, int]) -> None:
    """Something is worked out there, and it is nobody's node."""
    model = decoder()
    ids, other = (pad(x, sides) for x in (IDS, OTHER))
    mask = (ids != 0).long()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}

    def everywhere(output: Any) -> Tensor:
        return output[0][..., 3].sum(-1)  # type: ignore[no-any-return]

    with refused("padding"):
        LayerFlowIG(model).attribute(given, other, everywhere)
    if sides == (0, 2):  # before a text nothing is read, and both runs have the same there
        with refused("reads tokens that are padding"):
            patching.effects(model, given, other, everywhere, "tokens")
        with refused("reads token", "which is padding"):
            last_layer_relevance(model, everywhere, given, other)
    target = logit(3, position=1)
    here, there = (target_value(model, target, x) for x in (IDS, OTHER))
    patching.effects(model, given, other, target, "tokens")
    found = last_layer_relevance(model, target, given, other)
    torch.testing.assert_close(found.sum(-1), (here - there)[0].detach(), rtol=1e-3, atol=1e-9)


def test_ids_that_the_model_does_not_know() -> None:
    model = decoder()
    for ids, other in ((IDS + 60, OTHER), (IDS, OTHER + 60)):
        with refused("token id 97 at position 0"):
            patching.effects(model, ids, other, LAST)
        with refused("token id 97 at position 0"):
            erasure(model, ids, torch.rand(1, 5), LAST, other)
    with refused("token id 97 at position 0"):
        target_value(model, LAST, IDS + 60)


def test_a_graph_of_layers_of_two_texts() -> None:
    flows = [LayerFlowIG(models.tiny_bert()).attribute(ids, "zero") for ids in (IDS, OTHER)]
    for flow, tokens in zip(
        flows, (["a", "b", "c", "d", "e"], ["a", "f", "g", "h", "i"]), strict=True
    ):
        flow[:] = [LayerFlow(**{**vars(f), "tokens": [tokens]}) for f in flow]
    FlowGraph(flows[0])
    with refused("layer 1", "'f'", "layer 0", "'b'", "one call"):
        FlowGraph([flows[0][0], flows[1][1]])


ARGUMENTS: dict[str, dict[str, Any]] = {
    "which logits": {"logits_to_keep": torch.tensor([1, 2, 0])},
    "positions": {
        "position_ids": torch.tensor([4, 0, 7]),
        "attention_mask": torch.ones(3, 3, dtype=torch.long),  # without, it reads packed texts
    },
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_as_many_texts_as_an_argument_has_tokens(arguments: str) -> None:
    """An axis of three tokens is none of three texts."""
    model, more = decoder(), ARGUMENTS[arguments]
    ids = torch.cat([IDS[:, :3], IDS[:, 1:4], IDS[:, 2:]])
    other = (7 * ids + 5) % 45 + 4
    target = (1, 3)
    with torch.no_grad():
        here, there = (
            torch.stack([model(input_ids=one, **more).logits[n, 1, 3] for n in range(3)])
            for one in (ids, other)
        )
    given = {"input_ids": ids, **more}
    flows = LayerFlowIG(model).attribute(given, other, target)
    assert isinstance(flows, list)
    torch.testing.assert_close(flows[0].tensors["change"], here - there, rtol=1e-9, atol=1e-9)
    for text in range(3):
        found = patching.effects(model, given, other, target, "tokens", text=text)
        assert found.value == pytest.approx(float(here[text]), rel=1e-9)
        assert found.baseline_value == pytest.approx(float(there[text]), rel=1e-9)
    erased = erasure(model, given, torch.rand(3, 3), target, other)
    torch.testing.assert_close(
        torch.tensor([one.value for one in erased]).double(), here, rtol=1e-6, atol=1e-6
    )


def test_texts_in_the_output_of_an_encoder() -> None:
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1,
                   encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=20,
                   decoder_ffn_dim=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                   forced_eos_token_id=None)
    )  # fmt: skip
    models.randomise(model, 0)
    model = model.double().eval()
    ids, other = (torch.cat([x[:, :3], x[:, 2:]]) for x in (IDS, OTHER))
    with torch.no_grad():
        given = {"decoder_input_ids": ids, "encoder_outputs": model.model.encoder(ids + 1)}
        here, there = (
            model(**{**given, "decoder_input_ids": x}).logits[:, -1, 3] for x in (ids, other)
        )
    flows = LayerFlowIG(model).attribute(given, {"decoder_input_ids": other}, LAST)
    assert isinstance(flows, list)
    torch.testing.assert_close(flows[0].tensors["change"], here - there, rtol=1e-9, atol=1e-9)
    found = patching.effects(model, given, {"decoder_input_ids": other}, LAST, "tokens", text=1)
    assert found.value == pytest.approx(float(here[1]), rel=1e-9)
