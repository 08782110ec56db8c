"""What an answer says that the model says: tokens, classes, masks, vectors, chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
)

from captum_lig import Answer, LigError, why
from captum_lig.answers.asker import Asker
from captum_lig.answers.page import answer_page
from captum_lig.answers.says import probabilities
from captum_lig.answers.wanted import Wanted
from captum_lig.flow.byte_level import token_texts
from captum_lig.prediction import logit
from tests.helpers.answers import OTHER, TEXT, last_logits, loaded
from tests.helpers.saved import save_tiny_bert, save_tiny_head


def test_what_the_model_says_is_what_it_gives(gpt2: Path, answer: Answer) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    rows = [last_logits(model, tokenizer(text)["input_ids"]) for text in (TEXT, OTHER)]
    for said, row in zip((answer.says, answer.would_say), rows, strict=True):
        assert said.options[0].number == int(row.argmax())
        probabilities = [one.probability for one in said.options]
        assert probabilities == sorted(probabilities, reverse=True)
        for one in said.options:
            assert one.logit == pytest.approx(float(row[one.number]), abs=1e-9)
            assert one.probability == pytest.approx(float(row.softmax(-1)[one.number]), abs=1e-9)
    for said in (answer.says, answer.would_say):  # both name the first five of both
        numbers = {one.number for one in said.options}
        assert {int(i) for row in rows for i in row.topk(5).indices} <= numbers


def test_default_target_is_the_first_against_the_others_first(gpt2: Path, answer: Answer) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    here, there = (last_logits(model, tokenizer(text)["input_ids"]) for text in (TEXT, OTHER))
    first, second = int(here.argmax()), int(there.argmax())
    if first == second:
        second = int(here.topk(2).indices[1])
    assert answer.says.value == pytest.approx(float(here[first] - here[second]), abs=1e-9)
    assert answer.would_say.value == pytest.approx(float(there[first] - there[second]), abs=1e-9)
    assert answer.change == pytest.approx(answer.says.value - answer.would_say.value, abs=1e-9)
    assert answer.target.startswith("logit of ")
    assert answer.target.endswith("as the next token")


def test_default_foil_is_the_other_texts_first_where_they_differ(gpt2: Path) -> None:
    """Position 0 of both texts is the same, so the second one is taken there; elsewhere not."""
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    with torch.no_grad():
        here, there = (
            model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in (TEXT, OTHER)
        )
    differ = [n for n in range(6) if int(here[n].argmax()) != int(there[n].argmax())]
    assert differ  # else this tests nothing
    for position in differ:
        found = why(TEXT, gpt2, OTHER, position=position, dtype="float64")
        first, second = int(here[position].argmax()), int(there[position].argmax())
        expected = here[position][first] - here[position][second]
        assert found.says.value == pytest.approx(float(expected), abs=1e-9)
        assert f"after position {position}" in found.target


def test_target_and_foil_by_name(gpt2: Path) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    row = last_logits(model, tokenizer(TEXT)["input_ids"])
    cat, dog = (tokenizer.convert_tokens_to_ids(f"Ġ{name}") for name in ("cat", "dog"))
    found = why(TEXT, gpt2, OTHER, target=" cat", foil=" dog", dtype="float64")
    assert found.says.value == pytest.approx(float(row[cat] - row[dog]), abs=1e-9)
    assert found.favours == ('" cat"', '" dog"')
    assert found.target == 'logit of " cat" less logit of " dog", as the next token'
    assert {cat, dog} <= {one.number for one in found.says.options}
    by_number = why(TEXT, gpt2, OTHER, target=cat, foil=dog, dtype="float64")
    assert by_number.change == pytest.approx(found.change, abs=1e-12)
    given = why(TEXT, gpt2, OTHER, target=logit(" cat", minus=" dog"), dtype="float64")
    assert given.change == pytest.approx(found.change, abs=1e-12)


def test_padding_is_the_other_text_by_default(gpt2: Path) -> None:
    found = why(TEXT, gpt2, dtype="float64")
    assert found.against is None
    assert found.other_tokens == ["the", *["<|im_end|>"] * 5]
    assert "no one number is both: --check" in str(found).replace("\n", " ")
    assert "no one number is both" not in str(why(TEXT, gpt2, OTHER)).replace("\n", " ")


def test_a_continuation_is_explained(gpt2: Path) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    found = why("the cat sat", gpt2, "the dog sat", answer=" on the", dtype="float64")
    ids = tokenizer("the cat sat on the")["input_ids"]
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = float(rows[2, ids[3]] + rows[3, ids[4]])
    assert found.says.value == pytest.approx(expected, abs=1e-9)
    assert found.continuation == " on the"
    assert found.tokens[-2:] == found.other_tokens[-2:] == [" on", " the"]
    # What the model says is read before the continuation.
    assert found.says.options[0].number == int(rows[2].argmax())


def test_what_the_model_goes_on_with_is_explained(gpt2: Path) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    ids = tokenizer("the cat sat")["input_ids"]
    expected = 0.0
    new = []
    for _ in range(3):
        row = last_logits(model, ids + new).log_softmax(-1)
        new.append(int(row.argmax()))
        expected += float(row.max())
    found = why("the cat sat", gpt2, "the dog sat", generate=3, dtype="float64")
    assert found.says.value == pytest.approx(expected, abs=1e-9)
    assert found.tokens[3:] == token_texts(tokenizer, new)


def test_chat_pads_only_what_the_user_wrote(gpt2: Path) -> None:
    found = why("the cat sat", gpt2, chat=True)
    assert found.tokens[:5] == ["<|im_start|>", "the", " cat", " sat", "<|im_end|>"]
    changed = [a != b for a, b in zip(found.tokens, found.other_tokens, strict=True)]
    assert changed == [False, True, True, True, *[False] * (len(changed) - 4)]
    assert len(changed) > 6  # the template's own words at the end
    both = why("the cat sat", gpt2, "the dog sat", chat=True)
    pairs = enumerate(zip(both.tokens, both.other_tokens, strict=True))
    assert [n for n, (one, other) in pairs if one != other] == [2]


@pytest.mark.parametrize("text", ["so", " so", "user", "the"])
def test_a_chat_of_a_word_that_is_the_templates_too(gpt2: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    found = why(text, gpt2, chat=True)
    changed = [a != b for a, b in zip(found.tokens, found.other_tokens, strict=True)]
    begin = changed.index(True)
    assert found.tokens[begin - 1].endswith("<|im_start|>")
    assert [n for n, one in enumerate(changed) if one] == [*range(begin, begin + count)]


def test_a_template_that_changes_the_text(gpt2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    tokenizer.chat_template = "<|im_start|>{{ messages[0]['content'] | lower }}<|im_end|>"
    found = why("THE CAT", model, tokenizer=tokenizer, chat=True)
    changed = [a != b for a, b in zip(found.tokens, found.other_tokens, strict=True)]
    assert changed == [False, *[True] * (len(changed) - 2), False]
    tokenizer.chat_template = "{{ messages[0]['content'] }}<|im_end|>{{ messages[0]['content'] }}"
    with pytest.raises(LigError, match="does not show which of its words are the text's"):
        why("the cat", model, tokenizer=tokenizer, chat=True)


def test_a_class(tmp_path: Path) -> None:
    save_tiny_head(tmp_path, "classes")
    model, tokenizer = loaded(AutoModelForSequenceClassification, tmp_path)
    with torch.no_grad():
        row = model(**tokenizer("the cat sat", return_tensors="pt")).logits[0]
    found = why("the cat sat", tmp_path, "the mat sat", dtype="float64")
    name = model.config.id2label[int(row.argmax())]
    assert found.target == f'logit of the class "{name}"'
    assert found.says.value == pytest.approx(float(row.max()), abs=1e-9)
    assert {one.words for one in found.says.options} == {"fear", "joy", "rage"}
    for label in ("joy", 1):
        chosen = why("the cat sat", tmp_path, "the mat sat", label=label, dtype="float64")
        assert chosen.says.value == pytest.approx(float(row[1]), abs=1e-9)
    with pytest.raises(LigError, match=r"label 'awe' is no class .*'fear', 'joy', 'rage'"):
        why("the cat sat", tmp_path, label="awe")


def configured(folder: Path, **given: Any) -> None:
    """Change what a saved model's configuration says."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | given))


