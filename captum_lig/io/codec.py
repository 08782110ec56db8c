"""Tensors with named axes as files, in JSON and safetensors; flows and graphs are both such files.

**JSON**::

    {
      "format": "captum_lig.flow", "version": 3, ...,
      "tensors": {},
      "layers": [{
        "name": "encoder.layer.0", "index": 0, ...,
        "tensors": {
          "layer": {"axes": ["text", "target", "source"], "shape": [1, 9, 9],
                    "dtype": "float32", "values": [[[...]]]},
          ...
        }
      }, ...]
    }

A tensor with few numbers that are not 0 has ``"index"``, their positions in row-major order, and
``"values"`` for these alone, flat. Reading gives the same bits as were written: numbers that are
not finite are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, and a NaN of other bits
``"NaN:"`` with the bits in hexadecimal.

**safetensors**: the tensors as ``layers.<position>.<name>`` or ``<name>``, those with few numbers
as ``<key>.index`` and ``<key>.values``; the rest of the JSON document is the metadata entry
``captum_lig``.

Files are written beside their path and renamed, so that no half of one is left. Reading checks
everything; what does not fit is one :class:`~captum_lig.LigError`.
"""

from __future__ import annotations

import json
import math
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lig._arguments import brief, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.tokens import readable_text
from captum_lig.io.json_numbers import (
    DTYPES,
    NAMES,
    indices_from_json,
    numbers_from_json,
    numbers_to_json,
)

__all__ = [
    "JSON_FACTOR",
    "LARGE",
    "MOST_BYTES",
    "VERSION",
    "Axed",
    "Document",
    "Section",
    "check_suffix",
    "damaged",
    "document_from_json",
    "document_to_json",
    "load_document",
    "own_version",
    "save_document",
    "stored",
    "take",
    "warn_if_large",
    "writing",
]

VERSION = 3
LARGE = 100_000_000
"""Bytes of a file that is warned of."""
MOST_BYTES = 2**32
"""Bytes that reading takes at most, if the caller does not say: a small file may stand for much."""
JSON_FACTOR = 40
"""Bytes that a byte of JSON takes at most, while it is read."""
MOST_AXES = 8


@dataclass(frozen=True)
class Axed:
    """A tensor and what its axes stand for."""

    tensor: Tensor
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Facts in JSON's types, and tensors by name."""

    about: dict[str, Any]
    tensors: dict[str, Axed] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """What is in a file: a head, and a section a layer."""

    head: Section
    layers: list[Section]


def save_document(document: Document, path: Path, kind: str) -> Path:
    """Write a document; the path's suffix, ``.json`` or ``.safetensors``, says how.

    Args:
        document: what to write.
        path: missing folders are made.
        kind: name of the format.

    Raises:
        LigError: for another suffix, or facts that JSON cannot hold.
        OSError: if the file cannot be written.
    """
    suffix = check_suffix(path)
    warn_if_large(path, _size(document, suffix))
    arrays: dict[str, Tensor] = {}
    content = document_to_json(document, kind, None if suffix == ".json" else arrays)
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise LigError(f"{str(path)!r}: {error}; give facts in JSON's types.") from error
    with writing(path) as beside:
        if suffix == ".json":
            beside.write_text(text, encoding="utf-8")
        else:
            from safetensors.torch import save_file

            save_file(arrays, beside, metadata={"captum_lig": text})
    return path


