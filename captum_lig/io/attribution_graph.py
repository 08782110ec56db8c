"""A graph as the JSON that circuit-tracer's frontend and Neuronpedia's viewer open.

The format is that of ``circuit_tracer.frontend.graph_models`` (circuit-tracer 0.5) and of
Neuronpedia's ``graph-schema.json`` (1.0.0): ``nodes`` with a layer and a token, ``links`` with a
weight. There, a node is a feature of a transcoder and a weight its direct effect on another with
attention and norms held fixed. Here nodes are embeddings, heads, MLPs and the number that is
explained, and a weight is the part of the number's change that goes along the edge.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lig._arguments import brief, fraction, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import decode_bytes, join_texts
from captum_lig.flow.tokens import readable_text
from captum_lig.graph.direct_edges import DirectEdges
from captum_lig.graph.flow_graph import FlowGraph
from captum_lig.io.codec import document_from_json, own_version, writing
from captum_lig.io.numbered_graph import DirectGraph, Links, NumberedGraph

__all__ = ["INDEX", "read_index", "save_attribution_graph"]

INDEX = "graph-metadata.json"
"""The list of graphs in a folder that circuit-tracer's server reads."""
PINNED = 12
"""So many of the strongest nodes are in the viewers' subgraph when a file is opened."""
LONGEST = 32
"""Characters of the target's name, which is drawn beside the graph."""


def save_attribution_graph(
    graph: FlowGraph,
    path: str | Path,
    edges: DirectEdges | None = None,
    *,
    model: str = "",
    prompt: str | None = None,
    probability: float | None = None,
    nodes: int = 200,
    links: int = 2000,
) -> Path:
    """Write a graph for circuit-tracer's frontend and Neuronpedia's viewer.

    With direct edges a link runs from what writes to the residual stream to what reads it. What a
    head (or the heads that share a key) reads at a token is a node of its own, from where links run
    to the head's output at that token and at later ones. Without them links run from layer to
    layer, and tokens between layers are nodes. Either way the links into a node add up to its
    relevance, and those out of it, too, but for those that were left out. How many nodes and links
    those were, and what part of all sizes is kept, is in the metadata's ``pruning_settings``.

    Args:
        graph: a graph with a target.
        path: a file ``<name>.json``, the name of letters, digits, ``-``, ``_`` and ``.``. The graph
            is also listed in ``graph-metadata.json`` beside it, as circuit-tracer's server needs.
        edges: what :meth:`LayerFlowIG.direct_edges` gave for the same text, baseline and target.
        model: the model's name; Neuronpedia's own name for it, to upload the file there.
        prompt: the text; None: its tokens.
        probability: of the token that the number is about, to be shown beside it.
        nodes: so many heads, MLPs and tokens between layers, of largest relevance; embeddings and
            the target are kept besides. Those without a link are left out.
        links: so many, the strongest between those nodes.

    Returns:
        The path.

    Raises:
        LigError: for a graph without a target, edges of another text or number, or a name that
            the viewers cannot open.
        OSError: if the file cannot be written.

    Example::

        >>> from captum_lig import FlowGraph, LayerFlowIG
        >>> lig = LayerFlowIG(decoder)
        >>> graph = FlowGraph(lig.attribute(ids, other_ids, target))
        >>> edges = lig.direct_edges(ids, other_ids, target)
        >>> save_attribution_graph(graph, "capital.json", edges)
        PosixPath('capital.json')

    ``circuit-tracer start-server --graph_file_dir .`` shows it.
    """
    path = _checked(Path(path))
    whole_number("nodes", nodes, 1)
    whole_number("links", links, 1)
    if probability is not None:
        fraction("probability", probability, ends=True)
    if graph.target is None:
        raise LigError(
            "an attribution graph is of a number of the model: attribute a target, "
            "LayerFlowIG.attribute(..., target=...)."
        )
    made = NumberedGraph(graph) if edges is None else DirectGraph(graph, edges)
    kept, influence = _strongest_nodes(made, nodes)
    found, about = _strongest_links(made, kept, links)
    linked = torch.zeros_like(kept)
    linked[found[0]] = linked[found[1]] = True
    kept &= linked | made.ends
    sizes = made.relevance.abs()
    facts = {
        "target": graph.target,
        "change": graph.change,
        "baseline": graph.baseline,
        "links": made.LINKS,
    }
    pruning = {
        "nodes_kept": int(kept.sum()),
        "nodes_of": int(made.exists.sum()),
        "share_of_relevance_kept": _share(sizes[kept], sizes[made.exists]),
        **about,
    }
    names = edges.labels if edges is not None and edges.labels is not None else graph.tokens
    written = _Words(made, [_harmless(decode_bytes(name).replace("▁", " ")) for name in names])
    between = kept & ~made.ends
    metadata = {
        "slug": path.stem,
        "scan": model,
        "transcoder_list": [],
        "prompt_tokens": written.tokens,
        "prompt": join_texts(written.tokens) if prompt is None else _harmless(prompt),
        # The viewers' sliders end here, in steps of a hundredth.
        "node_threshold": math.ceil(100 * float(influence[between].max())) / 100
        if between.any()
        else 1.0,
        "schema_version": 1,  # the numbers of features are pairs
        "info": {
            "description": (
                f"What the change of {graph.target}, {graph.change:+.4g}, goes through, from the "
                f"baseline ({graph.baseline}) to the text. A link's weight is the part of the "
                f"change that goes along it. {pruning['nodes_kept']:,} of "
                f"{pruning['nodes_of']:,} nodes and {pruning['links_kept']:,} of "
                f"{pruning['links_of']:,} links are here."
            ),
            "generator": {"name": "captum_lig", "version": own_version()},
        },
        "generation_settings": facts,
        "pruning_settings": pruning,
    }
    pinned = (sizes * kept).topk(min(PINNED, int(kept.sum()))).indices
    state = {
        "pinnedIds": [written.name(number) for number in pinned.tolist()],
        "supernodes": [],
        "linkType": "both",
        "sg_pos": "",
    }
    document = {
        "metadata": metadata,
        "qParams": state | {"clickedId": written.name(made.target)},
        "nodes": [
            written.node(number, float(influence[number]), probability)
            for number in kept.nonzero().squeeze(-1).tolist()
        ],
        "links": [
            {"source": written.name(source), "target": written.name(target), "weight": weight}
            for source, target, weight in zip(*(x.tolist() for x in found), strict=True)
        ],
    }
    with writing(path) as beside:
        beside.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    _list(metadata, path.with_name(INDEX))
    return path


