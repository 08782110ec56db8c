"""The output folder: settings, finished parts, and the data set that they become.

A part is a folder that is written beside and renamed, named after its batch and the batch's digest:
what has the name is whole. When all are there they become one Parquet data set a table, and go.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from typing_extensions import Self

from captum_lig._arguments import brief
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.measures.base import Column
from captum_lig.corpus.packages import need
from captum_lig.corpus.schema import FORMAT, VERSION, arrow_schema
from captum_lig.corpus.settings import Settings
from captum_lig.errors import LigError

__all__ = ["FINISHED", "MAPS", "SETTINGS", "Store", "check_folder", "read_counts", "read_settings"]

SETTINGS, FINISHED = "settings.json", "finished.json"
PARTS, MAPS = "unfinished", "maps"
"""Folders that are no tables."""
UNFINISHED = ".unfinished"
LOCK = "lock"
"""Held in the folder of parts as long as one process works there; a process that dies lets go."""
ROWS_A_FILE = 500_000
"""A data set's files are closed after so many rows; a reader wants some, and not too many."""

BEGUN = {PARTS, SETTINGS + UNFINISHED}
"""What a run may leave that is cut off before its settings are there."""

KNOWN_AS = {
    "corpus": "another corpus",
    "weights": "a model with other weights or hooks",
    "tokenizer": "another tokenizer",
}


def check_folder(path: Path) -> None:
    """Refuse an output folder that holds something else than a run.

    Raises:
        LigError: if it does.
    """
    if (path / SETTINGS).exists() or not path.exists():
        return
    if not path.is_dir() or {one.name for one in path.iterdir()} - BEGUN:
        raise LigError(
            f"{str(path)!r} is there, and holds no settings of a corpus run: choose another "
            "folder, or remove it."
        )


class Store:
    """An output folder of one run; a context in which no other process may work in it.

    Args:
        path: the folder; made if it is not there.
        settings: of the run.
        columns: of its tables.

    Raises:
        LigError: if the folder holds something else, or a run with other settings, another corpus,
            model or tokenizer; when it is entered, if another process works in it.
    """

    def __init__(
        self, path: Path, settings: Settings, columns: dict[str, tuple[Column, ...]]
    ) -> None:
        self.path, self.columns = path, columns
        self.parts, self.maps = path / PARTS, path / MAPS
        about = {"format": FORMAT, "version": VERSION, "settings": settings.to_json()}
        check_folder(path)
        if (path / SETTINGS).exists():
            _check(path, about)
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.parts / LOCK, timeout=0)
        if not (path / SETTINGS).exists():
            with _replacing(path / SETTINGS) as beside:
                beside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LigError(
                f"another process works in {str(self.path)!r}: wait for it, or choose another "
                "folder."
            ) from error
        try:
            self._digests = self._read_digests()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._lock.release()

    def _read_digests(self) -> dict[int, str]:
        """Of the batches whose parts are there; what a run that was cut off left of others goes."""
        for left in self.parts.glob(f"*{UNFINISHED}"):  # of a run that was cut off
            shutil.rmtree(left)
        names = [path.name for path in self._finished_parts()]
        others = [name for name in names if not re.fullmatch("[0-9]{8,}-[0-9]{8,}-[^-]+", name)]
        if others:
            raise LigError(
                f"{str(self.parts)!r} holds {others[0]!r}, which is no part of a run: remove it."
            )
        split = (name.split("-") for name in names)
        return {int(number): digest for number, _, digest in split}

    def _finished_parts(self) -> list[Path]:
        return sorted(path for path in self.parts.iterdir() if path.name != LOCK)

    @property
    def finished(self) -> bool:
        """Whether the data set is there."""
        return (self.path / FINISHED).exists()

    @property
    def count(self) -> int:
        """How many parts there are."""
        return len(self._digests)

    def has(self, batch: Batch) -> bool:
        """Whether the part of a batch is there.

        Raises:
            LigError: if it is of other texts.
        """
        there = self._digests.get(batch.number)
        if there not in (None, batch.digest):
            raise LigError(
                f"{str(self.path)!r} belongs to another corpus: its batch {batch.number} has other "
                "texts. Give the same corpus, or choose another folder."
            )
        return there is not None

    def check_finished(self, batches: Iterable[Batch]) -> None:
        """Whether the finished data set is of these batches.

        Raises:
            LigError: if it is of others.
        """
        there = _read_finished(self.path).get("batches")
        if there != _digest_of({batch.number: batch.digest for batch in batches}):
            raise LigError(
                f"{str(self.path)!r} belongs to another corpus: its texts were others. Give the "
                "same corpus, or choose another folder."
            )

    def keep(self, part: Part) -> None:
        """Write a finished part."""
        if part.number in self._digests:
            return
        parquet = need("pyarrow.parquet")
        name = f"{part.number:08d}-{part.window:08d}-{part.digest}"
        beside = self.parts / (name + UNFINISHED)
        beside.mkdir()
        tables = dict(part.tables)
        if part.maps:
            file = f"{MAPS}/{part.number:08d}.safetensors"
            texts = tables["texts"]
            there = {int(key.split(".")[0]) for key in part.maps}
            files = [file if n in there else None for n in texts.column("number").to_pylist()]
            at = texts.schema.get_field_index("maps")
            pyarrow = need("pyarrow")
            tables["texts"] = texts.set_column(at, "maps", pyarrow.array(files, pyarrow.string()))
            save_file(part.maps, beside / "maps.safetensors")
        for table, rows in tables.items():
            parquet.write_table(rows, beside / f"{table}.parquet")
        _sync(beside)
        os.replace(beside, self.parts / name)
        self._digests[part.number] = part.digest

    def finish(self) -> dict[str, int]:
        """Make the data set of the parts, if it is not there; how many texts have which status.

        Rows stand in the order of the corpus. A run that is cut off here begins with this again.
        """
        if not self.finished:
            parts = self._finished_parts()
            windows = [list(some) for _, some in groupby(parts, lambda p: p.name.split("-")[1])]
            counts = self._write_tables(windows)
            self._move_maps(parts)
            with _replacing(self.path / FINISHED) as beside:
                about = {"texts": counts, "batches": _digest_of(self._digests)}
                beside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(self.parts)
        return read_counts(self.path)

    def _write_tables(self, windows: Sequence[Sequence[Path]]) -> dict[str, int]:
        pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        status: Counter[str] = Counter()
        for table, columns in self.columns.items():
            folder = self.path / table
            beside = folder.with_name(table + UNFINISHED)
            for old in (folder, beside):
                if old.exists():
                    shutil.rmtree(old)
            beside.mkdir()
            writer, rows, files = None, 0, 0
            for window in windows:
                some = [parquet.read_table(part / f"{table}.parquet") for part in window]
                # Stable: within a text rows stand as its measure gave them.
                found = pyarrow.concat_tables(some)
                found = found.take(_stable_order(found.column("number")))
                if table == "texts":
                    status.update(found.column("status").to_pylist())
                if writer is None:
                    file = beside / f"{files:05d}.parquet"
                    writer, rows, files = parquet.ParquetWriter(file, found.schema), 0, files + 1
                writer.write_table(found)
                rows += found.num_rows
                if rows >= ROWS_A_FILE:
                    writer.close()
                    writer = None
            if writer is not None:
                writer.close()
            elif not files:
                parquet.write_table(arrow_schema(columns).empty_table(), beside / "00000.parquet")
            os.replace(beside, folder)
        return dict(sorted(status.items()))

    def _move_maps(self, parts: Sequence[Path]) -> None:
        for part in parts:
            file = part / "maps.safetensors"
            if file.exists():
                self.maps.mkdir(exist_ok=True)
                os.replace(file, self.maps / f"{part.name.split('-')[0]}.safetensors")


