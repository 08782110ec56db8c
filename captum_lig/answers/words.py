"""Tokens and numbers as the screen shows them."""

from __future__ import annotations

import math

from captum_lig.flow.byte_level import decode_bytes
from captum_lig.flow.tokens import readable_text

__all__ = [
    "at",
    "error_percent",
    "padding_for",
    "part_of",
    "percent",
    "probability",
    "quoted",
    "signed",
    "word_of",
]


def word_of(token: str, limit: int | None = None) -> str:
    """A token as its tokenizer writes it, as the text that it stands for."""
    return readable_text(decode_bytes(token).replace("▁", " "), limit)


def quoted(token: str, limit: int | None = 24) -> str:
    """The same in quotation marks."""
    return f'"{word_of(token, limit)}"'


def at(token: str, position: int) -> str:
    """A token and its position in the text."""
    return f"{quoted(token, 16)} ({position})"


def signed(value: float) -> str:
    """A number with its sign, to three digits."""
    return f"{value:+#.3g}".removesuffix(".") if abs(value) < 1000 else f"{value:+.0f}"


def part_of(value: float, whole: float) -> str:
    """A number with its sign, with the decimals that three digits of another number have."""
    if not whole or not math.isfinite(whole):
        return signed(value)
    return f"{value:+.{min(max(2 - math.floor(math.log10(abs(whole))), 0), 12)}f}"


def percent(share: float | None) -> str:
    """A share that may be above 1 or below 0."""
    return "" if share is None else f"{share:+.0%}"


def error_percent(share: float) -> str:
    """A small share without a sign."""
    return f"{100 * share:.1g}%" if share < 0.1 else f"{share:.0%}"


def probability(value: float | None, logit: float) -> str:
    """A probability in percent, small ones too; the number itself where it stands for none."""
    if value is None:
        return signed(logit)
    if value >= 0.0995:
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= 0.0005 else "<0.1%"


def padding_for(tokens: list[str], others: list[str]) -> str:
    """What a text is compared with where padding stands for it: some tokens stay."""
    stay = [n for n, (one, other) in enumerate(zip(tokens, others, strict=True)) if one == other]
    if not stay:
        return "padding in its place"
    if len(stay) == 1:
        return f"padding in place of all tokens but {at(tokens[stay[0]], stay[0])}, which stays"
    return f"padding in place of {len(tokens) - len(stay)} of the {len(tokens)} tokens; others stay"
