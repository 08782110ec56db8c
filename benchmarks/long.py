"""What one target of a long text costs, and where the time goes.

    python -m benchmarks.long [--case NAME ...] [--tokens 4096] [--model FOLDER] [--check]

``recording`` runs the model with our attention function and masks, ``comparing`` runs it as it is,
``validating`` holds the split block and its path against the block's own code, and ``path points``
integrates. All of them, and the pass that they are held against, are of one process and one run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from multiprocessing import get_context
from operator import itemgetter
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.common import (
    GIB,
    command,
    forget_peak,
    now,
    peak_bytes,
    resident_bytes,
    say,
    seconds,
    section,
    table,
    use_threads,
)
from benchmarks.shapes import SHAPES, Layer, token_ids
from benchmarks.target_cost import NAMES, recalled
from benchmarks.texts import load
from captum_lig import LayerFlowIG
from captum_lig.attribution import block as chain_block
from captum_lig.attribution import chain
from captum_lig.integrals import block as integrals_block
from captum_lig.model import select
from captum_lig.model.split import SplitBlock
from captum_lig.paths import choose
from captum_lig.prediction import logit

TITLE = "One target of a long text"
SHAPE = "Llama 1B"
POINTS = 16
RATIO = 2.0
"""Most seconds of a whole call, in those that path points take that fill a sequence."""
ROUNDS = 3
"""Runs of a layer's case, in turn with the points: the median counts."""
GIBS = 4.0
"""Most memory beyond the model."""
PHASES = ("recording", "comparing", "validating", "path points")
PLACES: tuple[tuple[str, Any, str], ...] = (
    ("recording", select, "recorded"),
    ("comparing", select, "compare_with_model"),
    ("validating", select, "with_padding"),
    ("validating", select, "validate_block"),
    ("validating", select, "find_feed_forward"),
    ("validating", choose, "choose_structure"),
    ("validating", SplitBlock, "attends"),
    ("validating", SplitBlock, "check"),
    ("path points", integrals_block, "integrate"),
    ("path points", chain_block, "multipliers"),
    ("path points", chain, "multipliers"),
)
"""The functions that are timed."""


@dataclass(frozen=True)
class Case:
    """One attribution."""

    name: str
    tokens: int
    baseline: str | None = None
    number: bool = False
    """Whether a number of the model is explained: sums of every node, without edges."""
    model: str | None = None
    """Folder of a language model; None: the layer of random weights."""


@dataclass(frozen=True)
class Found:
    """What it took."""

    phases: dict[str, float]
    total: float
    own: float
    """Seconds of the model's own forward pass."""
    sequence: float | None
    """Seconds of path points that fill a sequence of the text's length."""
    bytes: int

    @property
    def rest(self) -> float:
        return self.total - sum(self.phases.values())


@contextmanager
def phases() -> Iterator[dict[str, float]]:
    """Seconds of each phase in what runs inside; what is timed inside another counts as that."""
    taken = dict.fromkeys(PHASES, 0.0)
    open_phases: list[str] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if open_phases:
                return function(*args, **kwargs)
            open_phases.append(name)
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                taken[name] += now() - began
                open_phases.pop()

        return run

    with ExitStack() as stack:
        for name, owner, attribute in PLACES:
            own = getattr(owner, attribute)
            stack.enter_context(patch.object(owner, attribute, timed(name, own)))
        yield taken


def drawn(tokens: int) -> nn.Module:
    """A layer of random weights, with scales of its norms that differ from feature to feature."""
    model = SHAPES[SHAPE](tokens)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3, generator=generator)
    return model


def sequence_of_points(layer: Layer) -> None:
    """What follows the attention, forward and backward, of a sequence of path points."""
    block: Any = layer.module
    z = layer.z.clone().requires_grad_()
    u = layer.z.clone().requires_grad_()
    r = z + block.self_attn.o_proj(u)
    y = r + block.mlp(block.post_attention_layernorm(r))
    torch.autograd.grad(y, (u, z), torch.ones_like(y))


