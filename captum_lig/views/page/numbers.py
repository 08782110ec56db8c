"""The numbers that a page holds, and how they are packed.

Header, JSON::

    {
      "format": "captum_lig.page", "version": 3,
      "title": "...", "tokens": ["[CLS]", ...],     as a person reads them
      "scalarization": "l2", "baseline": "zero", "tolerance": 0.001,
      "target": null, "change": null,               of a graph with a target: its words, a number
      "rules": [{"name": "conserve", "edges": "attention", "absolute": false}, ...],
      "rule": "chain", "opening": "direct",         the boundary that the page opens with
  "hide_first_token": false,
      "layers": [{"index": 0, "name": "encoder.layer.0", "heads": 12,
                  "certified": ["attention", "mlp", "layer", "chain"]}, ...],
      "tensors": [{"layer": 0, "name": "attention", "type": "float32", "size": 1728,
                   "offset": 0}, ...]
    }

``layer`` of a tensor is a position in ``layers``, ``size`` counts numbers, ``offset`` bytes. The
tensors, row-major, with little-endian numbers, are

- those of :class:`captum_lig.graph.length_layer.LengthLayer` under their names: edges and direct
  maps as float32, bit for bit what a float32 attribution gave, sums as float64; or those of
  :class:`captum_lig.graph.target_layer.TargetLayer`, edges as float32, relevances as float64;
- ``one_source``, 1 for targets that have one possible source (:mod:`captum_lig.flow.findings`);
- ``error.<field>``, the completeness errors of each field that is checked, targets last;
- of each rule ``<rule>.heads``, ``<rule>.residual`` and ``<rule>.size``, float64: a share is an
  edge times the weight of its row, or the residual; a share times the size is the attribution.

A graph with a target has two rules: ``edges``, signed, whose shares are parts of the change, and
``sizes``, ``absolute``, whose shares are of the sizes of all edges into a node. In both,
``residual`` is all that goes past the heads, through the MLP or not. Its layers have ``via_heads``,
the part of the heads in the sizes.

Of each tensor all first bytes come first, then all second ones, and so on, which deflates better;
all of them together are one zlib stream in base64.
"""

from __future__ import annotations

import base64
import math
import statistics
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_lig.flow.composition import RULES, share_of
from captum_lig.flow.findings import FAR, one_source_rows
from captum_lig.flow.tokens import readable_text, readable_token
from captum_lig.graph import FlowGraph
from captum_lig.graph.layer import GraphLayer
from captum_lig.graph.length_layer import LengthLayer, Weights
from captum_lig.graph.target_layer import TargetLayer

__all__ = ["FORMAT", "VERSION", "pack"]

FORMAT = "captum_lig.page"
VERSION = 3

PARTS = ("attention", "chain", "mlp", "residual", "direct", "direct_total", "attention_sum",
         "mlp_sum", "known")  # fmt: skip
"""Tensors of a layer that the page needs as they are."""
TARGET_PARTS = ("attention", "attention_value", "entering", "leaving", "feed_forward_relevance",
                "known")  # fmt: skip
"""The same of a graph with a target."""
ROUNDING = 1e-5
LONGEST_TOKEN = 200
LONGEST_TITLE = 240


def pack(
    graph: FlowGraph, title: str, rule: str, hide_first_token: bool = False
) -> tuple[dict[str, Any], str]:
    """Pack a graph.

    Args:
        graph: the graph.
        title: plain text.
        rule: composition rule to open with.
        hide_first_token: open without lines from the first token.

    Returns:
        The header, in JSON's types, and the numbers in base64.

    Raises:
        LigError: for an unknown rule, or one that needs a boundary that is not there.
    """
    for layer in graph.layers:
        layer.shares(rule, False)
    rules = _rules(graph)
    unit = abs(graph.change or 0.0) or 1.0
    tensors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    offset = 0
    for position, layer in enumerate(graph.layers):
        for name, (kind, tensor) in _numbers(layer, rules, unit).items():
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
        "target": graph.target and readable_text(graph.target, LONGEST_TITLE),
        "change": graph.change,
        "rules": rules,
        "rule": rule if graph.target is None else "edges",
        "opening": _opening(graph, rule),
        "hide_first_token": hide_first_token,
        "layers": [
            {
                "index": layer.index,
                "name": layer.name,
                "heads": layer.heads,
                "certified": list(layer.errors),
                **({"via_heads": _finite(layer.head_shares().sum())} if graph.target else {}),
            }
            for layer in graph.layers
        ],
        "tensors": tensors,
    }
    return header, base64.b64encode(zlib.compress(b"".join(parts), 6)).decode("ascii")


