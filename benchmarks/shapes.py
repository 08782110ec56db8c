"""One layer in the shape of well-known models, with random weights, and its own passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

VOCABULARY = 1000


def bert_base(positions: int) -> nn.Module:
    """768 wide, 12 heads, post-norm."""
    config = BertConfig(
        vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=positions
    )
    return _drawn(BertModel(config, add_pooling_layer=False))


def gpt2(positions: int) -> nn.Module:
    """768 wide, 12 heads, pre-norm, causal."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_layer=1, n_positions=positions, bos_token_id=1, eos_token_id=2
    )
    return _drawn(GPT2Model(config))


def llama_base(positions: int) -> nn.Module:
    """768 wide, 12 heads on 4 key heads, rotary positions, gated feed-forward."""
    return llama(positions, width=768, heads=12, key_heads=4, inner=2048)


def llama_1b(positions: int) -> nn.Module:
    """A layer of the size of Llama 3.2 1B: 2048 wide, 32 heads on 8 key heads."""
    return llama(positions, width=2048, heads=32, key_heads=8, inner=8192)


def llama(positions: int, width: int, heads: int, key_heads: int, inner: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
    )
    return _drawn(LlamaModel(config))


SHAPES: dict[str, Callable[[int], nn.Module]] = {
    "BERT-base": bert_base,
    "GPT-2": gpt2,
    "Llama": llama_base,
}


def _drawn(model: nn.Module) -> nn.Module:
    """Biases are drawn, too: a new layer's are zero, which makes a zero baseline special."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


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

        handle = module.register_forward_pre_hook(record, with_kwargs=True)
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
        handle.remove()
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
