"""The graph of words in place of word pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.words import add_up, in_order, whole_words, word_groups, word_labels
from captum_lig.graph.layer import GraphLayer

__all__ = ["merged_layer", "words_of"]

AnyLayer = TypeVar("AnyLayer", bound=GraphLayer)


def words_of(
    tokens: Sequence[str],
    positions: Tensor,
    word_ids: Sequence[int | None] | None,
    offsets: Sequence[tuple[int, int]] | None,
    text: str | None,
) -> tuple[list[int], list[str]]:
    """The word of each token of a graph, in the order they come, and what the words are called.

    The words are given as :meth:`FlowGraph.merge_tokens` takes them; a LigError as
    :func:`~captum_lig.flow.words.word_groups` has, or for too few entries.
    """
    groups = word_groups(word_ids, offsets=offsets, text=text)
    if len(groups) != len(tokens):
        indices = positions.tolist()
        if len(groups) <= max(indices):
            name = "word numbers" if offsets is None else "offsets"
            raise LigError(
                f"{len(groups)} {name} were given for a graph of {len(tokens)} tokens, the last of "
                f"them at position {max(indices)}: give one for each token of the graph, or of the "
                "text with its padding."
            )
        groups = [groups[index] for index in indices]
        offsets = None if offsets is None else [offsets[index] for index in indices]
    groups = in_order(groups)
    return groups, word_labels(tokens, groups, offsets=offsets, text=text)


def merged_layer(layer: AnyLayer, groups: Sequence[int]) -> AnyLayer:
    """The layer with the edges of the pieces of each word added up.

    Edges between pieces of a word become edges of the word to itself. Sums of the whole layer's
    edges at a node add up too. Sums of absolute values are taken anew, since edges of opposite
    sign cancel in a word; of edges that are not in the graph (pruned) the pieces' sizes are kept,
    which is the most that they can come to. The completeness error of a word is the largest of its
    pieces, which its own cannot exceed. Influence is left out: lengths of pieces do not add up.

    Raises:
        LigError: if a word has a piece that was a target and one that was none.
    """
    word = torch.as_tensor(groups, device=layer.known.device)
    whole_words(layer.known, groups)

    def merge(values: Tensor, axes: tuple[str, ...]) -> Tensor:
        """Sums over the pieces, float64."""
        merged = values.double()
        for dim, axis in enumerate(axes):
            if axis != "head":
                merged = add_up(merged, dim, word)
        return merged

    before = layer.tensors()
    after: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    for part, value in layer.parts():
        if part.merge == "all":
            after[part.name] = merge(~value, part.axes) == 0
        elif part.merge == "drop":
            dropped[part.name] = None
        elif part.merge is not None:
            after[part.name] = merge(value, part.axes).to(value.dtype)
    # Of the edges that are not in the graph the whole layer's sums are all that is known.
    own, anew = layer.sums_of(before), layer.sums_of(after)
    for name, sums in anew.items():
        after[name] = sums + merge(before[name] - own[name], layer.declared()[name].axes)
        if name.endswith("_size"):
            after[name] = torch.maximum(after[name], sums)
    errors = {}
    for name, found in layer.errors.items():
        worst = found.new_zeros(*found.shape[:-1], max(groups) + 1)
        errors[name] = worst.scatter_reduce_(-1, word.expand_as(found), found, "amax")
    return replace(layer, **after, **dropped, errors=errors)
