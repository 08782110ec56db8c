"""The corpus on a Ray cluster: one actor a worker, each with the model loaded once.

The driver, the process that reads the corpus and writes the parts, holds every batch until its
part is there. A worker has one batch at a time, so that a batch whose worker ends is known, and
done again by another one. Ray Data is not used: the docs say what it loses.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from captum_lig._arguments import brief, whole_number
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.packages import need
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.worker import Worker
from captum_lig.errors import LigError

__all__ = ["ray_engine"]

TRIES = 3
"""Workers that a batch, and then each text of it alone, may end before it is given up."""
STORE = 256 * 2**20
"""Bytes for parts on their way, in a Ray that is started here; more goes to the disk."""

Load = Callable[[Settings], Callable[[Batch], Part]]


def ray_engine(
    settings: Settings,
    batches: Iterator[Batch],
    workers: int,
    address: str | None = None,
    load: Load = Worker,
) -> Iterator[Part]:
    """An :data:`~captum_lig.corpus.engines.Engine` over Ray.

    A Ray that the process is connected to is used and left as it is. Otherwise one is joined at
    ``address`` or started on this machine, and left or shut down at the end.

    A text that ends its worker three times, with its batch and then alone, gets that as its
    problem.

    Args:
        settings: of the run. With ``device="cuda"`` each worker has one GPU, on the CPU
            ``settings.threads`` cores.
        batches: read one at a time, when a worker is free.
        workers: how many.
        address: of a cluster, as ``ray.init`` takes it; None: the variable ``RAY_ADDRESS``, and
            without it this machine alone.
        load: makes what a worker calls with batches; runs once in each.

    Raises:
        LigError: if Ray is not installed or not found at the address, this machine has too few
            GPUs, or the model cannot be loaded in a worker.
    """
    whole_number("workers", workers, 1)
    if importlib.util.find_spec("ray") is None:
        raise LigError("the ray engine needs Ray: pip install 'captum-lig[ray]'.")
    with _connected(workers, _needs(settings), address):
        yield from _Pool(settings, workers, load).run(batches)


def _needs(settings: Settings) -> dict[str, int]:
    """What Ray sets aside for one worker, under its names."""
    device = settings.device or "cpu"
    if ":" in device:
        raise LigError(
            f"device={brief(device)}: Ray gives each worker a GPU of its own; "
            f"name the kind alone, {device.partition(':')[0]!r}."
        )
    if device in ("cpu", "mps"):
        return {"CPU": settings.threads}
    return {"CPU": 1, "GPU": 1}


@contextmanager
def _connected(workers: int, needs: dict[str, int], address: str | None) -> Iterator[None]:
    """A Ray to work on. What was there before is there afterwards."""
    # Read by Ray's import: it tells its makers of its use otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # How Ray will treat workers without a GPU in future; it warns where nothing is chosen.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    joined = ray.is_initialized()
    if joined and address is not None:
        raise LigError(
            f"address={brief(address)}: this process is connected to a Ray already; leave the "
            "address out to use it, or call ray.shutdown() before."
        )
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if joined:
        pass
    elif place == "local":
        ray.init(
            "local",
            num_cpus=workers * needs["CPU"],
            include_dashboard=False,
            object_store_memory=STORE,
            **quiet,
        )
    else:
        try:
            _knock(place)
            ray.init(place, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise LigError(f"no Ray was found at address={brief(place)}: {error}") from error
    try:
        _check_room(workers, needs, here=not joined and place == "local")
        yield
    finally:
        if not joined:
            ray.shutdown()


def _knock(place: str) -> None:
    """Raises OSError if nothing listens there: Ray itself tries for many minutes."""
    host, colon, port = place.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _check_room(workers: int, needs: dict[str, int], here: bool) -> None:
    """That all workers find a place; a cluster may still grow."""
    import ray

    there = ray.cluster_resources()
    for kind, one in needs.items():
        if there.get(kind, 0) >= workers * one:
            continue
        short = f"workers={workers} need {workers * one} {kind}, and Ray has {there.get(kind, 0):g}"
        if here:
            raise LigError(f"{short} on this machine.")
        warnings.warn(f"{short}: the others wait until there are more.", stacklevel=2)


class _Actor:
    """What runs in a worker's process."""

    def __init__(self, load: Load, settings: Settings) -> None:
        self.load, self.settings = load, settings

    def start(self) -> None:
        # Not in __init__, whose errors Ray hands on as a text.
        self.work = self.load(self.settings)

    def run(self, batch: Batch) -> Part:
        return self.work(batch)


