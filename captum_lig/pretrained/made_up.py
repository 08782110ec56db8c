"""Inputs for a model without a tokenizer: ids of its vocabulary, a picture, or a sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.pretrained.load import Stored

__all__ = ["made_up_inputs"]

TOKENS = 10
SAMPLES = 8000
"""Of a sound: half a second."""


def made_up_inputs(found: Stored) -> tuple[dict[str, Tensor], str]:
    """What to run a model on, and what that is, in words.

    Raises:
        LigError: if its configuration does not say what it takes.
    """
    config = found.config
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    sides = _sides(getattr(config, "image_size", None))
    vocabulary = getattr(config, "vocab_size", None)
    mel, frames = (getattr(config, name, None) for name in ("num_mel_bins", "max_source_positions"))
    if sides is not None and hasattr(config, "num_channels"):
        height, width = sides
        words = f"a random picture of {height} x {width} pixels"
        return {"pixel_values": random(config.num_channels, height, width)}, words
    if isinstance(mel, int) and isinstance(frames, int):
        words = f"a random spectrogram of {2 * frames} frames"
        return {"input_features": random(mel, 2 * frames)}, words
    if hasattr(config, "conv_stride") and hasattr(config, "conv_kernel"):
        return {"input_values": random(SAMPLES)}, f"a random sound of {SAMPLES} samples"
    if isinstance(vocabulary, int) and vocabulary > 1:
        # Evenly spread; the ends of a vocabulary are often special.
        ids = torch.linspace(0, vocabulary - 1, TOKENS + 2)[1:-1].round().long()[None]
        words = f"{TOKENS} ids spread over its vocabulary of {vocabulary:,}"
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, words
    raise LigError(
        f"model {found.name!r} has no tokenizer beside it, and its configuration does not say what "
        "it takes: save its tokenizer there too, or call captum_lig.inspect_model(model, inputs)."
    )


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width of a picture."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None
