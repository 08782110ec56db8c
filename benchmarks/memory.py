"""Peak memory of an attribution, each case in a process of its own.

    python -m benchmarks.memory [--case NAME ...] [--check]

What is reported is the most memory the process has held minus what it held once the model was
loaded and had run once, so the model and the libraries are not in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from benchmarks.common import (
    GIB,
    finish,
    forget_peak,
    now,
    peak_bytes,
    resident_bytes,
    say,
    stamp,
    table,
    use_threads,
)
from benchmarks.shapes import bert_base, llama_1b, token_ids
from captum_lig import LayerFlowIG

TITLE = "Memory"
ALL = ("attention", "mlp", "layer")


@dataclass(frozen=True)
class Case:
    """One attribution, and the most it may take."""

    name: str
    model: Callable[[int], nn.Module]
    shape: str
    tokens: int
    baseline: str
    boundaries: tuple[str, ...] = ("layer",)
    targets: tuple[int, ...] | None = None
    internal_batch_size: int | None = None
    n_steps: int = 16
    gib: float | None = None
    """Most GiB beyond the model."""


@dataclass(frozen=True)
class Used:
    """What one case took."""

    bytes: int
    seconds: float


def bert(name: str, baseline: str = "target_token", at_once: int | None = None) -> Case:
    gib = 2.5 if at_once is None else None
    return Case(name, bert_base, "BERT-base", 512, baseline, internal_batch_size=at_once, gib=gib)


def llama(name: str, baseline: str) -> Case:
    return Case(name, llama_1b, "Llama 1B", 4096, baseline, targets=(4095,), gib=8.0)


CASES = {
    case.name: case
    for case in (
        bert("bert-zero", "zero"),
        bert("bert"),
        Case("bert-all", bert_base, "BERT-base", 512, "target_token", ALL, gib=2.5),
        bert("bert-256", at_once=256),
        bert("bert-64", at_once=64),
        llama("llama-zero", "zero"),
        llama("llama", "target_token"),
    )
}

DEFAULT = [name for name in CASES if name != "llama-zero"]  # which takes minutes, and no more


def measure(case: Case) -> Used:
    """Run a case, here and now."""
    model, ids = case.model(case.tokens), token_ids(case.tokens)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    forget_peak()
    before, began = resident_bytes(), now()
    LayerFlowIG(model, layer=0).attribute(
        ids,
        baselines=case.baseline,
        n_steps=case.n_steps,
        boundaries=case.boundaries,
        output_indices=case.targets,
        internal_batch_size=case.internal_batch_size,
        tolerance=None,
    )
    return Used(peak_bytes() - before, now() - began)


def measure_apart(case: Case, threads: int) -> Used | str:
    """Run a case in a process of its own; what went wrong, if it did."""
    command = [sys.executable, "-m", "benchmarks.memory", "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--here", case.name], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        return f"failed with status {done.returncode}"
    return Used(**json.loads(done.stdout))


def _row(case: Case, used: Used | str) -> list[str]:
    bound = "" if case.gib is None else f"{case.gib:g} GiB"
    targets = "all" if case.targets is None else str(len(case.targets))
    at_once = "chosen" if case.internal_batch_size is None else str(case.internal_batch_size)
    where = [case.shape, str(case.tokens), targets, "+".join(case.boundaries), case.baseline]
    if isinstance(used, str):
        return [used, bound, *where, at_once, ""]
    peak = f"{used.bytes / GIB:.2f} GiB"
    over = case.gib is not None and used.bytes > case.gib * GIB
    return [f"**{peak}**" if over else peak, bound, *where, at_once, f"{used.seconds:.1f}"]


HEADER = [
    "peak",
    "at most",
    "shape",
    "T",
    "targets",
    "boundaries",
    "baseline",
    "internal_batch_size",
    "seconds",
]


def run(names: Sequence[str] = tuple(DEFAULT), threads: int = 1) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    use_threads(threads)
    rows, missed = [], []
    for case in (CASES[name] for name in names):
        used = measure_apart(case, threads)
        rows.append(_row(case, used))
        say(f"memory: {', '.join(rows[-1][:6])}")
        if isinstance(used, str):
            missed.append(f"{case.name} {used}")
        elif case.gib is not None and used.bytes > case.gib * GIB:
            missed.append(f"{case.name}: {used.bytes / GIB:.2f} GiB (at most {case.gib:g})")
    section = "\n\n".join(
        [
            f"## {TITLE}",
            f"`python -m benchmarks.memory`. {stamp()}",
            "Peak of the process beyond what it held once the model was loaded and had run once, "
            "each case in a process of its own, 16 path points. *Llama 1B* is a layer 2048 wide "
            "with 32 heads on 8 key heads. Left to itself the library chooses how many pairs of a "
            "path point and a target it works on at once; `internal_batch_size` sets it.",
            table(HEADER, rows),
        ]
    )
    return section, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=DEFAULT)
    parser.add_argument("--here", choices=CASES, help="measure one case in this process, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="fail if a bound is missed")
    given = parser.parse_args()
    if given.here:
        use_threads(given.threads)
        print(json.dumps(asdict(measure(CASES[given.here]))))
        return 0
    section, missed = run(given.case, given.threads)
    print(section)
    return finish(missed, given.check)


if __name__ == "__main__":
    sys.exit(main())
