"""One layer in the shape of well-known models, with random weights, and its own passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig

VOCABULARY = 1000


def one_layer(config: type[PreTrainedConfig], **settings: int) -> Callable[[int], nn.Module]:
    """A model for so many positions. Biases are drawn, too: a new layer's are zero, which makes a
    zero baseline special."""

    def build(positions: int) -> nn.Module:
        sizes = {"num_hidden_layers": 1, "max_position_embeddings": positions}
        model = AutoModel.from_config(config(vocab_size=VOCABULARY, **sizes, **settings))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1, generator=generator)
        return model.eval()

    return build


SHAPES = {
    # 768 wide, 12 heads: post-norm
    "BERT-base": one_layer(BertConfig),
    # pre-norm, causal
    "GPT-2": one_layer(GPT2Config, bos_token_id=1, eos_token_id=2),
    # 4 key heads, rotary positions, gated feed-forward
    "Llama": one_layer(
        LlamaConfig,
        hidden_size=768,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
    ),
    # a layer of Llama 3.2 1B
    "Llama 1B": one_layer(
        LlamaConfig,
        hidden_size=2048,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
    ),
}


def token_ids(tokens: int) -> Tensor:
    """One text of random tokens."""
    return torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(tokens))


@dataclass(frozen=True)
class Layer:
    """A model's only layer, called as the model calls it."""

    module: nn.Module
    z: Tensor
    """``(1, T, D)`` tokens that enter it."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, ids: Tensor) -> Layer:
        """The layer of a one-layer model, with what it gets for some token ids."""
        (module,) = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
        calls: list[Layer] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = dict(kwargs)
            z = args[0] if args else named.pop("hidden_states")
            calls.append(cls(module, z.detach(), args[1:], named))

        with module.register_forward_pre_hook(record, with_kwargs=True), torch.no_grad():
            model(input_ids=ids, use_cache=False)
        return calls[0]

    def __call__(self, z: Tensor) -> Tensor:
        """Tokens ``(B, T, D)`` that leave the layer for ``z (B, T, D)``."""
        out = self.module(z, *self.args, **self.kwargs)
        return out if isinstance(out, Tensor) else out[0]

    def forward(self, batch: int = 1) -> None:
        """One forward pass of copies of the text."""
        with torch.no_grad():
            self(self.z.expand(batch, -1, -1))

    def forward_backward(self, batch: int = 1) -> None:
        """One forward and one backward pass of copies of the text, to the layer's input."""
        z = self.z.expand(batch, -1, -1).clone().requires_grad_()
        y = self(z)
        torch.autograd.grad(y, z, torch.ones_like(y))
