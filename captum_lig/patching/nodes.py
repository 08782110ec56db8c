"""The nodes that can be patched, and numbers for each of them in the shape of a graph's trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.shown import Short
from captum_lig.flow.tables import integers, token_words, word, words
from captum_lig.flow.tokens import TokenIndex, find_token
from captum_lig.graph.trace import Trace

__all__ = [
    "KINDS",
    "Kind",
    "Node",
    "NodeValues",
    "checked_kinds",
    "node_columns",
    "node_values",
    "node_values_of",
]

Kind = Literal["tokens", "heads", "attention", "feed_forward"]
KINDS: tuple[Kind, ...] = ("tokens", "heads", "attention", "feed_forward")


@dataclass(frozen=True)
class Node:
    """One vector of a run, or those of all tokens at once."""

    kind: Kind
    """``"tokens"``: the residual stream entering a layer. ``"heads"``: a head's output, before the
    output projection. ``"attention"``: all heads of a layer. ``"feed_forward"``: what its MLP
    adds."""
    layer: int
    """Index of the layer; of tokens the last one plus 1 stands for those that leave the last."""
    position: TokenIndex | None = None
    """Index among the tokens without padding, or what the token says; None for all of them at
    once."""
    head: int | None = None
    """Of ``"heads"``."""

    @property
    def token(self) -> int | None:
        """The position as a number.

        Raises:
            LigError: if it is what the token says, and the text is not known.
        """
        if isinstance(self.position, str):
            raise LigError(
                f"{self} is at a token by what it says: give its position, there is no text here."
            )
        return self.position

    def placed(self, labels: Sequence[str] | None) -> Node:
        """The same at a position that is a number; None: the tokens are not known."""
        if isinstance(self.position, str) and labels is None:
            raise LigError(
                f"nodes hold {brief(self)}, and what the tokens say is not known: give a position, "
                "or tokenizer=."
            )
        return replace(self, position=find_token(self.position, labels or (), "position"))

    def describe(self, labels: Sequence[str] | None = None) -> str:
        """In words, with the names of the tokens if they are given."""
        what = {
            "tokens": f"entering {self.layer}",
            "heads": f"head {self.layer}.{self.head}",
            "attention": f"attention {self.layer}",
            "feed_forward": f"MLP {self.layer}",
        }[self.kind]
        if self.token is None:
            return what
        name = "" if labels is None else f" {word(labels[self.token])!r}"
        return f"{what} at {self.token}{name}"


@dataclass(frozen=True, repr=False)
class NodeValues(Short):
    """Numbers of the nodes of ``L`` layers and ``N`` tokens, float64.

    A kind that no node is of is None, a node that was not asked for or does not exist is NaN.
    """

    layers: tuple[int, ...]
    tokens: Tensor | None
    """``(L + 1, N)``: row ``l`` entering the ``l``-th of the layers, the last row leaving."""
    heads: Tensor | None
    """``(L, H, N)``, or ``(L, H)`` for all tokens at once."""
    attention: Tensor | None
    """``(L, N)`` or ``(L,)``."""
    feed_forward: Tensor | None
    """``(L, N)`` or ``(L,)``."""

    def of(self, node: Node) -> float:
        """The number of a node. At all tokens at once it is the sum, where there is one each."""
        values: Tensor | None = getattr(self, node.kind)
        if values is None:
            return float("nan")
        leaving = node.kind == "tokens" and self.layers[-1] + 1 == node.layer
        values = values[-1 if leaving else self.layers.index(node.layer)]
        if node.kind == "heads":
            assert node.head is not None
            values = values[node.head]
        if values.dim() and node.token is not None:
            values = values[node.token]
        return float(values.sum())


def checked_kinds(kinds: str | Sequence[str]) -> list[Kind]:
    """Names of kinds of nodes.

    Raises:
        LigError: for another name, or none.
    """
    given = [kinds] if isinstance(kinds, str) else list(kinds)
    if not given or any(kind not in KINDS for kind in given):
        raise LigError(f"nodes={brief(kinds)}: give some of {', '.join(KINDS)}, or Nodes.")
    return [kind for kind in KINDS if kind in given]


def node_values(layers: Sequence[int], count: int, numbers: Mapping[Node, float]) -> NodeValues:
    """Numbers of nodes as tensors; nodes of one kind are all at a token, or all at every one.

    Args:
        layers: indices of the layers.
        count: number of tokens ``N``.
        numbers: of each node.
    """
    found: dict[Kind, Tensor] = {}
    for kind in KINDS:
        nodes = [node for node in numbers if node.kind == kind]
        if not nodes:
            continue
        shape = [len(layers) + (kind == "tokens")]
        if kind == "heads":
            shape.append(1 + max(node.head or 0 for node in nodes))
        if nodes[0].token is not None:
            shape.append(count)
        values = torch.full(shape, torch.nan, dtype=torch.float64)
        for node in nodes:
            row = len(layers) if node.layer == layers[-1] + 1 else layers.index(node.layer)
            values[tuple(i for i in (row, node.head, node.token) if i is not None)] = numbers[node]
        found[kind] = values
    return NodeValues(tuple(layers), *(found.get(kind) for kind in KINDS))


def node_columns(nodes: Sequence[Node], labels: Sequence[str] | None) -> dict[str, Any]:
    """Columns of a table that say which nodes there are.

    Args:
        nodes: one a row.
        labels: the tokens, if they are known.
    """
    position = np.array([-1 if node.token is None else node.token for node in nodes])
    unnamed = np.full_like(position, -1)
    return {
        "kind": words([KINDS.index(node.kind) for node in nodes], KINDS),
        "layer": np.array([node.layer for node in nodes]),
        "head": integers([-1 if node.head is None else node.head for node in nodes]),
        "position": integers(position),
        "token": token_words(unnamed if labels is None else position, labels or ()),
    }


def node_values_of(trace: Trace) -> NodeValues:
    """The numbers of a graph's relevances, in the shape of those of patching."""
    return NodeValues(
        trace.layers, trace.tokens, trace.heads, trace.heads.sum(1), trace.feed_forward
    )
