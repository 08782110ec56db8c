"""Small random models of the families in transformers.

Nothing here knows a family but `GIVEN`, the fields of a configuration that cannot be guessed: sizes
are made small by the names of their fields.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig

from benchmarks.survey_given import EVERYWHERE, GIVEN
from benchmarks.survey_inputs import FRAMES, IMAGE, PATCH, NotBuilt, inputs_for, short
from tests.helpers.families import SIZES, VOCABULARY, drawn

MOST_PARAMETERS = 20_000_000

RULES: tuple[tuple[str, int], ...] = (
    ("(type_vocab_size|num_channels|num_labels)", 3),
    (".*codebook_size", 64),
    (".*(vocab_size|num_embeddings|num_words).*", VOCABULARY),
    (".*mel_bins|feature_size|input_feat_per_channel|input_feat_size|n_mel_bins|num_mel", 8),
    (".*(lora_rank|low_?rank|_rank)", 16),
    (".*(qk_nope_head_dim|qk_rope_head_dim)", 8),
    (".*(head_dim|dim_head|kv_channels|d_kv|d_head|headdim|head_width|head_size|lightning_dim)", 8),
    (".*(key_value|kv|key|query_group|linear_value).*(heads|groups)|n_kv_head|num_query_groups", 2),
    (".*(heads|n_head|num_head)", 4),
    (".*(num_hidden_layers|num_layers|n_layers?|_layers|depth|num_encoder_blocks)", 2),
    (".*index_?(er)?_?topk.*", 64),
    (".*(num_experts|n_experts|num_local_experts|n_routed_experts|num_moe_experts).*", 4),
    (".*(moe|expert).*(size|dim)", 24),
    (".*(intermediate|ffn|feed_?forward|mlp|inner|d_ff|dff).*", 48),
    (".*max.*position.*|n_positions|n_ctx|context_length|max_seq_len|max_length", 64),
    (".*(image_size|img_size|crop_size|resolution)", IMAGE),
    (".*patch_size", PATCH),
    ("d_model|n_embd|dim|emb_dim|d_embed|width|channels|num_filters|base_channels|lru_width", 32),
    (".*(hidden_size|hidden_dim|embed_dim|embedding_dim|hidden_channels|latent_dim|out_dim)", 32),
    (".*(hidden_size|embedding_size|embed_size|projection_dim|proj_dim|projection_size).*", 32),
    (".*(conv_channels|codevector_dim|codebook_dim|output_dim|query_dim|num_pos_feats)", 32),
    (".*(sliding_window|window_size|attention_window|chunk_size|local_attention)", 4),
    (".*(num_queries|num_query_tokens|num_latents|num_patches)", 4),
    (".*(state_size|d_state|num_groups|conv_pos.*groups)", 4),
    (".*(num_frames|frames_per_clip)", FRAMES),
    (".*(context_size)", 8),
)
"""Fields of a configuration by their names, and the most that they may be."""

LISTS: tuple[tuple[str, int], ...] = (
    (".*(depths|layers|num_blocks|block_sizes|block_repeats)", 1),
    (".*(heads).*", 4),
    (".*(ind|idx|layer_ids|layer).*", 1),
    (".*(image_size|img_size)", IMAGE),
    (".*patch_size", PATCH),
    (".*(mlp_ratio|kernel|stride|ratio|scale|step|factor|resolution).*", 10**9),
    (".*(sizes|dims?|channels|hidden|width|features).*", 32),
)

ALL_EXPERTS = (
    ".*(moe|expert).*(top_?k|per_tok.*)|(num|n)_?(selected)?_experts_per_tok.*|top_k|moe_k"
)
"""Fields that say how many experts a token chooses: all four, for a choice of some makes a block
jump along the path."""

KEPT = {
    *("chunk_size_feed_forward", "num_channels", "in_channels", "pretraining_tp", "kernel_size"),
    *("spatial_merge_size", "temporal_patch_size", "mlp_ratio", "type_vocab_size", "initializer"),
    *(
        "qk_head_dim",
        "audio_channels",
        "num_input_channels",
        "num_feat_extract_layers",
        "mlp_only_layers",
    ),
}


VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"mrope_section": [2, 1, 1]},
)
"""What is tried in turn: not all families can share keys, or name their rotary sections."""


BY_RULE = ("image_size", "num_mel_bins", "max_source_positions")
"""Sizes of the tests' table that are not taken over."""


def config_of(kind: str, variant: dict[str, Any]) -> Any:
    """A configuration of a model type, all sizes small."""
    given = GIVEN.get(kind, {})
    everywhere = {**variant, **given.get(EVERYWHERE, {})}
    return CONFIG_MAPPING[kind](**small_fields(CONFIG_MAPPING[kind](), given, everywhere))


