"""Results of any number of texts, printed one after another and gathered in files."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import typer

from captum_lig.cli.messages import in_utf8, note, shown
from captum_lig.cli.outputs import Outputs
from captum_lig.errors import LigError

__all__ = ["FORMATS", "Result", "Results", "check_format"]

FORMATS = ("table", "json", "jsonl", "csv", "parquet")


Row = dict[str, Any]


class Result(Protocol):
    """What there is of one text."""

    text: str

    def show(self) -> None:
        """Print it for people."""

    def document(self) -> dict[str, Any]:
        """All of it, in JSON's types."""

    def rows(self) -> list[Row]:
        """Its numbers, as rows of one table."""

    def save(self, path: Path) -> None:
        """Write a file of this one text; the suffix says what."""


def check_format(name: str, outs: Sequence[Path]) -> None:
    """Whether results can be had in this form, before the work.

    Raises:
        LigError: for an unknown name, or Parquet without the package for it, or on a terminal.
    """
    if name not in FORMATS:
        raise LigError(f"--format {name!r} is unknown: use one of {', '.join(FORMATS)}.")
    if name == "parquet" and sys.stdout.isatty():
        raise LigError(
            "--format parquet is for no terminal: redirect standard output to a file, or give "
            "--out with a name that ends in .parquet."
        )
    if name != "table":
        in_utf8(sys.stdout)
    if name == "parquet" or any(path.suffix.lower() == ".parquet" for path in outs):
        try:
            import_module("pyarrow.parquet")
        except ImportError as error:
            raise LigError(
                "Parquet needs pyarrow: run `pip install 'captum-lig[corpus]'`, or use csv."
            ) from error


class Results:
    """Prints results as they come, and writes files.

    Args:
        name: of ``FORMATS``.
        outputs: files to write.
        many: whether there may be more than one result.
        columns: of the rows of a result.
    """

    def __init__(
        self, name: str, outputs: Outputs, many: bool, columns: Mapping[str, type]
    ) -> None:
        self._name, self._outputs, self._many = name, outputs, many
        self._columns = {"line": int, **columns} if many else dict(columns)
        self._count = 0
        self._rows: list[Row] = []
        self._documents: list[dict[str, Any]] = []

    def add(self, result: Result, line: int | None) -> None:
        """Print one, and write the files that are of it alone."""
        self._print(result, line)
        self._count += 1
        kinds = {path.suffix.lower() for path in self._outputs.lists}
        if ".jsonl" in kinds:
            self._documents.append(_with_line(line, result.document()))
        if kinds & {".csv", ".parquet"} or self._name == "parquet":
            self._rows += [_with_line(line, row) for row in result.rows()]
        for path in self._outputs.single[line]:
            path.parent.mkdir(exist_ok=True)
            result.save(path)
            note(f"wrote {shown(path)}")

    def _print(self, result: Result, line: int | None) -> None:
        if self._name == "table":
            if self._count:
                typer.echo()
            if line is not None:
                from captum_lig.flow.tokens import readable_text

                typer.echo(f"Line {line}: {readable_text(' '.join(result.text.split()), 60)}")
            result.show()
        elif self._name == "json":
            if self._many:
                typer.echo("," if self._count else "[")
            indent = None if self._many else 1
            typer.echo(_json(_with_line(line, result.document()), indent), nl=not self._many)
        elif self._name == "jsonl":
            typer.echo(_json(_with_line(line, result.document())))
        elif self._name == "csv":
            rows = [_with_line(line, row) for row in result.rows()]
            typer.echo(self._csv(rows, header=not self._count), nl=False)

    def close(self) -> None:
        """Print what comes at the end, and write the files that hold all results."""
        if self._name == "json" and self._many:
            typer.echo("\n]" if self._count else "[]")
        if self._name == "parquet":
            sys.stdout.buffer.write(self._parquet())
        for path in self._outputs.lists:
            from captum_lig.io.codec import writing

            with writing(path) as beside:
                beside.write_bytes(self._gathered(path.suffix.lower()))
            note(f"wrote {shown(path)}")

    def _gathered(self, suffix: str) -> bytes:
        if suffix == ".parquet":
            return self._parquet()
        if suffix == ".csv":
            return self._csv(self._rows, header=True).encode()
        return "".join(f"{_json(one)}\n" for one in self._documents).encode()

    def _csv(self, rows: Sequence[Row], header: bool) -> str:
        file = io.StringIO()
        writer = csv.DictWriter(file, list(self._columns), lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def _parquet(self) -> bytes:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        kinds = {int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
        schema = arrow.schema([(name, kinds[kind]) for name, kind in self._columns.items()])
        file = io.BytesIO()
        parquet.write_table(arrow.Table.from_pylist(self._rows, schema=schema), file)
        return file.getvalue()


def _with_line(line: int | None, found: dict[str, Any]) -> dict[str, Any]:
    return found if line is None else {"line": line, **found}


def _json(found: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(found, ensure_ascii=False, indent=indent, allow_nan=False)
