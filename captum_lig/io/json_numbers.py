"""Numbers of tensors in JSON: the same bits come back, of what is not finite too.

Reading raises a LigError for numbers that are nested in another way or are not of their dtype.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError

__all__ = ["DTYPES", "NAMES", "indices_from_json", "numbers_from_json", "numbers_to_json"]

DTYPES = {
    "float64": (torch.float64, torch.int64),
    "float32": (torch.float32, torch.int32),
    "float16": (torch.float16, torch.int16),
    "bfloat16": (torch.bfloat16, torch.int16),
    "int64": (torch.int64, torch.int64),
    "int32": (torch.int32, torch.int32),
    "bool": (torch.bool, torch.uint8),
}
"""What dtypes are called, and the integers that hold their bits."""
NAMES = {dtype: name for name, (dtype, _) in DTYPES.items()}


def numbers_to_json(values: Tensor) -> Any:
    """Numbers in lists, nested as the tensor's shape."""
    flat = numpy.array(_numbers(values.flatten()), dtype=object)
    return flat.reshape(tuple(values.shape)).tolist()


def _numbers(values: Tensor) -> list[Any]:
    """Flat numbers for JSON, which has none that are not finite."""
    found: list[Any] = values.tolist()
    if values.is_floating_point():
        bits = values.view(DTYPES[NAMES[values.dtype]][1])
        plain = torch.tensor(math.nan, dtype=values.dtype).view(bits.dtype)
        for position in (~torch.isfinite(values)).nonzero().flatten().tolist():
            number = found[position]
            if not math.isnan(number):
                found[position] = "Infinity" if number > 0 else "-Infinity"
            elif bits[position] == plain:
                found[position] = "NaN"
            else:
                found[position] = f"NaN:{int(bits[position]):x}"
    return found


def numbers_from_json(key: str, values: Any, shape: tuple[int, ...] | None, name: str) -> Tensor:
    """Numbers of JSON: nested as ``shape`` says, or None: flat."""
    dtype, bits = DTYPES[name]
    flat = values if shape is None else _flat(key, values, shape)
    if not isinstance(flat, list):
        raise LigError(f"tensor {key!r} has no list of values")
    if not dtype.is_floating_point:
        wanted = bool if dtype == torch.bool else int
        if any(type(value) is not wanted for value in flat):
            raise LigError(f"tensor {key!r} has values that are no {name}")
        return torch.tensor(flat, dtype=dtype).reshape(shape or (-1,))
    odd = {n: value for n, value in enumerate(flat) if isinstance(value, str)}
    if odd:
        flat = [0.0 if isinstance(value, str) else value for value in flat]
    if any(type(value) not in (float, int) for value in flat):
        raise LigError(f"tensor {key!r} has values that are no numbers")
    wide = torch.from_numpy(numpy.array(flat, dtype=numpy.float64))
    found = wide.to(dtype)
    if not torch.equal(found.double(), wide):
        raise LigError(f"tensor {key!r} has numbers that are no {name}")
    for position, value in odd.items():
        if value.startswith("NaN:"):
            found.view(bits)[position] = int(value[4:], 16)
            right = bool(found[position].isnan())
        else:
            right = value in ("NaN", "Infinity", "-Infinity")
            found[position] = float(value) if right else 0.0
        if not right:
            raise LigError(f"tensor {key!r} has the value {brief(value)}")
    return found.reshape(shape or (-1,))


def _flat(key: str, values: Any, shape: tuple[int, ...]) -> list[Any]:
    flat = [values]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in flat):
            raise LigError(f"tensor {key!r} is not nested as its shape {list(shape)}")
        flat = [value for row in flat for value in row]
    return flat


def indices_from_json(key: str, values: Any) -> Tensor:
    """Whole numbers, flat."""
    found = numpy.array(values)
    if not isinstance(values, list) or (found.size and found.dtype != numpy.int64):
        raise LigError(f"tensor {key!r} has positions that are no whole numbers")
    return torch.from_numpy(found.astype(numpy.int64))
