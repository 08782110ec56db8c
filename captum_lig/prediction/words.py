"""Tokens given as strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_lig._arguments import brief, check_utf8
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import decode_bytes, is_byte_level, spelled, token_texts
from captum_lig.flow.tokens import readable_text
from captum_lig.pretrained.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["of_one_token", "pieces", "token_ids"]


def of_one_token(
    token: Any, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
) -> int:
    """The id of a token given as a string; a number stays as it is.

    Raises:
        LigError: for a string that is not exactly one token, or has none beside it to read it.
    """
    if isinstance(token, int) and not isinstance(token, bool):
        return token
    if not isinstance(token, str):
        raise LigError(f"token={brief(token)}: give the id of a token, or a string that is one.")
    check_utf8("token", token)
    tokenizer = tokenizer or tokenizer_of(model)
    ids = list(tokenizer(token, add_special_tokens=False)["input_ids"])
    unknown = tokenizer.unk_token_id
    if len(ids) == 1 and (ids[0] != unknown or token == tokenizer.unk_token):
        return int(ids[0])
    number = tokenizer.get_vocab().get(token)  # of '##s', which is read as three tokens
    if number is not None and _is_spelled(token, number, tokenizer):
        return int(number)
    if "\\x" in token and is_byte_level(tokenizer):  # a piece of a character, as it is shown
        number = tokenizer.get_vocab().get(spelled(token))
        if number is not None and token_texts(tokenizer, [number]) == [token]:
            return int(number)
    if unknown in ids:
        raise LigError(f"token {token!r} is unknown to {type(tokenizer).__name__}.")
    spaced = "" if token.startswith(" ") else f", such as {' ' + token!r}"
    raise LigError(
        f"token {token!r} is {len(ids)} tokens, {_listed(ids, tokenizer)}: give one "
        f"of them, or its id. In most vocabularies a word that follows another begins with a "
        f"space{spaced}."
    )


def token_ids(
    text: Any, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[int]:
    """The ids of a string without special tokens; ids stay as they are.

    Raises:
        LigError: if there are none.
    """
    if isinstance(text, str):
        check_utf8("continuation", text)
        text = (tokenizer or tokenizer_of(model))(text, add_special_tokens=False)["input_ids"]
    ids = text.tolist() if hasattr(text, "tolist") else text
    whole = isinstance(ids, Sequence) and all(type(i) is int for i in ids)
    if not whole or not ids:
        raise LigError(f"continuation={brief(text)}: give a string, or one or more token ids.")
    return list(ids)


def pieces(
    ids: Sequence[int], model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Tokens as a message shows them: as words if there is a tokenizer, else as ids."""
    try:
        return _listed(ids, tokenizer or tokenizer_of(model))
    except LigError:
        return f"the ids {list(ids)}"


def _is_spelled(token: str, number: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a string that a vocabulary lists is meant as the entry.

    In a byte-level one each of 256 letters is the spelling of a byte, and not of that letter.
    """
    if not is_byte_level(tokenizer):
        return True
    text = token_texts(tokenizer, [number])[0]
    return token == text or (len(token) > 1 and text == decode_bytes(token))


def _listed(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return "[" + ", ".join(f"'{readable_text(name)}'" for name in token_texts(tokenizer, ids)) + "]"
