"""The texts of a corpus, one after the other: files of several kinds, data sets, and lists."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_lig._arguments import brief
from captum_lig.corpus.packages import need
from captum_lig.errors import LigError
from captum_lig.metrics.treebank import Tree, parse_tree

__all__ = ["Corpus", "Text", "open_corpus"]


MOST_LINE = 2**26
"""Bytes of a line, which is held in memory at once."""

COLUMNS = ("text", "id", "counterfactual", "against", "target", "foil")
"""What is read of a row."""


@dataclass(frozen=True)
class Text:
    """One text, with the number that is to be explained of it, if there is one. Picklable."""

    number: int
    """Its position in the corpus, from 0; bad and empty lines count."""
    id: str
    """What the corpus calls it, or its number."""
    text: str
    counterfactual: str | None = None
    """The other text, ``against`` of :func:`captum_lig.why`; None: padding."""
    target: str | int | None = None
    """A token, a class, or for a sentence encoder the text that it is compared with."""
    foil: str | int | None = None
    """The token that the target is explained against."""
    tree: Tree | None = None
    """Of a treebank's sentence."""
    problem: str | None = None
    """Why it cannot be read: it is recorded as skipped."""

    @property
    def asked(self) -> bool:
        """Whether there is a number to explain."""
        return not (self.counterfactual is self.target is self.foil is None)


@dataclass(frozen=True)
class Corpus:
    """Where texts come from. Iterated, it is read from its beginning."""

    name: str
    digest: str | None
    """Of all that is in it; None if that is not known before it is read."""
    count: int | None
    """How many texts; None if that is not known."""
    read: Callable[[], Iterator[Text]]

    def __iter__(self) -> Iterator[Text]:
        """The texts, from the first."""
        return self.read()


def open_corpus(corpus: Any) -> Corpus:
    """A corpus that can be read.

    Args:
        corpus: a file: CoNLL-U (``.conllu``), an object a line (``.jsonl``), ``.csv`` or ``.tsv``
            with a header, ``.parquet``, or else a text a line; or a ``datasets.Dataset`` or
            ``IterableDataset``, or anything else that is iterated over. Rows are texts, or have
            ``text`` and what else of ``id``, ``counterfactual`` (or ``against``), ``target`` and
            ``foil`` there is.

    Raises:
        LigError: if it is none of these, or has no texts.
        OSError: if the file cannot be read.
    """
    if isinstance(corpus, (str, Path)):
        return _file(Path(corpus))
    columns = getattr(corpus, "column_names", None)
    if isinstance(columns, Mapping):
        raise LigError(f"the data set has the splits {', '.join(columns)}: give one of them.")
    if isinstance(corpus, Mapping) or not isinstance(corpus, Iterable):
        raise LigError(f"corpus={brief(corpus)}: give a file, a data set, or a list of texts.")
    if columns is None and hasattr(corpus, "columns"):  # its names would be read as texts
        raise LigError(
            f"corpus is a {type(corpus).__name__}: give its rows, such as table.to_dict('records')."
        )
    if columns is not None and "text" not in columns:
        raise LigError(f"the data set has no column 'text': it has {', '.join(columns)}.")
    return Corpus(
        type(corpus).__name__,
        None,  # a data set's own fingerprint may be drawn at random: batches have digests
        len(corpus) if isinstance(corpus, Sized) else None,
        lambda: (text_of(number, row) for number, row in enumerate(corpus)),
    )


