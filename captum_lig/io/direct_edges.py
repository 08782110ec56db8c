"""All direct edges of a text as a safetensors file, written part by part.

Tensors ``readers.<n>``: ``(W', R', N)`` float32, edges of the first ``W'`` writers into the ``R'``
readers from number ``n`` on, at ``N`` tokens. The metadata entry ``captum_lig`` is a JSON object
with ``"format": "captum_lig.direct_edges"``, ``writers`` and ``readers`` (kind, layer, head; from
the bottom up), ``labels``, ``target`` and ``change``.

In memory there is one part at a time. The shapes are known before the numbers are, so the file's
head is written first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from captum_lig._arguments import brief, whole_number
from captum_lig.errors import LigError
from captum_lig.graph.direct_edges import DirectEdges, Reader, Strongest, Writer
from captum_lig.io.codec import MOST_BYTES, damaged, document_from_json, take, writing

__all__ = ["FORMAT", "check_edge_file", "load_direct_edges", "writing_direct_edges"]

FORMAT = "captum_lig.direct_edges"
VERSION = 1


def check_edge_file(path: str | Path) -> Path:
    """The path, if it ends in ``.safetensors``.

    Raises:
        LigError: if it does not.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise LigError(f"file={str(path)!r}: direct edges are written to .safetensors files.")
    return path


@contextmanager
def writing_direct_edges(
    path: Path,
    writers: Sequence[Writer],
    readers: Sequence[Reader],
    shapes: dict[int, tuple[int, int, int]],
    facts: dict[str, Any],
) -> Iterator[Callable[[int, Tensor], None]]:
    """What takes each part of the edges, the number of its first reader and ``(W', R', N)``.

    Args:
        path: the file; missing folders are made.
        writers: all.
        readers: all.
        shapes: of each part, by the number of its first reader.
        facts: ``change``, ``target`` and ``labels``.
    """
    about = {
        "format": FORMAT,
        "version": VERSION,
        "writers": [list(vars(one).values()) for one in writers],
        "readers": [list(vars(one).values()) for one in readers],
        **facts,
    }
    head: dict[str, Any] = {"__metadata__": {"captum_lig": json.dumps(about)}}
    ends, end = {}, 0
    for first, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        ends[first] = begin
        offsets = {"data_offsets": [begin, end]}
        head[f"readers.{first}"] = {"dtype": "F32", "shape": list(shape), **offsets}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with writing(path) as beside, beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        file.truncate(begin + end)

        def add(first: int, values: Tensor) -> None:
            file.seek(begin + ends[first])
            file.write(values.float().cpu().contiguous().numpy().astype("<f4").tobytes())

        yield add


def load_direct_edges(
    path: str | Path, keep: int | None = None, *, most_bytes: int = MOST_BYTES
) -> DirectEdges:
    """Read direct edges back.

    Args:
        path: a file that ``LayerFlowIG.direct_edges(file=...)`` wrote; it may be a stranger's.
        keep: how many of the strongest to keep; None: all that are not 0.
        most_bytes: of memory that reading may take: eight times the file without ``keep``.

    Raises:
        LigError: if the file is another, or takes more memory.
        OSError: if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = check_edge_file(path)
    if keep is not None:
        whole_number("keep", keep, 1)
    room = most_bytes - (8 * path.stat().st_size if keep is None else 0)
    with damaged(path):
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        with opened as file:
            about = document_from_json((file.metadata() or {}).get("captum_lig", "{}"))
            if not isinstance(about, dict):
                raise LigError("its metadata are no object")
            if about.get("format") != FORMAT or about.get("version") != VERSION:
                raise LigError(
                    f"{str(path)!r} holds {brief(about.get('format'))}, version "
                    f"{brief(about.get('version'))}: {FORMAT!r}, version {VERSION}, is due."
                )
            writers = [_end(Writer, one) for one in take(about, "writers", list)]
            readers = [_end(Reader, one) for one in take(about, "readers", list)]
            if room < 9 * len(writers) * len(readers):
                raise LigError(
                    f"it may take more than {most_bytes / 1e6:,.0f} MB to read: give keep, or, if "
                    "you trust it, allow more with most_bytes"
                )
            labels = take(about, "labels", list, type(None))
            change, target = take(about, "change", float), take(about, "target", str)
            strongest = Strongest(2**62 if keep is None else keep, writers, readers)
            length = None if labels is None else len(labels)
            if not all(isinstance(one, str) for one in labels or ()):
                raise LigError("labels are no text")
            read: set[int] = set()
            for name in file.keys():  # noqa: SIM118
                first, values = int(name.removeprefix("readers.")), file.get_tensor(name)
                own = range(first, first + values.shape[1]) if values.dim() == 3 else range(0)
                length = values.shape[-1] if length is None and own else length
                if (
                    values.dtype != torch.float32
                    or not own
                    or own[0] < 0
                    or own[-1] >= len(readers)
                    or len(values) > len(writers)
                    or values.shape[2] != length
                    or not read.isdisjoint(own)
                ):
                    raise LigError(f"tensor {name!r} of {list(values.shape)} does not fit")
                if not bool(values.isfinite().all()):
                    raise LigError(f"tensor {name!r} has numbers that are not finite")
                read.update(own)
                strongest.add(first, values)
    return strongest.edges(change, target, labels)


def _end(kind: type[Writer] | type[Reader], given: Any) -> Any:
    """A writer or a reader of its kind, layer and head."""
    name: Any
    name, *where = given if isinstance(given, list) and len(given) == 3 else [None]
    known = get_args(get_type_hints(kind)["kind"])
    if name not in known or not all(one is None or type(one) is int for one in where):
        raise LigError(f"{brief(given)} is no {kind.__name__.lower()}")
    return kind(name, *where)
