"""Engines: what runs the batches. Each gives the same parts, in any order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice

from captum_lig._arguments import brief
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.worker import Worker
from captum_lig.errors import LigError

__all__ = ["ENGINES", "Engine", "find_engine", "local"]

Engine = Callable[[Settings, Iterator[Batch], int], Iterator[Part]]
"""Takes batches as it can work on them, never all at once; gives a part for each, in any order."""

ENGINES = ("local", "ray")


def find_engine(name: str, address: str | None = None) -> Engine:
    """The engine of that name.

    Args:
        name: one of ``ENGINES``.
        address: of a cluster, for Ray.

    Raises:
        LigError: if there is none, what it needs is not installed, or it takes no address.
    """
    if name == "ray":
        from captum_lig.corpus.ray_engine import ray_engine

        return partial(ray_engine, address=address)
    if address is not None:
        raise LigError(f"address={brief(address)} is of a Ray cluster: give engine='ray', too.")
    if name == "local":
        return local
    raise LigError(f"engine {brief(name)} is unknown: use one of {', '.join(ENGINES)}.")


def local(
    settings: Settings, batches: Iterator[Batch], workers: int, worker: Worker | None = None
) -> Iterator[Part]:
    """This machine: this process alone, or ``workers`` processes beside it.

    Args:
        settings: of the run.
        batches: read as they are worked on, at most two a worker ahead.
        workers: how many.
        worker: one that is loaded already, for one worker.

    Raises:
        LigError: if a process dies; what is finished is not lost.
    """
    if workers == 1:
        yield from map(worker or Worker(settings), batches)
        return
    # Spawned: a forked copy of a process with torch's threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _watch_parent) as pool:
        running: set[Future[Part]] = set()
        try:
            while True:
                for batch in islice(batches, 2 * workers - len(running)):
                    running.add(pool.submit(_run, settings, batch))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        except BrokenProcessPool as error:
            raise LigError(
                "a worker process died, as it does when memory runs out: run the same again, with "
                "fewer workers or a smaller batch_size, and it goes on where it was."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run(settings: Settings, batch: Batch) -> Part:
    key = repr(settings)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = Worker(settings)
    return _LOADED[key](batch)


_LOADED: dict[str, Worker] = {}
"""Of a worker process: its worker, loaded with its first batch."""


def _watch_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