def _strongest_nodes(graph: NumberedGraph, count: int) -> tuple[Tensor, Tensor]:
    """Which nodes are the strongest, or an end; and what part of all sizes each is among.

    The latter is circuit-tracer's ``influence``: from the strongest node down, the share that it
    has together with all that are stronger.
    """
    sizes = graph.relevance.abs() * ~graph.ends
    order = sizes.argsort(descending=True, stable=True)
    influence = torch.zeros_like(sizes)
    influence[order] = sizes[order].cumsum(0) / (sizes.sum() or 1.0)
    kept = graph.ends.clone()
    kept[order[:count]] = True
    return kept & graph.exists, influence.clamp(max=1.0)


def _strongest_links(
    graph: NumberedGraph, kept: Tensor, count: int
) -> tuple[Links, dict[str, Any]]:
    """The strongest links between nodes that are kept, and how many of how many they are."""
    parts, total, size = [], 0, 0.0
    for source, target, weight in graph.links():
        total += len(weight)
        size += float(weight.abs().sum())
        between = kept[source] & kept[target]
        parts.append((source[between], target[between], weight[between]))
    source, target, weight = (torch.cat(x) for x in zip(*parts, strict=True))
    order = weight.abs().argsort(descending=True, stable=True)[:count]
    found = source[order], target[order], weight[order]
    about = {
        "links_kept": len(order),
        "links_of": total,
        "share_of_weights_kept": float(found[2].abs().sum()) / size if size else 1.0,
    }
    return found, about


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() > 0 else 1.0


