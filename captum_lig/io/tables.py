"""The nodes and edges of a graph as columns, the way other programs want them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from captum_lig.graph.layer import GraphLayer, share_of

if TYPE_CHECKING:
    from captum_lig.graph.flow_graph import FlowGraph

__all__ = [
    "U_COLUMNS",
    "Z_COLUMNS",
    "EdgeTable",
    "direct_columns",
    "edge_tables",
    "node_columns",
    "stored",
    "u_starts",
]


class EdgeTable(NamedTuple):
    """Edges of one kind in one layer, ``(E,)`` each."""

    kind: str
    source: Tensor
    """Rows of the nodes: of ``z``, and of ``u`` for mlp edges."""
    target: Tensor
    """Rows of the nodes: of ``z``, and of ``u`` for attention edges."""
    value: Tensor
    share: Tensor
    """Signed share of the target that the edge carries (``conserve``)."""
    chain: Tensor | None

    def columns(self) -> dict[str, list[Any]]:
        """The tensors that are there, as lists, by name."""
        tensors = self._asdict()
        del tensors["kind"]
        return {name: t.tolist() for name, t in tensors.items() if t is not None}


Z_COLUMNS = {
    "sum": "mlp_sum",
    "size": "mlp_size",
    "chain_sum": "chain_sum",
    "chain_size": "chain_size",
    "known": "known",
    "stays": "stays",
    "direct_total": "direct_total",
    "mlp_error": "mlp_error",
    "direct_error": "direct_error",
}
U_COLUMNS = {
    "sum": "attention_sum",
    "size": "attention_size",
    "attention_error": "attention_error",
    "chain_error": "chain_error",
}
"""Columns of the node tables, and what they are called in :class:`GraphLayer`."""


def node_columns(graph: FlowGraph) -> dict[str, dict[str, list[Any]]]:
    """Columns of the node tables ``z`` and ``u``; what a layer does not have is None.

    Row ``l N + i`` of ``z`` is token ``i`` entering the ``l``-th layer of the graph, or leaving the
    last one. Row ``u_starts(graph)[l] + h N + j`` of ``u`` is head ``h`` at token ``j``.
    """
    layers, tokens = graph.layers, range(len(graph.tokens))
    levels = [*graph.indices, graph.indices[-1] + 1]
    unknown = [None] * len(tokens)
    z = {
        "layer": [level for level in levels for _ in tokens],
        "token": [token for _ in levels for token in tokens],
        **{name: unknown + _column(layers, field) for name, field in Z_COLUMNS.items()},
    }
    u = {
        "layer": [layer.index for layer in layers for _ in range(layer.heads) for _ in tokens],
        "head": [head for layer in layers for head in range(layer.heads) for _ in tokens],
        "token": [token for layer in layers for _ in range(layer.heads) for token in tokens],
        **{name: _column(layers, field) for name, field in U_COLUMNS.items()},
    }
    return {"z": z, "u": u}


def _column(layers: list[GraphLayer], field: str) -> list[Any]:
    column: list[Any] = []
    for layer in layers:
        values = getattr(layer, field)
        if values is None:
            rows = layer.attention_sum if field in U_COLUMNS.values() else layer.mlp_sum
            column += [None] * rows.numel()
        else:
            column += values.flatten().tolist()
    return column


def u_starts(graph: FlowGraph) -> list[int]:
    """Row of each layer's first node among those of ``u``, and how many there are in the end."""
    starts = [0]
    for layer in graph.layers:
        starts.append(starts[-1] + layer.attention_sum.numel())
    return starts


def edge_tables(graph: FlowGraph) -> Iterator[EdgeTable]:
    """The edges, by layer and kind; those that carry nothing are left out."""
    for number, (layer, first_u) in enumerate(zip(graph.layers, u_starts(graph), strict=False)):
        yield from _of_layer(layer, first_u, number * len(graph.tokens))


def _of_layer(layer: GraphLayer, first_u: int, first_z: int) -> Iterator[EdgeTable]:
    count = len(layer.residual)
    leaving = first_z + count
    mask = stored(layer.attention)
    if layer.chain is not None:
        mask = mask | stored(layer.chain)
    head, target, source = mask.nonzero(as_tuple=True)
    yield EdgeTable(
        "attention",
        source=first_z + source,
        target=first_u + head * count + target,
        value=layer.attention[mask],
        share=share_of(layer.attention[mask].double(), layer.attention_sum[head, target]),
        chain=None if layer.chain is None else layer.chain[mask],
    )
    mask = stored(layer.mlp)
    target, head = mask.nonzero(as_tuple=True)
    yield EdgeTable(
        "mlp",
        source=first_u + head * count + target,
        target=leaving + target,
        value=layer.mlp[mask],
        share=share_of(layer.mlp[mask].double(), layer.mlp_sum[target]),
        chain=None,
    )
    mask = stored(layer.residual) | layer.stays
    (token,) = mask.nonzero(as_tuple=True)
    share = share_of(layer.residual[mask].double(), layer.mlp_sum[mask])
    yield EdgeTable(
        "residual",
        source=first_z + token,
        target=leaving + token,
        value=layer.residual[mask],
        share=share + layer.stays[mask].double(),
        chain=None,
    )


def direct_columns(graph: FlowGraph) -> dict[str, list[Any]]:
    """The direct maps of the layers that have one, as edges between rows of ``z``."""
    count = len(graph.tokens)
    columns: dict[str, list[Any]] = {"source": [], "target": [], "value": []}
    for number, layer in enumerate(graph.layers):
        if layer.direct is not None:
            mask = stored(layer.direct)
            target, source = mask.nonzero(as_tuple=True)
            columns["source"] += (number * count + source).tolist()
            columns["target"] += ((number + 1) * count + target).tolist()
            columns["value"] += layer.direct[mask].tolist()
    return columns


def stored(edges: Tensor) -> Tensor:
    """Where the numbers have bits that have to be kept: all but the zeros without a sign."""
    return (edges != 0) | torch.signbit(edges)
