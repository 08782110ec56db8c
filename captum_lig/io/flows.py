"""Flows as files, ``"format": "captum_lig.flow"``; :mod:`captum_lig.io.codec` says how.

The head has ``model``, ``text``, ``tokens`` and ``settings``; a layer ``name``, ``index``,
``scalarization``, ``baseline``, ``mlp_start``, ``cross_baseline``, ``target``, ``tolerance`` and
``cost``. Its tensors are ``targets``, positions in ``tokens``, ``valid``, and the fields of
:mod:`captum_lig.flow.axes` under their names; a boundary that was not attributed is absent.
``source`` runs over ``tokens``, ``encoder`` over the encoder's tokens, which are not in the file.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from captum_lig._arguments import brief
from captum_lig.cost import Cost
from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS, field_of
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.flows import Flows
from captum_lig.flow.layer_flow import FRAME, LayerFlow
from captum_lig.io.codec import (
    MOST_BYTES,
    Axed,
    Document,
    Section,
    damaged,
    document_to_json,
    load_document,
    save_document,
    take,
)

__all__ = ["FORMAT", "flows_to_json", "load_flows", "save_flows"]

FORMAT = "captum_lig.flow"

FACTS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "index": (int,),
    "scalarization": (str,),
    "baseline": (str,),
    "mlp_start": (str,),
    "cross_baseline": (str, type(None)),
    "target": (str, type(None)),
    "tolerance": (float, type(None)),
}


def save_flows(explanation: Explanation, path: str | Path) -> Path:
    """Write an explanation to a ``.json`` or ``.safetensors`` file, and return its path.

    Args:
        explanation: flows with their tokens.
        path: the suffix says which format. Missing folders are made; a file of more than 100 MB is
            warned of first.

    Raises:
        LigError: if the suffix is another one, if two flows have the same layer index, or if there
            is not a token for each source.
        OSError: if the file cannot be written.
    """
    return save_document(_document(explanation), Path(path), FORMAT)


def flows_to_json(explanation: Explanation) -> dict[str, Any]:
    """What :func:`save_flows` writes to a ``.json`` file, in JSON's types.

    Raises:
        LigError: as :func:`save_flows`.
    """
    return document_to_json(_document(explanation), FORMAT)


def load_flows(path: str | Path, *, most_bytes: int = MOST_BYTES) -> Explanation:
    """Read back what :func:`save_flows` wrote, on the CPU; every number has the same bits.

    Args:
        path: a ``.json`` or ``.safetensors`` file; it may be a stranger's.
        most_bytes: of memory that reading may take. A small file can stand for large tensors of
            zeros, and JSON takes up to 40 times its size.

    Raises:
        LigError: if the file's suffix, content or version is another, or it takes more memory.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    document = load_document(path, FORMAT, "flows", most_bytes)
    for name in {name for layer in document.layers for name in layer.tensors} - FRAME.keys():
        field_of(name)
    about = document.head.about
    with damaged(path):
        tokens = take(about, "tokens", list)
        if not all(isinstance(token, str) for token in tokens):
            raise LigError("tokens are not text")
        explanation = Explanation(
            flows=Flows(_flow(layer, tokens) for layer in document.layers),
            tokens=tokens,
            text=take(about, "text", str),
            model=take(about, "model", str),
            settings=take(about, "settings", dict),
        )
        _check_flows(explanation)
    return explanation


def _document(explanation: Explanation) -> Document:
    _check_flows(explanation)
    head = {name: getattr(explanation, name) for name in ("model", "text", "settings")}
    head["tokens"] = list(explanation.tokens)
    return Document(Section(head), [_section(flow) for flow in explanation.flows])


def _check_flows(explanation: Explanation) -> None:
    if not isinstance(explanation, Explanation):
        raise LigError(
            f"{brief(explanation)} is a {type(explanation).__name__}: give "
            "captum_lig.explain.Explanation(flows, tokens), the flows with every token of their "
            "text."
        )
    indices = [flow.index for flow in explanation.flows]
    if len(set(indices)) != len(indices):
        raise LigError(f"layer indices {indices} repeat: save one flow a layer in a file.")
    # Of an encoder-decoder the tokens are those of one side.
    sources = sorted({flow.valid.shape[1] for flow in explanation.flows})
    if sources and len(explanation.tokens) not in sources:
        raise LigError(
            f"{len(explanation.tokens)} tokens were given for flows of {sources} sources: give "
            "every token of the text."
        )


def _section(flow: LayerFlow) -> Section:
    about: dict[str, Any] = {name: getattr(flow, name) for name in FACTS}
    about["cost"] = None if flow.cost is None else asdict(flow.cost)
    tensors = {name: Axed(getattr(flow, name), axes) for name, axes in FRAME.items()}
    fields = {name: Axed(value, FIELDS[name].axes) for name, value in flow.tensors.items()}
    return Section(about, tensors | fields)


def _flow(layer: Section, tokens: list[str]) -> LayerFlow:
    for name, axed in layer.tensors.items():
        axes = FRAME[name] if name in FRAME else FIELDS[name].axes
        if axed.axes != axes:
            raise LigError(f"tensor {name!r} has the axes {axed.axes}, and {axes} are due")
    tensors = {name: axed.tensor for name, axed in layer.tensors.items()}
    targets, valid = tensors.pop("targets"), tensors.pop("valid")
    if targets.dtype != torch.int64 or valid.dtype != torch.bool or valid.dim() != 2:
        raise LigError(f"targets are of {targets.dtype}, and valid of {valid.dtype}")
    if bool(((targets < 0) | (targets >= valid.shape[1])).any()):
        raise LigError(f"targets {targets.tolist()} are not among {valid.shape[1]} sources")
    wrong = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        raise LigError(f"tensor {wrong[0]!r} is of {tensors[wrong[0]].dtype}")
    facts = {name: take(layer.about, name, *types) for name, types in FACTS.items()}
    cost = take(layer.about, "cost", dict, type(None))
    return LayerFlow(
        targets=targets,
        valid=valid,
        cost=None if cost is None else _cost(cost),
        # Of an encoder-decoder the file has the tokens of one side.
        tokens=[tokens] if valid.shape == (1, len(tokens)) else None,
        tensors=tensors,
        **facts,
    )


def _cost(about: dict[str, Any]) -> Cost:
    return Cost(**{name: take(about, name, str if name == "path" else float) for name in about})