def small_fields(stock: Any, given: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """What to make a configuration with, from one of stock sizes and what is given."""
    fields = {field.name for field in dataclasses.fields(stock) if field.init}
    aliases: dict[str, list[str]] = {}
    for alias, name in type(stock).attribute_map.items():
        aliases.setdefault(name, []).append(alias)
    small: dict[str, Any] = {}
    for name, value in vars(stock).items():
        if isinstance(value, PreTrainedConfig):
            inner = given.get(name, {})
            small[name] = {"model_type": value.model_type, **small_fields(value, inner, variant)}
            continue
        asked = next((n for n in (name, *aliases.get(name, ())) if n in fields), None)
        size = None if value is None else variant.get(name, _small(name, value))
        if asked is not None and size is not None:
            small[asked] = size
    _vary_layers(stock, small, fields)
    _rope(stock, small, variant)
    _ids(stock, small, fields)
    own = {k: v for k, v in given.items() if k != EVERYWHERE}
    own = {
        k: v for k, v in own.items() if not isinstance(getattr(stock, k, None), PreTrainedConfig)
    }
    return {**small, **own}


def _small(name: str, value: Any) -> Any:
    if name in KEPT or isinstance(value, bool) or name.endswith("token_id"):
        return None
    if isinstance(value, int):
        known = SIZES.get(name) if name not in BY_RULE and value > 0 else None
        if isinstance(known, int):
            return known
        if re.fullmatch(ALL_EXPERTS, name):
            return 4
        for rule, size in RULES:
            if re.fullmatch(rule, name):
                return min(value, size) if value > 0 else None
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        for rule, size in LISTS:
            if re.fullmatch(rule, name):
                few = [min(v, size) if v > 0 else v for v in value]
                if "heads" in name:
                    few = [1 << v.bit_length() - 1 for v in few]  # divides the width
                return type(value)(few)
    return None


def _vary_layers(stock: Any, small: dict[str, Any], fields: set[str]) -> None:
    """One layer of each type, where there are several."""
    types = getattr(stock, "layer_types", None)
    if "layer_types" not in fields or "layer_types" in type(stock).attribute_map:
        return
    if isinstance(types, (list, tuple)) and len(set(types)) > 1:
        some = list(dict.fromkeys(types))[:3]
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if name in small:
                small[name] = len(some)
                small["layer_types"] = some


def _rope(stock: Any, small: dict[str, Any], variant: dict[str, Any]) -> None:
    """Sections of a rotary encoding that fit heads of width 8, no long-context scaling."""
    rope = getattr(stock, "rope_parameters", None)
    if isinstance(rope, dict):
        rope = {k: dict(v) if isinstance(v, dict) else v for k, v in rope.items()}
        for part in [rope, *(v for v in rope.values() if isinstance(v, dict))]:
            for name in part:
                if name.endswith("section"):
                    part[name] = [2, 1, 1]
        if "mrope_section" in variant:
            rope.setdefault("mrope_section", variant["mrope_section"])
        if rope.get("rope_theta", 1) is not None:
            small["rope_parameters"] = rope


def _ids(stock: Any, small: dict[str, Any], fields: set[str]) -> None:
    """Ids of special tokens inside the vocabulary, each its own."""
    free = iter(range(VOCABULARY - 1, 0, -1))
    for name, value in vars(stock).items():
        if name not in fields or isinstance(value, bool):
            continue
        if re.fullmatch(".*(token_id|token_index|_index|_id)", name) and isinstance(value, int):
            common = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
            if name in common:
                small[name] = common[name]
            elif value >= VOCABULARY - 20:
                small[name] = next(free)
        elif name in ("eos_token_id", "pad_token_id") and isinstance(value, list):
            small[name] = 2


def small_model(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """The base model of a family, float64, and inputs that it runs on.

    Raises:
        NotBuilt: if it cannot be made, or runs on no inputs.
    """
    first: NotBuilt | None = None
    for variant in VARIANTS:
        try:
            model = _build(kind, variant)
            return model, inputs_for(model)
        except NotBuilt as error:
            first = first or error
    assert first is not None
    raise first


def _build(kind: str, variant: dict[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            size = _made(config_of(kind, variant))
        count = sum(p.numel() for p in size.parameters())
        if count > MOST_PARAMETERS:
            raise NotBuilt(f"{count / 1e6:.0f} million parameters are left")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = drawn(_made(config_of(kind, variant)))
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(short(error)) from error
    for module in model.modules():
        own = getattr(module, "config", None)
        if own is not None and getattr(own, "use_cache", None):
            own.use_cache = False
    return model


def _made(config: Any) -> nn.Module:
    try:
        model: nn.Module = AutoModel.from_config(config, experts_implementation="eager")
    except TypeError:
        model = AutoModel.from_config(config)
    return model
