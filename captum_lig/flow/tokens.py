"""How a token is shown to a person, and found by what it says. Tokens are untrusted text."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import decode_bytes, join_texts, plain_tokens

__all__ = [
    "TokenIndex",
    "find_token",
    "find_tokens",
    "numbered_tokens",
    "readable_text",
    "readable_token",
]

TokenIndex = int | str
"""A token of a text: its position, negative ones from the end, or what it says."""

_SPACE, _SPACES = "␣", " ▁Ġ"


def readable_token(token: str, limit: int | None = None) -> str:
    r"""Make a token safe and readable on a terminal and in a picture.

    Word pieces (``##ing``) and special tokens (``[CLS]``) stay as they are. Tokens that
    are surely byte-level are decoded, spaces become ``␣``, a combining mark gets a
    dotted circle to sit on, and what would be invisible or would steer the terminal (control
    characters, line breaks, text direction) is written as an escape.

    Args:
        token: a token as its tokenizer writes it.
        limit: longest result, in characters; a longer one ends in ``…``.

    >>> readable_token("Ġhello"), readable_token("▁hello"), readable_token("##ing")
    ('␣hello', '␣hello', '##ing')
    >>> readable_token("a\x1b[31m"), readable_token("congratulations", limit=8)
    ('a\\x1b[31m', 'congrat…')
    """
    characters = (_SPACE if c in _SPACES else _escape(c) for c in decode_bytes(token))
    shown = "".join(characters) or "''"
    if unicodedata.category(shown[0]).startswith("M"):
        shown = "◌" + shown
    return _shorten(shown, limit)


def readable_text(text: str, limit: int | None = None) -> str:
    """Make running text safe: spaces stay, what is invisible becomes an escape.

    Args:
        text: anything a person typed.
        limit: longest result, in characters; a longer one ends in ``…``.
    """
    return _shorten("".join(c if c == " " else _escape(c) for c in text), limit)


def _escape(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "C" or category in ("Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character


def _shorten(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


# --- tokens by what they say ----------------------------------------------------------------------


def find_token(given: Any, tokens: Sequence[str], name: str = "token") -> Any:
    """The position of the token that a string names; anything else stays as it is.

    A string names a token as its tokenizer writes it (``"Ġpain"``), as it is shown (``"␣pain"``) or
    as text, with the space before it or without (``" pain"``, ``"pain"``). Where no token is
    written so, upper and lower case are the same.

    Args:
        given: a string, or a position.
        tokens: the tokens, as their tokenizer writes them.
        name: what the caller knows the argument as, for the message.

    Raises:
        LigError: for a string that names no token, or several; the message lists them.

    >>> find_token("pain", ["[CLS]", "chest", "pain"]), find_token("is", ["Rome", "Ġis"])
    (2, 1)
    """
    if not isinstance(given, str):
        return given
    tokens = plain_tokens(tokens)
    for fold in (str, str.casefold):
        wanted = {fold(given), fold(decode_bytes(given))}
        found = [i for i, token in enumerate(tokens) if wanted & set(map(fold, _names(token)))]
        if len(found) == 1:
            return found[0]
        if found:
            raise LigError(
                f"{name}={brief(given)} is {len(found)} tokens: {_listed(found, tokens)}. Give the "
                "position of one."
            )
    pieces = _pieces(given, tokens)
    if pieces:
        raise LigError(
            f"{name}={brief(given)} is in pieces here: {_listed(pieces, tokens)}. Give one of "
            "them, or merge them to words (FlowGraph.merge_tokens)."
        )
    raise LigError(
        f"{name}={brief(given)} is no token of this text: {_listed(range(len(tokens)), tokens)}."
    )


def find_tokens(given: Any, tokens: Sequence[str], name: str = "tokens") -> Any:
    """:func:`find_token` of one token, or of each in a list."""
    if isinstance(given, (list, tuple)):
        return [find_token(one, tokens, name) for one in given]
    return find_token(given, tokens, name)


def numbered_tokens(
    tokens: Sequence[str], positions: Iterable[int] | None = None, limit: int | None = None
) -> list[str]:
    """Readable tokens, with its position behind one that looks like another.

    Args:
        tokens: as their tokenizer writes them.
        positions: where they stand; None: one after the other, from 0.
        limit: longest token, in characters.

    >>> numbered_tokens(["the", "cat", "the"])
    ['the (0)', 'cat', 'the (2)']
    """
    shown = [readable_token(token, limit) for token in plain_tokens(tokens)]
    count = Counter(shown)
    places = range(len(shown)) if positions is None else positions
    return [
        f"{token} ({place})" if count[token] > 1 else token
        for token, place in zip(shown, places, strict=True)
    ]


def _names(token: str) -> set[str]:
    """All that a token may be called."""
    shown, text = readable_token(token), _text(token)
    return {token, shown, shown.removeprefix(_SPACE), text, text.removeprefix(" ")} - {""}


def _text(token: str) -> str:
    """A token as it stands in the text, as far as that can be seen."""
    return "".join(" " if c in _SPACES else c for c in decode_bytes(token))


def _pieces(given: str, tokens: Sequence[str]) -> list[int]:
    """Positions of the neighbours that a word is cut into; none if it is not."""
    texts = [_text(token).removeprefix("##") for token in tokens]
    wanted = given.strip().casefold()
    for first in range(len(texts)):
        if not texts[first].strip():  # a space alone before the word
            continue
        for last in range(first, len(texts)):
            word = join_texts(texts[first : last + 1]).lstrip().casefold()
            if wanted and word == wanted:
                return list(range(first, last + 1))
            if not wanted.startswith(word.partition("\\x")[0]):  # bytes may become a character
                break
    return []


def _listed(positions: Iterable[int], tokens: Sequence[str], most: int = 40) -> str:
    """Positions with their tokens."""
    listed = [f"{i} '{readable_token(tokens[i], 20)}'" for i in positions]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" * (len(listed) > most))