def measure(case: Case, threads: int) -> Found:
    """Run a case, here and now."""
    use_threads(threads)
    warnings.simplefilter("ignore")
    layer: Layer | None = None
    if case.model is None:
        model, ids = drawn(case.tokens), token_ids(case.tokens)
        layer = Layer.of(model, ids)
        sequence_of_points(layer)
    else:
        tokenizer, model = load(case.model, causal=True)
        ids, other = (recalled(tokenizer, name, case.tokens) for name in NAMES)
    with torch.no_grad():
        own = seconds(lambda: model(input_ids=ids, use_cache=False))
    if case.number:
        target = logit(*(tokenizer(f" {name}").input_ids[0] for name in NAMES))
        names = ("mlp", "feed_forward")
        given: dict[str, Any] = {"baselines": other, "target": target, "boundaries": names}
    else:
        given = {
            "baselines": case.baseline,
            "n_steps": POINTS,
            "boundaries": ("layer",),
            "output_indices": [case.tokens - 1],
        }
    forget_peak()
    held = resident_bytes()
    runs: list[tuple[float, dict[str, float]]] = []
    sequences, peak = [], 0
    for turn in range(1 if layer is None else ROUNDS):
        with phases() as taken:
            began = now()
            LayerFlowIG(model).attribute(ids, **given)
            runs.append((now() - began, taken))
        if not turn:
            peak = peak_bytes() - held
        if layer is not None:
            sequences.append(seconds(partial(sequence_of_points, layer)))
    total, taken = sorted(runs, key=itemgetter(0))[len(runs) // 2]
    sequence = median(sequences) if sequences else None
    return Found(taken, total, own, sequence, peak)


def measure_apart(case: Case) -> Found:
    """Run a case in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, case, torch.get_num_threads()).result()


def _row(case: Case, found: Found) -> list[str]:
    named = [f"{found.phases[name]:.1f}" for name in PHASES]
    ratio = "" if found.sequence is None else f"{found.total / found.sequence:.2f}"
    unit = "" if found.sequence is None else f"{found.sequence:.1f}"
    times = [f"{found.own:.1f}", *named, f"{found.rest:.1f}", f"{found.total:.1f}", unit, ratio]
    return [case.name, str(case.tokens), *times, f"{found.bytes / GIB:.2f} GiB"]


HEADER = ["case", "T", "model's pass", *PHASES, "rest", "total", "a sequence", "ratio", "peak"]
CASES = ("llama", "llama-zero", "model", "number")


def run(
    case: Sequence[str] = CASES[:2], tokens: int | None = None, model: str | None = None
) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    rows, missed = [], []
    for name in case:
        if name.startswith("llama"):
            baseline = "zero" if name == "llama-zero" else "target_token"
            one = Case(f"{SHAPE}, {baseline}", tokens or 4096, baseline)
        else:
            if model is None:
                raise SystemExit(f"--case {name} needs --model FOLDER")
            one = Case(f"whole, {name}", tokens or 2048, "target_token", name == "number", model)
        found = measure_apart(one)
        rows.append(_row(one, found))
        say("long: " + ", ".join(rows[-1]))
        if found.sequence is not None and found.total > RATIO * found.sequence:
            missed.append(f"{one.name}: {found.total / found.sequence:.2f} (at most {RATIO})")
        if found.bytes > GIBS * GIB:
            missed.append(f"{one.name}: {found.bytes / GIB:.2f} GiB (at most {GIBS})")
    text = section(
        TITLE,
        f"The layer map of the last token, {POINTS} path points to begin with, every step in "
        f"seconds. *{SHAPE}* is a layer 2048 wide with 32 heads on 8 key heads, 8192 inside its "
        "MLP, of random weights and random scales of its norms. *whole, model* is every layer of "
        "the language model; *whole, number* is why a text that names "
        f"a city once goes on with {NAMES[0]} rather than {NAMES[1]} at its end, against the text "
        "with the other name: every head and MLP of every layer, summed over what they read, to "
        "the usual tolerance. *model's pass*: the model by "
        "itself. *recording* runs it with our attention function and masks, *comparing* runs it "
        "as it is, *validating* holds the split block and its path against the block's own code. "
        "*a sequence*: what follows the attention, forward and backward, for as many tokens as "
        "the text has, which is what path points of one target took when they were packed into "
        f"sequences of the text's length; *ratio*: the total over it, at most {RATIO:g}, of the "
        f"medians of {ROUNDS} rounds. *peak*: memory beyond the model.",
        table(HEADER, rows),
    )
    return text, missed


OPTIONS: dict[str, dict[str, Any]] = {
    "case": {"nargs": "+", "choices": CASES, "default": list(CASES[:2])},
    "tokens": {"type": int, "default": None},
    "model": {"default": None, "help": "folder of a causal language model"},
}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))
