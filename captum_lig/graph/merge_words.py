"""The graph of words in place of word pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.words import add_up, in_order, whole_words, word_groups, word_labels
from captum_lig.graph.layer import GraphLayer

__all__ = ["merged_layer", "words_of"]


def words_of(
    tokens: Sequence[str],
    positions: Tensor,
    word_ids: Sequence[int | None] | None,
    offsets: Sequence[tuple[int, int]] | None,
    text: str | None,
) -> tuple[list[int], list[str]]:
    """The word of each token of a graph, in the order they come, and what the words are called.

    Args:
        tokens: the graph's tokens.
        positions: their places in the text as the model got it.
        word_ids: one entry for each of the graph's tokens, or for each token of the text as the
            model got it, padding included; see :func:`captum_lig.flow.words.word_groups`.
        offsets: the same.
        text: the text, with ``offsets``.

    Raises:
        LigError: as :func:`~captum_lig.flow.words.word_groups` does, or for too few entries.
    """
    groups = word_groups(word_ids, offsets=offsets, text=text)
    if len(groups) != len(tokens):
        places = positions.tolist()
        if len(groups) <= max(places):
            name = "word numbers" if offsets is None else "offsets"
            raise LigError(
                f"{len(groups)} {name} were given for a graph of {len(tokens)} tokens, the last of "
                f"them at position {max(places)}: give one for each token of the graph, or of the "
                "text with its padding."
            )
        groups = [groups[place] for place in places]
        offsets = None if offsets is None else [offsets[place] for place in places]
    groups = in_order(groups)
    return groups, word_labels(tokens, groups, offsets=offsets, text=text)


def merged_layer(layer: GraphLayer, groups: Sequence[int]) -> GraphLayer:
    """The layer with the edges of the pieces of each word added up.

    Edges between pieces of a word become edges of the word to itself. Sums of the whole layer's
    edges at a node add up too. Sums of absolute values are taken anew, since edges of opposite
    sign cancel in a word; of edges that are not in the graph (pruned) the pieces' sizes are kept,
    which is the most that they can come to. The completeness error of a word is the largest of its
    pieces, which its own cannot exceed.

    Raises:
        LigError: if a word has a piece that was a target and one that was none.
    """
    word = torch.as_tensor(groups, device=layer.known.device)

    def of(values: Any, *axes: int) -> Any:
        if values is None:
            return None
        merged = values if values.dtype == torch.long else values.double()
        for axis in axes:
            merged = add_up(merged, axis, word)
        return merged.to(values.dtype)

    def worst(errors: Tensor | None) -> Any:
        if errors is None:
            return None
        found = errors.new_zeros(*errors.shape[:-1], max(groups) + 1)
        return found.scatter_reduce_(-1, word.expand_as(errors), errors, "amax")

    def whole(parts: Tensor, merged: Tensor, total: Tensor, of_parts: _Measure) -> Tensor:
        """The measure of the merged edges, and what is not in the graph of the whole layer's."""
        missing: Tensor = of(total - of_parts(parts), -1)
        return of_parts(merged) + missing

    def whole_size(parts: Tensor, merged: Tensor, total: Tensor) -> Tensor:
        return torch.maximum(whole(parts, merged, total, _size), _size(merged))

    attention = of(layer.attention, -2, -1)
    mlp, residual = of(layer.mlp, 0), of(layer.residual, 0)
    ends, merged_ends = _ends(layer.mlp, layer.residual), _ends(mlp, residual)
    chain = chain_sum = chain_size = None
    if layer.chain is not None and layer.chain_sum is not None and layer.chain_size is not None:
        chain = of(layer.chain, -2, -1)
        routes = _through(layer.chain, layer.residual), _through(chain, residual)
        chain_sum = whole(*routes, layer.chain_sum, _sum)
        chain_size = whole_size(*routes, layer.chain_size)
    return replace(
        layer,
        attention=attention,
        mlp=mlp,
        residual=residual,
        chain=chain,
        attention_sum=whole(layer.attention, attention, layer.attention_sum, _sum),
        attention_size=whole_size(layer.attention, attention, layer.attention_size),
        mlp_sum=whole(ends, merged_ends, layer.mlp_sum, _sum),
        mlp_size=whole_size(ends, merged_ends, layer.mlp_size),
        chain_sum=chain_sum,
        chain_size=chain_size,
        known=whole_words(layer.known, groups),
        stays=of((~layer.stays).long(), 0) == 0,
        direct=of(layer.direct, -2, -1),
        direct_total=of(layer.direct_total, 0),
        attention_error=worst(layer.attention_error),
        mlp_error=worst(layer.mlp_error),
        chain_error=worst(layer.chain_error),
        direct_error=worst(layer.direct_error),
    )


_Measure = Callable[[Tensor], Tensor]


def _sum(edges: Tensor) -> Tensor:
    return edges.double().sum(-1)


def _size(edges: Tensor) -> Tensor:
    return edges.double().abs().sum(-1)


def _ends(mlp: Tensor, residual: Tensor) -> Tensor:
    """All edges into a token leaving the layer, ``(N, H + 1)``."""
    return torch.cat([mlp, residual[:, None]], -1)


def _through(chain: Tensor, residual: Tensor) -> Tensor:
    """All edges into a token leaving the layer, of the chain, ``(N, H N + 1)``."""
    return torch.cat([chain.transpose(0, 1).flatten(1), residual[:, None]], -1)
