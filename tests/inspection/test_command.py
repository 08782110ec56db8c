"""The command that says what can be attributed of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertTokenizerFast,
    MambaConfig,
    MambaModel,
)
from typer.testing import CliRunner, Result

from captum_lig import inspect_model
from captum_lig.cli import app
from captum_lig.inspection.report import BlockReport
from tests.helpers import models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT and a tokenizer of as many words."""
    path = tmp_path_factory.mktemp("inspected")
    save_tokenizer(path)
    models.tiny_bert(torch.float32).save_pretrained(path)
    return path


def save_tokenizer(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "the", "cat", *(f"w{i}" for i in range(models.VOCABULARY - 7))]
    (folder / "words.txt").write_text("\n".join(words))
    names = ["input_ids", "attention_mask"]
    BertTokenizerFast(str(folder / "words.txt"), model_input_names=names).save_pretrained(folder)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_command_writes_what_the_function_finds(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    result = run(folder, "--text", "the cat", "--out", out)
    assert result.exit_code == 0, result.output
    assert "supported: blocks 0-1: attention, mlp, layer, influence" in result.stdout
    assert result.stderr == f"wrote {out}\n"
    document = json.loads(out.read_text())
    assert (document["format"], document["version"]) == ("captum_lig.model", 1)
    assert (document["name"], document["text"], document["tokens"]) == (str(folder), "the cat", 4)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    report = inspect_model(model.eval(), tokenizer("the cat", return_tensors="pt"))
    expected = {**report.to_json(), "name": str(folder), "text": "the cat"}
    assert document == expected
    assert set(document["blocks"][0]) == {
        name.removesuffix("_name") for name in BlockReport.__dataclass_fields__
    }


def test_command_without_a_text(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "looked at on" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stderr == ""


def test_command_on_a_model_without_attention(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    config = MambaConfig(
        vocab_size=models.VOCABULARY, hidden_size=8, state_size=2, num_hidden_layers=2
    )
    models.randomised(MambaModel(config), torch.float32).save_pretrained(tmp_path)
    result = run(tmp_path, "--out", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert "not supported: " in result.stdout
    (modules,) = json.loads((tmp_path / "found.json").read_text())["module_lists"]
    assert (modules["name"], modules["class"], modules["count"]) == ("layers", "MambaBlock", 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", ""], "the text '' gives model"),
        (["--text", "the " * 80], "takes 64 at most: shorten the text"),
        (["--out", "model.txt"], "--out 'model.txt' has no known suffix: use .json."),
    ],
)
def test_command_with_bad_input_says_one_sentence(
    folder: Path, arguments: list[str], said: str
) -> None:
    result = run(folder, *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("captum-lig: ")
    assert said in line
    assert result.stdout == ""


def test_command_with_no_model_there(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "has no config.json" in result.stderr
