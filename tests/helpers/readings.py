"""A target that is not linear, what it is read from, and what is done to blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from captum_lig import LayerFlowIG
from tests.helpers import models

DIRECTION = torch.randn(models.WIDTH, generator=torch.Generator().manual_seed(5)).double()


def read(output: Any) -> Tensor:
    """A target of the user's own: something not linear of the last token."""
    hidden: Tensor = output.last_hidden_state
    return torch.tanh(hidden[:, -1] @ DIRECTION.to(hidden) / 8)


def flows_of(model: nn.Module, inputs: Any, baseline: Any = "zero", **settings: Any) -> Any:
    settings = {"boundaries": ("attention", "mlp")} | settings
    return LayerFlowIG(model).attribute(inputs, baseline, **settings)


def small_causal(seed: int = 0) -> LlamaForCausalLM:
    """A Llama of three layers with logits."""
    config = LlamaConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=models.WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        pad_token_id=models.PADDING_ID,
    )
    return models.randomised(LlamaForCausalLM(config), seed=seed)


def hooks(model: nn.Module) -> int:
    """How many are on the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def with_stream(model: Any, place: int, z: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """``run()`` with the stream at one place replaced by ``z (S, D)``."""
    blocks = models.blocks(model)

    def enter(module: nn.Module, args: Any) -> Any:
        return (z[None], *args[1:])

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return z[None]

    if place < len(blocks):
        handle = blocks[place].register_forward_pre_hook(enter)
    else:
        handle = blocks[-1].register_forward_hook(leave)
    try:
        return run()
    finally:
        handle.remove()
