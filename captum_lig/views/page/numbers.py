"""The numbers that a page holds, and how they are packed.

Header, JSON::

    {
      "format": "captum_lig.views.page", "version": 1,
      "title": "...", "tokens": ["[CLS]", ...],     as a person reads them
      "scalarization": "l2", "baseline": "zero", "tolerance": 0.001,
      "rules": ["conserve", "chain", "product"], "rule": "conserve",
      "layers": [{"index": 0, "name": "encoder.layer.0", "heads": 12}, ...],
      "tensors": [{"layer": 0, "name": "attention", "type": "float32", "size": 1728,
                   "offset": 0}, ...]
    }

``layer`` of a tensor is a place in ``layers``, ``size`` counts numbers, ``offset`` bytes. The
tensors are those of :class:`captum_lig.graph.layer.GraphLayer` under their names, row-major, with
little-endian numbers: edges and direct maps as float32, bit for bit what a float32 attribution
gave, sums and errors as float64. Of each tensor all first bytes come first, then all second ones,
and so on, which deflates better; all of them together are one zlib stream in base64.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from torch import Tensor

from captum_lig.flow.tokens import readable_text, readable_token
from captum_lig.graph import FlowGraph

__all__ = ["FORMAT", "VERSION", "pack"]

FORMAT = "captum_lig.views.page"
VERSION = 1

TYPES = {
    "attention": "float32",
    "chain": "float32",
    "mlp": "float32",
    "residual": "float32",
    "direct": "float32",
    "direct_total": "float64",
    "attention_sum": "float64",
    "attention_size": "float64",
    "mlp_sum": "float64",
    "chain_sum": "float64",
    "known": "uint8",
    "stays": "uint8",
    "attention_error": "float64",
    "mlp_error": "float64",
    "chain_error": "float64",
    "direct_error": "float64",
}
"""Tensors of a layer that the page needs, and how it holds them."""
LONGEST_TOKEN = 200
LONGEST_TITLE = 240


def pack(graph: FlowGraph, title: str, rule: str) -> tuple[dict[str, Any], str]:
    """Pack a graph.

    Args:
        graph: the graph.
        title: plain text.
        rule: composition rule to open with.

    Returns:
        The header, in JSON's types, and the numbers in base64.

    Raises:
        LigError: for an unknown rule, or one that needs a boundary that is not there.
    """
    for layer in graph.layers:
        layer.shares(rule, absolute=False)
    tensors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    offset = 0
    for place, layer in enumerate(graph.layers):
        for name, kind in TYPES.items():
            tensor: Tensor | None = getattr(layer, name)
            if tensor is None:
                continue
            values = tensor.detach().cpu().double().numpy().astype(np.dtype(kind).newbyteorder("<"))
            parts.append(_shuffled(values))
            tensors.append(
                {"layer": place, "name": name, "type": kind, "size": values.size, "offset": offset}
            )
            offset += values.nbytes
    chain = all(layer.chain is not None for layer in graph.layers)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "title": readable_text(title, LONGEST_TITLE),
        "tokens": [readable_token(token, LONGEST_TOKEN) for token in graph.tokens],
        "scalarization": graph.scalarization,
        "baseline": graph.baseline,
        "tolerance": graph.layers[0].tolerance,
        "rules": ["conserve", *(["chain"] if chain else []), "product"],
        "rule": rule,
        "layers": [
            {"index": layer.index, "name": layer.name, "heads": layer.heads}
            for layer in graph.layers
        ],
        "tensors": tensors,
    }
    return header, base64.b64encode(zlib.compress(b"".join(parts), 6)).decode("ascii")


def _shuffled(values: np.ndarray[Any, Any]) -> bytes:
    return values.reshape(-1).view(np.uint8).reshape(values.size, -1).T.tobytes()
