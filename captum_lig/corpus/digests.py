"""What a run's model and tokenizer are known by, so that it goes on with no others."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from captum_lig.model.hooks import users_hooks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["digest_of_model", "digest_of_tokenizer"]

EXAMPLE = "The cats sat on 12 mats."
"""What a tokenizer makes of it is part of what it is known by, where it cannot be written down."""


def digest_of_model(model: nn.Module) -> str:
    """Hash of a model's configuration, of all its numbers, and of the names of a user's hooks."""
    config = getattr(model, "config", None)
    digest = hashlib.sha256(config.to_json_string().encode() if config is not None else b"")
    for name, values in model.state_dict().items():
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.cpu().reshape(-1).view(torch.uint8).numpy())
    for name, hook in users_hooks(model):
        # What a hook does is not in its name: a run with one does not go on, see `run`.
        known = hook if hasattr(hook, "__qualname__") else type(hook)
        digest.update(f"{name} {known.__module__} {known.__qualname__}".encode())
    return digest.hexdigest()


def digest_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what decides on a text's tokens; the same before a tokenizer is used and after."""
    about: dict[str, Any] = {
        "special tokens": tokenizer.special_tokens_map,
        "most tokens": tokenizer.model_max_length,
        "inputs": tokenizer.model_input_names,
    }
    try:
        about |= json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception:  # written in Python, or some part of it: that cannot be written down
        about["type"] = type(tokenizer).__qualname__
        about["vocabulary"] = {str(token): n for token, n in tokenizer.get_vocab().items()}
        about["example"] = tokenizer(EXAMPLE)["input_ids"]
    # What the last call wanted: each of ours says what it wants.
    about.pop("truncation", None)
    about.pop("padding", None)
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
