"""The graph for networkx, and through it as GraphML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from captum_lig.errors import LigError
from captum_lig.io.tables import EdgeTable, edge_tables, node_columns, u_starts

if TYPE_CHECKING:
    import networkx

    from captum_lig.graph.flow_graph import FlowGraph

__all__ = ["to_networkx", "write_graphml"]


def to_networkx(graph: FlowGraph) -> networkx.DiGraph[Any]:
    """The graph as :meth:`FlowGraph.to_networkx` describes it.

    Raises:
        LigError: if networkx is not installed.
    """
    try:
        import networkx
    except ImportError as error:
        raise LigError(
            "networkx is not installed: install it with pip install 'captum-lig[graph]'."
        ) from error
    tables = list(edge_tables(graph))
    reached = torch.zeros(u_starts(graph)[-1], dtype=torch.bool, device=graph.positions.device)
    for table in tables:
        if table.kind == "attention":
            reached[table.target] = True
    tables = [_from(table, reached) if table.kind == "mlp" else table for table in tables]

    columns = node_columns(graph)
    places = graph.positions.tolist()
    nodes: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
    for kind, column in columns.items():
        heads = column.get("head", [None] * len(column["layer"]))
        nodes[kind] = []
        for layer, head, token, total, size in zip(
            column["layer"], heads, column["token"], column["sum"], column["size"], strict=True
        ):
            about = {"layer": layer, "kind": kind, "head": head, "token": token}
            about |= {"label": graph.tokens[token], "position": places[token]}
            about |= {"sum": total, "size": size}
            about = {name: value for name, value in about.items() if value is not None}
            nodes[kind].append(((layer, kind, head, token), about))

    result: networkx.DiGraph[Any] = networkx.DiGraph(
        scalarization=graph.scalarization, baseline=graph.baseline
    )
    result.add_nodes_from(nodes["z"])
    result.add_nodes_from(nodes["u"][row] for row in reached.nonzero().flatten().tolist())
    for table in tables:
        start = nodes["u" if table.kind == "mlp" else "z"]
        end = nodes["u" if table.kind == "attention" else "z"]
        values = table.columns()
        source, target = values.pop("source"), values.pop("target")
        names = tuple(values)
        result.add_edges_from(
            (start[i][0], end[j][0], {"kind": table.kind, **dict(zip(names, row, strict=True))})
            for i, j, row in zip(source, target, zip(*values.values(), strict=True), strict=True)
        )
    return result


def write_graphml(graph: FlowGraph, path: Path) -> None:
    """Write what :func:`to_networkx` makes, with text for the names of nodes."""
    made = to_networkx(graph)
    import networkx

    names = {node: ".".join(str(part) for part in _named(node)) for node in made}
    made = networkx.relabel_nodes(made, names)
    made.graph = {name: _xml(value) for name, value in made.graph.items()}
    for about in made.nodes.values():
        about["label"] = _xml(about["label"])
    networkx.write_graphml(made, path)


def _from(table: EdgeTable, reached: torch.Tensor) -> EdgeTable:
    """The edges that come from a node that is there."""
    kept = reached[table.source]
    columns = (table.source, table.target, table.value, table.share)
    source, target, value, share = (column[kept] for column in columns)
    return EdgeTable(table.kind, source, target, value, share, chain=None)


def _named(node: tuple[Any, ...]) -> tuple[Any, ...]:
    layer, kind, head, token = node
    return (kind, layer, token) if head is None else (kind, layer, head, token)


_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write, and the carriage return, which it changes."""


def _xml(text: str) -> str:
    escaped = _NO_XML.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return escaped or "''"
