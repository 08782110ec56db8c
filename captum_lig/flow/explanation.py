"""The flows of one text, with its tokens and the settings they were made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from captum_lig.flow.layer_flow import LayerFlow

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """How one text flows through the layers of a model."""

    flows: list[LayerFlow]
    """One a layer, in the order the layers ran."""
    tokens: list[str]
    """As the tokenizer writes them, special tokens included; one for each source."""
    text: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the flows were made, in JSON's types."""
