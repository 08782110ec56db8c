"""The graph for networkx, and through it as GraphML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.composition import share_of
from captum_lig.graph.flow_graph import FlowGraph
from captum_lig.graph.length_layer import LengthLayer
from captum_lig.graph.target_layer import TargetLayer, target_layers
from captum_lig.io.codec import VERSION, stored, warn_if_large, writing

if TYPE_CHECKING:
    import networkx

__all__ = ["to_networkx", "write_graphml"]

BYTES_PER_EDGE = 300
"""About what an edge takes in GraphML."""

Node = tuple[int, str, int | None, int | None]
NumberedNode = tuple[Node, dict[str, Any]]
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

    In a graph with a target kinds of nodes are called ``"token"``, ``"head"``, ``"feed_forward"``
    (the MLP's output at a token) and ``"target"``: that is one node, ``(l, "target", None, None)``
    with the number after the last layer, to which the tokens leaving that lead. In place of ``sum``
    nodes have ``relevance``; that of the target is its change. Kinds of edges are those of
    ``FlowGraph.edges``, and ``"target"``; ``value`` is in units of the target, ``share`` the
    part of its size in the sizes of all that lead to the node, and of attention edges
    ``value_part`` is what came through the values.

    Raises:
        LigError: if networkx is not installed.
    """
    try:
        import networkx
    except ImportError as error:
        raise LigError(
            "networkx is not installed: install it with pip install 'captum-lig[graph]'."
        ) from error
    facts = {name: value for name, value in asdict(graph.about).items() if value is not None}
    result: networkx.DiGraph[Any] = networkx.DiGraph(**facts)
    positions = graph.positions.tolist()
    of_target = target_layers(graph.layers)
    nodes, edges = (
        (_target_nodes(graph, of_target), _target_edges(of_target))
        if of_target
        else _length_graph(graph)
    )
    for (layer, kind, head, token), numbers in nodes:
        about: dict[str, Any] = {"layer": layer, "kind": kind, "head": head, "token": token}
        if token is not None:
            about |= {"label": graph.tokens[token], "position": positions[token]}
        about = {name: value for name, value in about.items() if value is not None}
        result.add_node((layer, kind, head, token), **about, **numbers)
    result.add_edges_from(edges)
    return result


def _length_graph(graph: FlowGraph) -> tuple[Iterator[NumberedNode], Iterator[Edge]]:
    layers = [layer for layer in graph.layers if isinstance(layer, LengthLayer)]
    edges = (edge for layer in layers for edge in _edges(layer))
    return _nodes(layers, len(graph.tokens)), edges


def _nodes(layers: list[LengthLayer], tokens: int) -> Iterator[NumberedNode]:
    for token in range(tokens):
        yield (layers[0].index, "z", None, token), {}
    for layer in layers:
        sums, sizes = layer.mlp_sum.tolist(), layer.mlp_size.tolist()
        for token, (total, size) in enumerate(zip(sums, sizes, strict=True)):
            yield (layer.index + 1, "z", None, token), {"sum": total, "size": size}
    for layer in layers:
        sums, sizes = layer.attention_sum.tolist(), layer.attention_size.tolist()
        for head, token in _edges_of_attention(layer).any(-1).nonzero().tolist():
            found = {"sum": sums[head][token], "size": sizes[head][token]}
            yield (layer.index, "u", head, token), found


def _edges_of_attention(layer: LengthLayer) -> Tensor:
    mask = stored(layer.attention)
    return mask if layer.chain is None else mask | stored(layer.chain)


