"""Graphs as files: JSON, safetensors, and GraphML for other programs.

**JSON**, ``"format": "captum_lig.graph"``, ``"version": 1``: a table of nodes and a table of edges
a kind, as columns, so that ``pandas.DataFrame(document["edges"]["mlp"])`` is a table::

    {
      "format": "captum_lig.graph", "version": 1,
      "scalarization": "l2", "baseline": "target_token",
      "tokens": ["[CLS]", ...],           what the tokens are called
      "positions": [0, 1, ...],           their places in the text as the model got it
      "layers": [{"name": "encoder.layer.0", "index": 0, "heads": 12, "dtype": "float32",
                  "tolerance": 0.001, "has": ["attention", "mlp", ...]}, ...],
      "nodes": {
        "z": {"layer": [...], "token": [...], "sum": [...], "size": [...], "chain_sum": [...],
              "chain_size": [...], "known": [...], "stays": [...], "direct_total": [...],
              "mlp_error": [...], "direct_error": [...]},
        "u": {"layer": [...], "head": [...], "token": [...], "sum": [...], "size": [...],
              "attention_error": [...], "chain_error": [...]}
      },
      "edges": {
        "attention": {"source": [...], "target": [...], "value": [...], "share": [...],
                      "chain": [...]},
        "mlp":       {"source": [...], "target": [...], "value": [...], "share": [...]},
        "residual":  {"source": [...], "target": [...], "value": [...], "share": [...]}
      },
      "direct": {"source": [...], "target": [...], "value": [...]}
    }

- ``z`` are the tokens of the residual stream entering ``layer``; those that leave the last layer
  come at the end, with the next number. ``u`` are the outputs of the heads. ``token`` is a place
  in ``tokens``.
- ``source`` and ``target`` are rows of the node tables, from 0: attention edges go from ``z`` to
  ``u``, mlp edges from ``u`` to ``z``, residual edges from ``z`` to ``z``. Edges that carry
  nothing are left out. ``value`` is the signed attribution, a length; ``share`` the signed share
  of its target node that the edge carries, the value by the node's ``sum``; ``chain`` the
  attribution with the cotangent that the mlp boundary hands down.
- ``sum`` and ``size``, of absolute values, are of all edges that the layer has at the node, those
  that are not in the graph (pruned) included. ``known`` is false for tokens that were no target of
  the attribution; ``stays`` is true for tokens that nothing moved, whose relevance all stays with
  them: their residual edge has value 0 and share 1. Errors are relative completeness errors.
- ``direct`` are the layers' maps from ``z`` to ``z`` in one go, which are no part of the graph.

What is not there is null: all of this at the tokens entering the first layer, and what a layer's
flow does not have. Numbers are written so that reading them back gives the same bits; those that
are not finite as ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``. ``has`` names the tensors of
:class:`captum_lig.graph.layer.GraphLayer` that the layer has.

**safetensors**: the tensors of :class:`captum_lig.graph.layer.GraphLayer` as
``layers.<index>.<name>``, or where that is smaller as ``layers.<index>.<name>.index``, the places
of the numbers that are not 0 in row-major order, and ``layers.<index>.<name>.values``; and
``positions``. The rest is JSON in the metadata entry ``captum_lig``, with the ``shapes`` of the
tensors that are stored by place.

**GraphML**: what :meth:`FlowGraph.to_networkx` makes, with text for the names of nodes:
``z.<layer>.<token>`` and ``u.<layer>.<head>.<token>``. Characters of a token that XML cannot hold
are written as escapes, an empty token as two quotes. It is not read back. It is long: prune first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.graph.layer import GraphLayer
from captum_lig.io.networkx import write_graphml
from captum_lig.io.tables import (
    U_COLUMNS,
    Z_COLUMNS,
    direct_columns,
    edge_tables,
    node_columns,
    stored,
)

if TYPE_CHECKING:
    from captum_lig.graph.flow_graph import FlowGraph

__all__ = ["FORMAT", "VERSION", "Parts", "load", "save"]

FORMAT = "captum_lig.graph"
VERSION = 1


class Parts(NamedTuple):
    """What a graph is made of."""

    layers: list[GraphLayer]
    tokens: list[str]
    positions: Tensor
    scalarization: str
    baseline: str


def save(graph: FlowGraph, path: str | Path) -> Path:
    """Write a graph to a ``.json``, ``.safetensors`` or ``.graphml`` file.

    Args:
        graph: the graph.
        path: the suffix says which format. Missing folders are made.

    Returns:
        The path.

    Raises:
        LigError: if the suffix is another one, or networkx is not installed (GraphML).
        OSError: if the file cannot be written.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise LigError(f"{str(path)!r} has no known suffix: use one of {', '.join(_WRITERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(graph, path)
    return path


def load(path: str | Path) -> Parts:
    """Read back what :func:`save` wrote; every number has the same bits.

    Raises:
        LigError: if the file's suffix or content is not this format, or its version is another.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _WRITERS and suffix not in _READERS:
        raise LigError(
            f"{str(path)!r}: GraphML is written for other programs and not read back: save the "
            f"graph as {' or '.join(_READERS)} too, and load that."
        )
    if suffix not in _READERS:
        raise LigError(f"{str(path)!r} has no known suffix: use one of {', '.join(_READERS)}.")
    try:
        return _READERS[suffix](path)
    except LigError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise LigError(f"{str(path)!r} is damaged: save the graph again ({reason}).") from error


# --- JSON -----------------------------------------------------------------------------------------


def _write_json(graph: FlowGraph, path: Path) -> None:
    edges: dict[str, dict[str, list[Any]]] = {}
    for table in edge_tables(graph):
        columns = table.columns()
        if table.kind == "attention":
            columns.setdefault("chain", [None] * len(columns["value"]))
        whole = edges.setdefault(table.kind, {name: [] for name in columns})
        for name, column in columns.items():
            whole[name] += column
    layers = [
        {
            "name": layer.name,
            "index": layer.index,
            "heads": layer.heads,
            "dtype": str(layer.attention.dtype).removeprefix("torch."),
            "tolerance": layer.tolerance,
            "has": list(layer.tensors()),
        }
        for layer in graph.layers
    ]
    document = {
        **_header(graph),
        "positions": graph.positions.tolist(),
        "layers": layers,
        "nodes": _finite(node_columns(graph)),
        "edges": _finite(edges),
        **_finite({"direct": direct_columns(graph)}),
    }
    path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def _read_json(path: Path) -> Parts:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LigError(f"{str(path)!r} is no JSON: {error}.") from error
    _check(document, path)
    count = len(document["tokens"])
    z, u = document["nodes"]["z"], document["nodes"]["u"]
    edges = {kind: _numbers(table) for kind, table in document["edges"].items()}
    direct = _numbers(document["direct"])
    layers, first_u = [], 0
    for number, about in enumerate(document["layers"]):
        heads, dtype, has = about["heads"], getattr(torch, about["dtype"]), about["has"]
        entering = number * count
        leaving = slice(entering + count, entering + 2 * count)
        outputs = slice(first_u, first_u + heads * count)
        first_u = outputs.stop

        square = (heads, count, count)
        c = _among(edges["attention"], "target", outputs)
        at_c = c["target"] * count + c["source"].long() - entering
        m = _among(edges["mlp"], "source", outputs)
        at_m = m["source"] % count * heads + m["source"] // count
        r = _among(edges["residual"], "target", leaving)
        d = _among(direct, "target", leaving)
        at_d = d["target"] * count + d["source"].long() - entering
        tensors = {
            "attention": _dense(at_c, c["value"], dtype, square),
            "mlp": _dense(at_m, m["value"], dtype, (count, heads)),
            "residual": _dense(r["target"], r["value"], dtype, (count,)),
            "chain": _dense(at_c, c["chain"], dtype, square),
            "direct": _dense(at_d, d["value"], dtype, square[1:]),
        }
        for name, field in U_COLUMNS.items():
            tensors[field] = _column(u[name][outputs]).reshape(heads, count)
        for name, field in Z_COLUMNS.items():
            tensors[field] = _column(z[name][leaving])
        for field in ("known", "stays"):
            tensors[field] = tensors[field].bool()
        layers.append(_layer(about, {name: tensors[name] for name in has}))
    return _parts(document, layers, torch.tensor(document["positions"], dtype=torch.long))


def _numbers(table: dict[str, list[Any]]) -> dict[str, Tensor]:
    return {name: _column(values) for name, values in table.items()}


def _column(values: list[Any]) -> Tensor:
    """A column of numbers, float64."""
    return torch.from_numpy(numpy.array(values, dtype=numpy.float64))


def _among(table: dict[str, Tensor], end: str, rows: slice) -> dict[str, Tensor]:
    """The edges with one end among some rows of the nodes, which are counted from the first."""
    inside = (table[end] >= rows.start) & (table[end] < rows.stop)
    found = {name: column[inside] for name, column in table.items()}
    return {**found, end: found[end].long() - rows.start}


def _dense(places: Tensor, values: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    whole = torch.zeros(math.prod(shape), dtype=dtype)
    whole[places] = values.to(dtype)
    return whole.reshape(shape)


def _finite(tables: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
    def written(number: Any) -> Any:
        if not isinstance(number, float) or math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"

    return {
        kind: {name: list(map(written, values)) for name, values in table.items()}
        for kind, table in tables.items()
    }


# --- safetensors ----------------------------------------------------------------------------------


def _write_safetensors(graph: FlowGraph, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"positions": graph.positions.cpu().contiguous()}
    layers = []
    for layer in graph.layers:
        shapes: dict[str, list[int]] = {}
        for name, tensor in layer.tensors().items():
            whole = tensor.detach().cpu().clone().contiguous()
            key = f"layers.{layer.index}.{name}"
            sparse = _sparse(whole)
            if sparse is None:
                tensors[key] = whole
            else:
                shapes[name] = list(whole.shape)
                tensors[f"{key}.index"], tensors[f"{key}.values"] = sparse
        about = {"name": layer.name, "index": layer.index, "tolerance": layer.tolerance}
        layers.append({**about, "shapes": shapes})
    document = {**_header(graph), "layers": layers}
    save_file(tensors, path, metadata={"captum_lig": json.dumps(document)})


def _sparse(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Places and values of what is not 0, if they take less room than the tensor."""
    if not tensor.is_floating_point():
        return None
    kept = stored(tensor).flatten()
    index = torch.int32 if tensor.numel() < 2**31 else torch.int64
    if int(kept.sum()) * (index.itemsize + tensor.element_size()) >= tensor.nbytes:
        return None
    return kept.nonzero().flatten().to(index), tensor.flatten()[kept]


def _read_safetensors(path: Path) -> Parts:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {}).get("captum_lig", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise LigError(f"{str(path)!r} is no safetensors file: {error}.") from error
    _check(document, path)
    layers = []
    for about in document["layers"]:
        prefix = f"layers.{about['index']}."
        named: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            if key.startswith(prefix) and not key.endswith((".index", ".values")):
                named[key.removeprefix(prefix)] = tensor
        for name, shape in about["shapes"].items():
            index, values = (tensors[f"{prefix}{name}.{part}"] for part in ("index", "values"))
            named[name] = _dense(index.long(), values, values.dtype, tuple(shape))
        layers.append(_layer(about, named))
    return _parts(document, layers, tensors["positions"])


# --- both -----------------------------------------------------------------------------------------


def _header(graph: FlowGraph) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "scalarization": graph.scalarization,
        "baseline": graph.baseline,
        "tokens": graph.tokens,
    }


def _check(document: Any, path: Path) -> None:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise LigError(f"{str(path)!r} holds no graph: give a file that FlowGraph.save wrote.")
    if document.get("version") != VERSION:
        raise LigError(
            f"{str(path)!r} has version {document.get('version')} of the format, and this "
            f"captum_lig reads version {VERSION}: install the captum_lig that wrote it."
        )


def _layer(about: dict[str, Any], tensors: dict[str, Tensor]) -> GraphLayer:
    fields: dict[str, Any] = {"chain": None, "chain_sum": None, "chain_size": None, **tensors}
    return GraphLayer(about["name"], about["index"], tolerance=about["tolerance"], **fields)


def _parts(document: dict[str, Any], layers: list[GraphLayer], positions: Tensor) -> Parts:
    return Parts(
        layers, document["tokens"], positions, document["scalarization"], document["baseline"]
    )


_WRITERS: dict[str, Callable[[FlowGraph, Path], None]] = {
    ".json": _write_json,
    ".safetensors": _write_safetensors,
    ".graphml": write_graphml,
}
_READERS: dict[str, Callable[[Path], Parts]] = {
    ".json": _read_json,
    ".safetensors": _read_safetensors,
}
