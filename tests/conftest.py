"""Settings of the whole suite, and what several rooms' tests are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.saved import save_tiny_bert

# The models of the tests are so small that a second thread only slows them down.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of three layers for at most 16 tokens, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_bert(folder)
    return folder
