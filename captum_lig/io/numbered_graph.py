"""The nodes of a graph with a target as numbers, and its links as tensors of these numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.graph.arguments import in_order
from captum_lig.graph.direct_edges import DirectEdges
from captum_lig.graph.flow_graph import FlowGraph
from captum_lig.graph.target_layer import TargetLayer, target_layers

__all__ = ["DirectGraph", "Links", "NumberedGraph", "Place"]

Links = tuple[Tensor, Tensor, Tensor]
"""Numbers of the nodes that links run from and to ``(K,)``, and their weights."""
Place = tuple[str, int, int, int]
"""What a node is, its layer's place among the layers, its head or group of heads, and its token."""


class NumberedGraph:
    """A graph with a target, and links from layer to layer.

    A node's number is ``slot * N + token``, with so many slots a layer, for up to ``H`` heads: the
    heads, the MLP, ``H`` for what heads read, and the token that leaves the layer. After the layers
    come embeddings, and last the target.

    Args:
        graph: the graph.
    """

    LINKS = "from layer to layer, through the tokens between them"
    """Which links there are, in words."""

    def __init__(self, graph: FlowGraph) -> None:
        self.graph = graph
        self.layers: Sequence[TargetLayer] = target_layers(graph.layers)
        self.length = len(graph.tokens)
        self.heads = max(len(layer.heads_relevance) for layer in self.layers)
        self.mlp, self.reads, self.leaves = self.heads, self.heads + 1, 2 * self.heads + 1
        self.slots = 2 * self.heads + 2
        self.embedding = len(self.layers) * self.slots
        self.target = (self.embedding + 1) * self.length
        self.relevance = torch.zeros(self.target + 1, dtype=torch.float64)
        self._put(self.embedding, self.layers[0].entering)
        self.relevance[-1] = graph.change or 0.0
        for row, layer in enumerate(self.layers):
            for head, values in enumerate(layer.heads_relevance):
                self._put(row * self.slots + head, values)
            if layer.feed_forward_relevance is not None:
                self._put(row * self.slots + self.mlp, layer.feed_forward_relevance)
        self._put_between()

    @property
    def ends(self) -> Tensor:
        """Of all nodes, which are embeddings or the target."""
        return torch.arange(self.target + 1) >= self.embedding * self.length

    @property
    def exists(self) -> Tensor:
        """Which numbers are nodes that something goes through, or ends."""
        return self.ends | (self.relevance != 0)

    @property
    def read_at(self) -> int:
        """The token where the number reads most."""
        return int(self.layers[-1].leaving.abs().argmax())

    def place(self, number: int) -> Place:
        """What a node is: ``head``, ``mlp``, ``reads``, ``leaves``, ``embedding`` or ``target``."""
        if number == self.target:
            return "target", len(self.layers), 0, self.read_at
        slot, token = divmod(number, self.length)
        if slot == self.embedding:
            return "embedding", 0, 0, token
        row, which = divmod(slot, self.slots)
        if which < self.mlp:
            return "head", row, which, token
        if which == self.mlp:
            return "mlp", row, 0, token
        if which == self.leaves:
            return "leaves", row, 0, token
        return "reads", row, which - self.reads, token

    def links(self) -> Iterator[Links]:
        """All links, part by part."""
        token = torch.arange(self.length)
        below = self._numbers(self.embedding)
        for row, layer in enumerate(self.layers):
            first = row * self.slots
            heads = self._numbers(first + torch.arange(len(layer.attention))[:, None])  # (H, N)
            mlp, leaves = self._numbers(first + self.mlp), self._numbers(first + self.leaves)
            yield _flat(below, heads[..., None], layer.attention)
            yield _flat(heads.T, leaves[:, None], layer.heads_past)
            if layer.feed_forward_heads is not None:
                yield _flat(heads.T, mlp[:, None], layer.feed_forward_heads)
            if layer.feed_forward_token is not None:
                yield _flat(below, mlp, layer.feed_forward_token)
            if layer.feed_forward is not None:
                yield _flat(mlp, leaves, layer.feed_forward)
            yield _flat(below, leaves, layer.residual)
            below = leaves
        yield _flat(below, torch.full_like(token, self.target), self.layers[-1].leaving)

    def _put_between(self) -> None:
        """Note the nodes that are neither embeddings, heads nor MLPs."""
        for row, layer in enumerate(self.layers):
            self._put(row * self.slots + self.leaves, layer.leaving)

    def _numbers(self, slot: int | Tensor) -> Tensor:
        """Of a node at all tokens, ``(..., N)``."""
        return slot * self.length + torch.arange(self.length)

    def _put(self, slot: int, values: Tensor) -> None:
        """Note the relevance ``(N,)`` of a node at all tokens."""
        self.relevance[self._numbers(slot)] = values.cpu()