@pytest.mark.parametrize(
    ("problem", "chances"),
    [
        (None, lambda row: row.softmax(-1).tolist()),
        ("single_label_classification", lambda row: row.softmax(-1).tolist()),
        ("multi_label_classification", lambda row: row.sigmoid().tolist()),
        ("regression", lambda row: [None] * len(row)),
    ],
)
def test_what_the_numbers_of_classes_are(tmp_path: Path, problem: str | None, chances: Any) -> None:
    """Probabilities as the configuration has them; a regression has none."""
    save_tiny_head(tmp_path, "classes")
    configured(tmp_path, problem_type=problem)
    model, tokenizer = loaded(AutoModelForSequenceClassification, tmp_path)
    with torch.no_grad():
        row = model(**tokenizer("the cat sat", return_tensors="pt")).logits[0]
    found = why("the cat sat", tmp_path, "the mat sat", dtype="float64")
    options = found.says.options
    shown = [one.probability for one in sorted(options, key=lambda one: one.number)]
    expected = chances(row)
    assert shown == (expected if None in expected else pytest.approx(expected))
    assert [one.logit for one in options] == pytest.approx(sorted(row.tolist(), reverse=True))
    first = options[0]
    cell = f"{first.logit:+.3g}" if first.probability is None else f"{first.probability:.0%}"
    line = next(x for x in str(found).splitlines() if x.startswith(first.words))
    assert line.split()[1] == cell


