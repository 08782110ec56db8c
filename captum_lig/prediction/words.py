"""Tokens given as strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_lig._arguments import brief, check_utf8
from captum_lig.errors import LigError
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
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:  # such as '##s', which is read as three tokens
        return int(vocabulary[token])
    if unknown in ids:
        raise LigError(f"token {token!r} is unknown to {type(tokenizer).__name__}.")
    spaced = "" if token.startswith(" ") else f", such as {' ' + token!r}"
    raise LigError(
        f"token {token!r} is {len(ids)} tokens, {tokenizer.convert_ids_to_tokens(ids)}: give one "
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
        return str((tokenizer or tokenizer_of(model)).convert_ids_to_tokens(list(ids)))
    except LigError:
        return f"the ids {list(ids)}"
