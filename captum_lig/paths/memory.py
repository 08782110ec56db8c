"""When memory runs out: the work goes on in halves, and one warning says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from torch import Tensor

from captum_lig._arguments import users_line
from captum_lig._restore import variable
from captum_lig.errors import out_of_memory

__all__ = ["in_halves", "shares"]

R = TypeVar("R")

_shares: ContextVar[int | None] = variable("shares", None)


def shares() -> int:
    """Into how many what is worked on at once is divided, for the rest of the user's call."""
    return _shares.get() or 1


def in_halves(work: Callable[[Tensor], R], items: Tensor) -> list[R]:
    """What ``work`` gives of items, along the first axis: in one, or of parts in their order.

    Where memory runs out the items are halved, down to a single one, whose error is raised.
    """
    try:
        return [work(items)]
    except (RuntimeError, MemoryError) as error:
        if len(items) < 2 or not out_of_memory(error):
            raise
    # Here the error is gone, and with it what its frames held.
    if _shares.get() is None:
        warnings.warn(
            "memory ran out: what is worked on at once is halved, and the work goes on. The result "
            "is the same to rounding; a smaller internal_batch_size spares the tries that fail.",
            stacklevel=users_line(),
        )
    _shares.set(2 * shares())
    halves = items.split((len(items) + 1) // 2)
    return [found for half in halves for found in in_halves(work, half)]
