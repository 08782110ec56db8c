"""A caller's cache of keys and values is never changed; what is in it cannot be attributed to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from captum_lig import LayerFlow, LayerFlowIG, LigError, inspect_model
from tests.helpers.families import built, ids

IDS = torch.tensor([[11, 45, 23, 8, 30]])


def filled(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :3], past_key_values=cache)
    return cache


@pytest.mark.parametrize("call", [inspect_model, lambda m, x: LayerFlowIG(m).attribute(x)])
def test_what_is_in_a_cache_is_refused_with_the_reason(call: Any) -> None:
    model = built("llama")()
    cache = filled(model)
    keys = copy.deepcopy(cache.layers[1].keys)
    with pytest.raises(LigError, match=r"past_key_values holds .* 3 tokens.*whole text"):
        call(model, {"input_ids": IDS[:, 3:], "past_key_values": cache})
    assert cache.get_seq_length() == 3
    assert torch.equal(cache.layers[1].keys, keys)


def test_by_position_and_as_tuples() -> None:
    model = built("gpt2")()
    cache = filled(model)
    with pytest.raises(LigError, match="3 tokens"):
        LayerFlowIG(model).attribute(IDS[:, 3:], additional_forward_args=(cache,))
    pairs = tuple((layer.keys, layer.values) for layer in cache.layers)
    with pytest.raises(LigError, match="an earlier call"):
        LayerFlowIG(model).attribute({"input_ids": IDS[:, 3:], "past_key_values": pairs})


def test_an_empty_cache_stays_empty() -> None:
    model = built("llama")()
    cache = DynamicCache(config=model.config)
    alone = LayerFlowIG(model, 1).attribute(ids(model), n_steps=2)
    flow = LayerFlowIG(model, 1).attribute({**ids(model), "past_key_values": cache}, n_steps=2)
    assert isinstance(flow, LayerFlow)
    assert isinstance(alone, LayerFlow)
    assert torch.equal(flow.layer, alone.layer)
    assert cache.get_seq_length() == 0


def test_a_state_in_a_list_of_the_callers() -> None:
    """RWKV writes its state into the tensors that it gets."""
    model = built("rwkv", attention_hidden_size=32)().float()
    with torch.no_grad():
        state = model(IDS[:, :3], use_cache=True).state
    before = [x.clone() for x in state]
    inputs = {"input_ids": IDS[:, 3:], "state": state, "use_cache": True}
    with pytest.raises(LigError, match="it is random or keeps a state"):
        LayerFlowIG(model).attribute(inputs, boundaries=("layer",))
    for x, y in zip(state, before, strict=True):
        assert torch.equal(x, y)
