"""Engines: what runs the batches. Each gives the same parts, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from captum_lig._arguments import brief
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.worker import Worker
from captum_lig.errors import LigError

__all__ = ["ENGINES", "Engine", "find_engine", "local"]

Engine = Callable[[Settings, Iterator[Batch], int], Iterator[Part]]
"""Takes batches as it can work on them, never all at once; gives a part for each, in any order."""

ENGINES = ("local", "ray")


def find_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        LigError: if there is none, or what it needs is not installed.
    """
    if name == "local":
        return local
    if name == "ray":
        from captum_lig.corpus.ray_engine import ray_engine

        return ray_engine
    raise LigError(f"engine {brief(name)} is unknown: use one of {', '.join(ENGINES)}.")


def local(
    settings: Settings, batches: Iterator[Batch], workers: int, worker: Worker | None = None
) -> Iterator[Part]:
    """This machine: this process alone, or ``workers`` processes beside it.

    Args:
        settings: of the run.
        batches: read as they are worked on, a few ahead.
        workers: how many.
        worker: one that is loaded already, for one worker.
    """
    raise NotImplementedError
