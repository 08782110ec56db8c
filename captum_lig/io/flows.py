"""Flows as files: JSON for every language, safetensors for tensors at their own size.

**JSON**, ``"format": "captum_lig.flow"``, ``"version": 1``::

    {
      "format": "captum_lig.flow", "version": 1,
      "model": "all-MiniLM-L6-v2", "text": "...", "tokens": ["[CLS]", ...],
      "settings": {"baseline": "target_token", ...},
      "layers": [{
        "name": "encoder.layer.0", "index": 0,
        "scalarization": "l2", "baseline": "target_token",
        "mlp_start": "attention", "cross_baseline": null, "tolerance": 0.001,
        "cost": {"path_points": 32.0, "forward_equivalents": 80.0, "seconds": 0.03},
        "tensors": {
          "layer": {"axes": ["text", "target", "source"], "shape": [1, 9, 9],
                    "dtype": "float32", "values": [[[...]]]},
          ...
          "delta.layer": {"axes": ["text", "target"], ...}
        }
      }, ...]
    }

The tensors are the fields of :class:`~captum_lig.LayerFlow` under their own names, with
``delta.<boundary>`` for the completeness errors; a boundary that was not attributed is absent.
``targets`` are positions in ``tokens``. Numbers are written so that reading them back gives the
same bits. A number that is not finite is written ``null`` and read back as NaN. Files of before
``mlp_start`` are read as ``attention``, where ``mlp_total`` is ``layer_total``.

**safetensors**: the same tensors as ``layers.<index>.<name>``; the rest of the JSON document is
the metadata entry ``captum_lig``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lig.cost import Cost
from captum_lig.errors import LigError
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.layer_flow import LayerFlow

__all__ = ["FORMAT", "VERSION", "load_flows", "save_flows"]

FORMAT = "captum_lig.flow"
VERSION = 1

AXES = {
    "targets": ("target",),
    "valid": ("text", "source"),
    "attention": ("text", "head", "target", "source"),
    "attention_total": ("text", "head", "target"),
    "mlp": ("text", "target", "head"),
    "residual": ("text", "target"),
    "layer": ("text", "target", "source"),
    "layer_total": ("text", "target"),
    "mlp_total": ("text", "target"),
    "chain": ("text", "head", "target", "source"),
    "chain_total": ("text", "head", "target"),
    "self_weight": ("text", "head", "target"),
    "influence": ("text", "target", "source"),
    "attention_influence": ("text", "head", "target", "source"),
    "cross": ("text", "head", "target", "encoder"),
    "cross_total": ("text", "head", "target"),
    "delta.influence": ("text", "target"),
    "delta.attention_influence": ("text", "head", "target"),
    "delta.attention": ("text", "head", "target"),
    "delta.mlp": ("text", "target"),
    "delta.layer": ("text", "target"),
    "delta.cross": ("text", "head", "target"),
}
"""What the axes of each tensor stand for. ``source`` runs over ``tokens``, ``encoder`` over the
encoder's tokens, which are not in the file."""
_DELTA = "delta."


def save_flows(explanation: Explanation, path: str | Path) -> Path:
    """Write an explanation to a ``.json`` or ``.safetensors`` file.

    Args:
        explanation: flows with their tokens.
        path: the suffix says which format. Missing folders are made.

    Returns:
        The path.

    Raises:
        LigError: if the suffix is another one, or if two flows have the same layer index.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    write, _ = _format(path)
    indices = [flow.index for flow in explanation.flows]
    if len(set(indices)) != len(indices):
        raise LigError(f"layer indices {indices} repeat: save one flow a layer in a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(explanation, path)
    return path


def load_flows(path: str | Path) -> Explanation:
    """Read back what :func:`save_flows` wrote; every number has the same bits.

    Raises:
        LigError: if the file's suffix or content is not this format, or its version is newer.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    _, read = _format(path)
    return read(path)


def _format(
    path: Path,
) -> tuple[Callable[[Explanation, Path], None], Callable[[Path], Explanation]]:
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise LigError(f"{str(path)!r} has no known suffix: use one of {', '.join(_FORMATS)}.")
    return _FORMATS[suffix]


