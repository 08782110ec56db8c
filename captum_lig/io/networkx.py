"""The graph for networkx, and through it as GraphML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.composition import share_of
from captum_lig.graph.flow_graph import FlowGraph
from captum_lig.graph.layer import GraphLayer
from captum_lig.io.codec import VERSION, stored, warn_if_large, writing

if TYPE_CHECKING:
    import networkx

__all__ = ["to_networkx", "write_graphml"]

BYTES_PER_EDGE = 300
"""About what an edge takes in GraphML."""

Node = tuple[int, str, int | None, int]
Edge = tuple[Node, Node, dict[str, Any]]


def to_networkx(graph: FlowGraph) -> networkx.DiGraph[Any]:
    """The graph for networkx.

    Nodes are tuples ``(layer, kind, head, token)``: ``(l, "z", None, i)`` is token ``i`` entering
    layer ``l`` (those that leave the last layer have the next number), ``(l, "u", h, j)`` the
    output of head ``h`` at token ``j``. All tokens are nodes, and the outputs that an attention
    edge reaches. They have

    - ``layer``, ``kind``, ``head`` (of ``u`` alone), ``token``: their names again;
    - ``label``: what the token is called; ``position``: its position in the text;
    - ``sum`` and ``size``: of all attributions that the layer has to the node, and of their
      absolute values. Tokens entering the first layer have none.

    Edges that carry nothing are left out. The others have

    - ``kind``: ``"attention"``, ``"mlp"`` or ``"residual"``;
    - ``value``: the signed attribution, a length;
    - ``share``: the signed share of the target node that the edge carries (``conserve``). A token
      that nothing moved has a residual edge of value 0 and share 1;
    - ``chain``, of attention edges, where the flows have it: the attribution with the cotangent
      that the mlp boundary hands down.

    Raises:
        LigError: if networkx is not installed.
    """
    try:
        import networkx
    except ImportError as error:
        raise LigError(
            "networkx is not installed: install it with pip install 'captum-lig[graph]'."
        ) from error
    result: networkx.DiGraph[Any] = networkx.DiGraph(
        scalarization=graph.scalarization, baseline=graph.baseline
    )
    positions = graph.positions.tolist()

    def add(layer: int, kind: str, head: int | None, token: int, sums: dict[str, float]) -> None:
        about = {"layer": layer, "kind": kind, "head": head, "token": token}
        about |= {"label": graph.tokens[token], "position": positions[token], **sums}
        about = {name: value for name, value in about.items() if value is not None}
        result.add_node((layer, kind, head, token), **about)

    for token in range(len(graph.tokens)):
        add(graph.indices[0], "z", None, token, {})
    for layer in graph.layers:
        sums, sizes = layer.mlp_sum.tolist(), layer.mlp_size.tolist()
        for token, (total, size) in enumerate(zip(sums, sizes, strict=True)):
            add(layer.index + 1, "z", None, token, {"sum": total, "size": size})
    for layer in graph.layers:
        sums, sizes = layer.attention_sum.tolist(), layer.attention_size.tolist()
        for head, token in _edges_of_attention(layer).any(-1).nonzero().tolist():
            found = {"sum": sums[head][token], "size": sizes[head][token]}
            add(layer.index, "u", head, token, found)
        result.add_edges_from(_edges(layer))
    return result


def _edges_of_attention(layer: GraphLayer) -> Tensor:
    mask = stored(layer.attention)
    return mask if layer.chain is None else mask | stored(layer.chain)


def _edges(layer: GraphLayer) -> Iterator[Edge]:
    """The edges of each kind: where they are, their shares, and between which nodes they run."""
    index, above = layer.index, layer.index + 1
    heads = _edges_of_attention(layer)
    kinds: dict[str, tuple[Tensor, Tensor, Callable[..., tuple[Node, Node]]]] = {
        "attention": (
            heads,
            share_of(layer.attention.double(), layer.attention_sum[..., None]),
            lambda head, target, source: ((index, "z", None, source), (index, "u", head, target)),
        ),
        "mlp": (
            stored(layer.mlp) & heads.any(-1).T,
            share_of(layer.mlp.double(), layer.mlp_sum[:, None]),
            lambda target, head: ((index, "u", head, target), (above, "z", None, target)),
        ),
        "residual": (
            stored(layer.residual) | layer.stays,
            layer.weights("conserve").residual,
            lambda token: ((index, "z", None, token), (above, "z", None, token)),
        ),
    }
    for kind, (mask, share, ends) in kinds.items():
        columns = {"value": getattr(layer, kind)[mask].tolist(), "share": share[mask].tolist()}
        if kind == "attention" and layer.chain is not None:
            columns["chain"] = layer.chain[mask].tolist()
        values = zip(*columns.values(), strict=True)
        for where, row in zip(mask.nonzero().tolist(), values, strict=True):
            yield *ends(*where), {"kind": kind, **dict(zip(columns, row, strict=True))}


def write_graphml(graph: FlowGraph, path: Path, kind: str) -> None:
    """Write what :func:`to_networkx` makes, with the format's name and version.

    Nodes are called ``z.<layer>.<token>`` and ``u.<layer>.<head>.<token>``. Characters of a token
    that XML cannot hold are written as escapes, an empty token as two quotes.
    """
    warn_if_large(path, BYTES_PER_EDGE * sum(graph.edge_counts.values()))
    made = to_networkx(graph)
    import networkx

    made = networkx.relabel_nodes(made, {node: _named(*node) for node in made})
    made.graph = {name: _xml(value) for name, value in made.graph.items()}
    made.graph |= {"format": kind, "version": VERSION}
    for about in made.nodes.values():
        about["label"] = _xml(about["label"])
    with writing(path) as beside:
        networkx.write_graphml(made, beside)


def _named(layer: int, kind: str, head: int | None, token: int) -> str:
    parts = (kind, layer, token) if head is None else (kind, layer, head, token)
    return ".".join(map(str, parts))


_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write, and the carriage return, which it changes."""


def _xml(text: str) -> str:
    escaped = _NO_XML.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return escaped or "''"