def test_a_single_number_is_no_probability() -> None:
    """Of a cross-encoder it would always be 100 %."""
    assert probabilities(nn.Identity(), "classes", torch.tensor([[0.4]])) is None


def test_a_name_of_two_classes(tmp_path: Path) -> None:
    save_tiny_head(tmp_path, "classes")
    configured(tmp_path, id2label={"0": "joy", "1": "rage", "2": "joy"})
    with pytest.raises(LigError, match=r"'joy' is the name of 2 classes of the model, 0, 2"):
        why("the cat sat", tmp_path, label="joy")
    assert why("the cat sat", tmp_path, "the mat sat", label=2).target.endswith('"joy"')


def test_classes_that_are_called_like_numbers(tmp_path: Path) -> None:
    save_tiny_head(tmp_path, "classes")
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "1", "1": "2", "2": "3"}
    config["label2id"] = {"1": 0, "2": 1, "3": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asker = Asker(tmp_path)
    given: tuple[tuple[str | int, str], ...] = (("1", "1"), ("3", "3"), ("0", "1"), (1, "2"))
    for label, name in given:
        found = asker.answer(asker.prepare(Wanted("the cat", label=label)), tolerance=None)
        assert found.target == f'logit of the class "{name}"'
    for wrong in ("4", 3, "-1"):
        with pytest.raises(LigError, match=r"it knows '1', '2', '3', numbers 0 to 2"):
            asker.prepare(Wanted("the cat", label=wrong))


@pytest.mark.parametrize("token", [-3, 10**30, 276])
@pytest.mark.parametrize("name", ["target", "foil"])
def test_ids_that_are_no_tokens(gpt2: Path, name: str, token: int) -> None:
    with pytest.raises(LigError, match="give a number from 0 to "):
        why("the cat sat", gpt2, "the dog sat", **{name: token})  # type: ignore[arg-type]


def test_a_mask(tmp_path: Path) -> None:
    save_tiny_head(tmp_path, "masked")
    model, tokenizer = loaded(AutoModelForMaskedLM, tmp_path)
    with torch.no_grad():
        row = model(**tokenizer("the cat [MASK] on", return_tensors="pt")).logits[0, 3]
    found = why("the cat [MASK] on", tmp_path, "the mat [MASK] on", dtype="float64")
    assert found.says.options[0].number == int(row.argmax())
    assert found.target.endswith("in place of the mask")
    with pytest.raises(LigError, match=r"has 0 masks: write one \[MASK\]"):
        why("the cat", tmp_path, "the mat")


def test_a_position_without_a_mask(tmp_path: Path) -> None:
    save_tiny_head(tmp_path, "masked")
    found = why("the cat sat on the mat", tmp_path, "a cat sat on the dog", position=-5)
    assert found.target.endswith("at position 3")
    assert found.run.position == 3
    masked = why("the cat [MASK] on", tmp_path, "the mat [MASK] on", position=3)
    assert masked.target.endswith("in place of the mask")
    said = r"at position 3 the text has \"\[MASK\]\" and the one .* \"sat\": write \[MASK\] at"
    for position in (None, 3):
        with pytest.raises(LigError, match=said):
            why("the cat [MASK] on", tmp_path, "the mat sat on", position=position)
    with pytest.raises(LigError, match='the text has "sat" and the one'):
        why("the cat sat on", tmp_path, "the mat [MASK] on", position=3)


def test_how_alike_two_texts_are(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path)
    model, tokenizer = loaded(AutoModel, tmp_path)
    with torch.no_grad():
        one, other = (
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in ("the cat sat", "on the mat")
        )
    found = why("the cat sat", tmp_path, similar_to="on the mat", dtype="float64")
    cosine = float(torch.dot(one, other) / one.norm() / other.norm())
    assert found.says.value == pytest.approx(cosine, abs=1e-9)
    assert found.says.options == ()
    assert found.target == 'cosine with "on the mat" (mean pooling)'
    assert "find the text like" in (page := answer_page(found))
    assert "(mean pooling)?" not in page


class Bare(nn.Module):
    """A model of one's own around a GPT-2, without a configuration."""

    def __init__(self, inner: GPT2LMHeadModel) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits = self.inner(input_ids, attention_mask=attention_mask, use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits


@pytest.mark.parametrize("bare", [False, True])
def test_a_model_that_is_there_already(gpt2: Path, answer: Answer, bare: bool) -> None:
    model, tokenizer = loaded(AutoModelForCausalLM, gpt2)
    given = Bare(model).eval() if bare else model
    found = why(TEXT, given, OTHER, tokenizer=tokenizer if bare else None)
    assert found.change == pytest.approx(answer.change, abs=1e-9)
    assert found.model == type(given).__name__