def _write_json(explanation: Explanation, path: Path) -> None:
    document = _header(explanation)
    for layer, flow in zip(document["layers"], explanation.flows, strict=True):
        layer["tensors"] = {name: _tensor_to_json(name, t) for name, t in _tensors(flow)}
    path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def _read_json(path: Path) -> Explanation:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LigError(f"{str(path)!r} is no JSON: {error}.") from error
    _check(document, path)
    tensors = [
        {name: _tensor_from_json(tensor) for name, tensor in layer["tensors"].items()}
        for layer in document["layers"]
    ]
    return _explanation(document, tensors)


def _write_safetensors(explanation: Explanation, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        f"layers.{flow.index}.{name}": tensor.detach().cpu().clone().contiguous()
        for flow in explanation.flows
        for name, tensor in _tensors(flow)
    }
    save_file(tensors, path, metadata={"captum_lig": json.dumps(_header(explanation))})


def _read_safetensors(path: Path) -> Explanation:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {}).get("captum_lig", "{}"))
            _check(document, path)
            tensors: list[dict[str, Tensor]] = []
            for layer in document["layers"]:
                prefix = f"layers.{layer['index']}."
                keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                tensors.append({key.removeprefix(prefix): file.get_tensor(key) for key in keys})
    except SafetensorError as error:
        raise LigError(f"{str(path)!r} is no safetensors file: {error}.") from error
    return _explanation(document, tensors)


def _header(explanation: Explanation) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": explanation.model,
        "text": explanation.text,
        "tokens": list(explanation.tokens),
        "settings": explanation.settings,
        "layers": [
            {
                "name": flow.name,
                "index": flow.index,
                "scalarization": flow.scalarization,
                "baseline": flow.baseline,
                "mlp_start": flow.mlp_start,
                "cross_baseline": flow.cross_baseline,
                "tolerance": flow.tolerance,
                "cost": None if flow.cost is None else asdict(flow.cost),
            }
            for flow in explanation.flows
        ],
    }


def _check(document: Any, path: Path) -> None:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise LigError(f"{str(path)!r} holds no flows: give a file that save_flows wrote.")
    if document.get("version") != VERSION:
        raise LigError(
            f"{str(path)!r} has version {document.get('version')} of the format, and this "
            f"captum_lig reads version {VERSION}: install the captum_lig that wrote it."
        )


def _tensors(flow: LayerFlow) -> Iterable[tuple[str, Tensor]]:
    for name in AXES:
        if name.startswith(_DELTA):
            tensor = flow.delta.get(name.removeprefix(_DELTA))
        else:
            tensor = getattr(flow, name)
        if tensor is not None:
            yield name, tensor


def _explanation(document: dict[str, Any], tensors: list[dict[str, Tensor]]) -> Explanation:
    flows = []
    for layer, named in zip(document["layers"], tensors, strict=True):
        fields = {name: tensor for name, tensor in named.items() if not name.startswith(_DELTA)}
        delta = {
            name.removeprefix(_DELTA): tensor
            for name, tensor in named.items()
            if name.startswith(_DELTA)
        }
        flows.append(
            LayerFlow(
                name=layer["name"],
                index=layer["index"],
                scalarization=layer["scalarization"],
                baseline=layer["baseline"],
                mlp_start=layer.get("mlp_start", "attention"),
                cross_baseline=layer.get("cross_baseline"),
                tolerance=layer["tolerance"],
                cost=None if layer["cost"] is None else Cost(**layer["cost"]),
                delta=delta,
                **fields,
            )
        )
    return Explanation(
        flows=flows,
        tokens=document["tokens"],
        text=document["text"],
        model=document["model"],
        settings=document["settings"],
    )


def _tensor_to_json(name: str, tensor: Tensor) -> dict[str, Any]:
    return {
        "axes": AXES[name],
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "values": _finite(tensor.tolist()),
    }


def _tensor_from_json(tensor: dict[str, Any]) -> Tensor:
    values = torch.tensor(_nan(tensor["values"]), dtype=getattr(torch, tensor["dtype"]))
    return values.reshape(tensor["shape"])


def _finite(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_nan(value) for value in values]
    return math.nan if values is None else values


_FORMATS = {
    ".json": (_write_json, _read_json),
    ".safetensors": (_write_safetensors, _read_safetensors),
}
