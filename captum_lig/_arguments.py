"""Checks of arguments that more than one class takes."""

from __future__ import annotations

import reprlib
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from captum_lig.errors import LigError, out_of_memory

__all__ = ["brief", "check_utf8", "fraction", "index_list", "users_line", "whole_number"]

_LONGEST = 80


def brief(value: Any) -> str:
    """The value as a message shows it: short, whatever it is."""
    if isinstance(value, Tensor) and value.numel() > 8:
        return f"tensor of shape {tuple(value.shape)}"
    text = " ".join(reprlib.repr(value).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def whole_number(name: str, value: Any, least: int) -> int:
    """``value`` if it is a whole number that is at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LigError(f"{name}={brief(value)}: give a whole number, at least {least}.")
    return value


def fraction(name: str, value: Any, ends: bool = False) -> float:
    """``value`` if it is a number between 0 and 1; ``ends``: or one of the two."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (ends and value in (0, 1))):
        words = "from 0 to 1" if ends else "between 0 and 1"
        raise LigError(f"{name}={brief(value)}: give a number {words}, or None.")
    return float(value)


def check_utf8(what: str, text: str) -> None:
    """Refuse a text with half of a character, as a command line makes them of other encodings."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LigError(
            f"{what} {brief(text)} is not UTF-8 (character {error.start + 1}): give it in that "
            "encoding."
        ) from error


def index_list(
    value: Any, count: int, device: torch.device, what: str, name: str = "output_indices"
) -> Tensor:
    """A list of indices as positions ``(T,)`` among ``count`` things.

    Args:
        value: one or more whole numbers, negative ones from the end.
        count: how many there are.
        device: where the result is wanted.
        what: what is counted, in the plural, for the message.
        name: what the caller knows the list as, for the message.
    """
    wrong = f"{name}={brief(value)}: give one or more whole numbers"
    try:
        chosen = torch.as_tensor(value, device=device).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise LigError(f"{wrong}.") from error
    if chosen.numel() == 0 or chosen.dtype in (torch.bool,) or chosen.is_floating_point():
        raise LigError(f"{wrong}.")
    outside = (chosen < -count) | (chosen >= count)
    if bool(outside.any()):
        raise LigError(
            f"{name}={brief(value)}: {int(chosen[outside][0])} is out of range, there are {count} "
            f"{what}, 0 to {count - 1}."
        )
    return chosen.long() % count


def users_line() -> int:
    """``stacklevel`` of a warning that is given where this is called: the line that the user wrote.

    The first that is neither ours, nor of Captum and torch, that wrap methods, nor of contexts.
    """
    frame, level = sys._getframe(1), 1
    between = ("captum_lig", "captum", "contextlib", "torch")
    while frame.f_back is not None and _package(frame) in between:
        frame, level = frame.f_back, level + 1
    return level


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
