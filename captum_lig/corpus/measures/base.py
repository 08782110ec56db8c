"""The one form of a measure."""

from __future__ import annotations

from abc import ABC

__all__ = ["Measure"]


class Measure(ABC):
    """A measure."""
