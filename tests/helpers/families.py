"""Families of models, each as a small random one, and what is expected of its blocks.

A family is a line of this table. `small` makes its configuration: whatever sizes it has are set
to small ones. Parameters are drawn as in `tests.helpers.models`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel

from tests.helpers import models
from tests.helpers.hand_written import VOCABULARY, HandGPT, TimmViT, Torch

LENGTH = 4

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
    out: str | tuple[str, ...] | None
    """The module in a block whose input is u, the heads side by side; None if there is none. Of
    several names, the first that is there: older releases have others."""
    causal: bool = False
    """Whether it, or its decoder, is causal."""
    draws: bool = False
    """Whether its own code draws random numbers that it does not use."""

    def out_of(self, block: nn.Module) -> nn.Module | None:
        """That module."""
        if self.out is None:
            return None
        names = (self.out,) if isinstance(self.out, str) else self.out
        there = dict(block.named_modules())
        return next((there[name] for name in names if name in there), None) or there[names[0]]


RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])


def before(release: tuple[int, int], family: Family, **changes: Any) -> Family:
    """The family, changed if transformers is older than the release."""
    return replace(family, **changes) if release > RELEASE else family


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


VIT = ("attention.o_proj", "attention.output.dense")
BERT, LLAMA, BART = "attention.output.dense", "self_attn.o_proj", "self_attn.out_proj"
GEMMA2 = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}


def encoder(
    kind: str,
    what: str,
    out: str | tuple[str, ...] | None = BERT,
    site: str = "interface",
    **given: Any,
) -> Family:
    return Family(kind, what, built(kind, **given), ids, (site, site), out)


def decoder(
    kind: str, what: str, out: str | None = LLAMA, site: str = "interface", **given: Any
) -> Family:
    return Family(kind, what, built(kind, **given), ids, (site, site), out, causal=True)


def vision(kind: str, what: str, out: str | tuple[str, ...]) -> Family:
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
    before(
        (5, 12),
        encoder("modernbert", "rotary positions, local and global layers", "attn.Wo"),
        sites=("sdpa", "sdpa"),
    ),
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
    before(
        (5, 24),
        decoder("gemma2", "capped logits, sandwich norms, windows", **GEMMA2),
        # With torch's function these releases cap nothing, which is refused.
        build=built("gemma2", attn_implementation="eager", **GEMMA2),
    ),
    decoder("gemma3_text", "norms on queries and keys, two rotary bases, windows", **WINDOWS),
    decoder(
        "phi",
        "parallel blocks, partly rotary positions",
        "self_attn.dense",
        num_key_value_heads=4,
        pad_token_id=0,
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
    decoder("exaone4", "norms after each part, windows", pad_token_id=0, **WINDOWS),
    before(
        (5, 18),
        decoder(
            "nemotron",
            "squared ReLU, LayerNorm with weight 1 + w",
            num_key_value_heads=2,
            head_dim=8,
        ),
        sites=("sdpa", "sdpa"),
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
    vision("vit", "patches", VIT),
    vision("deit", "patches and a distillation token", VIT),
    vision("dinov2", "scaled layers", VIT),
    vision("siglip_vision_model", "patches without a class token", BART),
    vision("clip_vision_model", "a norm before the blocks", BART),
    decoder("clip_text_model", "the causal text tower", BART),
    before(
        (5, 24),
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
        draws=True,
    ),
    before(
        (5, 18),
        seq2seq("t5", "position bias, no scaling", "layer.0.SelfAttention.o", two_texts),
        # Nothing tells that the decoder's blocks attend: they are left out, with a warning.
        sites=("projection",) * 2,
        causal=False,
    ),
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
