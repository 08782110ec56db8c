r"""Tokens of byte-level vocabularies, which spell bytes with letters: ``ĠcafÃ©`` is ``" café"``.

A letter may also be meant as such: ``đ`` is a word piece of BERT's, and how GPT-2 spells the byte
``\x11``. So a token is only read as bytes where its tokenizer is known to spell them, or where
what is there can be nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

__all__ = [
    "decode_bytes",
    "is_byte_level",
    "join_texts",
    "plain_tokens",
    "spelled",
    "token_texts",
]


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    def convert_ids_to_tokens(self, ids: list[int]) -> Any:
        """What the vocabulary calls them."""

    def convert_tokens_to_string(self, tokens: list[str]) -> Any:
        """The text of them."""

    def get_added_vocab(self) -> Mapping[str, int]:
        """Tokens that were added to the vocabulary."""


def _byte_alphabet() -> dict[str, int]:
    """The 256 letters that byte-level tokenizers (GPT-2) write bytes with."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_BYTES = _byte_alphabet()
_BEGINS = re.compile("Ġ|Ċ[ĊĠ]")  # no word of any language but Maltese
_SPECIAL = re.compile(r"<.*>|\[.*\]", re.DOTALL)
_FRAGMENTS = re.compile(r"(?:\\x[89a-f][0-9a-f])+")


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer reads the letters of a token as bytes."""
    try:
        return bool(tokenizer.convert_tokens_to_string(["Ãł"]) == "à")
    except Exception:  # a tokenizer of somebody's own, which raises whatever it likes
        return False


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    r"""What tokens are called: of a byte-level vocabulary the text, else as the tokenizer writes.

    Bytes that are no whole character are escapes, ``\xf0\x9f``. A token without a name is
    ``<id>``.
    """
    names = tokenizer.convert_ids_to_tokens(list(ids))
    names = [f"<{i}>" if name is None else str(name) for i, name in zip(ids, names, strict=True)]
    if not is_byte_level(tokenizer):
        return names
    added = tokenizer.get_added_vocab()  # written as they are
    return [name if name in added else _text(name) for name in names]


def spelled(text: str) -> str:
    r"""How a byte-level vocabulary spells a text, in which ``\x84`` is a byte."""
    letters = {byte: letter for letter, byte in _BYTES.items()}
    parts = _FRAGMENTS.split(text)
    found = [*_FRAGMENTS.findall(text), ""]
    raw = b"".join(
        part.encode() + bytes.fromhex(one.replace("\\x", ""))
        for part, one in zip(parts, found, strict=True)
    )
    return "".join(letters[byte] for byte in raw)


def plain_tokens(tokens: Sequence[str]) -> list[str]:
    """The tokens of a text as their text, where they are surely byte-level; else as they are.

    They are where one is (:func:`decode_bytes`), and all together are the bytes of a text. Where
    nothing but a space is spelled they stay as they are, too: there is nothing to tell apart.
    """
    names = list(map(str, tokens))
    if all(name.replace("Ġ", "").isascii() for name in names):
        return names
    spelled = [name for name in names if not _SPECIAL.fullmatch(name)]
    raw = _bytes("".join(spelled))
    if raw is None or not any(decode_bytes(name) != name for name in spelled):
        return names
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return names
    return [name if _SPECIAL.fullmatch(name) else _text(name) for name in names]


def decode_bytes(token: str) -> str:
    r"""Text of a token that is surely byte-level; any other as it is.

    Surely are those that begin with a space (``ĠcafÃ©``), and those that are the bytes of
    characters of three bytes and more (``åĽ½``). Two letters may be meant as such: ``Çı`` begins
    a Turkish word.
    """
    raw = _bytes(token)
    if raw is None or token.isascii():
        return token
    begins = _BEGINS.match(token) is not None
    text = raw.decode("utf-8", "backslashreplace")
    if re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text):
        return token  # a word such as "Ġorġ"
    return text if begins or (max(text) >= "\u0800" and "\\x" not in text) else token


def join_texts(texts: Sequence[str]) -> str:
    """Texts one after the other; escaped bytes that are whole characters together become them."""

    def read(found: re.Match[str]) -> str:
        return bytes.fromhex(found[0].replace("\\x", "")).decode("utf-8", "backslashreplace")

    return _FRAGMENTS.sub(read, "".join(texts))


def _bytes(token: str) -> bytes | None:
    """What a token spells; None if it has another character than the 256."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return None


def _text(token: str) -> str:
    raw = _bytes(token)
    return token if raw is None else raw.decode("utf-8", "backslashreplace")
