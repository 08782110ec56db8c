"""A small random GPT-2 with a tokenizer, and one answer of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_lig import Answer, why
from tests.helpers.answers import OTHER, TEXT
from tests.helpers.saved import save_tiny_gpt2


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2(folder)
    return folder


@pytest.fixture(scope="module")
def answer(gpt2: Path) -> Answer:
    return why(TEXT, gpt2, OTHER, dtype="float64", tolerance=1e-3)
