"""What goes through each node of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_lig._arguments import brief, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.shown import html_list, html_table
from captum_lig.flow.tokens import TokenIndex, readable_token
from captum_lig.graph.arguments import layer_range, no_target, start_relevance
from captum_lig.graph.joined import JoinedLayers
from captum_lig.graph.layer import GraphLayer
from captum_lig.graph.tables import node_frame
from captum_lig.graph.target_layer import TargetLayer

__all__ = ["Trace", "shared_out", "traced_exactly", "traced_up"]


@dataclass(frozen=True)
class Trace:
    """What goes through each node of a range of ``L`` layers, over ``N`` tokens.

    Made by :meth:`FlowGraph.relevance`, backward from the end, or by
    :meth:`FlowGraph.contributions`, forward from tokens at the beginning. All numbers are float64.
    """

    layers: tuple[int, ...]
    """Indices of the layers, in the order they run."""
    labels: tuple[str, ...]
    """The tokens."""
    tokens: Tensor
    """``(L + 1, N)``: row ``l`` at the residual stream entering the ``l``-th of the layers, the
    last row at the tokens that leave the last of them."""
    heads: Tensor
    """``(L, H, N)`` at each head's output at a target, whether it goes on through the MLP or past
    it; 0 where a layer has fewer heads."""
    residual: Tensor
    """``(L, N)`` along the residual edge of a token, past the heads (and past the MLP, where that
    is a node)."""
    lost: Tensor
    """``(L,)`` what entered a layer from above and did not come out below it.

    0 in a whole graph with a rule that conserves; the edges that are not there (pruned, of other
    tokens or heads) carry the rest, and with them those that are left without a way up, into a head
    or an MLP that none leaves. In graphs with a target a row that has no edge at all loses the
    relevance of its node, and what came from an encoder's tokens left the graph. In those without,
    where the mlp boundary starts at zero, the rest is the share of heads whose outputs did not
    move: the first token's in a causal model with target-token paths. Of a forward trace it has no
    meaning.
    """
    feed_forward: Tensor | None = None
    """``(L, N)`` at the MLP's output at each token: 0 in layers whose MLP is no node. None in
    graphs of lengths, which have no such nodes."""

    def __repr__(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        return (
            f"Trace(layers {first} to {last}, {len(self.labels)} tokens, {self.heads.shape[1]} "
            f"heads{'' if self.feed_forward is None else ', MLPs'}; sum entering "
            f"{float(self.tokens[0].sum()):.4g}, leaving {float(self.tokens[-1].sum()):.4g})"
        )

    def _repr_html_(self) -> str:
        """The strongest nodes of each kind, for notebooks."""
        found = [("token", token, i, value) for token, i, value in self.strongest()]
        found += [
            (f"head {layer}.{head}", token, i, value)
            for token, layer, head, i, value in self.strongest_heads()
        ]
        if self.feed_forward is not None:
            found += [
                (f"MLP {layer}", token, i, value)
                for token, layer, i, value in self.strongest_feed_forward()
            ]
        rows = [
            (name, f"{readable_token(token)} ({i})", f"{value:+.4g}")
            for name, token, i, value in found
            if value
        ]
        return html_list([repr(self)]) + html_table(("node", "at", "value"), rows)

    def to_pandas(self) -> Any:
        """A table (``pandas.DataFrame``), a row for each node.

        Columns are ``kind`` (``"tokens"``, ``"heads"``, ``"feed_forward"``), ``layer`` (of tokens
        the one that they enter; those that leave the last one have the next number), ``head``,
        ``position`` and ``token``, and ``value``.
        """
        kinds = {"tokens": self.tokens, "heads": self.heads}
        if self.feed_forward is not None:
            kinds["feed_forward"] = self.feed_forward
        return node_frame(kinds, self.layers, self.labels)

    def by_head(self) -> Tensor:
        """``(L, H)`` sums over the tokens."""
        return self.heads.sum(-1)

    def strongest(self, count: int = 5, layer: int | None = None) -> list[tuple[str, int, float]]:
        """The tokens with the largest absolute values, largest first.

        Args:
            count: how many.
            layer: at the tokens entering this layer (its index; the last one plus 1: at those
                that leave the last); None for the first.

        Returns:
            Token, its index, and its value.

        Raises:
            LigError: for a layer that the trace does not have, or a count below 1.
        """
        whole_number("count", count, 1)
        indices = (*self.layers, self.layers[-1] + 1)
        if layer is not None and layer not in indices:
            raise LigError(
                f"layer={brief(layer)}: the trace has the tokens entering the layers {indices[0]} "
                f"to {indices[-2]}, and as {indices[-1]} those that leave the last."
            )
        row = self.tokens[0 if layer is None else indices.index(layer)]
        return [(self.labels[i], i, value) for (i,), value in _largest(row, count)]

    def strongest_heads(self, count: int = 5) -> list[tuple[str, int, int, int, float]]:
        """The heads' outputs with the largest absolute values, of all layers, largest first.

        Returns:
            Token, layer, head, the token's index, and the value.

        Raises:
            LigError: for a count below 1.
        """
        return [
            (self.labels[token], self.layers[row], head, token, value)
            for (row, head, token), value in _largest(self.heads, count)
        ]

    def strongest_feed_forward(self, count: int = 5) -> list[tuple[str, int, int, float]]:
        """The MLPs' outputs with the largest absolute values, of all layers, largest first.

        Returns:
            Token, layer, the token's index, and the value.

        Raises:
            LigError: for a count below 1, or if MLPs are no nodes of the graph.
        """
        if self.feed_forward is None:
            raise LigError(
                "MLPs are no nodes of a graph of lengths: attribute a target, "
                "LayerFlowIG.attribute(..., target=...)."
            )
        return [
            (self.labels[token], self.layers[row], token, value)
            for (row, token), value in _largest(self.feed_forward, count)
        ]


def _largest(values: Tensor, count: int) -> list[tuple[tuple[int, ...], float]]:
    """Places and values of the largest in size, largest first; ties in their order."""
    whole_number("count", count, 1)
    flat = values.flatten()
    order = flat.abs().argsort(descending=True, stable=True)[:count]
    places = torch.unravel_index(order, values.shape)
    where = zip(*(axis.tolist() for axis in places), strict=True)
    return list(zip(where, flat[order].tolist(), strict=True))


def shared_out(
    graph: JoinedLayers,
    target: TokenIndex | Sequence[TokenIndex] | None = None,
    start: Tensor | Sequence[float] | None = None,
    rule: str = DEFAULT_RULE,
    absolute: bool = False,
    layers: tuple[int, int] | None = None,
) -> Trace:
    """:meth:`FlowGraph.relevance` of a graph of lengths, without its warnings."""
    chosen = layer_range(graph.layers, layers)
    relevance = start_relevance(target, start, graph.tokens, "target")
    return traced_down(chosen, graph.tokens, relevance.to(graph.positions.device), rule, absolute)


def traced_down(
    layers: Sequence[GraphLayer],
    labels: Sequence[str],
    relevance: Tensor,
    rule: str,
    absolute: bool,
) -> Trace:
    """Hand relevance ``(N,)`` down from the tokens leaving the last of the layers.

    Raises:
        LigError: if it reaches a token that was no target of the attribution.
    """
    rows, heads, residuals = [relevance], [], []
    for layer in reversed(layers):
        unknown = relevance.abs() * ~layer.known
        if unknown.sum() > 0:
            raise no_target(layer, int(unknown.argmax()), labels)
        shares = layer.shares(rule, absolute)
        by_route = shares.heads * relevance[:, None]  # (H, target, source)
        heads.append(by_route.sum(-1))
        residuals.append(shares.residual * relevance)
        relevance = by_route.sum((0, 1)) + residuals[-1]
        rows.append(relevance)
    return _trace(layers, labels, rows[::-1], heads[::-1], residuals[::-1])


def traced_exactly(layers: Sequence[TargetLayer], labels: Sequence[str]) -> Trace:
    """What the nodes of flows with a target have, whichever of their edges are there."""
    rows = [layer.entering for layer in layers] + [layers[-1].leaving]
    nothing = torch.zeros_like(rows[0])
    mlps = [layer.feed_forward_relevance for layer in layers]
    return _trace(
        layers,
        labels,
        rows,
        [layer.heads_relevance for layer in layers],
        [layer.residual for layer in layers],
        feed_forward=torch.stack([nothing if one is None else one for one in mlps]),
        lost=torch.stack([layer.lost() for layer in layers]),
    )


def traced_up(
    layers: Sequence[GraphLayer], labels: Sequence[str], share: Tensor, rule: str, absolute: bool
) -> Trace:
    """Follow shares ``(N,)`` of the tokens entering the first of the layers forward."""
    rows, heads, residuals, mlps = [share], [], [], []
    for layer in layers:
        shares = layer.shares(rule, absolute)
        heads.append(shares.all_heads @ share)
        residuals.append(shares.residual * share)
        through = shares.heads_through_mlp
        mlp = torch.zeros_like(share) if through is None else (through @ share).sum(0)
        if shares.token_through_mlp is not None:
            mlp = mlp + shares.token_through_mlp * share
        mlps.append(mlp)
        share = heads[-1].sum(0) + shares.stays * share
        rows.append(share)
    nodes = isinstance(layers[0], TargetLayer)
    feed_forward = torch.stack(mlps) if nodes else None
    return _trace(layers, labels, rows, heads, residuals, feed_forward=feed_forward)


def _trace(
    layers: Sequence[GraphLayer],
    labels: Sequence[str],
    rows: list[Tensor],
    heads: list[Tensor],
    residuals: list[Tensor],
    feed_forward: Tensor | None = None,
    lost: Tensor | None = None,
) -> Trace:
    tokens = torch.stack(rows)
    return Trace(
        layers=tuple(layer.index for layer in layers),
        labels=tuple(labels),
        tokens=tokens,
        heads=pad_sequence(heads, batch_first=True),
        residual=torch.stack(residuals),
        lost=tokens[1:].sum(-1) - tokens[:-1].sum(-1) if lost is None else lost,
        feed_forward=feed_forward,
    )
