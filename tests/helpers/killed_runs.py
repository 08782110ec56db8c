"""Runs over a corpus in processes that are killed: ``python -m tests.helpers.killed_runs ...``.

The library is imported once; each run is a fork of this process, which has no threads yet, so that
runs that die by SIGKILL cost runs and not imports. Prints, for each trial, how many of its
processes were killed after they had begun, as JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from captum_lig.corpus import run
from captum_lig.pretrained.load import load_model

SETTINGS: dict[str, Any] = {"n_steps": 4, "tolerance": 1e-2, "window": 8, "batch_size": 2}


def work(corpus: str, model: str, out: str) -> None:
    run(corpus, model, out=out, workers=1, maps=("composed",), layers=(1,), **SETTINGS)


def started(*arguments: str) -> ForkProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def main() -> None:
    """One run is left alone; the others are killed, again and again, until they are done."""
    corpus, model, folder, trials, seed = sys.argv[1:]
    load_model(model)  # for what transformers imports only then
    draw = random.Random(int(seed))
    began = time.monotonic()
    whole = started(corpus, model, f"{folder}/whole")
    whole.join()
    assert whole.exitcode == 0
    took = time.monotonic() - began
    killed = []
    for trial in range(int(trials)):
        out = Path(folder, f"trial-{trial}")
        killed.append(0)
        while True:
            process = started(corpus, model, str(out))
            process.join(draw.uniform(0.2, 0.8) * took)
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, "a run failed by itself"
            killed[-1] += (out / "settings.json").exists()
    print(json.dumps(killed))


if __name__ == "__main__":
    main()
