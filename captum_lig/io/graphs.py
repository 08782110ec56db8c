"""Graphs as files, ``"format": "captum_lig.graph"``; :mod:`captum_lig.io.codec` says how.

The head has ``scalarization``, ``baseline``, ``target`` and ``change`` (null for flows without a
target) and ``tokens``, and the tensor ``positions``, their positions in the text as the model got
it. A layer has ``name``, ``index`` and ``tolerance``; its tensors are those of
:class:`captum_lig.graph.length_layer.LengthLayer` under their names, or with a target of
:class:`captum_lig.graph.target_layer.TargetLayer`, with ``error.<field>`` for completeness errors.
The axes ``target`` and ``source`` run over ``tokens``.

An edge that is not 0 is an attribution. Without a target, shares of a token leaving are edges times
row weights, see :mod:`captum_lig.flow.composition`, with the sums ``attention_sum``, ``mlp_sum``
and ``chain_sum`` of all edges that the layer has at a node, those that are not in the graph
(pruned) included. With one, edges are in its units, and those into a node and out of it add up to
the node's relevance (``leaving``, ``heads_relevance``, ``feed_forward_relevance``, ``entering``).

**GraphML** is what :func:`captum_lig.io.networkx.to_networkx` makes, for other programs; it is not
read back.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS, check_shape, field_of
from captum_lig.graph.flow_graph import FlowGraph
from captum_lig.graph.joined import About
from captum_lig.graph.layer import GraphLayer
from captum_lig.graph.length_layer import LengthLayer
from captum_lig.graph.target_layer import TargetLayer
from captum_lig.io.codec import (
    MOST_BYTES,
    Axed,
    Document,
    Section,
    check_suffix,
    damaged,
    load_document,
    save_document,
    take,
)
from captum_lig.io.flows import FACTS
from captum_lig.io.networkx import write_graphml

__all__ = ["FORMAT", "load_graph", "save_graph"]

FORMAT = "captum_lig.graph"
_ERROR = "error."
_FACTS = ("name", "index", "tolerance")
_ABOUT: dict[str, tuple[type, ...]] = {
    "scalarization": (str,),
    "baseline": (str,),
    "target": (str, type(None)),
    "change": (float, type(None)),
}


def save_graph(graph: FlowGraph, path: str | Path) -> Path:
    """Write a graph to a ``.json``, ``.safetensors`` or ``.graphml`` file, and return its path.

    Args:
        graph: the graph.
        path: the suffix says which format. Missing folders are made; a file of more than 100 MB is
            warned of first.

    Raises:
        LigError: if the suffix is another one, or networkx is not installed (GraphML).
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if check_suffix(path, ".graphml") == ".graphml":
        write_graphml(graph, path, FORMAT)
        return path
    head = {**asdict(graph.about), "tokens": graph.tokens}
    layers = []
    for layer in graph.layers:
        tensors = {part.name: Axed(value, part.axes) for part, value in layer.parts()}
        for name, errors in layer.errors.items():
            tensors[_ERROR + name] = Axed(errors, _error_axes(name))
        layers.append(Section({name: getattr(layer, name) for name in _FACTS}, tensors))
    positions = {"positions": Axed(graph.positions, ("token",))}
    return save_document(Document(Section(head, positions), layers), path, FORMAT)


def load_graph(path: str | Path, *, most_bytes: int = MOST_BYTES) -> FlowGraph:
    """Read back what :func:`save_graph` wrote, on the CPU; every number has the same bits.

    Args:
        path: a ``.json`` or ``.safetensors`` file; it may be a stranger's.
        most_bytes: of memory that reading may take. A small file can stand for large tensors of
            zeros, and JSON takes up to 40 times its size.

    Raises:
        LigError: if the file's suffix, content or version is another, or it takes more memory.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() == ".graphml":
        raise LigError(
            f"{str(path)!r}: GraphML is written for other programs and not read back: save the "
            "graph as .json or .safetensors too, and load that."
        )
    document = load_document(path, FORMAT, "graph", most_bytes)
    for name in {name for layer in document.layers for name in layer.tensors}:
        if name.startswith(_ERROR):
            field_of(name.removeprefix(_ERROR))
    about = document.head.about
    with damaged(path):
        tokens = take(about, "tokens", list)
        if not tokens or not all(isinstance(token, str) for token in tokens):
            raise LigError("tokens are not a list of text")
        positions = document.head.tensors["positions"].tensor
        if (
            positions.dtype != torch.int64
            or positions.shape != (len(tokens),)
            or bool((positions < 0).any())
            or len(positions.unique()) != len(positions)
        ):
            raise LigError(f"positions {positions.tolist()} are not those of {len(tokens)} tokens")
        facts = {name: take(about, name, *types) for name, types in _ABOUT.items()}
        if (facts["target"] is None) != (facts["change"] is None):
            raise LigError(f"the target {facts['target']!r} has the change {facts['change']}")
        kind = LengthLayer if facts["target"] is None else TargetLayer
        layers = [_layer(kind, layer, len(tokens)) for layer in document.layers]
        indices = [layer.index for layer in layers]
        if not indices or indices != list(range(indices[0], indices[0] + len(indices))):
            raise LigError(f"layers {indices} do not follow each other")
        return FlowGraph.of_layers(layers, tokens, positions, About(**facts))


def _error_axes(name: str) -> tuple[str, ...]:
    """Axes of the completeness errors of a field: by head or not, targets last."""
    return tuple(axis for axis in ("head", "target") if axis in FIELDS[name].rows)


def _layer(kind: type[GraphLayer], section: Section, tokens: int) -> GraphLayer:
    declared = kind.declared()
    attention = section.tensors["attention"].tensor
    sizes = {"target": tokens, "source": tokens, "head": len(attention)}
    tensors: dict[str, Any] = {}
    errors: dict[str, Tensor] = {}
    for name, axed in section.tensors.items():
        if name.startswith(_ERROR):
            field, dtype = name.removeprefix(_ERROR), torch.float64
            axes, errors[field] = _error_axes(field), axed.tensor
            sized = {"target": tokens}  # another boundary may have other heads
        else:
            axes, dtype = declared[name].axes, declared[name].dtype or attention.dtype
            tensors[name], sized = axed.tensor, sizes
        if axed.axes != axes or axed.tensor.dtype != dtype:
            raise LigError(
                f"tensor {name!r} is of {axed.tensor.dtype} with the axes {axed.axes}, and {dtype} "
                f"with {axes} is due"
            )
        check_shape(name, axed.tensor.shape, axes, sized)
    if not attention.is_floating_point():
        raise LigError(f"edges are of {attention.dtype}")
    for name, part in declared.items():
        missing = [other for other in part.needs if other not in tensors]
        if name in tensors and missing:
            raise LigError(f"tensor {name!r} is there without {', '.join(missing)}")
    facts: dict[str, Any] = {name: take(section.about, name, *FACTS[name]) for name in _FACTS}
    return kind(**facts, **tensors, errors=errors)
