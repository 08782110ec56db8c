"""Models in folders, as `from_pretrained` reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "on"]
VOCABULARY += ["[", "]", "x", "mat", "cats'"]


def save_tiny_bert(folder: Path) -> None:
    """A random BERT of three layers for at most 16 tokens, and its tokenizer."""
    words = folder / "words.txt"
    words.write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(words), model_max_length=512).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=16,
                initializer_range=0.5,
            )
        )
        for parameter in model.parameters():  # biases of 0 are a degenerate case
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
