"""Which edges there are, as columns, and keeping some of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.shown import Short
from captum_lig.graph.layer import GraphLayer
from captum_lig.graph.target_layer import TargetLayer

__all__ = ["Edges", "edges_of", "only_heads"]


@dataclass(frozen=True, repr=False)
class Edges(Short):
    """The edges of one kind as columns, ``(E,)`` each; those that carry nothing are left out."""

    layer: Tensor
    """Index of the layer."""
    head: Tensor
    """-1 for edges between a token and itself or its MLP."""
    target: Tensor
    source: Tensor
    """Positions of the tokens in the graph; both are the token of the node, but for ``attention``
    edges."""
    value: Tensor
    """Signed attribution: a length, or in units of the target."""
    value_part: Tensor | None = None
    """Of ``attention`` edges of flows with a target: the part that came through the values; NaN
    where a block hides them."""


def edges_of(layers: Sequence[GraphLayer], kind: str) -> Edges:
    """The edges of one kind; a LigError for an unknown one."""
    kinds = layers[0].KINDS
    if kind not in kinds:
        raise LigError(f"edges of kind {brief(kind)}: use one of {', '.join(kinds)}.")
    columns: dict[str, list[Tensor]] = {name: [] for name in ("head", "target", "source", "value")}
    indices, parts = [], []
    for layer in layers:
        tensor: Tensor | None = getattr(layer, kind)
        if tensor is None:
            continue
        mask = layer.there(kind)
        axes = layer.declared()[kind].axes
        where = dict(zip(axes, mask.nonzero(as_tuple=True), strict=True))
        target = where["target"]
        where = {
            "head": torch.full_like(target, -1),
            "source": target,
            "value": tensor[mask],
        } | where
        for name, column in columns.items():
            column.append(where[name])
        indices.append(torch.full_like(target, layer.index))
        if kind == "attention" and isinstance(layer, TargetLayer):
            parts.append(
                torch.full_like(tensor[mask], torch.nan)
                if layer.attention_value is None
                else layer.attention_value[mask]
            )
    if not indices:
        empty = torch.zeros(0, dtype=torch.int64)
        return Edges(empty, empty, empty, empty, empty.double())
    joined = {name: torch.cat(column) for name, column in columns.items()}
    return Edges(torch.cat(indices), **joined, value_part=torch.cat(parts) if parts else None)


def only_heads(
    layers: Sequence[GraphLayer], heads: Iterable[int | tuple[int, int]]
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
    chosen: list[GraphLayer] = []
    for layer in layers:
        kept = torch.zeros(layer.heads, dtype=torch.bool, device=layer.attention.device)
        kept[[head for index, head in pairs if index == layer.index]] = True
        chosen.append(layer.only_heads(kept))
    return chosen
