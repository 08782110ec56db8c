"""Letters are read as bytes where a tokenizer spells them so, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from captum_lig import FlowGraph, LigError
from captum_lig.flow.byte_level import is_byte_level, join_texts, plain_tokens, token_texts
from captum_lig.flow.tokens import find_token, numbered_tokens, readable_token
from captum_lig.flow.words import word_labels
from captum_lig.prediction.words import of_one_token
from tests.helpers.embedded import minilm_folder
from tests.helpers.synthetic import flows

TEXT = "a 😀 שלום £ đ"


@pytest.fixture(scope="module")
def spelled() -> Any:
    """A tokenizer of single bytes, but for a space before 'a', '£', and two bytes of an emoji."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [("Ġ", "a"), ("Â", "£"), ("ð", "Ł")]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<é>"]})
    return tokenizer


@pytest.fixture(scope="module")
def pieces() -> Any:
    return AutoTokenizer.from_pretrained(str(minilm_folder()))


def ids_of(tokenizer: Any, text: str = TEXT) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_which_tokenizers_are_byte_level(spelled: Any, pieces: Any) -> None:
    assert is_byte_level(spelled)
    assert not is_byte_level(pieces)
    assert not is_byte_level(object())


def test_letters_of_word_pieces_are_letters(pieces: Any) -> None:
    texts = token_texts(pieces, ids_of(pieces, "the đ sat"))
    assert texts == ["the", "đ", "sat"]
    assert numbered_tokens(texts) == texts
    assert find_token("đ", texts) == 1
    for letters in ("đ", "Çı", "ÓŁ", "Å²", "č"):  # two of them are valid UTF-8 as bytes, too
        assert readable_token(letters) == letters


def test_pieces_of_characters_are_shown_as_bytes(spelled: Any) -> None:
    texts = token_texts(spelled, ids_of(spelled))
    assert texts[:6] == ["a", " ", "\\xf0\\x9f", "\\x98", "\\x80", " "]
    assert "£" in texts
    assert "\\xd7" in texts
    assert "ð" not in texts
    assert join_texts(texts) == TEXT
    assert token_texts(spelled, spelled("<é>")["input_ids"]) == ["<é>"]
    assert token_texts(spelled, [10**6]) == [f"<{10**6}>"]


def test_a_letter_does_not_name_a_byte(spelled: Any) -> None:
    tokens = token_texts(spelled, ids_of(spelled))
    assert find_token("£", tokens) == tokens.index("£")
    for letter in ("Ŀ", "×", "ķ"):
        with pytest.raises(
            LigError, match=r"is no token of this text: 0 'a', 1 '␣', 2 '\\xf0\\x9f'"
        ):
            find_token(letter, tokens)
    with pytest.raises(LigError, match=r"in pieces here: 2 '\\xf0\\x9f', 3 '\\x98', 4 '\\x80'"):
        find_token("😀", tokens)
    assert find_token("ĠcafÃ©", ["un", " café"]) == 1  # as a tokenizer writes it


def test_words_of_pieces_are_called_what_they_say(spelled: Any) -> None:
    ids = ids_of(spelled, "a 😀")
    for tokens in (token_texts(spelled, ids), spelled.convert_ids_to_tokens(ids)):
        assert word_labels(tokens, [0, 1, 1, 1, 1]) == ["a", "😀"]


def test_tokens_of_a_text_are_read_as_bytes_where_all_are(spelled: Any) -> None:
    raw = ["Ġle", "ĠcafÃ", "©", "<▁end>"]
    texts = [" le", " caf\\xc3", "\\xa9", "<▁end>"]
    assert plain_tokens(raw) == texts
    assert plain_tokens(texts) == texts
    assert numbered_tokens(raw)[1:3] == ["␣caf\\xc3", "\\xa9"]
    graph = FlowGraph(flows(1, 4), raw)
    assert graph.tokens == texts
    for others in (["Ġis", "ĠRome"], ["[CLS]", "đ"], ["Ġthe", "é"], ["Ġthe", "中"]):
        assert plain_tokens(others) == others


@pytest.mark.parametrize("letter", ["ą", "đ", "Ā", "ķ", "Ø", "¡", "Ġ", "Ċ", "Â£"])
def test_a_letter_that_is_several_tokens_is_refused(spelled: Any, letter: str) -> None:
    with pytest.raises(LigError, match=rf"token '{letter}' is \d tokens, \['.*\\x"):
        of_one_token(letter, nn.Identity(), spelled)


def test_forms_that_a_token_is_given_in(spelled: Any, pieces: Any) -> None:
    names = {" a": "Ġa", "Ġa": "Ġa", "a": "a", "£": "Â£", "<é>": "<é>", "\n": "Ċ"}
    for given, name in names.items():
        found = of_one_token(given, nn.Identity(), spelled)
        assert found == spelled.convert_tokens_to_ids(name)
    for given in ("##ing", "[MASK]", "paris", " paris", "đ"):
        found = of_one_token(given, nn.Identity(), pieces)
        assert found == pieces.convert_tokens_to_ids(given.strip())


def test_a_piece_of_a_character_is_given_as_it_is_shown(spelled: Any) -> None:
    for given in ("\\x84", "\\xf0\\x9f", "\\xd7"):
        found = of_one_token(given, nn.Identity(), spelled)
        assert token_texts(spelled, [found]) == [given]
    with pytest.raises(LigError, match="tokens"):
        of_one_token("\\xf0\\x9f\\x98", nn.Identity(), spelled)
