"""Tokens merged into words: maps summed over the pieces of a word, rows and columns alike."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["merge", "merge_any", "words_of_tokens"]

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Which word each token belongs to, from where it stands in the text.

    A word is a run of letters and digits, or one other character. A token belongs to the word of
    the first character of it that is not space; one without any (a special token, a space) is a
    word by itself.

    Args:
        text: the text.
        offsets: start and end of each token in it, as tokenizers give them.

    Returns:
        ``(S,)`` numbers from 0, in the order of the tokens.
    """
    at = {}
    for number, match in enumerate(_WORD.finditer(text)):
        at.update(dict.fromkeys(range(*match.span()), number))
    numbers: dict[object, int] = {}
    found = []
    for token, (start, end) in enumerate(offsets):
        inside = (at[place] for place in range(start, end) if place in at)
        word = next(inside, None)
        key = ("token", token) if word is None else ("word", word)
        found.append(numbers.setdefault(key, len(numbers)))
    return torch.tensor(found)


def merge(maps: Tensor, words: Tensor) -> Tensor:
    """Sum ``maps (..., S, S)`` over the rows and columns of each word, to ``(..., W, W)``."""
    member = _members(words, maps)
    return member @ maps @ member.T


def merge_any(flags: Tensor, words: Tensor) -> Tensor:
    """Whether any token of a word has a flag: ``(..., S)`` to ``(..., W)``."""
    member = _members(words, torch.zeros((), device=flags.device))
    return (flags.to(member) @ member.T) > 0


def _members(words: Tensor, like: Tensor) -> Tensor:
    """``(W, S)`` 1 where a token belongs to a word."""
    words = words.to(like.device)
    every = torch.arange(int(words.max()) + 1, device=words.device)
    return (every[:, None] == words).to(like)
