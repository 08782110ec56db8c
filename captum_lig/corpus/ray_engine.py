"""The corpus on a Ray cluster: one actor a worker, each with the model loaded once."""

from __future__ import annotations

from collections.abc import Iterator

from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.settings import Settings

__all__ = ["ray_engine"]


def ray_engine(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
    """An :data:`~captum_lig.corpus.engines.Engine` over Ray."""
    raise NotImplementedError
