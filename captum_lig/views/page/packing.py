"""Tensors as text that a page can hold.

Of each tensor all first bytes come first, then all second ones, and so on, which deflates better;
all of them together are one zlib stream in base64. Numbers are little-endian.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["packed"]


def packed(tensors: Iterable[tuple[int, str, str, Tensor]]) -> tuple[list[dict[str, Any]], str]:
    """Pack tensors.

    Args:
        tensors: position of the layer, name, type of the numbers in the page, and the tensor.

    Returns:
        What a page's header says of each, in JSON's types, and the numbers in base64.
    """
    about: list[dict[str, Any]] = []
    offset = 0
    deflate = zlib.compressobj(6)
    parts: list[bytes] = []
    for layer, name, kind, tensor in tensors:
        held = tensor.detach().cpu()
        held = held.float() if held.dtype == torch.bfloat16 else held  # numpy has none
        values = held.numpy().astype(np.dtype(kind).newbyteorder("<"))
        parts.append(deflate.compress(_shuffled(values)))
        size = {"size": values.size, "offset": offset}
        about.append({"layer": layer, "name": name, "type": kind, **size})
        offset += values.nbytes
    parts.append(deflate.flush())
    return about, base64.b64encode(b"".join(parts)).decode("ascii")


def _shuffled(values: np.ndarray[Any, Any]) -> bytes:
    single = values.reshape(-1).view(np.uint8)
    return single.reshape(values.size, values.itemsize).T.tobytes()
