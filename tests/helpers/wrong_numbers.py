"""What the tests of wrong numbers share: a decoder, texts, and what a refusal says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import GPT2Config, GPT2LMHeadModel

from captum_lig import LigError
from tests.helpers import models

NAN = float("nan")
LAST = (-1, 3)


def decoder(seed: int = 0) -> GPT2LMHeadModel:
    """A language model of two layers."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                   bos_token_id=1, eos_token_id=2, pad_token_id=0)
    )  # fmt: skip
    models.randomise(model, seed)
    return model.double().eval()


IDS = models.tokens(models.tiny_bert(), 1, 5)
OTHER = torch.cat([IDS[:, :1], (7 * IDS[:, 1:] + 5) % 45 + 4], 1)


@contextmanager
def refused(*says: str) -> Iterator[None]:
    with pytest.raises(LigError) as caught:
        yield
    for part in says:
        assert part in str(caught.value), str(caught.value)


def last(output: Any) -> Tensor:
    """A number of a model of these tests."""
    return (output if isinstance(output, Tensor) else output[0])[:, -1].tanh().sum(-1)


class Dropping(nn.Module):
    """Drops whatever the mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weight = inner, getattr(inner, "weight", None)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return dropout(self.inner(x), 0.3, training=True)  # type: ignore[no-any-return]