def _file(path: Path) -> Corpus:
    suffix = path.suffix.lower()
    if path.is_dir():
        raise LigError(f"corpus {str(path)!r} is a folder: give a file.")
    digest, lines, blocks = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        inside = False
        while line := file.readline(MOST_LINE + 1):
            if len(line) > MOST_LINE and suffix != ".parquet":
                raise LigError(
                    f"corpus {str(path)!r} has over {MOST_LINE / 1e6:,.0f} MB in line {lines + 1}: "
                    "give a text a line."
                )
            digest.update(line)
            lines += 1
            blank = not line.strip()
            blocks += inside and blank
            inside = not blank
    count: int | None = lines
    if suffix == ".conllu":
        need("conllu")
        count = blocks + inside
    elif suffix == ".parquet":
        with _reading_parquet(path):
            count = need("pyarrow.parquet").ParquetFile(path).metadata.num_rows
    elif suffix in (".csv", ".tsv"):
        count = None  # a text may have several lines
        _header(path, suffix)
    readers = {
        ".conllu": _conllu,
        ".jsonl": _jsonl,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(suffix, _lines)
    return Corpus(str(path), digest.hexdigest(), count, lambda: reader(path))


# ---- rows ------------------------------------------------------------------------------------


def text_of(number: int, row: Any) -> Text:
    """A row of a corpus as a text; of one that is none, a text with a problem."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        return _bad(number, brief(row), "is neither a text nor an object")
    text = row.get("text")
    if not isinstance(text, str):
        return _bad(number, brief(text), "has no text under 'text'")
    identity = row.get("id")
    if not isinstance(identity, (str, int, float, type(None))):
        return _bad(number, text, f"has the id {brief(identity)}, which is no text")
    given = {name: row.get(name) for name in ("counterfactual", "against", "target", "foil")}
    for name, value in given.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        may_be = name in ("target", "foil")
        if value is not None and not isinstance(value, str) and not (whole and may_be):
            return _bad(number, text, f"has the {name} {brief(value)}, which is no text")
    counterfactual, against = given["counterfactual"], given.pop("against")
    if counterfactual is None or (against and not counterfactual):
        given["counterfactual"] = against
    elif against and against != counterfactual:
        both = f"the counterfactual {brief(counterfactual)} and against {brief(against)}"
        return _bad(number, text, f"has {both}: give one of them", identity)
    if not text.strip():
        return _bad(number, text, "is empty", identity)
    strings = [one for one in (text, identity, *given.values()) if isinstance(one, str)]
    if any(not _is_utf8(one) for one in strings):
        return _bad(number, text, "is no UTF-8", identity)
    return Text(number, str(number if identity is None else identity), text, **given)


def _bad(number: int, text: str, what: str, identity: Any = None) -> Text:
    name, shown = (
        str(one).encode("utf-8", "backslashreplace").decode()
        for one in (number if identity is None else identity, text)
    )
    return Text(number, name, shown, problem=f"the line {what}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- files -----------------------------------------------------------------------------------


def _open(path: Path, newline: str | None = None) -> Any:
    # Bytes that are no UTF-8 stay where they are: their line is a bad one, the others are not.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _lines(path: Path) -> Iterator[Text]:
    with _open(path, "\n") as file:
        for number, line in enumerate(file):
            yield text_of(number, line.rstrip("\r\n"))


def _jsonl(path: Path) -> Iterator[Text]:
    with _open(path, "\n") as file:
        for number, line in enumerate(file):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield _bad(number, line.strip(), f"is no JSON ({error})")
                continue
            if not isinstance(row, Mapping):
                yield _bad(number, line.strip(), "is no JSON object")
                continue
            yield text_of(number, row)


def _csv(path: Path) -> Iterator[Text]:
    with _open(path, "") as file:
        # Not a DictReader: it passes over blank lines, which count.
        rows = csv.reader(file, **_dialect(path.suffix))
        names = next(rows, [])
        number = 0
        while True:
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield _bad(number, "", f"is no CSV ({error})")
            else:
                yield _csv_text(number, names, fields)
            number += 1


def _csv_text(number: int, names: Sequence[str], fields: Sequence[str]) -> Text:
    if not fields:
        return text_of(number, "")
    row = {name: value or None for name, value in zip(names, fields, strict=False)}
    missing = [name for name in names[len(fields) :] if name in COLUMNS]
    if len(fields) > len(names) or missing:
        # A comma or a line's end that no quotation marks are around: the text may be half of one.
        said = f"has {len(fields)} fields and the header {len(names)}"
        if missing:
            said += f": none for {', '.join(map(repr, missing))}"
        return _bad(number, row.get("text") or "", said, row.get("id"))
    return text_of(number, row)


def _dialect(suffix: str) -> dict[str, Any]:
    # Strict: a quotation mark that nobody closes is an error, and does not swallow what follows.
    return {"delimiter": "\t" if suffix.lower() == ".tsv" else ",", "strict": True}


def _header(path: Path, suffix: str) -> None:
    try:
        with _open(path, "") as file:
            names = next(csv.reader(file, **_dialect(suffix)), [])
    except csv.Error as error:
        raise LigError(f"corpus {str(path)!r} has no names in its first line: {error}.") from error
    if "text" not in names:
        raise LigError(
            f"corpus {str(path)!r} has no column 'text' in its first line: it has "
            f"{brief(', '.join(names))}."
        )
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise LigError(
            f"corpus {str(path)!r} has the column {twice[0]!r} {names.count(twice[0])} times in "
            "its first line: give it once."
        )


def _parquet(path: Path) -> Iterator[Text]:
    with _reading_parquet(path):
        yield from _parquet_rows(path)


@contextmanager
def _reading_parquet(path: Path) -> Iterator[None]:
    """Whatever Arrow raises of a file's content is a sentence."""
    try:
        yield
    except (need("pyarrow").ArrowException, ValueError, OSError, OverflowError) as error:
        if isinstance(error, LigError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise LigError(f"corpus {str(path)!r} is damaged Parquet: {brief(str(error))}.") from error


def _parquet_rows(path: Path) -> Iterator[Text]:
    file = need("pyarrow.parquet").ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name in COLUMNS]
    if "text" not in columns:
        raise LigError(f"corpus {str(path)!r} has no column 'text'.")
    number = 0
    for batch in file.iter_batches(1024, columns=columns):
        for row in batch.to_pylist():
            yield text_of(number, row)
            number += 1


def _conllu(path: Path) -> Iterator[Text]:
    with _open(path) as file:
        for number, block in enumerate(_blocks(file)):
            if not _is_utf8(block):
                yield _bad(number, block, "is no UTF-8")
                continue
            try:
                tree = parse_tree(block, str(path))
            except LigError as error:
                yield _bad(number, block, f"cannot be read: {error}")
            else:
                one = text_of(number, {"text": tree.text, "id": tree.name or None})
                yield Text(one.number, one.id, one.text, tree=tree, problem=one.problem)


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    """The sentences of a CoNLL-U file, which empty lines stand between."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block)
            block = []
    if block:
        yield "".join(block)
