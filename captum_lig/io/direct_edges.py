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
from typing import Any

from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.graph.direct_edges import DirectEdges, Reader, Strongest, Writer
from captum_lig.io.codec import damaged, take, writing

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


def load_direct_edges(path: str | Path, keep: int | None = None) -> DirectEdges:
    """Read direct edges back.

    Args:
        path: a file that ``LayerFlowIG.direct_edges(file=...)`` wrote.
        keep: how many of the strongest to keep; None: all that are not 0.

    Raises:
        LigError: if the file is another.
        OSError: if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = check_edge_file(path)
    with damaged(path):
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        with opened as file:
            about = json.loads((file.metadata() or {}).get("captum_lig", "{}"))
            if about.get("format") != FORMAT or about.get("version") != VERSION:
                raise LigError(
                    f"{str(path)!r} holds {about.get('format')!r}, version "
                    f"{about.get('version')!r}: {FORMAT!r}, version {VERSION}, is due."
                )
            writers = [Writer(*one) for one in take(about, "writers", list)]
            readers = [Reader(*one) for one in take(about, "readers", list)]
            strongest = Strongest(2**62 if keep is None else keep, writers, readers)
            for name in file.keys():  # noqa: SIM118
                strongest.add(int(name.removeprefix("readers.")), file.get_tensor(name))
            labels = take(about, "labels", list, type(None))
            change, target = take(about, "change", float), take(about, "target", str)
    return strongest.edges(change, target, labels)
