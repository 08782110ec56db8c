"""The two texts that a prediction is compared between, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_lig.answers.wanted import Wanted
from captum_lig.answers.words import quoted
from captum_lig.errors import LigError
from captum_lig.flow.byte_level import token_texts
from captum_lig.pretrained.load import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Texts", "read_texts"]

PLACE = "\ue000"
"""Stands for a text: a character for private use, which no template has."""


@dataclass(frozen=True)
class Texts:
    """A text and what it is compared with, of as many tokens."""

    encoding: dict[str, Tensor]
    """What the model is called with."""
    other: Tensor | None
    """``(1, S)`` ids of the other text; None for padding, see :func:`input_baseline`."""

    @property
    def ids(self) -> list[int]:
        """The text's tokens."""
        return [int(i) for i in self.encoding["input_ids"][0]]

    def followed_by(self, ids: Sequence[int]) -> Texts:
        """Both texts with these tokens at their ends."""
        more = torch.tensor([list(ids)])
        neutral = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        encoding = {
            name: torch.cat([x, neutral.get(name, torch.zeros_like(more)).to(x)], 1)
            for name, x in self.encoding.items()
        }
        other = None if self.other is None else torch.cat([self.other, more.to(self.other)], 1)
        return replace(self, encoding=encoding, other=other)

    def to(self, device: torch.device | str) -> Texts:
        """On another device."""
        encoding = {name: x.to(device) for name, x in self.encoding.items()}
        return Texts(encoding, None if self.other is None else self.other.to(device))


def read_texts(
    wanted: Wanted, tokenizer: PreTrainedTokenizerBase, name: str, most: int | None
) -> Texts:
    """The texts of a question as tokens.

    Args:
        wanted: the question.
        tokenizer: of the model.
        name: of the model.
        most: how many tokens it takes; None for any number.

    Raises:
        LigError: for a text without tokens or with too many, texts of unequal numbers of tokens,
            or a chat with a model that has no template for it.
    """
    encoding = _read(wanted.text, wanted, tokenizer)
    ids = encoding["input_ids"][0].tolist()
    special = set(tokenizer.all_special_ids)
    if all(i in special for i in ids):
        raise LigError(
            f"the text {wanted.text!r} gives model {name!r} no token of its own: give at least one "
            "word."
        )
    counts = {"the text": len(ids)}
    with quiet():
        if wanted.similar_to is not None:
            counts["similar_to"] = len(tokenizer(wanted.similar_to)["input_ids"])
        if wanted.answer is not None:
            more = len(tokenizer(wanted.answer, add_special_tokens=False)["input_ids"])
            counts["the text with its answer"] = len(ids) + more
    counts["the text and what is generated"] = len(ids) + (wanted.generate or 0)
    for what, count in counts.items():
        if most is not None and count > most:
            raise LigError(
                f"{what} has {count} tokens, special ones included, and model {name!r} takes "
                f"{most} at most: shorten the text or split it."
            )
    if wanted.against is None:
        return Texts(encoding, _padded(wanted.text, tokenizer) if wanted.chat else None)
    other = _read(wanted.against, wanted, tokenizer)["input_ids"]
    if other.shape != encoding["input_ids"].shape:
        raise LigError(_unequal(ids, other[0].tolist(), tokenizer))
    if torch.equal(other, encoding["input_ids"]):
        raise LigError(
            f"the text {wanted.text!r} and {wanted.against!r} have the same tokens for model "
            f"{name!r}: give a text that differs for it."
        )
    return Texts(encoding, other)


def _read(text: str, wanted: Wanted, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """A text's encoding, of a chat with its template."""
    with quiet():
        if not wanted.chat:
            return dict(tokenizer(text, return_tensors="pt"))
        return dict(
            tokenizer(_chat(text, tokenizer), return_tensors="pt", add_special_tokens=False)
        )


def _chat(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text as a user's message in the template."""
    if not tokenizer.chat_template:
        raise LigError("the model has no chat template beside its tokenizer: leave chat out.")
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _padded(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
    """Tokens ``(1, S)`` of a chat with padding for what the user wrote, and the template's own.

    None for a tokenizer without padding and end, see :func:`input_baseline`.

    Raises:
        LigError: if it does not show which tokens those are.
    """
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if token is None:
        return None
    # The text may be a word of the template's, too: the place is that of a character of its own.
    before, found, after = _chat(PLACE, tokenizer).partition(PLACE)
    whole = _chat(text, tokenizer)
    inside = len(before), len(whole) - len(after)
    if not found or PLACE in after or not (whole.startswith(before) and whole.endswith(after)):
        raise LigError(
            "the chat template does not show which of its words are the text's, and no padding "
            "can stand for them: give another text to compare with (against)."
        )
    if not tokenizer.is_fast:
        raise LigError(
            f"{type(tokenizer).__name__} does not say which characters its tokens are of, and in a "
            "chat padding stands for the text's alone: give another text to compare with (against)."
        )
    with quiet():
        encoding = tokenizer(
            whole, return_tensors="pt", add_special_tokens=False, return_offsets_mapping=True
        )
    ids, (begins, ends) = encoding["input_ids"], encoding["offset_mapping"][0].T
    theirs = (ends > inside[0]) & (begins < inside[1])
    return torch.where(theirs[None], torch.full_like(ids, token), ids)


def _unequal(ids: list[int], other: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Both texts as tokens, where they are of unequal numbers, and what to do."""

    def shown(of: Sequence[int]) -> str:
        return " ".join(quoted(token) for token in token_texts(tokenizer, of))

    matcher = SequenceMatcher(None, ids, other, autojunk=False)
    spans = [span for span in matcher.get_opcodes() if span[0] != "equal"]
    uneven = [
        f"{shown(ids[a:b]) or 'nothing'} stands against {shown(other[c:d]) or 'nothing'}"
        for _, a, b, c, d in spans
        if b - a != d - c
    ]
    return (
        f"the text has {len(ids)} tokens and the one it is compared with {len(other)}, and each "
        f"token needs one to be compared with.\n  {len(ids)}: {shown(ids)}\n  {len(other)}: "
        f"{shown(other)}\n"
        + (f"  {'; '.join(uneven)}.\n" if uneven else "")
        + "Exchange words for others of as many tokens, or leave the other text out: then padding "
        "stands for it."
    )