def _rules(graph: FlowGraph) -> list[dict[str, Any]]:
    if graph.target is not None:
        both = (("edges", False), ("sizes", True))
        return [{"name": one, "edges": "attention", "absolute": sizes} for one, sizes in both]
    chain = all("chain" in layer.tensors() for layer in graph.layers)
    return [
        {"name": one.name, "edges": one.edges, "absolute": False}
        for one in RULES.values()
        if chain or one.edges != "chain"
    ]


def _numbers(
    layer: GraphLayer, rules: list[dict[str, Any]], unit: float
) -> dict[str, tuple[str, Tensor]]:
    """The tensors of a layer and how the page holds them, by name."""
    found = {}
    of_target = isinstance(layer, TargetLayer)
    for part, value in layer.parts():
        if part.name in (TARGET_PARTS if of_target else PARTS):
            kind = {None: "float32", torch.bool: "uint8"}.get(part.dtype, "float64")
            narrow = of_target and part.name in ("attention", "attention_value")
            found[part.name] = "float32" if narrow else kind, value
    if isinstance(layer, LengthLayer):
        found["one_source"] = "uint8", _one_source(layer)
    for name, errors in layer.errors.items():
        found[f"error.{name}"] = "float64", errors
    for rule in (one["name"] for one in rules):
        if isinstance(layer, TargetLayer):
            weights = _target_weights(layer, rule, unit)
        else:
            assert isinstance(layer, LengthLayer)
            weights = layer.weights(rule)
        for name in ("heads", "residual", "size"):
            found[f"{rule}.{name}"] = "float64", getattr(weights, name)
    return found


def _one_source(layer: LengthLayer) -> Tensor:
    """``(N,)`` targets that have one possible source; none if edges were taken away."""
    maps = [one for one in (layer.attention, layer.chain, layer.direct) if one is not None]
    return one_source_rows(maps) & (_whole(layer) if layer.direct is None else True)


def _whole(layer: LengthLayer) -> Tensor:
    """``(N,)`` targets of which all edges are in the graph, up to rounding."""
    kept = layer.attention.double().abs().sum(-1)
    return (kept >= (1 - ROUNDING) * layer.attention_size).all(0)


def _opening(graph: FlowGraph, rule: str) -> str:
    """The boundary to open with: direct, if composed maps are far from it, see ``FAR``.

    Less than all edges cannot add up to the direct map: a graph without some opens as it is.
    """
    means = []
    for layer in graph.layers:
        if not isinstance(layer, LengthLayer) or layer.direct is None:
            return "composed"
        if not bool(_whole(layer).all()):
            return "composed"
        size, direct = layer.weights(rule).size[:, None], layer.direct.double()
        off = direct - layer.shares(rule, False).matrix * size
        rows = torch.linalg.vector_norm(off, dim=-1) / torch.linalg.vector_norm(direct, dim=-1)
        means.append(rows[(direct != 0).any(-1)].mean().item())
    known = [mean for mean in means if not math.isnan(mean)]
    return "direct" if known and statistics.median(known) > FAR else "composed"


def _target_weights(layer: TargetLayer, rule: str, unit: float) -> Weights:
    """The rules of a page with a target; ``unit`` is the size of the change."""
    if rule == "edges":
        heads = torch.full_like(layer.heads_relevance, 1 / unit)
        size = torch.full_like(layer.leaving, unit)
        return Weights("attention", heads, layer.past_heads() / unit, size)
    out = layer.share("heads_past").T
    if layer.feed_forward is not None:
        out = out + layer.share("feed_forward_heads").T * layer.share("feed_forward")
    stays = layer.shares().stays
    return Weights("attention", share_of(out, layer.heads_size), stays, layer.leaving_size)


def _finite(value: Tensor) -> float:
    return float(value.nan_to_num(0.0))


def _shuffled(values: np.ndarray[Any, Any]) -> bytes:
    return values.reshape(-1).view(np.uint8).reshape(values.size, -1).T.tobytes()
