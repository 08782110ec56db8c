"""Families of models, each as a small random one, and what is expected of its blocks.

A family is a line of this table. `small` makes its configuration: whatever sizes it has are set
to small ones. Parameters are drawn as in `tests.helpers.models`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModel

from tests.helpers import models

LENGTH = 4
VOCABULARY = 60

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner"),
        48,
    ),
    **dict.fromkeys(("d_ff", "ffn_hidden_size", "hidden_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "num_key_value_heads": 2,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64),
    "max_source_positions": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 2,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 4,  # all: a choice of some makes a block jump along the path
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "num_mel_bins": 8,
    "projection_dim": 16,
    "embedding_size": 16,
    "rotary_dim": 4,
}


Inputs = Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """A line of the table."""

    name: str
    what: str
    """What is special about it."""
    build: Callable[[], nn.Module]
    inputs: Inputs
    sites: tuple[str, ...]
    """Where its blocks are cut: "interface", "sdpa", "projection", "whole"."""
    out: str | None
    """The module in a block whose input is u, the heads side by side; None if there is none."""
    causal: bool = False
    """Whether it, or its decoder, is causal."""


def small(kind: str, **given: Any) -> Any:
    """A configuration of a model type with small sizes, and what is given."""
    cls = CONFIG_MAPPING[kind]
    stock = cls()
    sizes = {k: v for k, v in SIZES.items() if getattr(stock, k, None) is not None}
    for name in sizes.keys() & {*cls.attribute_map, *_read_only(cls)}:
        del sizes[name]
    return cls(**{**sizes, **given})


def _read_only(cls: type) -> set[str]:
    found = {name: getattr(cls, name, None) for name in SIZES}
    return {k for k, v in found.items() if isinstance(v, property) and v.fset is None}


def built(kind: str, **given: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # Experts one by one: the fused kernels know no float64.
            model = AutoModel.from_config(small(kind, **given), experts_implementation="eager")
        return drawn(model)

    return build


def drawn(model: nn.Module) -> nn.Module:
    """Milder than in `models`: many families take their softmax in float32, and a head whose
    weights are 1 and 0 to seven digits has a total that is nothing but rounding."""
    models.randomise(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            buffer.copy_(torch.linspace(0, 0.1, len(buffer)))
    return model.double().eval()


def ids(_: nn.Module) -> dict[str, Any]:
    return {"input_ids": torch.tensor([[11, 45, 23, 8]])}


def two_texts(_: nn.Module) -> dict[str, Any]:
    return {
        "input_ids": torch.tensor([[11, 45, 23, 8]]),
        "decoder_input_ids": torch.tensor([[1, 9, 23]]),
    }


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def picture(_: nn.Module) -> dict[str, Any]:
    return {"pixel_values": noise(1, 3, 8, 8)}


def sound(_: nn.Module) -> dict[str, Any]:
    return {"input_values": noise(1, 20)}


def speech(_: nn.Module) -> dict[str, Any]:
    return {"input_features": noise(1, 8, 8), "decoder_input_ids": torch.tensor([[1, 9, 23]])}


def vectors(_: nn.Module) -> dict[str, Any]:
    return {"x": noise(1, LENGTH, 32)}


# ---- models that are in no library -----------------------------------------------------------


class Torch(nn.Module):
    """torch.nn.TransformerEncoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.encoder(x)}


class CausalSelfAttention(nn.Module):
    """As people write it: one matrix for q, k and v, and torch's function."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.c_attn(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*split, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(batch, length, width))
        return out


class HandBlock(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn = CausalSelfAttention(heads)
        self.mlp = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class HandGPT(nn.Module):
    """A GPT in a script of one's own, its blocks in an nn.Sequential."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, 32), nn.Embedding(64, 32)
        self.blocks = nn.Sequential(HandBlock(heads), HandBlock(heads))
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return {"logits": self.head(self.blocks(self.wte(input_ids) + self.wpe(places)))}


class TimmAttention(nn.Module):
    """The attention of timm's ViT: norms on queries and keys, torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.q_norm, self.k_norm = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(
            self.q_norm(q), self.k_norm(k), v, attn_mask=None, dropout_p=0.0
        )
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, count, width))
        return out


class TimmBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn = TimmAttention()
        self.mlp = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(32)), nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        return x + self.gamma2 * self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TimmViT(nn.Module):
    """Laid out as timm's VisionTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 32))
        self.blocks = nn.Sequential(TimmBlock(), TimmBlock())
        self.norm = nn.LayerNorm(32)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return {"features": self.norm(self.blocks(x))}


# ---- the table -------------------------------------------------------------------------------


BERT, LLAMA, BART = "attention.output.dense", "self_attn.o_proj", "self_attn.out_proj"
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}


def encoder(
    kind: str, what: str, out: str | None = BERT, site: str = "interface", **given: Any
) -> Family:
    return Family(kind, what, built(kind, **given), ids, (site, site), out)


def decoder(
    kind: str, what: str, out: str | None = LLAMA, site: str = "interface", **given: Any
) -> Family:
    return Family(kind, what, built(kind, **given), ids, (site, site), out, causal=True)


def vision(kind: str, what: str, out: str) -> Family:
    return Family(kind, what, built(kind), picture, ("interface", "interface"), out)


def seq2seq(kind: str, what: str, out: str, inputs: Inputs, **given: Any) -> Family:
    return Family(kind, what, built(kind, **given), inputs, ("interface",) * 4, out, causal=True)


