"""Workers for the engine over Ray, importable in its processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pyarrow

from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.worker import Worker
from captum_lig.errors import LigError

POISON = "ends the process that works on it"


def telling(settings: Settings) -> Callable[[Batch], Part]:
    """The worker of the library, slowed down, which says in which process it is.

    One more table, ``process``, has its number; the text ``POISON`` ends it.
    """
    worker = Worker(settings)

    def work(batch: Batch) -> Part:
        time.sleep(0.2)
        if any(text.text == POISON and text.problem is None for text in batch.texts):
            os.kill(os.getpid(), signal.SIGKILL)
        part = worker(batch)
        part.tables["process"] = pyarrow.table({"process": [os.getpid()]})
        return part

    return work


def empty(settings: Settings) -> Callable[[Batch], Part]:
    """No model; a part without tables, after a fifth of a second."""

    def work(batch: Batch) -> Part:
        time.sleep(0.2)
        return Part(batch.number, batch.window, batch.digest, {})

    return work


def without_a_model(settings: Settings) -> Callable[[Batch], Part]:
    """Cannot be loaded."""
    raise LigError(f"model {settings.model!r} is not here.")


def ends_at_once(settings: Settings) -> Callable[[Batch], Part]:
    """Ends its process while it is loaded."""
    os.kill(os.getpid(), signal.SIGKILL)
    return empty(settings)
