r"""What the page of a number holds: the question, every node, and the strongest edges.

Header, JSON::

    {
      "format": "captum_lig.question", "version": 1,
      "title": "...", "question": "Why does ...?",
      "target": "logit of ...", "change": 13.3, "value": 7.3, "other_value": -6.0,
      "tokens": ["The", "␣capital", ...], "other_tokens": [...],      as a person reads them
      "differs": [3],                                 positions at which the two texts differ
      "other": "the other text", "favours": ["\" Paris\"", "\" Rome\""],
      "options": [["\" Paris\"", 0.77, 0.001, 21.3, 14.4], ...], "options_title": "The model says",
      "notes": ["..."], "sums": 5e-05, "sums_of": "tokens",         or "nodes", see :class:`Known`
      "most_nodes": 150,
      "layers": [{"index": 0, "name": "model.layers.0", "heads": 9}, ...],
      "edges": {"kept": 200000, "all": 35000000, "cutoff": 1e-4, "share": 0.97},
      "checked": [{"kind": "heads", "layer": 23, "head": 4, "position": 4, "part": 12.7,
                   "out": 12.8, "into": 12.5}, ...],
      "checked_says": ["..."],
      "promotes": {"why_not": null, "at": 4, "nodes": {"23.4.4": {
          "change": {"up": [["␣French", 1.2], ...], "down": [...]}, "own": {...}}}},
      "tensors": [...]
    }

What is not known is null. A node is called ``layer.head.position``, and ``layer.mlp.position``.
Tensors are packed as :mod:`captum_lig.views.page.packing` says. Of each layer, ``N`` tokens, ``H``
heads, float32, in units of the target:

- ``entering (N)``, ``leaving (N)``: relevances of tokens; ``heads (H, N)``; where the MLP is a node
  ``mlp (N)``, and of the edges into it ``mlp_heads (N, H)`` and ``mlp_token (N)``;
- edges of attention, those of at least the cutoff: ``edge_index``, uint32, their places in
  ``(H, N, N)`` as head, target, source, ascending; ``edge_value``; and where it is known
  ``edge_read``, what of it came through the values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_lig.flow.tokens import readable_text, readable_token
from captum_lig.graph import FlowGraph
from captum_lig.graph.target_layer import TargetLayer, target_layers
from captum_lig.views.page.packing import packed

__all__ = [
    "MOST_EDGES",
    "MOST_NODES",
    "Known",
    "Promoted",
    "node_name",
    "pack_question",
    "strongest_nodes",
]

FORMAT = "captum_lig.question"
VERSION = 1
MOST_EDGES = 200_000
"""Edges of attention that a page holds."""
MOST_NODES = 150
"""Heads and MLPs, each at a token, that a page draws at most."""
LONGEST_TOKEN = 100
LONGEST_TEXT = 400

Likely = tuple[Sequence[tuple[str, float]], Sequence[tuple[str, float]]]
"""Tokens whose logits grow most and fall most, and by how much."""


@dataclass(frozen=True)
class Promoted:
    """What nodes promote in the vocabulary."""

    at: int
    """The token whose final norm is held."""
    nodes: Mapping[str, tuple[Likely, Likely]]
    """By the node's name: of its change from the other text to this one, and of all it writes."""


@dataclass(frozen=True)
class Known:
    """What is known of a number beside its graph."""

    question: str | None = None
    """As a sentence."""
    other_tokens: Sequence[str] | None = None
    """What the tokens are compared with, as their tokenizer writes them."""
    other: str = "the other text"
    """What those are called."""
    value: float | None = None
    """The number of the text."""
    other_value: float | None = None
    favours: tuple[str, str] | None = None
    """What speaks for a positive part, and for a negative one."""
    options: Sequence[tuple[str, float | None, float | None, float, float]] = ()
    """What the model may say, its probabilities after both texts (None where its numbers stand for
    none), and its logits."""
    options_title: str = "The model says"
    notes: Sequence[str] = ()
    """Further sentences."""
    sums: float | None = None
    """How far the tokens' parts are off the change at the worst depth, as a share of it; of a
    change of 0, of the sum of their sizes. None: what is shown is the worst sum into any node, as
    a share of the change, or of the sum of sizes where relevances cancel."""
    checked: Sequence[Mapping[str, Any]] | None = None
    """What patching showed of nodes."""
    checked_says: Sequence[str] = ()
    promoted: Promoted | str | None = None
    """Or why it is not known."""


def node_name(layer: int, head: int | None, position: int) -> str:
    """What a page calls a node."""
    return f"{layer}.{'mlp' if head is None else head}.{position}"