def _stable_order(numbers: Any) -> Any:
    return numbers.to_numpy().argsort(kind="stable")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run in an output folder, as ``settings.json`` has them.

    Raises:
        LigError: if that is not a run over a corpus.
    """
    try:
        found = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise LigError(
            f"{str(path / SETTINGS)!r} holds no settings of a corpus run: choose another folder."
        )
    if found.get("version") != VERSION:
        raise LigError(
            f"{str(path)!r} was written with version {brief(found.get('version'))} of the schema, "
            f"and this is {VERSION}: choose another folder."
        )
    settings = found.get("settings")
    if not isinstance(settings, dict):
        raise LigError(f"{str(path / SETTINGS)!r} is damaged: its settings are {brief(settings)}.")
    return settings


def read_counts(path: Path) -> dict[str, int]:
    """The texts of a finished run by status, as ``finished.json`` has them.

    Raises:
        LigError: if the run is not finished, or the file is damaged.
    """
    found = _read_finished(path).get("texts")
    if not isinstance(found, dict) or any(type(n) is not int or n < 0 for n in found.values()):
        raise LigError(f"{str(path / FINISHED)!r} is damaged: its texts are {brief(found)}.")
    return found


def _read_finished(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / FINISHED).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LigError(
            f"the run in {str(path)!r} is not finished: run it again, and it goes on."
        ) from error
    except (ValueError, RecursionError) as error:
        raise LigError(f"{str(path / FINISHED)!r} is damaged ({brief(error)}).") from error
    if not isinstance(found, dict):
        raise LigError(f"{str(path / FINISHED)!r} is damaged: it holds {brief(found)}.")
    return found


def _digest_of(digests: Mapping[int, str]) -> str:
    """Of all batches, by their numbers."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _check(path: Path, about: dict[str, Any]) -> None:
    there, now = read_settings(path), about["settings"]
    differ = [
        name for name in sorted(there.keys() | now.keys()) if there.get(name) != now.get(name)
    ]
    if not differ:
        return
    said = [KNOWN_AS[name] for name in differ if name in KNOWN_AS]
    said += [
        f"{name} {brief(there.get(name))} there and {brief(now.get(name))} now"
        for name in differ
        if name not in KNOWN_AS
    ]
    raise LigError(
        f"{str(path)!r} belongs to another run ({', '.join(said)}): give the same, or choose "
        "another folder."
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside the one wanted, which replaces it when everything is written.

    Always the same one: what a killed run leaves of it, the next run writes over.
    """
    beside = path.with_name(path.name + UNFINISHED)
    yield beside
    os.replace(beside, path)


def _sync(folder: Path) -> None:
    """Have what was written on the disk before it is renamed: a power cut loses no part."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
