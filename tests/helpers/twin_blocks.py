"""Blocks of models cut by hand, and blocks of random numbers: they know no captum_lig.

A block is a map z -> z' for ONE text: z is (S, D), without a batch dimension. It is cut into `pre`,
`core` and `post`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

FORBIDDEN = -1e30  # added to a logit: its softmax weight is then 0, exactly


# ---- a block, cut by hand --------------------------------------------------------------------


@dataclass(frozen=True)
class TwinBlock:
    """One Transformer block for one text.

    pre:  z (S, D) -> q, k, v, each (H, S, d), keys and values repeated to all heads
    core: q, k, v, mask -> u (H, T, d), what the heads read, before the output projection
    post: u, z -> z' (T, D), all that follows: projection, residual, norms, feed-forward
    mask: (T, S), added to the logits: 0 or FORBIDDEN
    inside: z -> what passes through the block's modules on the way to q, k, v (for the cut alone)
    """

    pre: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    core: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    post: Callable[[Tensor, Tensor], Tensor]
    mask: Tensor
    inside: Callable[[Tensor], list[Tensor]] = lambda z: [z]

    def attend(self, z: Tensor) -> Tensor:
        """z (S, D) -> u (H, T, d)."""
        return self.core(*self.pre(z), self.mask)

    def __call__(self, z: Tensor) -> Tensor:
        """z (S, D) -> z' (T, D)."""
        return self.post(self.attend(z), z)


def bert_block(model: Any, layer: int, attention_mask: Tensor) -> TwinBlock:
    """Post-norm: z' = norm(h + feed(h)), h = norm(z + W_o u)."""
    block = model.encoder.layer[layer]
    attention = block.attention.self
    heads = model.config.num_attention_heads

    def pre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            _split_heads(attention.query(z), heads),
            _split_heads(attention.key(z), heads),
            _split_heads(attention.value(z), heads),
        )

    def post(u: Tensor, z: Tensor) -> Tensor:
        projected = block.attention.output.dense(_join_heads(u))
        h = block.attention.output.LayerNorm(projected + z)
        wide = block.intermediate.intermediate_act_fn(block.intermediate.dense(h))
        fed = block.output.dense(wide)
        return cast(Tensor, block.output.LayerNorm(fed + h))

    return TwinBlock(pre, _softmax_attention, post, _mask(model, attention_mask, causal=False))


def gpt2_block(model: Any, layer: int, attention_mask: Tensor) -> TwinBlock:
    """Pre-norm: z' = h + mlp(ln_2(h)), h = z + c_proj(u); q, k, v from ln_1(z)."""
    block = model.h[layer]
    heads = model.config.num_attention_heads

    def pre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = block.attn.c_attn(block.ln_1(z)).chunk(3, dim=-1)
        return _split_heads(q, heads), _split_heads(k, heads), _split_heads(v, heads)

    def post(u: Tensor, z: Tensor) -> Tensor:
        h = z + block.attn.c_proj(_join_heads(u))
        return cast(Tensor, h + block.mlp(block.ln_2(h)))

    return TwinBlock(pre, _softmax_attention, post, _mask(model, attention_mask, causal=True))


