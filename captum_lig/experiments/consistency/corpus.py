"""Sentences of a corpus, one after the other: plain text or CoNLL-U."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from captum_lig.errors import LigError

__all__ = ["Sentence", "need", "read_sentences"]


@dataclass(frozen=True)
class Sentence:
    """One sentence of a corpus."""

    number: int
    """Position in the corpus, from 0; empty lines count."""
    name: str
    """The treebank's ``sent_id``, or the line's number from 1."""
    text: str


def read_sentences(path: str | Path) -> Iterator[Sentence]:
    """The sentences of a file: of CoNLL-U if its suffix is ``.conllu``, else one a line.

    Raises:
        LigError: if the file is no UTF-8 text, or no CoNLL-U.
        OSError: if it cannot be read.
    """
    path = Path(path)
    read = _conllu if path.suffix.lower() == ".conllu" else _lines
    try:
        for number, (name, text) in enumerate(read(path)):
            yield Sentence(number, name or str(number + 1), text.strip())
    except UnicodeDecodeError as error:
        raise LigError(f"corpus {str(path)!r} is no UTF-8 text ({error.reason}).") from error


def need(name: str) -> Any:
    """A module that only work on a corpus needs, or one sentence that says how to get it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise LigError(
            f"{name} is not installed, and work on a corpus needs it: "
            "pip install 'captum-lig[corpus]'."
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield "", line


def _conllu(path: Path) -> Iterator[tuple[str, str]]:
    conllu = need("conllu")
    with path.open(encoding="utf-8") as file:
        try:
            for sentence in conllu.parse_incr(file):
                about = sentence.metadata or {}
                yield about.get("sent_id") or "", about.get("text") or _text_of(sentence)
        except conllu.exceptions.ParseException as error:
            raise LigError(f"corpus {str(path)!r} is no CoNLL-U: {error}.") from error


def _text_of(sentence: Any) -> str:
    """The text of a sentence whose ``# text`` is missing, from its words."""
    parts: list[str] = []
    inside = 0  # the last word of the multi-word token that the words belong to
    for token in sentence:
        first = token["id"]
        if isinstance(first, tuple):
            if first[1] == ".":  # an empty node, which is not in the text
                continue
            inside = first[2]
        elif first <= inside:
            continue
        spaced = (token.get("misc") or {}).get("SpaceAfter") != "No"
        parts.append(token["form"] + (" " if spaced else ""))
    return "".join(parts)