class DirectGraph(NumberedGraph):
    """A graph with links from what writes to the residual stream to what reads it.

    What a head reads at a token, with its query, key and value there, is a node; heads that share a
    key are a group with one such node. From there links run to the outputs of these heads.

    Args:
        graph: the graph.
        edges: direct edges of the same text and number.

    Raises:
        LigError: if they are of another.
    """

    LINKS = "from what writes to the residual stream to what reads it"

    def __init__(self, graph: FlowGraph, edges: DirectEdges) -> None:
        _check_same(graph, edges)
        self.edges = edges
        layers = [layer.index for layer in graph.layers]
        keys = [reader.layer for reader in edges.readers if reader.kind == "key"]
        self.shared = [
            len(layer.heads_relevance) // (keys.count(layer.index) or len(layer.heads_relevance))
            if len(layer.heads_relevance)
            else 1
            for layer in target_layers(graph.layers)
        ]
        """How many heads share a key, by layer."""
        self.rows = {index: row for row, index in enumerate(layers)}
        super().__init__(graph)

    def links(self) -> Iterator[Links]:
        """All links, part by part."""
        edges = self.edges
        writers = torch.tensor([self._writer(one.layer, one.head) for one in edges.writers])
        readers = torch.tensor(
            [self._reader(one.kind, one.layer, one.head) for one in edges.readers]
        )
        position = edges.position.cpu()
        source = writers[edges.writer.cpu()] * self.length + position
        reader = readers[edges.reader.cpu()]
        target = torch.where(
            reader == self.embedding + 1, self.target, reader * self.length + position
        )
        # A query, a key and a value that one node stands for, and the number at all tokens.
        pairs, which = (source * (self.target + 1) + target).unique(return_inverse=True)
        weight = torch.zeros(len(pairs), dtype=torch.float64)
        weight.index_add_(0, which, edges.value.cpu())
        yield pairs // (self.target + 1), pairs % (self.target + 1), weight
        for row, layer in enumerate(self.layers):
            head = torch.arange(len(layer.attention))
            outputs = self._numbers(row * self.slots + head[:, None])
            group = head // self.shared[row]
            inputs = self._numbers(row * self.slots + self.reads + group[:, None])
            yield _flat(inputs[:, None], outputs[..., None], layer.attention)

    def _put_between(self) -> None:
        for row, layer in enumerate(self.layers):
            read = layer.attention.sum(1)  # (H, N)
            for group, values in enumerate(read.split(self.shared[row]) if len(read) else ()):
                self._put(row * self.slots + self.reads + group, values.sum(0))

    def _writer(self, layer: int | None, head: int | None) -> int:
        if layer is None:
            return self.embedding
        return self.rows[layer] * self.slots + (self.mlp if head is None else head)

    def _reader(self, kind: str, layer: int | None, head: int | None) -> int:
        if layer is None:
            return self.embedding + 1
        row = self.rows[layer]
        if head is None:
            return row * self.slots + self.mlp
        group = head // self.shared[row] if kind == "query" else head
        return row * self.slots + self.reads + group


def _flat(source: Tensor, target: Tensor, weight: Tensor) -> Links:
    """Links of one shape as three rows; those of weight 0 are none."""
    source, target, weight = torch.broadcast_tensors(source, target, weight.cpu())
    there = weight != 0
    return source[there], target[there], weight[there]


def _check_same(graph: FlowGraph, edges: DirectEdges) -> None:
    change = graph.change or 0.0
    if edges.target != graph.target or not abs(edges.change - change) <= 1e-3 * abs(change):
        raise LigError(
            f"the edges are of {edges.target!r}, which changes by {edges.change:.6g}, and the "
            f"graph of {graph.target!r}, which changes by {change:.6g}: give both the same text, "
            "baseline and target."
        )
    if not in_order(graph.positions):
        raise LigError(
            f"the graph has its tokens in another order than the text, {graph.positions.tolist()}: "
            "give the whole graph."
        )
    layers = [layer.index for layer in graph.layers]
    ends = int(edges.position.max()) + 1 if len(edges) else 0
    length = ends if edges.labels is None else len(edges.labels)
    known = {one.layer for one in edges.writers} | {one.layer for one in edges.readers}
    known -= {None}
    if (edges.labels is not None and length != len(graph.tokens)) or ends > len(graph.tokens):
        raise LigError(
            f"the edges are of a text of {length} tokens, and the graph has {len(graph.tokens)}: "
            "give the whole graph, before tokens are merged or left out."
        )
    if not known <= set(layers):
        raise LigError(
            f"the graph has the layers {layers[0]} to {layers[-1]}, and the edges those up to "
            f"{max(x for x in known if x is not None)}: give the whole graph."
        )
    if len(edges) and bool((edges.position < 0).any()):
        raise LigError("the edges are summed over positions: give them before summed().")
