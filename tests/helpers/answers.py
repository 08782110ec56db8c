"""What the tests of answers share: two texts, and what a saved model gives for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

TEXT, OTHER = "the cat sat on the mat", "the dog sat on the mat"


def loaded(kind: Any, folder: Path) -> tuple[Any, Any]:
    """A saved model in float64, and its tokenizer."""
    model = kind.from_pretrained(folder, dtype=torch.float64).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def last_logits(model: Any, ids: list[int]) -> Tensor:
    """Those ``(V,)`` after the last of the tokens."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]
