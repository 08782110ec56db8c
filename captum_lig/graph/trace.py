"""What goes through each node of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_lig._arguments import brief, whole_number
from captum_lig.errors import LigError
from captum_lig.graph.arguments import no_target
from captum_lig.graph.layer import GraphLayer

__all__ = ["Trace", "traced_down", "traced_up"]


@dataclass(frozen=True)
class Trace:
    """What goes through each node of a range of ``L`` layers, over ``N`` tokens.

    Made by :meth:`FlowGraph.relevance`, backward from the tokens at the end, or by
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
    """``(L, H, N)`` at each head's output at a target; 0 where a layer has fewer heads."""
    residual: Tensor
    """``(L, N)`` along the residual edge of a token, past the heads."""

    @property
    def lost(self) -> Tensor:
        """``(L,)`` what entered a layer from above and did not come out below it.

        0 in a whole graph with a rule that conserves; the edges that are not there (pruned, of
        other tokens or heads) carry the rest. Where the mlp boundary starts at zero, the rest is
        the share of heads whose outputs did not move: the first token's in a causal model with
        target-token paths. Of a forward trace it has no meaning.
        """
        return self.tokens[1:].sum(-1) - self.tokens[:-1].sum(-1)

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
        order = row.abs().argsort(descending=True, stable=True)[:count]
        return [(self.labels[int(i)], int(i), float(row[i])) for i in order]


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


def traced_up(
    layers: Sequence[GraphLayer], labels: Sequence[str], share: Tensor, rule: str, absolute: bool
) -> Trace:
    """Follow shares ``(N,)`` of the tokens entering the first of the layers forward."""
    rows, heads, residuals = [share], [], []
    for layer in layers:
        shares = layer.shares(rule, absolute)
        heads.append(shares.heads @ share)
        residuals.append(shares.residual * share)
        share = heads[-1].sum(0) + residuals[-1]
        rows.append(share)
    return _trace(layers, labels, rows, heads, residuals)


def _trace(
    layers: Sequence[GraphLayer],
    labels: Sequence[str],
    rows: list[Tensor],
    heads: list[Tensor],
    residuals: list[Tensor],
) -> Trace:
    return Trace(
        layers=tuple(layer.index for layer in layers),
        labels=tuple(labels),
        tokens=torch.stack(rows),
        heads=pad_sequence(heads, batch_first=True),
        residual=torch.stack(residuals),
    )
