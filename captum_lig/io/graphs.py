"""Graphs as files, ``"format": "captum_lig.graph"``; :mod:`captum_lig.io.codec` says how.

The head has ``scalarization``, ``baseline`` and ``tokens``, and the tensor ``positions``, their
positions in the text as the model got it. A layer has ``name``, ``index`` and ``tolerance``; its
tensors are those of :class:`captum_lig.graph.layer.GraphLayer` under their names, with
``error.<field>`` for completeness errors. ``target`` and ``source`` run over ``tokens``.

An edge that is not 0 is an attribution; shares of a target are edges times row weights, see
:mod:`captum_lig.flow.composition`, with the sums ``attention_sum``, ``mlp_sum`` and ``chain_sum``
of all edges that the layer has at a node, those that are not in the graph (pruned) included.

**GraphML** is what :func:`captum_lig.io.networkx.to_networkx` makes, for other programs; it is not
read back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS, check_shape, field_of
from captum_lig.graph.flow_graph import FlowGraph
from captum_lig.graph.layer import PARTS, GraphLayer
from captum_lig.io.codec import (
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
    head = {name: getattr(graph, name) for name in ("scalarization", "baseline", "tokens")}
    layers = []
    for layer in graph.layers:
        tensors = {part.name: Axed(value, part.axes) for part, value in layer.parts()}
        for name, errors in layer.errors.items():
            tensors[_ERROR + name] = Axed(errors, _error_axes(name))
        layers.append(Section({name: getattr(layer, name) for name in _FACTS}, tensors))
    positions = {"positions": Axed(graph.positions, ("token",))}
    return save_document(Document(Section(head, positions), layers), path, FORMAT)


def load_graph(path: str | Path) -> FlowGraph:
    """Read back what :func:`save_graph` wrote, on the CPU; every number has the same bits.

    Raises:
        LigError: if the file's suffix, content or version is another.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() == ".graphml":
        raise LigError(
            f"{str(path)!r}: GraphML is written for other programs and not read back: save the "
            "graph as .json or .safetensors too, and load that."
        )
    document = load_document(path, FORMAT, "graph")
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
        layers = [_layer(layer, len(tokens)) for layer in document.layers]
        indices = [layer.index for layer in layers]
        if not indices or indices != list(range(indices[0], indices[0] + len(indices))):
            raise LigError(f"layers {indices} do not follow each other")
        facts = (take(about, name, str) for name in ("scalarization", "baseline"))
        return FlowGraph.of_layers(layers, tokens, positions, *facts)


def _error_axes(name: str) -> tuple[str, ...]:
    """Axes of the completeness errors of a field: by head or not, targets last."""
    return tuple(axis for axis in ("head", "target") if axis in FIELDS[name].rows)


def _layer(section: Section, tokens: int) -> GraphLayer:
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
            axes, dtype = PARTS[name].axes, PARTS[name].dtype or attention.dtype
            tensors[name], sized = axed.tensor, sizes
        if axed.axes != axes or axed.tensor.dtype != dtype:
            raise LigError(
                f"tensor {name!r} is of {axed.tensor.dtype} with the axes {axed.axes}, and {dtype} "
                f"with {axes} is due"
            )
        check_shape(name, axed.tensor.shape, axes, sized)
    if not attention.is_floating_point():
        raise LigError(f"edges are of {attention.dtype}")
    if len({name in tensors for name in ("chain", "chain_sum", "chain_size")}) > 1:
        raise LigError("the chain is not there with its sums")
    if len({name in tensors for name in ("direct", "direct_total")}) > 1:
        raise LigError("the direct map is not there with its totals")
    facts: dict[str, Any] = {name: take(section.about, name, *FACTS[name]) for name in _FACTS}
    return GraphLayer(**facts, **tensors, errors=errors)
