"""Memory that runs out once, at an operation of torch that a call of the library leads to.

    python -m tests.helpers.memory_calls [NAME ...]

The calls are those of :mod:`tests.helpers.interrupted_calls` and some that probe more of a model.
Operations at one place, that the same two lines of the package led to, are looked at the first and
the last time, in the first call that comes there. What comes has to be right, after one warning,
or the error itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from inspect import currentframe
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.common import say, stamp, table, use_threads
from captum_lig import LayerFlowIG, SetToSetIG, inspect_model
from tests.helpers import models
from tests.helpers.interrupted_calls import CALLS as INTERRUPTED
from tests.helpers.interrupted_calls import OTHER, QUICK, TEXT, Call, number
from tests.helpers.interrupts import PACKAGE
from tests.helpers.state import snapshot

Place = tuple[tuple[str, int], ...]
"""The innermost lines of the package, by file and number."""

ERRORS: dict[str, Callable[[], Exception]] = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
}


def padded_before() -> Call:
    model = models.tiny_gpt2()
    ids = torch.tensor([[0, 0, 5, 9], [3, 8, 7, 4]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return Call(model, lambda: LayerFlowIG(model).attribute(inputs, **QUICK))


def batch_of_llama() -> Call:
    model = models.tiny_llama(layers=1)
    ids = torch.tensor([[5, 9, 7, 3], [4, 8, 3, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
    settings = {**QUICK, "boundaries": ("attention", "mlp", "feed_forward", "influence")}
    return Call(model, lambda: LayerFlowIG(model).attribute(inputs, **settings))


def rotary_from_the_target() -> Call:
    """As many targets as make it worth to probe what positions do to keys."""
    model = models.tiny_llama(layers=1)
    ids = torch.arange(5, 47).view(1, -1) % 40
    return Call(model, lambda: LayerFlowIG(model).attribute(ids, **QUICK))


def long_text() -> Call:
    """What is true of the code is found out on a few of its tokens."""
    model = models.tiny_llama(layers=1)
    ids = torch.arange(300).view(1, -1) % 40
    settings = {**QUICK, "n_steps": 1, "output_indices": [-1]}
    return Call(model, lambda: LayerFlowIG(model).attribute(ids, **settings))


def chosen_of_sets() -> Call:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(4, 4).double()
    model = nn.Sequential(layer, nn.Tanh())
    x = torch.linspace(-1, 2, 2 * 3 * 4).double().view(2, 3, 4)
    return Call(model, lambda: SetToSetIG(model).attribute(x, 0.1, target=1, **QUICK))


def inspecting_bert() -> Call:
    model = models.tiny_bert(layers=1)
    return Call(model, lambda: inspect_model(model, TEXT))


def by_captums_target() -> Call:
    model = models.tiny_gpt2()
    return Call(model, lambda: LayerFlowIG(model).attribute(TEXT, OTHER, number, **QUICK))


CALLS = INTERRUPTED | {
    make.__name__: make
    for make in (
        padded_before,
        batch_of_llama,
        rotary_from_the_target,
        long_text,
        chosen_of_sets,
        inspecting_bert,
        by_captums_target,
    )
}


class RunsOut(TorchFunctionMode):
    """Raises an error at one of the operations that the package leads to, and notes them all."""

    def __init__(self, moment: int | None = None, error: Exception | None = None) -> None:
        super().__init__()
        self.moment, self.error = moment, error
        self.places: list[Place] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Reading a shape takes no memory.
        if getattr(func, "__name__", "") not in ("__get__", "dim", "size", "__len__", "numel"):
            place = _place(currentframe())
            if place:
                self.places.append(place)
                if len(self.places) - 1 == self.moment and self.error is not None:
                    raise self.error
        return func(*args, **(kwargs or {}))


def _place(frame: FrameType | None) -> Place:
    found: list[tuple[str, int]] = []
    while frame is not None and len(found) < 2:
        own_mode = frame.f_code.co_name == "__torch_function__"  # it passes all operations on
        if frame.f_code.co_filename.startswith(PACKAGE) and not own_mode:
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def moments(run: Callable[[], Any]) -> dict[Place, list[int]]:
    """Operations of a call, counted from 0, by their places."""
    found: dict[Place, list[int]] = {}
    with RunsOut() as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    for moment, place in enumerate(mode.places):
        found.setdefault(place, []).append(moment)
    return found


def numbers(found: Any) -> Iterator[Tensor]:
    """Of whatever a call gives, in order, but for what it cost."""
    if isinstance(found, Tensor):
        yield found.detach()
    elif isinstance(found, (bool, int, float)):
        yield torch.tensor(float(found), dtype=torch.float64)
    elif isinstance(found, str):
        yield torch.tensor([float(ord(c)) for c in found], dtype=torch.float64)
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from numbers(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from numbers(value)
    elif dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            if field.name not in ("cost", "forward_error"):
                yield from numbers(getattr(found, field.name))


def same(found: Any, wanted: Any) -> bool:
    """Whether two results are the same to rounding."""
    pairs = list(zip(numbers(found), numbers(wanted), strict=True))
    return all(a.shape == b.shape and a.dtype == b.dtype and _close(a, b) for a, b in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    off = 1e-9 if a.dtype == torch.float64 else 1e-4
    return torch.allclose(a, b, rtol=off, atol=off / 10, equal_nan=True)


def runs_out(call: Call, moment: int, error: Exception, wanted: Any) -> tuple[str, str]:
    """What comes of a call in which memory runs out at a moment, and what is wrong with that."""
    before = snapshot(call.model)
    with RunsOut(moment, error) as mode, warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            found, came = call.run(), "an answer"
        except Exception as raised:
            if raised is not error:
                return "another error", f"{type(raised).__name__}: {str(raised)[:200]}"
            came = "the error"
    if changed := before.changes():
        return came, f"left changed: {', '.join(changed)}"
    if came == "the error" or len(mode.places) <= moment:
        return came, ""
    said = sum("memory ran out" in str(w.message) for w in given)
    if said != 1:
        return came, f"{said} warnings of it"
    return came, "" if same(found, wanted) else "another answer"


def where(place: Place) -> str:
    """A place as text."""
    return " from ".join(f"{Path(file).name}:{line}" for file, line in place)


def main() -> int:
    """Let memory run out at each place, the first time and the last time that it is reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(CALLS))
    given = parser.parse_args()
    use_threads(1)
    rows: list[list[str]] = []
    done: set[Place] = set()
    faults = 0
    for name in given.names or CALLS:
        start, call = time.process_time(), CALLS[name]()
        wanted, found = call.run(), moments(call.run)
        new = {place: all_of for place, all_of in found.items() if place not in done}
        done |= found.keys()
        came = dict.fromkeys(("an answer", "the error", "another error"), 0)
        wrong = 0
        for place, all_of in new.items():
            for moment, kind in zip(sorted({all_of[0], all_of[-1]}), ERRORS, strict=False):
                what, fault = runs_out(call, moment, ERRORS[kind](), wanted)
                came[what] += 1
                if fault:
                    wrong += 1
                    say(f"{name}: {where(place)}, {what}: {fault}")
        counts = len(new), sum(came.values()), came["an answer"], came["the error"], wrong
        rows.append([f"`{name}`", *(f"{n:,}" for n in counts)])
        say(f"{name}: {came}, {wrong} wrong, {time.process_time() - start:.0f} s")
        faults += wrong
    header = ["", "new places", "memory ran out", "right, with a warning", "the error", "wrong"]
    print(f"{stamp()}\n\n{table(header, rows)}")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
