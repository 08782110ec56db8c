"""Peak memory of an attribution, each case in a process of its own.

    python -m benchmarks.memory [--case NAME ...] [--check]

What is reported is the most memory the process has held minus what it held once the model was
loaded and had run once, so the model and the libraries are not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch

from benchmarks.common import GIB, command, measured, say, section, table, use_threads
from benchmarks.shapes import SHAPES, token_ids
from captum_lig import LayerFlowIG

TITLE = "Memory"
ALL = ("attention", "mlp", "layer")


@dataclass(frozen=True)
class Used:
    """What one case took."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class Case:
    """One attribution, and the most it may take."""

    name: str
    shape: str
    tokens: int
    baseline: str
    boundaries: tuple[str, ...] = ("layer",)
    targets: tuple[int, ...] | None = None
    internal_batch_size: int | None = None
    gib: float | None = None
    """Most GiB beyond the model."""

    def missed(self, used: Used) -> bool:
        return self.gib is not None and used.bytes > self.gib * GIB


def bert(name: str, baseline: str = "target_token", at_once: int | None = None) -> Case:
    gib = 2.5 if at_once is None else None
    return Case(name, "BERT-base", 512, baseline, internal_batch_size=at_once, gib=gib)


def llama(name: str, baseline: str) -> Case:
    return Case(name, "Llama 1B", 4096, baseline, targets=(4095,), gib=8.0)


CASES = {
    case.name: case
    for case in (
        bert("bert-zero", "zero"),
        bert("bert"),
        Case("bert-all", "BERT-base", 512, "target_token", ALL, gib=2.5),
        bert("bert-256", at_once=256),
        bert("bert-64", at_once=64),
        llama("llama-zero", "zero"),
        llama("llama", "target_token"),
    )
}

DEFAULT = [name for name in CASES if name != "llama-zero"]  # which takes minutes, and no more


def measure(case: Case, threads: int) -> Used:
    """Run a case, here and now."""
    use_threads(threads)
    model, ids = SHAPES[case.shape](case.tokens), token_ids(case.tokens)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    work = partial(
        LayerFlowIG(model, layer=0).attribute,
        ids,
        baselines=case.baseline,
        n_steps=16,
        boundaries=case.boundaries,
        output_indices=case.targets,
        internal_batch_size=case.internal_batch_size,
        tolerance=None,
    )
    _, seconds, peak = measured(work)
    return Used(peak, seconds)


def measure_apart(case: Case) -> Used | str:
    """Run a case in a process of its own; what went wrong, if it did."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, case, torch.get_num_threads()).result()
        except Exception as error:  # among them that the process was ended
            return f"failed: {type(error).__name__}: {error}"


def _row(case: Case, used: Used | str) -> list[str]:
    bound = "" if case.gib is None else f"{case.gib:g} GiB"
    targets = "all" if case.targets is None else str(len(case.targets))
    at_once = "chosen" if case.internal_batch_size is None else str(case.internal_batch_size)
    where = [case.shape, str(case.tokens), targets, "+".join(case.boundaries), case.baseline]
    if isinstance(used, str):
        return [used, bound, *where, at_once, ""]
    peak = f"{used.bytes / GIB:.2f} GiB"
    return [
        f"**{peak}**" if case.missed(used) else peak,
        bound,
        *where,
        at_once,
        f"{used.seconds:.1f}",
    ]


HEADER = ["peak", "at most", "shape", "T", "targets", "boundaries", "baseline"]
HEADER += ["internal_batch_size", "seconds"]


def run(case: Sequence[str] = tuple(DEFAULT)) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    rows, missed = [], []
    for one in (CASES[name] for name in case):
        used = measure_apart(one)
        rows.append(_row(one, used))
        say(f"memory: {', '.join(rows[-1][:6])}")
        if isinstance(used, str):
            missed.append(f"{one.name} {used}")
        elif one.missed(used):
            missed.append(f"{one.name}: {used.bytes / GIB:.2f} GiB (at most {one.gib:g})")
    text = section(
        TITLE,
        "Peak of the process beyond what it held once the model was loaded and had run once, "
        "each case in a process of its own, 16 path points. *Llama 1B* is a layer 2048 wide "
        "with 32 heads on 8 key heads. Left to itself the library chooses how many pairs of a "
        "path point and a target it works on at once; `internal_batch_size` sets it.",
        table(HEADER, rows),
    )
    return text, missed


OPTIONS = {"case": {"nargs": "+", "choices": CASES, "default": DEFAULT}}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))