def llama_block(model: Any, layer: int, attention_mask: Tensor) -> TwinBlock:
    """Pre-norm with rotary positions: q and k are rotated, k and v shared by groups of heads."""
    block = model.layers[layer]
    heads = model.config.num_attention_heads
    key_value_heads = model.config.num_key_value_heads

    def pre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positions = torch.arange(len(z), device=z.device)[None]
        cos, sin = model.rotary_emb(z[None], positions)  # (1, S, d)
        x = block.input_layernorm(z)
        q = _rotate(_split_heads(block.self_attn.q_proj(x), heads), cos[0], sin[0])
        k = _rotate(_split_heads(block.self_attn.k_proj(x), key_value_heads), cos[0], sin[0])
        v = _split_heads(block.self_attn.v_proj(x), key_value_heads)
        # head h reads keys and values of group h // (H / groups)
        group = [h // (heads // key_value_heads) for h in range(heads)]
        return q, k[group], v[group]

    def post(u: Tensor, z: Tensor) -> Tensor:
        h = z + block.self_attn.o_proj(_join_heads(u))
        return cast(Tensor, h + block.mlp(block.post_attention_layernorm(h)))

    return TwinBlock(pre, _softmax_attention, post, _mask(model, attention_mask, causal=True))


def twin_block(model: Any, layer: int, attention_mask: Tensor) -> TwinBlock:
    """The constructor for the model's class; attention_mask (S,), 1 for a token, 0 for padding."""
    build = {"BertModel": bert_block, "GPT2Model": gpt2_block, "LlamaModel": llama_block}
    return build[type(model).__name__](model, layer, attention_mask)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(S, heads * d) -> (heads, S, d)."""
    return x.reshape(len(x), heads, -1).transpose(0, 1)


def _join_heads(u: Tensor) -> Tensor:
    """(H, T, d) -> (T, H * d)."""
    return u.transpose(0, 1).reshape(u.shape[1], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[c], x[c + d/2]) by their angles. x (heads, S, d), cos and sin (S, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return attention(q, k, v, mask)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """u (H, T, d). softcap: logits s become softcap tanh(s / softcap), then the mask is added.

    sinks (H,): one more logit in each row of a head; its weight goes to no value.
    """
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (H, T, S)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits + mask
    if sinks is None:
        return torch.matmul(logits.softmax(-1), v)
    sink = sinks[:, None, None].expand(-1, logits.shape[1], 1)
    weights = torch.cat([logits, sink], dim=-1).softmax(-1)
    return torch.matmul(weights[..., :-1], v)


# ---- a block of random numbers ---------------------------------------------------------------


def random_block(
    norm: str,
    length: int = 4,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    rotary: bool = False,
    causal: bool = True,
    key_norm: str | None = None,
    key_bias: bool = True,
    seed: int = 0,
) -> TwinBlock:
    """Width 6, four heads that share keys and values in pairs, keys of width 4, values of 3.

    norm: what q, k and v are linear images of, "layer" or "rms" (eps 1e-3) of z, z itself
    ("identity"), or something that is no norm at all ("tanh"). key_norm: q and k have an RMSNorm
    of their own (eps 1e-2, with a weight), over each "head" or over all of them ("width").
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    by_q, by_k, by_v = draw(4, 6, 4), draw(2, 6, 4), draw(2, 6, 3)
    bias_q, bias_k, bias_v = draw(4, 1, 4), draw(2, 1, 4), draw(2, 1, 3)
    scale_q, scale_k = draw(4, 1, 4), draw(2, 1, 4)
    out, wide, narrow = 0.5 * draw(4, 3, 6), draw(6, 8), 0.5 * draw(8, 6)
    angles = torch.arange(length)[:, None] * torch.tensor([1.0, 0.3, 1.0, 0.3])
    cos, sin = angles.cos().double(), angles.sin().double()

    def normed(z: Tensor) -> Tensor:
        if norm == "tanh":
            return torch.tanh(z)
        if norm == "identity":
            return z
        if norm == "layer":
            z = z - z.mean(-1, keepdim=True)
        return z / (z.square().mean(-1, keepdim=True) + 1e-3).sqrt()

    def normed_again(x: Tensor, scale: Tensor) -> Tensor:
        over = (0, 2) if key_norm == "width" else 2
        return scale * x / (x.square().mean(over, keepdim=True) + 1e-2).sqrt()

    def inside(z: Tensor) -> list[Tensor]:
        x = normed(z)
        keys = (x @ by_k + key_bias * bias_k).transpose(0, 1)  # (S, 2, d)
        return [z, x, keys.flip(1), keys if key_norm == "head" else keys.flatten(1)]

    def pre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = normed(z)
        q, k, v = x @ by_q + bias_q, x @ by_k + key_bias * bias_k, x @ by_v + bias_v
        if key_norm is not None:
            q, k = normed_again(q, scale_q), normed_again(k, scale_k)
        if rotary:
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        return q, k[[0, 0, 1, 1]], v[[0, 0, 1, 1]]

    def core(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v, mask, softcap, sinks)

    def post(u: Tensor, z: Tensor) -> Tensor:
        h = z + torch.einsum("htd,hde->te", u, out)
        return h + torch.tanh(h @ wide) @ narrow

    mask = torch.zeros(length, length, dtype=torch.float64)
    if causal:
        mask = mask.masked_fill(torch.ones(length, length).triu(1).bool(), FORBIDDEN)
    return TwinBlock(pre, core, post, mask, inside)


def _mask(model: Any, attention_mask: Tensor, causal: bool) -> Tensor:
    length = len(attention_mask)
    mask = torch.zeros(length, length, dtype=model.dtype, device=model.device)
    for target in range(length):
        for source in range(length):
            if not attention_mask[source] or (causal and source > target):
                mask[target, source] = FORBIDDEN
    return mask
