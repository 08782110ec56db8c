"""A call is refused in one short sentence; names of what is given for the tests' own names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from captum_lig import LigError

LONGEST_MESSAGE = 320


def named(x: Any) -> str:
    """What stands for a parameter in the name of its test."""
    if isinstance(x, nn.Module):
        return type(x).__name__
    if isinstance(x, tuple) and x and all(isinstance(part, str) for part in x):
        return "says"
    if isinstance(x, (list, tuple)):
        return f"[{','.join(map(named, x))}]"
    if isinstance(x, dict):
        return ",".join(f"{key}={named(value)}" for key, value in x.items())
    return f"tensor{tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)


def refused(call: Callable[[], object], *says: str) -> None:
    """The call raises exactly a LigError, whose short message says all of it."""
    with pytest.raises(LigError) as caught:
        call()
    assert type(caught.value) is LigError
    message = str(caught.value)
    assert len(message) <= LONGEST_MESSAGE, message
    assert "\n" not in message
    for part in says:
        assert part in message, f"{part!r} is not in: {message}"
