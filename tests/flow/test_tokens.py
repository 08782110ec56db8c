"""Tokens are untrusted text, and are shown so that a person can read them."""

from __future__ import annotations

import unicodedata

import pytest

from captum_lig.flow.tokens import readable_text, readable_token
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
