"""Fields of configurations that cannot be guessed from their names, by model type."""

from __future__ import annotations

from typing import Any

EVERYWHERE = "*"
"""Stands for fields that are given to every configuration inside one."""

_HEADS: dict[str, Any] = {EVERYWHERE: {"num_key_value_heads": 4}}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2}
_GROUPS: dict[str, Any] = {
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "v_head_dim": 12,
}
_HALF = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "mrope_section": [1, 1, 0],
}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
_SWIN: dict[str, Any] = {"num_heads": [2, 4], "depths": [2, 2], "embed_dim": 16, "window_size": 2}

GIVEN: dict[str, dict[str, Any]] = {
    "squeezebert": {"embedding_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "bamba": _MAMBA,
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "seggpt": {"merge_index": 0},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "donut-swin": _SWIN,
    "maskformer-swin": _SWIN,
    "swinv2": _SWIN,
    "swin": _SWIN,
    "esm": {"vocab_size": 60, "pad_token_id": 0, "mask_token_id": 3},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1]}},
    "mistral_large4_text": {"kv_source_layers": [0, 1]},
    "laguna": {"num_attention_heads_per_layer": [4, 4]},
    "dory": {
        "num_hidden_layers": 3,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
        "layer_types": ["full_attention"] * 3,
    },
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "unlimited_ocr": _HEADS,
    "nemotron3_5_transcribe_asr_audio": _HEADS,
    "nemotron3_5_transcribe_audio": _HEADS,
    "nemotron3_diarization": _HEADS,
    "nemotron3_diarization_audio": _HEADS,
    "oneformer": {"backbone_config": _SWIN},
    "mask2former": {"backbone_config": _SWIN, "feature_size": 32, "mask_feature_size": 32},
    "esmc": {"num_key_value_heads": 4},
    "muse_spark": {"audio_config": {"num_hidden_layers": 4}},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "pocket_tts": {"flow_head_config": {"condition_dim": 32}},
    "gradium_phonon_tts": {"flow_head_config": {"condition_dim": 32}},
    "granite4_vision": {"spatial_target_layers": [1, 1, 1, 1]},
    "idefics": {"vision_config": {"image_size": 16}},
    "blt": {"encoder_hash_byte_group_vocab": 60},
    "perceiver": {"d_latents": 32, "num_latents": 4},
    "videomae": {"num_frames": 2, "tubelet_size": 2},
    "vivit": {"num_frames": 2, "tubelet_size": (2, 4, 4)},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": _SECTIONS},
    "hunyuan_vl": {"text_config": {"head_dim": 8, "rope_parameters": _SECTIONS}},
    "ministral": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "dots1": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
    },
    "deepseek_v2": {**_GROUPS, "num_experts_per_tok": 4, "n_routed_experts": 4},
    "axk1": {**_GROUPS, "n_routed_experts": 4},
    "longcat_flash": _HEADS,
    "qwen2_5_vl": {"vision_config": {"window_size": 16}},
    "qwen2_5_vl_vision": {"window_size": 16},
    "exaone4_5_vision": {"window_size": 16},
    "qwen2_5_omni_thinker": {"vision_config": {"window_size": 16}},
    "zamba": {"num_hidden_layers": 2, "layer_types": ["mamba", "hybrid"]},
    "zamba2": {"num_hidden_layers": 2, "layer_types": ["mamba", "hybrid"]},
    "nemotron_h": {"n_groups": 2, "mamba_num_heads": 8, "mamba_head_dim": 8},
    "glm4v_moe_text": {"rope_parameters": _HALF},
    "glm4v_moe": {"text_config": {"rope_parameters": _HALF}},
    "bros": {
        "dim_bbox_sinusoid_emb_2d": 32,
        "dim_bbox_sinusoid_emb_1d": 4,
        "dim_bbox_projection": 8,
        "hidden_size": 32,
    },
    "lilt": {"hidden_size": 48, "num_attention_heads": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "swin2sr": {**_SWIN, "patch_size": 1},
    "funnel": {
        "architectures": ["FunnelModel"],
        "block_sizes": [1, 1],
        "block_repeats": [1, 1],
        "num_decoder_layers": 1,
    },
    "chameleon": {"vocabulary_map": {"<image>": 59}},
    "emu3": {"vocabulary_map": {"<image>": 59}},
    "fsmt": {"scale_embedding": False},
    "autoformer": {"prediction_length": 4, "context_length": 8},
    "informer": {"prediction_length": 4, "context_length": 8},
    "time_series_transformer": {"prediction_length": 4, "context_length": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
"""By model type; a configuration inside another one by its field."""

GIVEN_INPUTS: dict[str, tuple[str, ...]] = {
    "bros": ("bbox",),
    "lilt": ("bbox",),
    "lxmert": ("visual_feats", "visual_pos"),
}
"""Arguments of the forward that are needed though they have defaults."""
