"""Runs over a corpus in processes that are killed: ``python -m tests.helpers.zygote ...``.

The library is imported once; each run is a fork of this process, which is small and has no threads
yet, so that ten runs that die by SIGKILL cost ten runs and not ten imports. Prints, for each trial,
how many of its processes were killed at work, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from captum_lig.corpus import run

SETTINGS = {"n_steps": 4, "tolerance": 1e-2, "window": 8, "batch_size": 2, "layers": (1,)}


def started(corpus: str, model: str, out: str) -> int:
    """A process with a run of its own."""
    process = os.fork()
    if not process:
        try:
            run(corpus, model, out=out, workers=1, maps=("composed",), **SETTINGS)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return process


def main() -> None:
    """Runs of one corpus: the first is left alone, the others are killed until they are done."""
    corpus, model, folder, trials, seed = sys.argv[1:]
    draw = random.Random(int(seed))
    began = time.monotonic()
    assert os.waitpid(started(corpus, model, f"{folder}/whole"), 0)[1] == 0
    whole = time.monotonic() - began
    killed = []
    for trial in range(int(trials)):
        killed.append(0)
        out = Path(folder, f"trial-{trial}")
        while True:
            process = started(corpus, model, str(out))
            until = time.monotonic() + draw.uniform(0.05, 1.0) * whole
            done = 0
            while not done and time.monotonic() < until:
                done, status = os.waitpid(process, os.WNOHANG)
                time.sleep(0.002)
            if not done:
                os.kill(process, signal.SIGKILL)
                status = os.waitpid(process, 0)[1]
            if status == 0:
                break
            assert os.WIFSIGNALED(status), "a run failed by itself"
            killed[-1] += (out / "settings.json").exists()
    print(json.dumps(killed))


if __name__ == "__main__":
    main()