def by_hand(
    name: str,
    what: str,
    model: type[nn.Module],
    inputs: Inputs,
    out: str | None,
    causal: bool = False,
) -> Family:
    return Family(name, what, lambda: drawn(model()), inputs, ("sdpa", "sdpa"), out, causal)


FAMILIES: tuple[Family, ...] = (
    encoder("bert", "token types, learned positions"),
    encoder("roberta", "positions counted from the padding id"),
    encoder("xlm-roberta", "as RoBERTa"),
    encoder("camembert", "as RoBERTa"),
    encoder("electra", "embeddings of another width"),
    encoder("distilbert", "no token types", "attention.out_lin"),
    encoder("albert", "one block that runs several times", "albert_layers.0.attention.dense"),
    encoder("modernbert", "rotary positions, local and global layers", "attn.Wo"),
    encoder(
        "deberta-v2",
        "disentangled attention",
        BERT,
        "projection",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
    ),
    encoder("mpnet", "a position bias", "attention.attn.o", "projection"),
    encoder("fnet", "a Fourier transform in place of attention", None, "whole"),
    decoder("gpt2", "one matrix for queries, keys and values", "attn.c_proj"),
    decoder("gpt_neox", "parallel blocks, partly rotary positions", "attention.dense"),
    decoder(
        "gpt_neo",
        "local and global layers, no scaling",
        "attn.attention.out_proj",
        "projection",
        attention_types=[[["global", "local"], 1]],
        window_size=2,
        intermediate_size=48,
    ),
    decoder("gptj", "parallel blocks, rotary positions", "attn.out_proj", "projection"),
    decoder("opt", "learned positions, ReLU", BART, word_embed_proj_dim=32),
    decoder("bloom", "ALiBi", "self_attention.dense", "projection"),
    decoder("falcon", "one key head for all, parallel blocks", "self_attention.dense", "sdpa"),
    decoder("llama", "RMSNorm, rotary positions, grouped keys"),
    decoder("mistral", "sliding windows"),
    decoder("mixtral", "experts"),
    decoder("qwen2", "biases on queries, keys and values"),
    decoder("qwen3", "norms on queries and keys"),
    decoder("qwen3_moe", "norms on queries and keys, experts", decoder_sparse_step=1),
    Family(
        "qwen3_next",
        "linear attention and gated attention in turn",
        built(
            "qwen3_next",
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        ids,
        ("projection", "interface"),
        None,
        causal=True,
    ),
    decoder("gemma", "norms with weight 1 + w"),
    decoder(
        "gemma2",
        "capped logits, sandwich norms, windows",
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
    ),
    decoder("gemma3_text", "norms on queries and keys, two rotary bases, windows", **WINDOWS),
    decoder(
        "phi", "parallel blocks, partly rotary positions", "self_attn.dense", num_key_value_heads=4
    ),
    decoder("phi3", "one matrix for queries, keys and values"),
    decoder("olmo2", "norms after each part, on queries and keys"),
    decoder("olmo3", "as OLMo 2, with windows", **WINDOWS),
    decoder("cohere", "parallel blocks"),
    decoder("starcoder2", "LayerNorm, biases, windows"),
    decoder("smollm3", "layers without positions", no_rope_layers=[1, 0]),
    decoder("glm4", "sandwich norms, partly rotary positions"),
    decoder(
        "granite",
        "multipliers of logits and residual",
        attention_multiplier=0.3,
        residual_multiplier=0.7,
    ),
    decoder("exaone4", "norms after each part, windows", **WINDOWS),
    decoder(
        "nemotron", "squared ReLU, LayerNorm with weight 1 + w", num_key_value_heads=2, head_dim=8
    ),
    decoder(
        "deepseek_v3",
        "latent keys, values of another width, experts",
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=12,
        num_key_value_heads=4,
    ),
    decoder("gpt_oss", "sinks, windows, experts", **WINDOWS),
    decoder("mamba", "a state space", None, "whole", state_size=4, time_step_rank=4),
    vision("vit", "patches", "attention.o_proj"),
    vision("deit", "patches and a distillation token", "attention.o_proj"),
    vision("dinov2", "scaled layers", "attention.o_proj"),
    vision("siglip_vision_model", "patches without a class token", BART),
    vision("clip_vision_model", "a norm before the blocks", BART),
    decoder("clip_text_model", "the causal text tower", BART),
    Family(
        "wav2vec2",
        "frames of a sound",
        built(
            "wav2vec2",
            conv_dim=[32, 32],
            conv_stride=[2, 2],
            conv_kernel=[3, 3],
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        ),
        sound,
        ("interface",) * 2,
        "attention.out_proj",
    ),
    seq2seq("t5", "position bias, no scaling", "layer.0.SelfAttention.o", two_texts),
    seq2seq("bart", "norms after each part", BART, two_texts),
    seq2seq("whisper", "frames in, text out", BART, speech),
    by_hand("torch.nn.TransformerEncoder", "torch's own layers", Torch, vectors, None),
    by_hand(
        "a ViT as timm's",
        "calls torch's function; norms on queries and keys",
        TimmViT,
        picture,
        "attn.proj",
    ),
    by_hand(
        "a hand-written GPT",
        "in a script of one's own, blocks in a Sequential",
        HandGPT,
        ids,
        "attn.c_proj",
        causal=True,
    ),
)
