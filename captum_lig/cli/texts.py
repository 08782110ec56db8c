"""The texts that a command works on: given, from standard input, or line by line from a file."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_lig.cli.messages import in_utf8
from captum_lig.errors import LigError

__all__ = ["Line", "read_lines"]


@dataclass(frozen=True)
class Line:
    """One text with what is asked about it."""

    number: int | None
    """Of its line in the file, from 1; None of a text that was given alone."""
    options: dict[str, Any]

    def named(self, error: Exception) -> LigError:
        """An error, with the line where it is."""
        return LigError(str(error) if self.number is None else f"line {self.number}: {error}")


def read_lines(
    text: str | None, file: Path | None, options: Mapping[str, Any], types: Mapping[str, type]
) -> list[Line]:
    """The texts of a command, each with its options.

    Args:
        text: the text, or ``-`` for all of standard input as one text.
        file: one text a line, or in a file called ``.jsonl`` one JSON object a line; ``-`` is
            standard input, where a line that is a JSON object counts as one. Empty lines are
            skipped.
        options: of all texts; an object's own come first.
        types: keys that an object may have besides ``text``, and what they hold. Where that is
            ``str``, the number of a token or of a class does, too.

    Raises:
        LigError: if there is not one of text and file, nothing in it, or something else.
    """
    if (text is None) == (file is None):
        raise LigError("give either TEXT or --file, - for standard input.")
    if text is not None:
        given = _read(None).rstrip("\r\n") if text == "-" else text
        return [Line(None, {**options, "text": given})]
    assert file is not None
    source = None if file == Path("-") else file
    objects = source is not None and source.suffix.lower() == ".jsonl"
    found = []
    for number, row in enumerate(_read(source).split("\n"), 1):
        row = row.rstrip("\r")
        if not row.strip():
            continue
        line = Line(number, {**options, "text": row})
        if objects or (source is None and row.lstrip().startswith("{")):
            try:
                line = Line(number, {**options, **_object(row, types, strict=objects)})
            except LigError as error:
                raise line.named(error) from error
        found.append(line)
    if not found:
        raise LigError(f"--file {str(file)!r} holds no text: give one a line.")
    return found


def _read(path: Path | None) -> str:
    """A file, or standard input."""
    try:
        if path is None:
            in_utf8(sys.stdin, "utf-8-sig")
            return sys.stdin.read()
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        what = "standard input" if path is None else f"--file {str(path)!r}"
        raise LigError(
            f"{what} is not UTF-8 (byte {error.start + 1}): give it in that encoding."
        ) from error
    except OSError as error:
        raise LigError(f"--file {str(path)!r} cannot be read ({error.strerror}).") from error


def _object(row: str, types: Mapping[str, type], strict: bool) -> dict[str, Any]:
    """The options of one line."""
    try:
        found = json.loads(row)
    except (ValueError, RecursionError) as error:
        if not strict:
            return {"text": row}
        raise LigError(f"{reprlib.repr(row)} is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise LigError(f"{reprlib.repr(row)} is no JSON object: write one with a text.")
    if not isinstance(found.get("text"), str):
        raise LigError(f"{reprlib.repr(row)} has no text: write it under 'text'.")
    for name, value in found.items():
        kind = {"text": str, **types}.get(name)
        if kind is None:
            raise LigError(f"{reprlib.repr(name)} is no key: use text, {', '.join(types)}.")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not isinstance(value, kind) and not (kind is str and whole):
            raise LigError(
                f"{name!r} is {reprlib.repr(value)}, and should be of type {kind.__name__}."
            )
        if kind is int and isinstance(value, bool):
            raise LigError(f"{name!r} is {reprlib.repr(value)}, and should be a whole number.")
    return {name: value for name, value in found.items() if value is not None}
