"""Models in folders, as `from_pretrained` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from tests.helpers.models import randomise

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


def save_tiny_head(folder: Path, kind: str) -> None:
    """A random BERT that sorts texts into three classes, or fills in masks; as above otherwise."""
    save_tiny_bert(folder)
    config = BertConfig.from_pretrained(folder)
    config.id2label = {0: "fear", 1: "joy", 2: "rage"}
    config.label2id = {name: number for number, name in config.id2label.items()}
    types: dict[str, Any] = {"classes": BertForSequenceClassification, "masked": BertForMaskedLM}
    model = types[kind](config).eval()
    randomise(model, seed=1)
    model.save_pretrained(folder)


CORPUS = ["the cat sat on the mat", "the dog sat on the mat", "a cat and a dog sat", "a mat"] * 3
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}so "


def save_tiny_gpt2(folder: Path, template: str | None = TEMPLATE) -> None:
    """A random GPT-2 of two layers for at most 24 tokens, and a byte-level tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=special[0],
        pad_token=special[0],
        bos_token=special[1],
        chat_template=template,
    )
    tokenizer.save_pretrained(folder)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=24,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=1,
            eos_token_id=0,
        )
    ).eval()
    randomise(model, seed=0)
    model.save_pretrained(folder)