def strongest_nodes(graph: FlowGraph, count: int) -> list[tuple[int, int | None, int]]:
    """The heads and MLPs with the largest parts, largest first.

    Returns:
        Index of the layer, the head (None for an MLP), and the token.
    """
    sizes, names = [], []
    for layer in target_layers(graph.layers):
        rows: list[tuple[int | None, Tensor]] = list(enumerate(layer.heads_relevance))
        if layer.feed_forward_relevance is not None:
            rows.append((None, layer.feed_forward_relevance))
        for head, row in rows:
            sizes.append(row.abs().cpu())
            names.append((layer.index, head))
    if not names:
        return []
    flat = torch.stack(sizes).flatten()
    best = flat.topk(min(count, len(flat)))
    length = len(graph.tokens)
    return [
        (*names[place // length], place % length)
        for size, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if size
    ]


def pack_question(graph: FlowGraph, title: str | None, known: Known) -> tuple[dict[str, Any], str]:
    """Pack a graph with a target.

    Args:
        graph: the graph.
        title: plain text, of the document, and the question where none is known. None: the
            question, or the target and its change.
        known: what is known beside it.

    Returns:
        The header, in JSON's types, and the numbers in base64.
    """
    layers = target_layers(graph.layers)
    assert graph.target is not None
    cutoff, about_edges = _cutoff(layers)
    tensors, numbers = packed(
        (place, name, kind, tensor)
        for place, layer in enumerate(layers)
        for name, kind, tensor in _numbers(layer, cutoff, len(layers) - 1 == place)
    )
    target = readable_text(graph.target, LONGEST_TEXT)
    question = known.question or title or f"What does the change of {target} come from?"
    title = title or known.question or f"{target}: {graph.change:+.4g}"
    other = known.other_tokens
    promoted = known.promoted
    header = {
        "format": FORMAT,
        "version": VERSION,
        "title": readable_text(title, LONGEST_TEXT),
        "question": readable_text(question, LONGEST_TEXT),
        "target": target,
        "change": graph.change,
        "value": known.value,
        "other_value": known.other_value,
        "tokens": [readable_token(token, LONGEST_TOKEN) for token in graph.tokens],
        "other_tokens": other and [readable_token(token, LONGEST_TOKEN) for token in other],
        "differs": [
            n for n, (a, b) in enumerate(zip(graph.tokens, other or (), strict=False)) if a != b
        ],
        "other": known.other,
        "favours": known.favours,
        "options": [list(one) for one in known.options],
        "options_title": known.options_title,
        "notes": list(known.notes),
        "sums": _worst(layers) if known.sums is None else known.sums,
        "sums_of": "nodes" if known.sums is None else "tokens",
        "most_nodes": MOST_NODES,
        "layers": [{"index": x.index, "name": x.name, "heads": x.heads} for x in layers],
        "edges": about_edges,
        "checked": None if known.checked is None else [dict(one) for one in known.checked],
        "checked_says": list(known.checked_says),
        "promotes": _promotes(promoted),
        "tensors": tensors,
    }
    return header, numbers


def _promotes(promoted: Promoted | str | None) -> dict[str, Any]:
    if not isinstance(promoted, Promoted):
        return {"why_not": promoted or "only why() and captum-lig why work it out", "nodes": {}}

    def ends(likely: Likely) -> dict[str, Any]:
        up, down = (
            [[readable_token(token, LONGEST_TOKEN), value] for token, value in side]
            for side in likely
        )
        return {"up": up, "down": down}

    nodes = {
        name: {"change": ends(change), "own": ends(own)}
        for name, (change, own) in promoted.nodes.items()
    }
    return {"why_not": None, "at": promoted.at, "nodes": nodes}


def _worst(layers: Sequence[TargetLayer]) -> float | None:
    """The largest completeness error of all that goes into a node; None if none is known."""
    found = [one.worst for layer in layers for one in layer.convergence() if one.rows]
    worst = max(found, default=math.nan)
    return worst if math.isfinite(worst) else None


def _cutoff(layers: Sequence[TargetLayer]) -> tuple[float, dict[str, Any]]:
    """The size of the smallest edge that is kept, and what the header says of edges."""
    largest, count, whole = [], 0, 0.0
    for layer in layers:
        sizes = layer.attention.abs().flatten()
        count += int(sizes.count_nonzero())
        whole += float(sizes.sum())
        largest.append(sizes.topk(min(MOST_EDGES, len(sizes))).values.cpu())
    every = torch.cat(largest)
    kept = every.topk(min(MOST_EDGES, count, len(every))).values
    cutoff = float(kept[-1]) if len(kept) and count > MOST_EDGES else 0.0
    share = float(kept.sum()) / whole if whole else 1.0
    return cutoff, {"kept": len(kept), "all": count, "cutoff": cutoff, "share": min(share, 1.0)}


def _numbers(layer: TargetLayer, cutoff: float, last: bool) -> Iterator[tuple[str, str, Tensor]]:
    """The tensors of a layer and the types that the page holds them in."""
    yield "entering", "float32", layer.entering
    if last:
        yield "leaving", "float32", layer.leaving
    yield "heads", "float32", layer.heads_relevance
    if layer.feed_forward_relevance is not None:
        assert layer.feed_forward_heads is not None
        assert layer.feed_forward_token is not None
        yield "mlp", "float32", layer.feed_forward_relevance
        yield "mlp_heads", "float32", layer.feed_forward_heads
        yield "mlp_token", "float32", layer.feed_forward_token
    edges = layer.attention.flatten()
    kept = ((edges != 0) & (edges.abs() >= cutoff)).nonzero().squeeze(-1)
    yield "edge_index", "uint32", kept
    yield "edge_value", "float32", edges[kept]
    if layer.attention_value is not None:
        yield "edge_read", "float32", layer.attention_value.flatten()[kept]
