"""What is said of inputs before the model is called: padding that no mask shows."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from captum_lig import LayerFlowIG
from tests.helpers import models

PADDED = {
    "right": torch.tensor([[11, 45, 23, 8, 30], [7, 19, 5, 0, 0]]),
    "left": torch.tensor([[11, 45, 23, 8, 30], [0, 0, 7, 19, 5]]),
}
SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24,
}  # fmt: skip


def bert(**given: Any) -> nn.Module:
    return models.randomised(BertModel(BertConfig(**SMALL, **given)))


def llama(**given: Any) -> nn.Module:
    return models.randomised(LlamaModel(LlamaConfig(**SMALL, **given)))


def said(model: nn.Module, ids: Tensor, **given: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LayerFlowIG(model).attribute(
            {"input_ids": ids, **given}, boundaries=("layer",), n_steps=2, tolerance=None
        )
    return [str(one.message) for one in caught if "there is no attention_mask" in str(one.message)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_without_a_mask(side: str) -> None:
    (message,) = set(said(bert(), PADDED[side]))
    assert "text 1 of the batch has 2 tokens of the id 0, which is BertModel's padding" in message


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask(side: str) -> None:
    mask = (PADDED[side] != 0).long()
    assert said(bert(), PADDED[side], attention_mask=mask) == []


def test_ids_that_are_no_padding() -> None:
    """Inside of a text, without an id for padding, or where padding is what ends a text."""
    assert said(bert(), torch.tensor([[11, 0, 23]])) == []
    assert said(llama(), PADDED["right"]) == []
    assert said(llama(pad_token_id=0, eos_token_id=0), PADDED["right"]) == []
    assert said(llama(pad_token_id=0, eos_token_id=[2, 0]), PADDED["right"]) == []
    assert len(set(said(llama(pad_token_id=0, eos_token_id=2), PADDED["right"]))) == 1


def test_the_line_that_is_named() -> None:
    """The warning points at the caller's line."""
    with pytest.warns(UserWarning, match="no attention_mask") as caught:
        LayerFlowIG(bert()).attribute(PADDED["right"], boundaries=("layer",), n_steps=2)
    assert {one.filename for one in caught if "no attention_mask" in str(one.message)} == {__file__}
