"""Questions that do not work, and what is said of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from captum_lig import Answer, LigError, why
from captum_lig.explain import explain
from tests.helpers.answers import OTHER, TEXT, last_logits, loaded
from tests.helpers.models import SHAPE, randomise
from tests.helpers.saved import save_tiny_bert, save_tiny_gpt2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": " "}, "the text ' ' is empty"),
        ({"text": 3}, "the text=3: give a text"),
        ({"against": TEXT}, "nothing differs"),
        ({"target": " cat", "label": "joy"}, "target and label are different questions"),
        ({"answer": "x", "generate": 2}, "answer and generate are different questions"),
        ({"answer": "x", "foil": " cat"}, "goes without answer"),
        ({"generate": 0}, "generate=0: give a whole number, at least 1"),
        ({"position": 1.5}, "position=1.5: give a whole number"),
        ({"position": 2, "answer": "x"}, "goes without answer"),
        ({"target": " cat", "foil": " cat"}, "target and foil are both ' cat'"),
        ({"label": "joy"}, "label is for a model that sorts texts into classes"),
        ({"chat": True, "similar_to": "a"}, "chat is for next tokens"),
        ({"target": " catdog"}, "token ' catdog' is 3 tokens"),
        ({"position": 6}, "position 6 does not exist: the text has 6 tokens, 0 to 5"),
        ({"text": "the " * 30}, "model .* takes 24 at most"),
        ({"against": "the cat"}, "the text has 6 tokens and the one it is compared with 2"),
        ({"dtype": "half"}, "dtype 'half' is unknown: use one of float32, float64"),
        ({"device": "moon"}, "device 'moon' cannot be used"),
        ({"model": 3}, "model=3: give a name, a folder"),
        ({"model": ""}, "model='' is empty: give a name or a folder"),
        ({"tokenizer": 5}, "tokenizer=5: give a tokenizer of transformers"),
        ({"text": "caf\udce9"}, "is not UTF-8"),
        ({"target": "\ud800"}, "is not UTF-8"),
        ({"foil": "\ud800"}, "is not UTF-8"),
    ],
)
def test_checked_before_the_model_is_loaded(
    gpt2: Path, given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(AutoModel, "from_pretrained", never)
    with pytest.raises(LigError, match=said):
        why(**{"text": TEXT, "model": gpt2, **given})


def test_unequal_texts_show_both_and_where(gpt2: Path) -> None:
    with pytest.raises(LigError) as caught:
        why("the cat sat", gpt2, "the cat and a dog sat")
    message = str(caught.value)
    assert '\n  3: "the" " cat" " sat"\n' in message
    assert '\n  6: "the" " cat" " and" " a" " dog" " sat"\n' in message
    assert 'nothing stands against " and" " a" " dog"' in message
    assert "Exchange words for others of as many tokens" in message


def test_a_model_without_a_head_is_asked_how_alike(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path)
    with pytest.raises(LigError, match="gives vectors and predicts nothing: give similar_to"):
        why("the cat", tmp_path)
    with pytest.raises(LigError, match="target ' cat' is a token"):
        why("the cat", tmp_path, target=" cat")


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path, template=None)
    with pytest.raises(LigError, match="no chat template"):
        why("the cat", tmp_path, chat=True)


def test_nothing_to_pad(gpt2: Path) -> None:
    with pytest.raises(LigError, match="leaves it as it is: give a text of more tokens"):
        why("the", gpt2)


def test_nothing_is_padded_up_to_the_first_token(gpt2: Path) -> None:
    with pytest.raises(LigError, match="position 0 comes before all that padding stands for"):
        why(TEXT, gpt2, position=0)
    assert why(TEXT, gpt2, position=1, tolerance=None).change


@pytest.mark.parametrize("layers", [3, "3"])
def test_explain_of_what_it_cannot_take(layers: Any) -> None:
    given: Any = 5
    with pytest.raises(LigError, match="text=5: give a text"):
        explain(given)
    with pytest.raises(LigError, match=r"layers=.?3.?: give a list of indices"):
        explain("a", layers=layers)


@pytest.mark.parametrize("likelier", [True, False])
def test_a_token_without_its_space_is_pointed_out(gpt2: Path, likelier: bool) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    found = []
    for text in (TEXT, "the cat", "a dog", "the mat sat", "a cat and"):
        row = last_logits(model, tokenizer(text)["input_ids"])
        for token in ("a", "s", "m", "d", "c", "o", "the"):
            bare, spaced = (tokenizer(one)["input_ids"] for one in (token, f" {token}"))
            if len(bare) == len(spaced) == 1 and bool(row[spaced] > row[bare]) == likelier:
                found.append((text, token))
    assert found
    text, token = found[0]
    assert ("with a space" in str(why(text, gpt2, target=token))) == likelier


def test_a_number_that_hardly_changes_is_told_with_what_does(gpt2: Path, answer: Answer) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    here, there = (last_logits(model, tokenizer(text)["input_ids"]) for text in (TEXT, OTHER))
    likely = {int(i) for row in (here, there) for i in row.topk(50).indices}
    gained = {i: float(here[i] - there[i]) for i in likely}
    order = sorted(likely, key=gained.__getitem__)
    spread = gained[order[-1]] - gained[order[0]]
    steps = [gained[high] - gained[low] for low, high in pairwise(order)]
    place = min(range(len(steps)), key=lambda n: abs(steps[n] - 0.03 * spread))
    assert 0.01 * spread < steps[place] < 0.05 * spread
    told = why(TEXT, gpt2, OTHER, target=order[place], foil=order[place + 1], dtype="float64")
    (hint,) = told.hints
    assert f"by {spread:.3g}: --target" in hint
    assert "Of the 50 tokens that are likeliest after each, what they change most is" in hint
    assert f'--target "{tokenizer.decode([order[-1]])}" --foil' in hint
    far = why(TEXT, gpt2, OTHER, target=order[-1], foil=order[0], dtype="float64")
    assert far.hints == []
    assert far.change == pytest.approx(spread, rel=1e-2)


def test_what_a_tokenizer_gives_beyond_what_a_model_takes(gpt2: Path) -> None:
    """A generic tokenizer has token types, and a Llama takes none as it generates."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    config = LlamaConfig(**{**SHAPE, "vocab_size": len(tokenizer)})
    model = LlamaForCausalLM(config).eval()
    randomise(model, 0)
    found = why("the cat", model, "the dog", generate=1, tokenizer=tokenizer, tolerance=None)
    with torch.no_grad():
        ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
        wanted = int(model(ids).logits[0, -1].argmax())
    assert found.continuation == tokenizer.decode([wanted])
