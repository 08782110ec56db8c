"""The numbers that a page holds, and how they are packed.

Header, JSON::

    {
      "format": "captum_lig.page", "version": 2,
      "title": "...", "tokens": ["[CLS]", ...],     as a person reads them
      "scalarization": "l2", "baseline": "zero", "tolerance": 0.001,
      "rules": [{"name": "conserve", "edges": "attention"}, ...], "rule": "conserve",
      "layers": [{"index": 0, "name": "encoder.layer.0", "heads": 12,
                  "certified": ["attention", "mlp", "layer", "chain"]}, ...],
      "tensors": [{"layer": 0, "name": "attention", "type": "float32", "size": 1728,
                   "offset": 0}, ...]
    }

``layer`` of a tensor is a position in ``layers``, ``size`` counts numbers, ``offset`` bytes. The
tensors, row-major, with little-endian numbers, are

- those of :class:`captum_lig.graph.layer.GraphLayer` under their names: edges and direct maps as
  float32, bit for bit what a float32 attribution gave, sums as float64;
- ``error.<field>``, the completeness errors of each field that is certified, targets last;
- of each rule ``<rule>.heads``, ``<rule>.residual`` and ``<rule>.size``, float64: a share is an
  edge times the weight of its row, or the residual; a share times the size is the attribution.

Of each tensor all first bytes come first, then all second ones, and so on, which deflates better;
all of them together are one zlib stream in base64.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_lig.flow.composition import RULES
from captum_lig.flow.tokens import readable_text, readable_token
from captum_lig.graph import FlowGraph
from captum_lig.graph.layer import GraphLayer

__all__ = ["FORMAT", "VERSION", "pack"]

FORMAT = "captum_lig.page"
VERSION = 2

PARTS = ("attention", "chain", "mlp", "residual", "direct", "direct_total", "attention_sum",
         "mlp_sum", "known")  # fmt: skip
"""Tensors of a layer that the page needs as they are."""
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
        layer.weights(rule)
    chain = all(layer.chain is not None for layer in graph.layers)
    rules = [one for one in RULES.values() if chain or one.edges != "chain"]
    tensors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    offset = 0
    for position, layer in enumerate(graph.layers):
        for name, (kind, tensor) in _numbers(layer, [one.name for one in rules]).items():
            values = tensor.detach().cpu().double().numpy().astype(np.dtype(kind).newbyteorder("<"))
            parts.append(_shuffled(values))
            about = {"layer": position, "name": name, "type": kind}
            tensors.append({**about, "size": values.size, "offset": offset})
            offset += values.nbytes
    header = {
        "format": FORMAT,
        "version": VERSION,
        "title": readable_text(title, LONGEST_TITLE),
        "tokens": [readable_token(token, LONGEST_TOKEN) for token in graph.tokens],
        "scalarization": graph.scalarization,
        "baseline": graph.baseline,
        "tolerance": graph.layers[0].tolerance,
        "rules": [{"name": one.name, "edges": one.edges} for one in rules],
        "rule": rule,
        "layers": [
            {
                "index": layer.index,
                "name": layer.name,
                "heads": layer.heads,
                "certified": list(layer.errors),
            }
            for layer in graph.layers
        ],
        "tensors": tensors,
    }
    return header, base64.b64encode(zlib.compress(b"".join(parts), 6)).decode("ascii")


def _numbers(layer: GraphLayer, rules: list[str]) -> dict[str, tuple[str, Tensor]]:
    """The tensors of a layer and how the page holds them, by name."""
    found = {}
    for part, value in layer.parts():
        if part.name in PARTS:
            kind = {None: "float32", torch.bool: "uint8"}.get(part.dtype, "float64")
            found[part.name] = kind, value
    for name, errors in layer.errors.items():
        found[f"error.{name}"] = "float64", errors
    for rule in rules:
        weights = layer.weights(rule)
        for name in ("heads", "residual", "size"):
            found[f"{rule}.{name}"] = "float64", getattr(weights, name)
    return found


def _shuffled(values: np.ndarray[Any, Any]) -> bytes:
    return values.reshape(-1).view(np.uint8).reshape(values.size, -1).T.tobytes()
