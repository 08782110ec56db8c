"""Models without a tokenizer are inspected on made-up inputs, and MLPs are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)
from typer.testing import CliRunner, Result

from captum_lig import inspect_model
from captum_lig.cli import app
from tests.helpers.saved import save_tiny_gpt2

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL))


def vit() -> PreTrainedModel:
    return ViTModel(ViTConfig(image_size=16, patch_size=8, **SMALL))


def whisper() -> PreTrainedModel:
    return WhisperModel(
        WhisperConfig(
            vocab_size=60,
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            num_mel_bins=8,
            max_source_positions=20,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def wav2vec() -> PreTrainedModel:
    return Wav2Vec2Model(
        Wav2Vec2Config(
            conv_dim=(8, 8),
            conv_kernel=(10, 8),
            conv_stride=(40, 10),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            vocab_size=12,
            **SMALL,
        )
    )


MADE_UP = {
    "bert": (bert, "10 ids spread over its vocabulary of 50", 10),
    "vit": (vit, "a random picture of 16 x 16 pixels", 5),
    "whisper": (whisper, "a random spectrogram of 40 frames", 20),
    "wav2vec": (wav2vec, "a random sound of 8000 samples", 20),
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


@pytest.mark.parametrize("name", MADE_UP)
def test_a_model_without_a_tokenizer(name: str, tmp_path: Path) -> None:
    make, words, tokens = MADE_UP[name]
    torch.manual_seed(0)
    make().save_pretrained(tmp_path)
    out = tmp_path / "found.json"
    result = run(tmp_path, "--out", out)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert f"No tokenizer is beside it: it ran on {words}." in shown
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "supported: blocks 0-1: attention, mlp, layer, influence" in result.stdout
    found = json.loads(out.read_text())
    assert (found["text"], found["made_up"], found["tokens"]) == ("", words, tokens)


def test_with_a_tokenizer_nothing_is_made_up(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    document = json.loads(run(tmp_path, "--format", "json", "--text", "a cat").stdout)
    assert (document["made_up"], document["text"]) == ("", "a cat")
    given = CliRunner().invoke(
        app, ["inspect", str(tmp_path), "--text", "-", "--format", "json"], input="the cat\n"
    )
    assert json.loads(given.stdout)["text"] == "the cat"


def test_what_cannot_be_made_up_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timm_wrapper"}))
    result = run(tmp_path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("option", "value"), [("--device", "moon"), ("--dtype", "half")])
def test_device_and_precision_are_checked_first(option: str, value: str) -> None:
    result = run("nobody/nothing", option, value)
    assert result.exit_code == 2
    assert f"{option[2:]} '{value}'" in result.stderr


def test_precision_reaches_the_model(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    document = json.loads(
        run(tmp_path, "--text", "a cat", "--format", "json", "--dtype", "float64").stdout
    )
    assert document["dtype"] == "float64"


class Plain(nn.Module):
    """A block without an MLP: attention and what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.attention(z, z, z, need_weights=False)[0]
        return z + attended


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Plain(), Plain()])

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            z = block(z)
        return z


def test_mlps_are_named_where_they_are_found() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[3, 5, 7, 9]])
    common = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(**common)).eval()
    llama = LlamaModel(LlamaConfig(vocab_size=50, **SMALL)).eval()
    for model in (gpt2, llama):
        assert {block.feed_forward for block in inspect_model(model, ids).blocks} == {"mlp"}
    report = inspect_model(Blocks().eval(), torch.randn(1, 4, 8))
    assert [block.feed_forward for block in report.blocks] == ["", ""]