def _edges(layer: LengthLayer) -> Iterator[Edge]:
    """The edges of each kind: where they are, their shares, and between which nodes they run."""
    index, above = layer.index, layer.index + 1
    heads = _edges_of_attention(layer)
    kinds: dict[str, tuple[Tensor, Tensor, Callable[..., tuple[Node, Node]]]] = {
        "attention": (
            heads,
            layer.share("attention"),
            lambda head, target, source: ((index, "z", None, source), (index, "u", head, target)),
        ),
        "mlp": (
            stored(layer.mlp) & heads.any(-1).T,
            layer.share("mlp"),
            lambda target, head: ((index, "u", head, target), (above, "z", None, target)),
        ),
        "residual": (
            stored(layer.residual) | layer.stays,
            layer.share("residual"),
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


def _target_nodes(graph: FlowGraph, layers: Sequence[TargetLayer]) -> Iterator[NumberedNode]:
    """All tokens, the target, and the heads' and MLPs' outputs that an edge leads to or from."""
    for token, has in enumerate(layers[0].entering.tolist()):
        yield (layers[0].index, "token", None, token), {"relevance": has}
    for layer in layers:
        above = zip(layer.leaving.tolist(), layer.leaving_size.tolist(), strict=True)
        for token, (has, sum_of_sizes) in enumerate(above):
            numbers = {"relevance": has, "size": sum_of_sizes}
            yield (layer.index + 1, "token", None, token), numbers
        there = stored(layer.attention).any(-1) | stored(layer.heads_past).T
        if layer.feed_forward_heads is not None:
            there = there | stored(layer.feed_forward_heads).T
        relevances, sizes = layer.heads_relevance.tolist(), layer.heads_size.tolist()
        for head, token in there.nonzero().tolist():
            numbers = {"relevance": relevances[head][token], "size": sizes[head][token]}
            yield (layer.index, "head", head, token), numbers
        relevance, size = layer.feed_forward_relevance, layer.feed_forward_size
        if relevance is not None and size is not None:
            pairs = zip(relevance.tolist(), size.tolist(), strict=True)
            for token, (has, sum_of_sizes) in enumerate(pairs):
                numbers = {"relevance": has, "size": sum_of_sizes}
                yield (layer.index, "feed_forward", None, token), numbers
    last = layers[-1]
    yield (
        (last.index + 1, "target", None, None),
        {"label": graph.target, "relevance": graph.change, "size": last.leaving.abs().sum().item()},
    )


def _target_edges(layers: Sequence[TargetLayer]) -> Iterator[Edge]:
    for layer in layers:
        for kind in layer.KINDS:
            edges: Tensor | None = getattr(layer, kind)
            if edges is None:
                continue
            axes, share, mask = layer.declared()[kind].axes, layer.share(kind), stored(edges)
            columns = {"value": edges[mask].tolist(), "share": share[mask].tolist()}
            if kind == "attention" and layer.attention_value is not None:
                columns["value_part"] = layer.attention_value[mask].tolist()
            values = zip(*columns.values(), strict=True)
            for place, row in zip(mask.nonzero().tolist(), values, strict=True):
                ends = _ends(layer.index, kind, dict(zip(axes, place, strict=True)))
                yield *ends, {"kind": kind, **dict(zip(columns, row, strict=True))}
    last = layers[-1]
    whole = last.leaving.abs().sum()
    shares = share_of(last.leaving.abs(), whole).tolist()
    for token, (value, share) in enumerate(zip(last.leaving.tolist(), shares, strict=True)):
        if value:
            above = last.index + 1
            about = {"kind": "target", "value": value, "share": share}
            yield (above, "token", None, token), (above, "target", None, None), about


def _ends(index: int, kind: str, at: dict[str, int]) -> tuple[Node, Node]:
    """The nodes that an edge of a graph with a target runs between."""
    target = at["target"]
    below: Node = (index, "token", None, at.get("source", target))
    above: Node = (index + 1, "token", None, target)
    mlp: Node = (index, "feed_forward", None, target)
    head: Node = (index, "head", at.get("head"), target)
    return {
        "attention": (below, head),
        "feed_forward_heads": (head, mlp),
        "heads_past": (head, above),
        "feed_forward_token": (below, mlp),
        "feed_forward": (mlp, above),
        "residual": (below, above),
    }[kind]


def write_graphml(graph: FlowGraph, path: Path, kind: str) -> None:
    """Write what :func:`to_networkx` makes, with the format's name and version.

    Nodes are called ``z.<layer>.<token>`` and ``u.<layer>.<head>.<token>``, by their kind, layer,
    head and token. Characters of a token
    that XML cannot hold are written as escapes, an empty token as two quotes.
    """
    warn_if_large(path, BYTES_PER_EDGE * sum(graph.edge_counts.values()))
    made = to_networkx(graph)
    import networkx

    made = networkx.relabel_nodes(made, {node: _named(*node) for node in made})
    made.graph = {name: _xml(v) if isinstance(v, str) else v for name, v in made.graph.items()}
    made.graph |= {"format": kind, "version": VERSION}
    for about in made.nodes.values():
        about["label"] = _xml(about["label"])
    with writing(path) as beside:
        networkx.write_graphml(made, beside)


def _named(layer: int, kind: str, head: int | None, token: int | None) -> str:
    return ".".join(str(part) for part in (kind, layer, head, token) if part is not None)


_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write, and the carriage return, which it changes."""


def _xml(text: str) -> str:
    escaped = _NO_XML.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return escaped or "''"
