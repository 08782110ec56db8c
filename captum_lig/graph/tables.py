"""Edges and nodes of a graph as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_lig.flow.tables import frame, integers, token_words, words
from captum_lig.graph.edges import edges_of
from captum_lig.graph.layer import GraphLayer

__all__ = ["edge_frame", "node_frame"]


def edge_frame(layers: Sequence[GraphLayer], tokens: Sequence[str]) -> Any:
    """The table that ``FlowGraph.to_pandas`` gives."""
    kinds = layers[0].KINDS
    parts: list[dict[str, NDArray[Any]]] = []
    for number, kind in enumerate(kinds):
        edges = edges_of(layers, kind)
        shares = [
            layer.share(kind)[layer.there(kind)]
            for layer in layers
            if getattr(layer, kind) is not None
        ]
        columns = {
            "kind": torch.full_like(edges.layer, number),
            "layer": edges.layer,
            "head": edges.head,
            "target": edges.target,
            "source": edges.source,
            "value": edges.value,
            "share": torch.cat(shares) if shares else edges.value,
        }
        parts.append({name: column.cpu().numpy() for name, column in columns.items()})
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return frame(
        {
            "kind": words(found["kind"], kinds),
            "layer": found["layer"],
            "head": integers(found["head"]),
            "target_position": found["target"],
            "target": token_words(found["target"], tokens),
            "source_position": found["source"],
            "source": token_words(found["source"], tokens),
            "value": found["value"],
            "share": found["share"],
        }
    )


def node_frame(kinds: dict[str, Tensor], layers: Sequence[int], tokens: Sequence[str]) -> Any:
    """A row for each node.

    Args:
        kinds: what each node has, by kind: ``(L, N)``, ``(L + 1, N)`` or of heads ``(L, H, N)``.
        layers: their indices.
        tokens: what they are called.
    """
    depths = np.array([*layers, layers[-1] + 1])
    parts: list[dict[str, NDArray[Any]]] = []
    for number, values in enumerate(kinds.values()):
        place = np.indices(values.shape)
        head = place[1] if values.dim() == 3 else np.full(place[0].shape, -1)
        parts.append(
            {
                "kind": np.full(values.numel(), number),
                "layer": depths[place[0]].ravel(),
                "head": head.ravel(),
                "position": place[-1].ravel(),
                "value": values.detach().cpu().numpy().ravel(),
            }
        )
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return frame(
        {
            "kind": words(found["kind"], list(kinds)),
            "layer": found["layer"],
            "head": integers(found["head"]),
            "position": found["position"],
            "token": token_words(found["position"], tokens),
            "value": found["value"],
        }
    )
