"""Small random Hugging Face models, and what goes into and comes out of their blocks.

Every parameter is drawn, biases and norm weights included: stock initialisation zeroes the
biases, which hides errors, and draws weights so small that attention is uniform. The numbers
depend on `seed` only (drawn in float64, then cast: models of two dtypes agree to rounding), and
torch's global random state is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

WIDTH = 32
HEADS = 4
KEY_VALUE_HEADS = 2  # of tiny_llama
VOCABULARY = 50
POSITIONS = 64
FIRST_TOKEN = 3  # ids below are left to padding and special tokens
PADDING_ID = 0

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PADDING_ID,
}
"""Small sizes for a configuration of `transformers`."""
GROUPED: dict[str, Any] = {**SHAPE, "num_key_value_heads": KEY_VALUE_HEADS, "head_dim": 8}
"""The same with two query heads to a key head."""


class ExactRMSNorm(nn.Module):
    """RMSNorm in the dtype of its input.

    `LlamaRMSNorm` rounds its input to float32 whatever the model's dtype, so a float64 Llama is
    exact to about 1e-7 only: in outputs, in gradients and hence in every attribution.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def tiny_bert(
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    layers: int = 2,
    eps: float = 1e-5,
    heads: int = HEADS,
) -> BertModel:
    """Post-norm encoder: LayerNorm, learned positions, full attention."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        pad_token_id=PADDING_ID,
        layer_norm_eps=eps,
    )
    with _global_random_state_kept():
        model = BertModel(config)
    randomise(model, seed)
    return model.to(dtype).eval()


def tiny_gpt2(
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    layers: int = 2,
    eps: float = 1e-5,
    heads: int = HEADS,
) -> GPT2Model:
    """Pre-norm causal decoder: LayerNorm, learned positions, one matrix for q, k and v."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=layers,
        n_head=heads,
        n_inner=2 * WIDTH,
        n_positions=POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=PADDING_ID,
        layer_norm_epsilon=eps,
    )
    with _global_random_state_kept():
        model = GPT2Model(config)
    randomise(model, seed)
    return model.to(dtype).eval()


def tiny_llama(
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    layers: int = 2,
    eps: float = 1e-5,
    exact_norms: bool = True,
    heads: int = HEADS,
    key_heads: int = KEY_VALUE_HEADS,
) -> LlamaModel:
    """Pre-norm causal decoder: RMSNorm, rotary positions, grouped keys, gated feed-forward.

    `exact_norms=False` keeps `LlamaRMSNorm` and its float32 rounding (see `ExactRMSNorm`).
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=PADDING_ID,
        attention_bias=True,
        mlp_bias=True,
        rms_norm_eps=eps,
    )
    with _global_random_state_kept():
        model = LlamaModel(config)
    randomise(model, seed)
    if exact_norms:
        model.norm = _exact(model.norm)
        for block in model.layers:
            block.input_layernorm = _exact(block.input_layernorm)
            block.post_attention_layernorm = _exact(block.post_attention_layernorm)
    return model.to(dtype).eval()


MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": tiny_bert,
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
}
CAUSAL = ("gpt2", "llama")


def tokens(model: PreTrainedModel, batch: int, length: int, seed: int = 0) -> Tensor:
    """Random input ids (batch, length) on the model's device, never the padding id.

    No token comes twice in a text (up to 47 tokens). Without absolute positions (tiny_llama) a
    text that opens with one token twice has a target whose target_token path does not move: its
    total is 0 mathematically and 1e-15 in floating point. Build such ids by hand to test it.
    """
    generator = torch.Generator().manual_seed(seed)
    choices = int(model.config.vocab_size) - FIRST_TOKEN

    def text() -> Tensor:
        rounds = -(-length // choices)
        drawn = [torch.randperm(choices, generator=generator) for _ in range(rounds)]
        return FIRST_TOKEN + torch.cat(drawn)[:length]

    return torch.stack([text() for _ in range(batch)]).to(model.device)


def padded_batch(
    model: PreTrainedModel, lengths: tuple[int, ...], seed: int = 0
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (B, max(lengths)), one text a length, padded right."""
    longest = max(lengths)
    input_ids = tokens(model, len(lengths), longest, seed)
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        attention_mask[row, :length] = 1
        input_ids[row, length:] = PADDING_ID
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's blocks, in order, as Hugging Face's own modules."""
    found: Any = model
    if isinstance(model, BertModel):
        found = found.encoder.layer
    elif isinstance(model, GPT2Model):
        found = found.h
    elif isinstance(model, LlamaModel):
        found = found.layers
    else:
        raise TypeError(f"expected a model of this file, got {type(model).__name__}")
    assert isinstance(found, nn.ModuleList)
    return found


def block_input_output(
    model: PreTrainedModel, layer: int, **inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """z and z' of one block, both (B, S, D), as seen by a hook in the full model's forward."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        z = args[0] if args else kwargs["hidden_states"]
        leaving = output[0] if isinstance(output, tuple) else output
        seen.append((z.detach().clone(), leaving.detach().clone()))

    handle = blocks(model)[layer].register_forward_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    assert len(seen) == 1, f"block {layer} ran {len(seen)} times"
    return seen[0]


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def randomise(model: nn.Module, seed: int) -> None:
    """Unit embeddings, matrices that make attention peaked, biases and norm weights at random."""
    generator = torch.Generator().manual_seed(seed)
    model.to(torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() == 1:
                is_norm_weight = name.endswith("weight")
                parameter.copy_(1 + 0.3 * noise if is_norm_weight else 0.3 * noise)
            elif "embed" in name or name in ("wte.weight", "wpe.weight"):
                parameter.copy_(noise)
            else:
                parameter.copy_(0.3 * noise)


def _exact(norm: Any) -> Any:
    return ExactRMSNorm(norm.weight, norm.variance_epsilon)


def randomised(
    model: PreTrainedModel, dtype: torch.dtype = torch.float64, seed: int = 0
) -> PreTrainedModel:
    """Any model with every parameter drawn, in evaluation mode."""
    randomise(model, seed)
    return model.to(dtype).eval()
