"""The numbers that a page holds, and how they are packed.

Header, JSON::

    {
      "format": "captum_lig.page", "version": 4,
      "title": "...", "tokens": ["[CLS]", ...],     as a person reads them
      "scalarization": "l2", "baseline": "zero", "tolerance": 0.001,
      "rules": [{"name": "conserve", "edges": "attention"}, ...],
      "rule": "chain", "opening": "direct",         composed, direct or influence
      "hide_first_token": false,
      "layers": [{"index": 0, "name": "encoder.layer.0", "heads": 12,
                  "certified": ["attention", "mlp", "layer", "chain"]}, ...],
      "tensors": [{"layer": 0, "name": "attention", "type": "float32", "size": 1728,
                   "offset": 0}, ...]
    }

``layer`` of a tensor is a position in ``layers``, ``size`` counts numbers, ``offset`` bytes. The
tensors, row-major, with little-endian numbers, are

- those of :class:`captum_lig.graph.length_layer.LengthLayer` under their names: edges, direct
  maps and influence as float32, bit for bit what a float32 attribution gave, sums as float64;
- ``one_source``, 1 for targets that have one possible source (:mod:`captum_lig.flow.findings`);
- ``error.<field>``, the completeness errors of each field that is checked, targets last;
- of each rule ``<rule>.heads``, ``<rule>.residual`` and ``<rule>.size``, float64: a share is an
  edge times the weight of its row, or the residual; a share times the size is the attribution.

They are packed as :mod:`captum_lig.views.page.packing` says.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.composition import RULES
from captum_lig.flow.findings import FAR, check_kind, one_source_rows
from captum_lig.flow.tokens import readable_text, readable_token
from captum_lig.graph import FlowGraph
from captum_lig.graph.length_layer import LengthLayer
from captum_lig.views.page.packing import packed

__all__ = ["FORMAT", "PARTS", "VERSION", "pack", "packed_size"]

FORMAT = "captum_lig.page"
VERSION = 4

PARTS = ("attention", "chain", "mlp", "residual", "direct", "direct_total", "influence",
         "influence_sum", "attention_sum", "mlp_sum", "known")  # fmt: skip
"""Tensors of a layer that the page needs as they are."""
ROUNDING = 1e-5
LONGEST_TOKEN = 200
LONGEST_TITLE = 240


def pack(
    graph: FlowGraph,
    title: str,
    rule: str,
    hide_first_token: bool = False,
    kind: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Pack a graph.

    Args:
        graph: the graph.
        title: plain text.
        rule: composition rule to open with.
        hide_first_token: open without lines from the first token.
        kind: the map to open with, of :data:`captum_lig.flow.findings.KINDS`; None chooses.

    Returns:
        The header, in JSON's types, and the numbers in base64.

    Raises:
        LigError: for an unknown rule or kind, or one that needs a boundary that is not there.
    """
    check_kind(kind)
    for layer in graph.layers:
        layer.shares(rule, False)
    rules = _rules(graph)
    tensors, numbers = packed(
        (position, name, kind, tensor)
        for position, layer in enumerate(_lengths(graph))
        for name, (kind, tensor) in _numbers(layer, rules).items()
    )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "title": readable_text(title, LONGEST_TITLE),
        "tokens": [readable_token(token, LONGEST_TOKEN) for token in graph.tokens],
        "scalarization": graph.scalarization,
        "baseline": graph.baseline,
        "tolerance": graph.layers[0].tolerance,
        "rules": rules,
        "rule": rule,
        "opening": _opening(graph, rule, kind),
        "hide_first_token": hide_first_token,
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
    return header, numbers


def packed_size(graph: FlowGraph) -> float:
    """About how many bytes the page of a graph of lengths takes, before it is made."""
    size = 0
    for layer in _lengths(graph):
        for name, part in layer.tensors().items():
            if name in PARTS:
                size += int(part.count_nonzero()) * min(part.element_size(), 4)
        # Errors, and the weights of each rule, have no axis of sources.
        rows = sum(errors.numel() for errors in layer.errors.values())
        size += 8 * (rows + len(RULES) * (layer.heads + 2) * len(layer.known))
    # Zeros deflate to nearly nothing, other numbers to nine tenths; then base64.
    return 1.2 * size


def _lengths(graph: FlowGraph) -> list[LengthLayer]:
    return [layer for layer in graph.layers if isinstance(layer, LengthLayer)]


def _rules(graph: FlowGraph) -> list[dict[str, Any]]:
    chain = all("chain" in layer.tensors() for layer in graph.layers)
    return [
        {"name": one.name, "edges": one.edges}
        for one in RULES.values()
        if chain or one.edges != "chain"
    ]


def _numbers(layer: LengthLayer, rules: list[dict[str, Any]]) -> dict[str, tuple[str, Tensor]]:
    """The tensors of a layer and how the page holds them, by name."""
    found = {}
    for part, value in layer.parts():
        if part.name in PARTS:
            kind = {None: "float32", torch.bool: "uint8"}.get(part.dtype, "float64")
            found[part.name] = kind, value
    found["one_source"] = "uint8", _one_source(layer)
    for name, errors in layer.errors.items():
        found[f"error.{name}"] = "float64", errors
    for rule in (one["name"] for one in rules):
        weights = layer.weights(rule)
        for name in ("heads", "residual", "size"):
            found[f"{rule}.{name}"] = "float64", getattr(weights, name)
    return found


def _one_source(layer: LengthLayer) -> Tensor:
    """``(N,)`` targets that have one possible source; none if edges were taken away."""
    held = (layer.attention, layer.chain, layer.direct, layer.influence)
    maps = [one for one in held if one is not None]
    return one_source_rows(maps) & (_whole(layer) if layer.direct is None else True)


def _whole(layer: LengthLayer) -> Tensor:
    """``(N,)`` targets of which all edges are in the graph, up to rounding."""
    kept = layer.attention.double().abs().sum(-1)
    return (kept >= (1 - ROUNDING) * layer.attention_size).all(0)


def _opening(graph: FlowGraph, rule: str, kind: str | None) -> str:
    """The boundary to open with, as :func:`captum_lig.flow.findings.choose_view` chooses it.

    Less than all edges cannot add up to the direct map: a graph without some opens as it is.
    """
    layers = _lengths(graph)
    if kind is not None:
        for layer in layers:
            if kind != "composed" and getattr(layer, kind) is None:
                boundary = "layer" if kind == "direct" else kind
                raise LigError(
                    f"kind={kind!r}: layer {layer.index} of the graph does not hold it. Name "
                    f"{boundary!r} in boundaries=(...); a graph of words has no influence."
                )
        return kind
    whole = all(bool(_whole(layer).all()) for layer in layers)
    if whole and all(layer.influence is not None for layer in layers):
        return "influence"
    means = []
    for layer in layers:
        if layer.direct is None or not whole:
            return "composed"
        size, direct = layer.weights(rule).size[:, None], layer.direct.double()
        off = direct - layer.shares(rule, False).matrix * size
        rows = torch.linalg.vector_norm(off, dim=-1) / torch.linalg.vector_norm(direct, dim=-1)
        means.append(rows[(direct != 0).any(-1)].mean().item())
    known = [mean for mean in means if not math.isnan(mean)]
    return "direct" if known and statistics.median(known) > FAR else "composed"