def document_to_json(
    document: Document, kind: str, arrays: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    """A document in JSON's types.

    Args:
        document: what to write.
        kind: name of the format.
        arrays: gets the numbers, by key; None leaves them in the document.
    """
    return {"format": kind, "version": VERSION, **_encoded(document, arrays)}


def load_document(path: Path, kind: str, holds: str, most_bytes: int = MOST_BYTES) -> Document:
    """Read back what :func:`save_document` wrote, on the CPU.

    Args:
        path: the file.
        kind: name of the format.
        holds: what such a file holds, for messages.
        most_bytes: see :func:`captum_lig.io.graphs.load_graph`.

    Raises:
        LigError: for another suffix, format or version, damaged content, or too much of it.
        OSError: if the file cannot be read.
    """
    suffix = check_suffix(path)
    whole_number("most_bytes", most_bytes, 1)
    arrays: dict[str, Tensor] | None = None
    room = most_bytes - path.stat().st_size * (JSON_FACTOR if suffix == ".json" else 1)
    _check_room(path, room, most_bytes)
    try:
        if suffix == ".json":
            text = path.read_text(encoding="utf-8")
        else:
            text, arrays = _read_safetensors(path)
        content = document_from_json(text)
    except RecursionError as error:
        raise LigError(f"{str(path)!r} is nested too deeply: no {holds} are.") from error
    except ValueError as error:
        reason = readable_text(" ".join(str(error).split()), 300)
        raise LigError(f"{str(path)!r} is no {suffix[1:]} file: {reason}.") from error
    if not isinstance(content, dict) or content.get("format") != kind:
        raise LigError(f"{str(path)!r} holds no {holds}: give a file of the format {kind}.")
    version = content.get("version")
    if version != VERSION:
        older = isinstance(version, int) and version < VERSION
        raise LigError(
            f"{str(path)!r} has version {brief(version)} of the format, and this captum_lig reads "
            f"version {VERSION}: "
            + ("make it anew with this one, or " if older else "")
            + "read it with the captum_lig that wrote it."
        )
    _check_room(path, room - _sparse_bytes(content), most_bytes)
    with damaged(path):
        return _decoded(content, arrays)


def document_from_json(text: str) -> Any:
    """What JSON holds; its dialect with numbers that are not finite is a ValueError."""
    return json.loads(text, parse_constant=_no_number)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check_room(path: Path, room: int, most_bytes: int) -> None:
    if room < 0:
        raise LigError(
            f"{str(path)!r} may take more than {most_bytes / 1e6:,.0f} MB to read: if you trust "
            "it, allow more with most_bytes."
        )


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        said = str(error).partition("\n")[0]  # what follows is torch's own stack
        reason = readable_text(" ".join(said.split()), 300) or type(error).__name__
        raise LigError(f"{str(path)!r} is damaged: save it again ({reason}).") from error


def check_suffix(path: Path, *others: str) -> str:
    """The suffix of a file; a LigError if it is neither of the codec's nor of the others."""
    suffix, known = path.suffix.lower(), (".json", ".safetensors", *others)
    if suffix not in known:
        raise LigError(f"{str(path)!r} has no known suffix: use one of {', '.join(known)}.")
    return suffix


def own_version() -> str:
    """Of this package, as files say what wrote them."""
    try:
        return version("captum-lig")
    except PackageNotFoundError:
        return "unknown: it runs from its source, uninstalled"


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which is renamed to it when all went well."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def warn_if_large(path: Path, size: float) -> None:
    """Warn before a file of more than 100 MB is written."""
    if size > LARGE:
        smaller = [] if path.suffix.lower() == ".safetensors" else ["save as .safetensors"]
        smaller += ["prune the graph first (FlowGraph.prune)", "keep fewer layers or boundaries"]
        warnings.warn(
            f"{str(path)!r} will be about {size / 1e6:,.0f} MB. To make it smaller: "
            + "; or ".join(smaller)
            + ".",
            stacklevel=4,
        )


def take(about: Mapping[str, Any], name: str, *types: type) -> Any:
    """A fact of one of the given types, ``type(None)`` for None; a LigError if there is none."""
    value = about.get(name)
    right = (*types, int) if float in types else types
    if name not in about or not isinstance(value, right) or isinstance(value, bool):
        names = " or ".join("null" if one is type(None) else one.__name__ for one in types)
        raise LigError(f"{name!r} is {brief(value)}, and should be {names}")
    odd = isinstance(value, float) and not math.isfinite(value)
    if odd or (isinstance(value, int) and abs(value) >= 2**53):
        raise LigError(f"{name!r} is {brief(value)}")
    return float(value) if float in types and isinstance(value, int) else value


# --- writing --------------------------------------------------------------------------------------


def stored(values: Tensor) -> Tensor:
    """Where numbers have bits that have to be kept: all but the zeros without a sign."""
    return (values != 0) | torch.signbit(values)


def _sparse(values: Tensor) -> Tensor | None:
    """``(n,)`` positions of what is not 0, if they and their values take less room."""
    if not values.is_floating_point():
        return None
    kept = stored(values)
    index = torch.int32 if values.numel() < 2**31 else torch.int64
    if int(kept.sum()) * (index.itemsize + values.element_size()) >= values.nbytes:
        return None
    return kept.flatten().nonzero().flatten().to(index)


def _encoded(document: Document, arrays: dict[str, Tensor] | None) -> dict[str, Any]:
    """The document for JSON; with ``arrays``, the numbers go there by key."""

    def section(one: Section, prefix: str) -> dict[str, Any]:
        tensors = {name: _tensor(axed, prefix + name, arrays) for name, axed in one.tensors.items()}
        return {**one.about, "tensors": tensors}

    layers = [section(one, f"layers.{n}.") for n, one in enumerate(document.layers)]
    return {**section(document.head, ""), "layers": layers}


def _tensor(axed: Axed, key: str, arrays: dict[str, Tensor] | None) -> dict[str, Any]:
    values = axed.tensor.detach().cpu()
    if values.dtype not in NAMES:
        raise LigError(f"tensor {key!r} is of {values.dtype}: use one of {', '.join(DTYPES)}.")
    index = _sparse(values)
    about = {"axes": axed.axes, "shape": list(values.shape), "dtype": NAMES[values.dtype]}
    kept = values if index is None else values.flatten()[index.long()]
    if arrays is None:
        about["values"] = numbers_to_json(kept)
        return about if index is None else {**about, "index": index.tolist()}
    if index is None:
        arrays[key] = kept.clone(memory_format=torch.contiguous_format)
        return about
    arrays[f"{key}.index"], arrays[f"{key}.values"] = index, kept
    return {**about, "sparse": True}


def _size(document: Document, suffix: str) -> float:
    """About how many bytes the file will take."""
    size = 0.0
    sections = (document.head, *document.layers)
    for values in (axed.tensor for one in sections for axed in one.tensors.values()):
        index = _sparse(values)
        count = values.numel() if index is None else len(index)
        if suffix == ".json":
            # A number in full, a zero, a position in the tensor.
            full = count if index is not None else int((values != 0).sum())
            size += 22 * full + 5 * (count - full) + (0 if index is None else 10 * count)
        else:
            size += count * values.element_size() + (0 if index is None else index.nbytes)
    return size


# --- reading --------------------------------------------------------------------------------------


def _sparse_bytes(content: dict[str, Any]) -> int:
    """Bytes of the tensors that are in the file as positions and numbers, with their zeros."""
    total = 0
    layers = content.get("layers")
    sections = [content, *(layers if isinstance(layers, list) else [])]
    for section in sections:
        tensors = section.get("tensors") if isinstance(section, dict) else None
        for about in tensors.values() if isinstance(tensors, dict) else ():
            if isinstance(about, dict) and ("index" in about or "sparse" in about):
                total += 8 * math.prod(_sizes(about.get("shape")) or ())
    return total


def _sizes(shape: Any) -> list[int] | None:
    """A shape, if it is one that a tensor can have."""
    if not isinstance(shape, list) or len(shape) > MOST_AXES:
        return None
    right = all(type(size) is int and 0 <= size < 2**40 for size in shape)
    return shape if right else None


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("captum_lig", "{}")
            return text, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:  # torch's of a size of more than 63 bits
        raise ValueError(str(error).partition("\n")[0]) from error  # the rest is torch's own stack


def _decoded(content: dict[str, Any], arrays: dict[str, Tensor] | None) -> Document:
    def section(one: Any, prefix: str) -> Section:
        if not isinstance(one, dict):
            raise LigError(f"{prefix or 'it'} is {brief(one)}, and should be an object")
        tensors = take(one, "tensors", dict)
        about = {name: value for name, value in one.items() if name not in ("tensors", "layers")}
        return Section(
            about, {name: _axed(prefix + name, t, arrays) for name, t in tensors.items()}
        )

    layers = take(content, "layers", list)
    document = Document(
        section(content, ""), [section(one, f"layers.{n}.") for n, one in enumerate(layers)]
    )
    if arrays:
        raise LigError(f"tensor {min(arrays)!r} is in no layer")
    return document


def _axed(key: str, about: Any, arrays: dict[str, Tensor] | None) -> Axed:
    """One tensor, taken out of ``arrays``; a LigError if something does not fit."""
    if not isinstance(about, dict):
        raise LigError(f"tensor {key!r} is {brief(about)}, and should be an object")
    axes, shape = take(about, "axes", list), take(about, "shape", list)
    name = take(about, "dtype", str)
    if name not in DTYPES:
        raise LigError(f"tensor {key!r} has the dtype {name!r}: one of {', '.join(DTYPES)} is due")
    if _sizes(shape) is None or len(axes) != len(shape):
        raise LigError(f"tensor {key!r} has the shape {brief(shape)} for the axes {brief(axes)}")
    dtype, count = DTYPES[name][0], math.prod(shape)
    if arrays is None:
        index = indices_from_json(key, about["index"]) if "index" in about else None
        values = numbers_from_json(
            key, about.get("values"), tuple(shape) if index is None else None, name
        )
    else:
        sparse = about.get("sparse", False) is True
        index = arrays.pop(f"{key}.index").long() if sparse else None
        values = arrays.pop(f"{key}.values" if sparse else key)
        if values.dtype != dtype or (index is None and list(values.shape) != shape):
            raise LigError(
                f"tensor {key!r} is of {values.dtype} {list(values.shape)}, and {name} {shape} "
                "is due"
            )
    if index is not None:
        if index.shape != values.shape or values.dim() != 1:
            raise LigError(f"tensor {key!r} has {len(index)} positions for {len(values)} numbers")
        if len(index) and not (
            int(index[0]) >= 0 and int(index[-1]) < count and bool((index[1:] > index[:-1]).all())
        ):
            raise LigError(
                f"tensor {key!r} has positions {int(index.min())} to {int(index.max())}: they "
                f"should ascend within 0 to {count - 1}"
            )
        values = torch.zeros(count, dtype=dtype).index_put_((index,), values)
    return Axed(values.reshape(shape), tuple(axes))
