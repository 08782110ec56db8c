"""Tokens are untrusted text, and are shown so that a person can read them."""

from __future__ import annotations

import re
import unicodedata

import pytest

from captum_lig import LigError
from captum_lig.flow.tokens import (
    find_token,
    find_tokens,
    numbered_tokens,
    readable_text,
    readable_token,
)
from tests.helpers.synthetic import HOSTILE


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("##ing", "##ing"),
        ("[CLS]", "[CLS]"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("Ġhello", "␣hello"),
        ("▁hello", "␣hello"),
        ("ĠcafÃ©", "␣café"),  # byte-level: the two bytes of é
        ("åĽ½", "国"),  # byte-level: the three bytes of 国
        ("café", "café"),  # a word piece: é itself
        ("Ã", "Ã"),  # half of a character
        ("ĊĊ", "\\n\\n"),
        ("中", "中"),
        ("😀", "😀"),
        ("", "''"),
        ("\u0301", "◌\u0301"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202ex", "\\u202ex"),
        ("\ud800", "\\ud800"),
        ("a\u2028b", "a\\u2028b"),
        ("$x^2$", "$x^2$"),
    ],
)
def test_readable_token(token: str, shown: str) -> None:
    assert readable_token(token) == shown


def test_nothing_invisible_is_left() -> None:
    every = "".join(chr(i) for i in range(0x3000)) + "\ufeff\U000e0001"
    for shown in (readable_token("中" + every), readable_text(every)):
        left = {unicodedata.category(c) for c in shown}
        assert not left & {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def test_limit() -> None:
    assert readable_token("congratulations", 8) == "congrat…"
    assert readable_token("congrats", 8) == "congrats"
    assert all(len(readable_token(token, 4)) <= 4 for token in HOSTILE)


def test_text_keeps_its_spaces() -> None:
    assert readable_text("two words\n") == "two words\\n"


# ---- tokens by what they say -----------------------------------------------------------------

GPT = ["The", "Ġpain", "Ġin", "Ġthe", "Ġchest", "Ġis", "Ġthe", "Ġworst"]
BERT = ["[CLS]", "the", "da", "##chs", "##hund", "sat", "[SEP]"]


@pytest.mark.parametrize(
    ("given", "tokens", "position"),
    [
        ("pain", GPT, 1),
        (" pain", GPT, 1),
        ("Ġpain", GPT, 1),
        ("␣pain", GPT, 1),
        ("PAIN", GPT, 1),
        ("The", GPT, 0),
        ("[CLS]", BERT, 0),
        ("[cls]", BERT, 0),
        ("##chs", BERT, 3),
        ("▁two words", ["▁one", "▁two words"], 1),
        ("two words", ["▁one", "▁two words"], 1),
        ("is", ["Ġis", "IS"], 0),
        ("3", ["0", "1", "2", "3"], 3),
        (-2, GPT, -2),
        (None, GPT, None),
    ],
)
def test_a_token_is_found(given: object, tokens: list[str], position: int | None) -> None:
    assert find_token(given, tokens) == position


@pytest.mark.parametrize(
    ("given", "tokens", "says"),
    [
        ("the", GPT, "target='the' is 2 tokens: 3 '␣the', 6 '␣the'"),
        ("is", ["is", "Ġis"], "0 'is', 1 '␣is'"),
        ("dog", GPT, "is no token of this text: 0 'The', 1 '␣pain'"),
        ("dachshund", BERT, "in pieces here: 2 'da', 3 '##chs', 4 '##hund'"),
        (" pain in", GPT, "in pieces here: 1 '␣pain', 2 '␣in'"),
        ("", GPT, "is no token"),
        ("x", [f"t{i}" for i in range(50)], "39 't39' and 10 more"),
    ],
)
def test_a_token_that_is_not_one_is_refused(given: str, tokens: list[str], says: str) -> None:
    with pytest.raises(LigError, match=re.escape(says)):
        find_token(given, tokens, "target")


def test_each_of_a_list_is_found() -> None:
    assert find_tokens(["pain", 0, "worst"], GPT) == [1, 0, 7]
    assert find_tokens("pain", GPT) == 1


def test_tokens_that_look_alike_get_their_positions() -> None:
    assert numbered_tokens(GPT)[3:7] == ["␣the (3)", "␣chest", "␣is", "␣the (6)"]
    assert numbered_tokens(["a", "a"], [4, 7]) == ["a (4)", "a (7)"]
    assert numbered_tokens(["abcdef", "abcdeg"], limit=5) == ["abcd… (0)", "abcd… (1)"]
