"""How a token is shown to a person. Tokens are untrusted text."""

from __future__ import annotations

import unicodedata

__all__ = ["decode_bytes", "readable_text", "readable_token"]

_SPACE, _SPACES = "␣", " ▁Ġ"


def _byte_alphabet() -> dict[str, int]:
    """The 256 letters that byte-level tokenizers (GPT-2) write bytes with."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def readable_token(token: str, limit: int | None = None) -> str:
    r"""Make a token safe and readable on a terminal and in a picture.

    Word pieces (``##ing``) and special tokens (``[CLS]``) stay as they are. Byte-level tokens
    are decoded where they are whole characters, spaces become ``␣``, a combining mark gets a
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


def decode_bytes(token: str) -> str:
    """Text of a token that a byte-level tokenizer wrote; any other token as it is."""
    # A Latin-1 word such as "café" is no valid UTF-8 when read as bytes, so it stays a word.
    try:
        return bytes(_BYTES[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return token


def _escape(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "C" or category in ("Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character


def _shorten(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
