"""Questions drawn at random: a small model, padded texts for it, and where paths start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tests.helpers import models

few = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
"""How many questions a law is asked of."""


@dataclass(frozen=True)
class Texts:
    """Texts of some lengths for a model, in one batch."""

    family: str
    heads: int
    key_heads: int
    lengths: tuple[int, ...]
    left: bool
    seed: int

    @property
    def model(self) -> PreTrainedModel:
        """The model, in float64."""
        return model(self.family, self.heads, self.key_heads)

    @property
    def causal(self) -> bool:
        """Whether tokens see no later ones."""
        return self.family in models.CAUSAL

    def ids(self, text: int, other: bool = False) -> Tensor:
        """``(1, S)`` one text, or its baseline: other tokens at all places but the first."""
        drawn = models.tokens(self.model, len(self.lengths), max(self.lengths), self.seed)
        ids = drawn[text : text + 1, : self.lengths[text]]
        return torch.cat([ids[:, :1], (7 * ids[:, 1:] + 5) % 45 + 4], 1) if other else ids

    def place(self, text: int, position: int) -> int:
        """Where a token of a text is in the batch."""
        return position + (max(self.lengths) - self.lengths[text] if self.left else 0)

    def alone(self, text: int) -> dict[str, Tensor]:
        """One text without padding."""
        ids = self.ids(text)
        places = torch.arange(ids.shape[1])[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}

    def batch(self) -> dict[str, Tensor]:
        """All of them."""
        mask = self.padded([torch.ones_like(self.ids(n)) for n in range(len(self.lengths))])
        ids = self.padded([self.ids(n) for n in range(len(self.lengths))])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": places}

    def other(self) -> Tensor:
        """``(B, S)`` ids of their baselines."""
        return self.padded([self.ids(n, other=True) for n in range(len(self.lengths))])

    def padded(self, texts: list[Tensor]) -> Tensor:
        """Rows ``(1, S_n)`` with zeros beside them."""
        longest = max(self.lengths)
        rows = []
        for x in texts:
            gap = x.new_zeros(1, longest - x.shape[1])
            rows.append(torch.cat([gap, x] if self.left else [x, gap], 1))
        return torch.cat(rows)

    def hidden(self) -> Tensor:
        """``(B, T, S)`` the sources that a target may not see."""
        mask = self.batch()["attention_mask"].bool()
        seen = mask[:, None, :] & mask[:, :, None]
        return ~(seen.tril() if self.causal else seen)


@lru_cache(maxsize=32)
def model(family: str, heads: int, key_heads: int) -> PreTrainedModel:
    """A model of two layers."""
    extra: dict[str, Any] = {"key_heads": key_heads} if family == "llama" else {}
    built: PreTrainedModel = models.MODELS[family](heads=heads, **extra)
    return built


@st.composite
def texts(draw: st.DrawFn, least: int = 1) -> Texts:
    """At least so many texts, and at most three, of two to six tokens."""
    heads = draw(st.sampled_from([4, 2, 1]))
    groups = [n for n in (1, 2, 4) if heads % n == 0]
    return Texts(
        family=draw(st.sampled_from(["llama", "gpt2", "bert"])),
        heads=heads,
        key_heads=draw(st.sampled_from(groups)),
        lengths=tuple(draw(st.lists(st.integers(2, 6), min_size=least, max_size=3))),
        left=draw(st.booleans()),
        seed=draw(st.integers(0, 20)),
    )
