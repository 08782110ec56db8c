"""From word pieces to words: which pieces make a word, and maps with their pieces added up."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import decode_bytes, join_texts, plain_tokens

__all__ = ["add_up", "in_order", "merge_map", "whole_words", "word_groups", "word_labels"]


def word_groups(
    word_ids: Sequence[int | None] | None = None,
    *,
    offsets: Sequence[tuple[int, int]] | None = None,
    text: str | None = None,
) -> list[int]:
    """Tell which tokens make a word.

    Args:
        word_ids: the number of each token's word, as a tokenizer's ``encoding.word_ids()`` has it.
            Neighbours with the same number make a word; a token with None stays alone.
        offsets: instead, where each token begins and ends in ``text``, in characters
            (``return_offsets_mapping=True``). A piece goes on with a word where it begins at the
            end of the last one and the characters on both sides are letters, digits or marks, or
            where the two are pieces of one character. Tokens of no character stay alone.
        text: the text that was tokenized, with ``offsets``.

    Use word numbers for scripts without spaces, where a run of letters is a whole sentence, and
    offsets for tokenizers that do not split at spaces (Llama 2), where all has one number.

    Returns:
        The word of each token: 0, 1, ... in the order they come.

    Raises:
        LigError: unless either word numbers or offsets with their text are given; for word numbers
            that are none, and for offsets that are not those of the text.
    """
    if (word_ids is None) == (offsets is None):
        raise LigError("give either word numbers or offsets with their text, and not both.")
    if (offsets is None) != (text is None):
        raise LigError("offsets and text belong together: give both.")
    if word_ids is not None:
        joined = _same_number(list(word_ids))
    else:
        assert offsets is not None and text is not None
        joined = _same_run([_span(offset, text) for offset in offsets], text)
    if not joined:
        raise LigError("there are no tokens to make words of: the list is empty.")
    groups, last = [], -1
    for goes_on in joined:
        last += not goes_on
        groups.append(last)
    return groups


def merge_map(matrix: Tensor, groups: Sequence[int], targets: Tensor | None = None) -> Tensor:
    """Add up the rows and the columns of a map by word, so that all of it is kept.

    For signed attributions, which add up. A map of lengths (``influence``) does not: its sum over
    the pieces is the most that the word's can be.

    Args:
        matrix: ``(..., T, S)``, ``[target, source]``.
        groups: the word of each of the ``S`` sources, from :func:`word_groups`.
        targets: ``(T,)`` indices of the targets among the sources; None: all of them, in order.

    Returns:
        ``(..., words that are targets, words)``, of the same dtype; the words that are targets in
        the order of their first pieces among ``targets``.

    Raises:
        LigError: if the map does not fit the groups, or a word is a target in part only.
    """
    word = _words(groups, matrix.device)
    rows = torch.arange(len(word), device=matrix.device) if targets is None else targets
    if matrix.dim() < 2 or matrix.shape[-2:] != (len(rows), len(word)):
        raise LigError(
            f"a map of shape {tuple(matrix.shape)} was given with {len(rows)} targets and "
            f"{len(word)} sources: give (..., targets, sources), and targets= if not every token "
            "is one."
        )
    known = torch.zeros(len(word), dtype=torch.bool, device=matrix.device)
    known[rows] = True
    whole_words(known, groups)
    row_word = torch.tensor(in_order(word[rows].tolist()), device=word.device)
    # In float64, so that no more than one rounding is between the sum and the map's own dtype.
    merged = add_up(add_up(matrix.double(), -2, row_word), -1, word)
    return merged.to(matrix.dtype)


def in_order(groups: Sequence[int]) -> list[int]:
    """The words numbered anew, 0, 1, ... in the order they come."""
    number: dict[int, int] = {}
    return [number.setdefault(word, len(number)) for word in groups]


def whole_words(known: Tensor, groups: Sequence[int]) -> Tensor:
    """Which words are targets, ``(W,)``, where ``known (S,)`` says which tokens are.

    Raises:
        LigError: if a word has a piece that is a target and one that is none.
    """
    word = _words(groups, known.device)
    pieces = add_up(torch.ones_like(word), 0, word)
    among = add_up(known.long(), 0, word)
    part = (among != 0) & (among != pieces)
    if bool(part.any()):
        first = int(part.nonzero()[0])
        tokens = (word == first).nonzero().flatten().tolist()
        raise LigError(
            f"tokens {brief(tokens)} make a word, and not all of them were targets of the "
            "attribution: attribute all of them, or leave them alone (None in place of their "
            "word numbers)."
        )
    return among == pieces


def add_up(values: Tensor, axis: int, word: Tensor) -> Tensor:
    """Sum over the pieces of each word along one axis."""
    shape = list(values.shape)
    shape[axis] = int(word.max()) + 1
    return values.new_zeros(shape).index_add_(axis, word, values)


def word_labels(
    tokens: Sequence[str],
    groups: Sequence[int],
    *,
    offsets: Sequence[tuple[int, int]] | None = None,
    text: str | None = None,
) -> list[str]:
    """What each word is called: its part of the text, or its pieces without their marks.

    A token without characters of its own (special tokens) keeps its name.

    Args:
        tokens: as the tokenizer writes them.
        groups: the word of each, from :func:`word_groups`.
        offsets: where each token begins and ends in ``text``, in characters.
        text: the text that was tokenized.
    """
    tokens = plain_tokens(tokens)
    members: list[list[int]] = [[] for _ in range(max(groups) + 1)]
    for token, word in enumerate(groups):
        members[word].append(token)
    labels = []
    for pieces in members:
        label = ""
        if offsets is not None and text is not None:
            rest = (begin for begin, end in offsets[pieces[-1] + 1 :] if end > begin)
            spans = [offsets[piece] for piece in pieces]
            label = _of_text(spans, text, next(rest, len(text)))
        labels.append(label or _joined([tokens[piece] for piece in pieces]))
    return labels


def _of_text(spans: list[tuple[int, int]], text: str, until: int) -> str:
    """What the pieces of a word are of the text, with an ellipsis for one that is not there.

    Marks after it, which tokenizers take off, belong to it as far as no other token has them.
    """
    label, end = "", spans[0][0]
    for start, stop in spans:
        label += ("…" if start > end else "") + text[max(start, end) : stop]
        end = max(end, stop)
    while end < until and unicodedata.category(text[end])[0] == "M":
        label, end = label + text[end], end + 1
    return label.strip()


def _joined(pieces: list[str]) -> str:
    """The pieces without what tokenizers mark beginnings, ends and continuations with."""
    first, *others = pieces
    word = first
    for piece in others:
        word = word.removesuffix("@@") + piece.removeprefix("##")
    plain = decode_bytes(join_texts([word])).replace("▁", " ").removesuffix("</w>").strip()
    return plain or word


def _same_number(word_ids: list[int | None]) -> list[bool]:
    for index, number in enumerate(word_ids):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise LigError(
                f"token {index} has the word number {brief(number)}: give whole numbers, and None "
                "for a token that stays alone."
            )
    last: list[int | None] = [None, *word_ids]
    return [a == b and b is not None for a, b in zip(last, word_ids, strict=False)]


def _span(offset: tuple[int, int], text: str) -> tuple[int, int]:
    try:
        start, end = (int(number) for number in offset)
    except (TypeError, ValueError) as error:
        raise LigError(f"offset {brief(offset)}: give pairs of (begin, end).") from error
    if not 0 <= start <= end <= len(text):
        raise LigError(
            f"offset {(start, end)} is none of a text of {len(text)} characters: give the text "
            "that was tokenized."
        )
    return start, end


def _same_run(spans: list[tuple[int, int]], text: str) -> list[bool]:
    joined = []
    last_start = last_end = 0
    before = (0, 0)
    for start, end in spans:
        if start == end:
            joined.append(False)
        elif start < last_start or end < last_end:
            raise LigError(
                f"offset {(start, end)} comes after {(last_start, last_end)}: give the offsets of "
                "one text, in its order."
            )
        else:
            last_start, last_end = start, end
            one_character = start < before[1]
            seam = start == before[1] > before[0] and _in_word(text[start - 1 : start + 1])
            joined.append(one_character or seam)
        before = (start, end)
    return joined


def _in_word(characters: str) -> bool:
    return all(unicodedata.category(character)[0] in "LNM" for character in characters)


def _words(groups: Sequence[int], device: torch.device) -> Tensor:
    return torch.as_tensor(groups, dtype=torch.long, device=device)