@dataclass
class _Job:
    """A batch under way."""

    batch: Batch
    whole: Batch
    """What it is a part of, if it is not all."""
    ended: int = 0
    """Workers that ended at it."""


class _Pool:
    """A fixed number of actors, and what each of them does."""

    def __init__(self, settings: Settings, workers: int, load: Load) -> None:
        import ray

        needs = _needs(settings)
        remote: Any = ray.remote
        self.make = remote(_Actor).options(
            num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_restarts=0, max_task_retries=0
        )
        self.workers, self.arguments = workers, (load, settings)
        self.actors: set[Any] = set()
        self.under_way: dict[Any, tuple[Any, _Job | None]] = {}
        self.idle: list[Any] = []
        self.again: deque[_Job] = deque()
        self.single: dict[int, dict[int, Part]] = {}
        """Parts of single texts, by the numbers of the batch and of the text."""

    def run(self, batches: Iterator[Batch]) -> Iterator[Part]:
        """A part for each batch."""
        import ray

        failed_starts = 0
        try:
            for _ in range(self.workers):
                self._start()
            while self.under_way:
                (done,), _ = ray.wait(list(self.under_way), num_returns=1)
                actor, job = self.under_way.pop(done)
                try:
                    part = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    # The process, its machine or what it returned is gone.
                    ray.kill(actor)
                    self.actors.remove(actor)
                    failed_starts = failed_starts + 1 if job is None else 0
                    if failed_starts == TRIES * self.workers:
                        raise LigError(
                            f"{failed_starts} workers ended while they loaded the model; the last: "
                            f"{error}"
                        ) from error
                    self._lost(job, error)
                    continue
                failed_starts = 0
                self._next(actor, batches)
                if job is not None and (whole := self._whole(job, part)) is not None:
                    yield whole
        finally:
            for actor in self.actors:
                ray.kill(actor)

    def _start(self) -> None:
        actor = self.make.remote(*self.arguments)
        self.actors.add(actor)
        self.under_way[actor.start.remote()] = (actor, None)

    def _next(self, actor: Any, batches: Iterator[Batch]) -> None:
        """Hand the actor what was lost, or the next batch."""
        job = self.again.popleft() if self.again else None
        if job is None and (batch := next(batches, None)) is not None:
            job = _Job(batch, batch)
        if job is None:
            self.idle.append(actor)
        else:
            self.under_way[actor.run.remote(job.batch)] = (actor, job)

    def _lost(self, job: _Job | None, error: Exception) -> None:
        """Have a batch done again whose worker ended, by one that is free or a new one."""
        what = "it loaded the model" if job is None else f"it had batch {job.whole.number}"
        warnings.warn(
            f"a worker ended while {what}, which is done again: {error}".replace("\n", " "),
            stacklevel=2,
        )
        if job is not None:
            self.again.extend(_try_again(job))
        if self.idle and self.again:
            self._next(self.idle.pop(), iter(()))
        else:
            self._start()

    def _whole(self, job: _Job, part: Part) -> Part | None:
        """The part of the whole batch, if it is all there."""
        if job.batch is job.whole:
            return part
        parts = self.single.setdefault(job.whole.number, {})
        parts[job.batch.texts[0].number] = part
        if len(parts) < len(job.whole.texts):
            return None
        del self.single[job.whole.number]
        return _joined([parts[text.number] for text in job.whole.texts], job.whole)


def _try_again(job: _Job) -> list[_Job]:
    """The same once more, then its texts alone, then the text as one that cannot be worked on."""
    ended = job.ended + 1
    if ended < TRIES:
        return [replace(job, ended=ended)]
    if len(job.batch.texts) > 1:
        return [_Job(replace(job.batch, texts=(text,)), job.whole) for text in job.whole.texts]
    (text,) = job.batch.texts
    if text.problem is not None:
        raise LigError(f"{TRIES} workers ended while they recorded text {text.number}.")
    text = replace(text, problem=f"it ended its worker {TRIES} times: see the run's warnings")
    return [_Job(replace(job.batch, texts=(text,)), job.whole)]


def _joined(parts: list[Part], batch: Batch) -> Part:
    """One part of a batch whose texts were worked on alone."""
    pyarrow = need("pyarrow")
    tables = {
        name: pyarrow.concat_tables([part.tables[name] for part in parts])
        for name in parts[0].tables
    }
    maps = {key: value for part in parts for key, value in (part.maps or {}).items()}
    return Part(batch.number, batch.window, batch.digest, tables, maps or None)
