"""Which edges there are, as columns, and keeping some of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.graph.layer import GraphLayer

__all__ = ["KINDS", "Edges", "edges_of", "only_heads", "only_strong"]


@dataclass(frozen=True)
class Edges:
    """The edges of one kind as columns, ``(E,)`` each; those that carry nothing are left out."""

    layer: Tensor
    """Index of the layer."""
    head: Tensor
    """-1 for residual edges."""
    target: Tensor
    source: Tensor
    """Positions of the tokens in the graph; of ``mlp`` edges both are the token of the node."""
    value: Tensor
    """Signed attribution, a length."""


KINDS: dict[str, Callable[[GraphLayer], Tensor]] = {
    "attention": lambda layer: layer.attention != 0,
    "mlp": lambda layer: (layer.mlp != 0) & (layer.attention != 0).any(-1).T,
    "residual": lambda layer: layer.residual != 0,
}
"""Which edges there are; an output of a head that no edge reaches is no node."""


def edges_of(layers: list[GraphLayer], kind: str) -> Edges:
    """The edges of one kind; a LigError for an unknown one."""
    if kind not in KINDS:
        raise LigError(f"edges of kind {brief(kind)}: use one of {', '.join(KINDS)}.")
    columns: list[tuple[Tensor, ...]] = []
    for layer in layers:
        mask = KINDS[kind](layer)
        where = mask.nonzero(as_tuple=True)
        if kind == "attention":
            head, target, source = where
        elif kind == "mlp":
            (target, head), source = where, where[0]
        else:
            target = source = where[0]
            head = torch.full_like(target, -1)
        index = torch.full_like(target, layer.index)
        columns.append((index, head, target, source, getattr(layer, kind)[mask]))
    return Edges(*(torch.cat(column) for column in zip(*columns, strict=True)))


def only_strong(
    layer: GraphLayer, rule: str, threshold: float | None, top_k: int | None
) -> GraphLayer:
    """Edges that carry a share of at least ``threshold``, or the ``top_k`` into each target."""
    shares = layer.shares(rule, False)
    heads, residual = shares.heads.abs(), shares.residual.abs()
    if threshold is not None:
        return layer.where(heads >= threshold, residual >= threshold)
    assert top_k is not None
    flat = torch.cat([heads.transpose(0, 1).flatten(1), residual[:, None]], 1)
    order = flat.topk(min(top_k, flat.shape[1]), dim=1).indices
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
    by_head = kept[:, :-1].reshape(len(residual), *heads.shape[::2]).transpose(0, 1)
    return layer.where(by_head, kept[:, -1])


def only_heads(
    layers: list[GraphLayer], heads: Iterable[int | tuple[int, int]]
) -> list[GraphLayer]:
    """Edges through some heads: numbers, of every layer, or pairs of (layer, head).

    A LigError if there is no such head, or something is no head.
    """
    count = {layer.index: layer.heads for layer in layers}
    pairs: list[tuple[int, int]] = []
    try:
        for one in heads:
            every = [(index, one) for index in count] if isinstance(one, int) else [one]
            pairs += [(operator.index(index), operator.index(head)) for index, head in every]
    except (TypeError, ValueError) as error:
        raise LigError(
            f"heads={brief(heads)}: give a list of numbers of heads, or of pairs (layer, head)."
        ) from error
    for index, head in pairs:
        if not 0 <= head < count.get(index, 0):
            raise LigError(f"head {head} of layer {index} does not exist in this graph.")
    chosen = []
    for layer in layers:
        kept = torch.zeros(layer.heads, dtype=torch.bool, device=layer.attention.device)
        kept[[head for index, head in pairs if index == layer.index]] = True
        mask = kept[:, None, None].expand_as(layer.attention)
        chosen.append(layer.where(mask, torch.ones_like(layer.stays)))
    return chosen