class _Words:
    """Names and labels of nodes, as the viewers want them. They call a label ``clerp``."""

    def __init__(self, graph: NumberedGraph, tokens: list[str]) -> None:
        self.graph, self.tokens = graph, tokens

    def name(self, number: int) -> str:
        """``<layer>_<what>_<token>``, as circuit-tracer names nodes."""
        kind, row, which, token = self.graph.place(number)
        if kind == "embedding":
            return f"E_{token}_{token}"
        return f"{self._layer(row)}_{self._feature(kind, which)}_{token}"

    def node(self, number: int, influence: float, probability: float | None) -> dict[str, Any]:
        """All that is said of a node."""
        graph = self.graph
        kind, row, which, token = graph.place(number)
        value, layer = float(graph.relevance[number]), self._layer(row)
        about: dict[str, Any] = {
            "node_id": self.name(number),
            "jsNodeId": self.name(number),
            "ctx_idx": token,
            "token_prob": 0.0,
            "is_target_logit": kind == "target",
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "influence": influence,
            "activation": None,
            "relevance": value,
        }
        if kind == "embedding":
            return about | {
                "feature": token,
                "layer": "E",
                "feature_type": "embedding",
                "clerp": f"Emb: “{self.tokens[token]}” {value:+.3g}",
                "influence": None,
            }
        if kind == "target":
            words = re.sub(r"logit of |, as the next token$", "", graph.graph.target or "")
            words = readable_text(_harmless(words.replace('"', "'")), LONGEST)
            shown = "unknown" if probability is None else f"{probability:.3f}"
            return about | {
                "feature": 0,
                "layer": str(layer),
                "feature_type": "logit",
                # Both viewers look for the name between quotation marks, and for "(p=".
                "clerp": f'Output "{words}" {value:+.3g} (p={shown})',
                "token_prob": probability or 0.0,
                "influence": None,
            }
        feature = self._feature(kind, which)
        says, label = self._label(kind, row, which)
        return about | {
            "feature": (layer + feature) * (layer + feature + 1) // 2 + feature,  # Cantor's pair
            "layer": str(layer),
            "feature_type": says,
            "clerp": f"{label} “{self.tokens[token]}” {value:+.3g}",
        }

    def _layer(self, row: int) -> int:
        layers = self.graph.layers
        return layers[row].index if row < len(layers) else layers[-1].index + 1

    def _feature(self, kind: str, which: int) -> int:
        first = {"mlp": self.graph.mlp, "reads": self.graph.reads, "leaves": self.graph.leaves}
        return first.get(kind, 0) + which

    def _label(self, kind: str, row: int, which: int) -> tuple[str, str]:
        """The type of a layer's node, and what is said before its token."""
        layer = self._layer(row)
        if kind == "head":
            return "attention head", f"head {layer}.{which} at"
        if kind == "mlp":
            return "mlp", f"MLP {layer} at"
        if kind == "leaves":
            return "token", f"after layer {layer}:"
        assert isinstance(self.graph, DirectGraph)
        shared = self.graph.shared[row]
        if shared == 1:
            return "attention input", f"head {layer}.{which} reads"
        first, last = which * shared, (which + 1) * shared - 1
        return "attention input", f"heads {layer}.{first} to {layer}.{last} read"


def _harmless(text: str) -> str:
    """Text without tags, for both viewers show labels as HTML: other angle quotation marks."""
    return text.replace("<", "\u2039").replace(">", "\u203a")


def _checked(path: Path) -> Path:
    if path.suffix != ".json" or not re.fullmatch(r"[A-Za-z0-9_.-]+", path.stem):
        raise LigError(
            f"{str(path)!r}: the viewers open <name>.json, with a name of letters, digits, '-', "
            "'_' and '.'."
        )
    if path.name == INDEX:
        raise LigError(f"{str(path)!r} is where graphs are listed: choose another name.")
    return path


def _list(metadata: dict[str, Any], path: Path) -> None:
    """Note a graph in the list of its folder, in place of one of the same name."""
    graphs = [one for one in read_index(path) if one["slug"] != metadata["slug"]]
    with writing(path) as beside:
        beside.write_text(json.dumps({"graphs": [*graphs, metadata]}), encoding="utf-8")


def read_index(path: Path) -> list[dict[str, Any]]:
    """The graphs that a folder's list names; none if there is no list.

    Raises:
        LigError: if the file is something else.
    """
    if not path.exists():
        return []
    try:
        graphs = document_from_json(path.read_text(encoding="utf-8"))["graphs"]
        if all(isinstance(one["slug"], str) for one in graphs) and isinstance(graphs, list):
            return graphs
        reason = "a graph has no slug"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = brief(error)
    raise LigError(
        f"{str(path)!r} is no list of graphs ({reason}): move it away, or choose another folder."
    )
