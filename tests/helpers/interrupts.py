"""An exception at any line: more than Ctrl-C can do, which Python looks for at fewer places."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import captum_lig
from captum_lig import LigError

PACKAGE = str(Path(captum_lig.__file__).parent)
TORCH = Path(torch.__file__).parent
AROUND = {
    contextlib.__file__,
    *(
        str(TORCH / name)
        for name in (
            "overrides.py",
            "amp/autocast_mode.py",
            "utils/checkpoint.py",
            "utils/hooks.py",
            "utils/_contextlib.py",
            "autograd/forward_ad.py",
            "autograd/grad_mode.py",
            "autograd/graph.py",
            "_functorch/apis.py",
            "_functorch/eager_transforms.py",
            "_functorch/predispatch.py",  # of torch 2.8 and later
            "_functorch/vmap.py",
            "_vmap_internals.py",
            "nn/attention/__init__.py",
        )
    ),
}
"""Files of Python and torch that enter and leave contexts, count what they are inside of, put hooks
on and take them off."""

Spot = tuple[str, int, str, int]
"""A line that is about to run, by file and number, and the line that called its function."""


class _Seen(Exception):
    pass


def _watched(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(PACKAGE) or file in AROUND


def inside(frame: FrameType) -> bool:
    """Whether the package is what runs: torch enters and leaves contexts for others, too."""
    at: FrameType | None = frame
    while at is not None:
        if at.f_code.co_filename.startswith(PACKAGE):
            return True
        at = at.f_back
    return False


def _spot(frame: FrameType) -> Spot:
    back = frame.f_back
    caller = ("", 0) if back is None else (back.f_code.co_filename, back.f_lineno)
    return frame.f_code.co_filename, frame.f_lineno, *caller


def traced(do: Callable[[], Any], at_line: Callable[[FrameType], None]) -> None:
    """Do something, and call ``at_line`` before each line of the package and of contexts."""

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            at_line(frame)
        return local

    def each(frame: FrameType, event: str, _: Any) -> Any:
        return local if event == "call" and _watched(frame) and inside(frame) else None

    before = sys.gettrace()
    sys.settrace(each)
    try:
        do()
    finally:
        sys.settrace(before)


def spots(do: Callable[[], Any]) -> dict[Spot, list[int]]:
    """The lines that run, and the moments at which they do, counted from 0."""
    found: dict[Spot, list[int]] = {}
    moment = 0

    def note(frame: FrameType) -> None:
        nonlocal moment
        found.setdefault(_spot(frame), []).append(moment)
        moment += 1

    traced(do, note)
    return found


def interrupted(do: Callable[[], Any], moment: int, error: type[BaseException]) -> str | None:
    """Do something and raise ``error`` at a moment; returns the line where it was raised, or None
    if the end came before, or says so if it was swallowed."""
    count, where = 0, None

    def raise_in_time(frame: FrameType) -> None:
        nonlocal count, where
        if count == moment:
            file, line, *_ = _spot(frame)
            where = f"{Path(file).name}:{line}"
            count += 1
            raise error("on purpose")
        count += 1

    try:
        traced(do, raise_in_time)
    except (error, LigError):  # the latter where an error of torch is put in other words
        return where
    return None if where is None else f"{where} (swallowed)"
