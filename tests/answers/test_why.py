"""`why` on tiny random models: what it says is what the model gives, and its parts add up."""

from __future__ import annotations

import json
import math
from itertools import pairwise
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
    LlamaConfig,
    LlamaForCausalLM,
)

from captum_lig import Answer, LigError, why
from captum_lig.answers.asker import Asker
from captum_lig.answers.screen import Section, as_text
from captum_lig.answers.wanted import Wanted
from captum_lig.flow.tokens import readable_token
from captum_lig.patching import Node, effects
from captum_lig.patching.writes import writes
from captum_lig.prediction import logit
from tests.helpers.models import SHAPE, randomise
from tests.helpers.pages import header
from tests.helpers.saved import save_tiny_bert, save_tiny_gpt2, save_tiny_head

TEXT, OTHER = "the cat sat on the mat", "the dog sat on the mat"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2(folder)
    return folder


@pytest.fixture(scope="module")
def answer(gpt2: Path) -> Answer:
    return why(TEXT, gpt2, OTHER, dtype="float64", tolerance=1e-3)


def loaded(kind: Any, folder: Path) -> tuple[Any, Any]:
    model = kind.from_pretrained(folder, dtype=torch.float64).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def last_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


# ---- what the model says ---------------------------------------------------------------------


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
    assert found.tokens[-2:] == found.other_tokens[-2:] == ["Ġon", "Ġthe"]
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
    assert found.tokens[3:] == tokenizer.convert_ids_to_tokens(new)


def test_chat_pads_only_what_the_user_wrote(gpt2: Path) -> None:
    found = why("the cat sat", gpt2, chat=True)
    assert found.tokens[:5] == ["<|im_start|>", "the", "Ġcat", "Ġsat", "<|im_end|>"]
    changed = [a != b for a, b in zip(found.tokens, found.other_tokens, strict=True)]
    assert changed == [False, True, True, True, *[False] * (len(changed) - 4)]
    assert len(changed) > 6  # the template's own words at the end
    both = why("the cat sat", gpt2, "the dog sat", chat=True)
    pairs = enumerate(zip(both.tokens, both.other_tokens, strict=True))
    assert [n for n, (one, other) in pairs if one != other] == [2]


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
    assert found.target == 'cosine with "on the mat"'


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


# ---- what carries it -------------------------------------------------------------------------


def test_the_strongest_are_the_largest_of_the_flows(answer: Answer) -> None:
    heads, mlps = [], []
    for flow in answer.flows:
        total, mlp = flow.need("attention_total")[0], flow.need("feed_forward")[0]
        for head in range(total.shape[0]):
            for position in range(total.shape[1]):
                heads.append((float(total[head, position]), flow.index, head, position))
        for position in range(len(mlp)):
            mlps.append((float(mlp[position]), flow.index, position))
    heads.sort(key=lambda one: -abs(one[0]))
    mlps.sort(key=lambda one: -abs(one[0]))
    for found, expected in zip(answer.strongest_heads(4), heads, strict=False):
        assert (found.layer, found.head, found.position) == expected[1:]
        assert found.value == pytest.approx(expected[0], rel=1e-3)
        assert found.share == pytest.approx(found.value / answer.change)
        assert found.token == answer.tokens[found.position]
        assert found.name == f"head {found.layer}.{found.head}"
        assert found.source is not None
        flow = answer.flows[found.layer]
        row = flow.need("attention")[0, found.head, found.position]
        assert found.source == int(row.abs().argmax())
        pattern = row - flow.need("attention_value")[0, found.head, found.position]
        assert found.through_pattern == pytest.approx(float(pattern.sum()), rel=1e-2, abs=1e-5)
    for one, largest in zip(answer.strongest_mlps(4), mlps, strict=False):
        assert (one.layer, one.position) == largest[1:]
        assert one.value == pytest.approx(largest[0], rel=1e-3)
    (token,) = answer.strongest_tokens()  # one word differs
    assert (token.position, token.token) == (1, "Ġcat")
    assert token.value == pytest.approx(answer.change, rel=1e-3)


def test_how_well_it_adds_up_is_the_worst_depth(answer: Answer) -> None:
    worst = 0.0
    for flow in answer.flows:
        gap = abs(float(flow.need("entering")[0].sum()) - float(flow.need("change")[0]))
        worst = max(worst, gap / float(flow.need("scale")[0]))
    assert answer.sum_error == pytest.approx(worst)
    assert 0 < answer.sum_error < 1e-3


def test_where_most_of_it_is_held(answer: Answer) -> None:
    largest = [int(row.abs().argmax()) for row in answer.trace.tokens]
    spread = [one.position for one in answer.held() for _ in range(one.first, one.last + 1)]
    assert spread == largest
    assert answer.held()[0].position == 1


def test_settings_reach_the_attribution(gpt2: Path, answer: Answer) -> None:
    rough = why(TEXT, gpt2, OTHER, dtype="float64", n_steps=1, tolerance=None)
    assert rough.sum_error > 10 * answer.sum_error


def test_the_check_patches_and_is_kept(gpt2: Path) -> None:
    found = why(TEXT, gpt2, OTHER, dtype="float64")
    assert found.checked is None
    check = found.check(3)
    assert found.checked is check
    assert check.value == pytest.approx(found.says.value)
    head = next(row for row in check.rows if row.node.kind == "heads")
    part = found.strongest_heads(1)[0]
    assert head.attributed == pytest.approx(part.value)
    run = found.run
    truth = effects(run.model, run.inputs, run.other, run.target, [head.node])
    assert head.out == pytest.approx(float(truth.taken_out[0]), abs=1e-9)
    (line,) = [one for one in str(found).splitlines() if one.startswith(part.name)]
    shown_values = [float(value) for value in line.split()[-2:]]
    assert shown_values == pytest.approx([head.out, head.into], abs=abs(found.change) / 100)
    shown = " ".join(str(found).split())
    one = check.correlation("heads")
    assert f"heads {one.mean:.2f} ({one.agreement:.2f})" in shown


# ---- shown and saved -------------------------------------------------------------------------


def test_the_screen(answer: Answer) -> None:
    shown = str(answer)
    assert max(map(len, shown.splitlines())) <= 80
    joined = " ".join(shown.split())
    for words in (
        f'the text "{TEXT}"',
        f'compared with "{OTHER}"',
        "after the other text",
        "Explained: logit of ",
        '" cat" (1) " dog"',
        answer.strongest_heads(1)[0].name,
        answer.strongest_mlps(1)[0].name,
        "parts add up to the change, to within",
        "s of them for the parts",
    ):
        assert words in joined
    page = answer._repr_html_()
    assert page.count("<table>") == page.count("</table>") == 5
    assert "&quot; cat&quot; (1)" in page


def test_untrusted_text_stays_text(gpt2: Path) -> None:
    found = why("<b>x</b> \x1b[31m [red]a", gpt2)
    assert "<b>" not in found._repr_html_()
    assert "\x1b" not in str(found)
    assert "[red]" in str(found)


def test_the_space_of_a_token_stays_with_it() -> None:
    words = 'It is held by " France" and " Italy", and no line ends within " a".'
    whole = as_text([Section("", notes=[words])], 200)
    assert whole == words
    for width in range(20, 60):
        lines = as_text([Section("", notes=[words])], width).splitlines()
        assert " ".join(lines) == words
        assert max(map(len, lines)) <= width
        assert not any(line.endswith('"') and line.count('"') % 2 for line in lines)


@pytest.mark.parametrize("name", ["one.html", "one.png", "one.svg", "one.json"])
def test_a_suffix_is_a_file(answer: Answer, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    assert answer.save(file) == [file]
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_size > 100
    with pytest.raises(LigError, match=r"'.*one.xml' has no known suffix: use one of .html"):
        answer.save(tmp_path / "one.xml")


def test_saved_files(answer: Answer, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    paths = answer.save(folder)
    assert [path.name for path in paths] == ["why.html", "why.png", "why.json"]
    page = header(paths[0].read_text(encoding="utf-8"))
    assert TEXT in page["title"]
    assert paths[1].read_bytes()[:4] == b"\x89PNG"
    numbers = json.loads(paths[2].read_text(encoding="utf-8"))
    assert numbers["change"] == answer.change
    assert numbers["text"] == TEXT
    assert numbers["strongest_heads"][0]["head"] == answer.strongest_heads(1)[0].head
    assert math.isclose(numbers["says"][0]["probability"], answer.says.options[0].probability)
    with pytest.raises(LigError, match="cannot be written to"):
        answer.save(tmp_path / "not" / "there")


# ---- the page --------------------------------------------------------------------------------


def test_the_page_holds_the_question(gpt2: Path, tmp_path: Path) -> None:
    answer = why(TEXT, gpt2, OTHER, dtype="float64", tolerance=1e-3)
    check = answer.check(2)
    made = header(answer.save(tmp_path / "new")[0].read_text(encoding="utf-8"))
    assert answer.favours is not None
    first, second = answer.favours
    assert made["question"] == f"Why does {answer.model} say {first} and not {second}?"
    assert (made["value"], made["other_value"]) == (answer.says.value, answer.would_say.value)
    assert made["change"] == answer.change
    assert made["differs"] == [1]
    assert made["sums"] == answer.sum_error
    for (words, here, there), option in zip(made["options"], answer.says.options, strict=True):
        other = answer.would_say.of(option.number)
        assert other is not None
        assert (words, here, there) == (option.words, option.probability, other.probability)
    assert [(row["layer"], row["out"]) for row in made["checked"]] == [
        (row.node.layer, row.out) for row in check.rows
    ]
    assert made["checked_says"]


def test_the_page_says_what_nodes_promote(answer: Answer, tmp_path: Path) -> None:
    made = header(answer.save(tmp_path / "new")[0].read_text(encoding="utf-8"))
    promotes = made["promotes"]
    assert (promotes["why_not"], promotes["at"]) == (None, 5)
    parts = [*answer.strongest_heads(3), *answer.strongest_mlps(3)]
    nodes = [
        Node("heads" if x.kind == "head" else "feed_forward", x.layer or 0, x.position, x.head)
        for x in parts
    ]
    run = answer.run
    found = writes(run.model, run.inputs, run.other, run.target, nodes)
    assert run.tokenizer is not None
    for node, own, change in zip(nodes, found.own, found.change, strict=True):
        name = f"{node.layer}.{'mlp' if node.head is None else node.head}.{node.position}"
        for kind, row in (("own", own), ("change", change)):
            logits = found.unembedding(row)
            for side, sign in (("up", 1), ("down", -1)):
                best = (sign * logits).topk(8).indices
                shown = promotes["nodes"][name][kind][side]
                assert [value for _, value in shown] == pytest.approx(logits[best].tolist())
                tokens = run.tokenizer.convert_ids_to_tokens(best.tolist())
                assert [token for token, _ in shown] == [readable_token(t) for t in tokens]


def test_a_model_without_a_vocabulary_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    save_tiny_bert(folder)
    answer = why("the cat sat", folder, "the mat sat", similar_to="a cat")
    made = header(answer.save(tmp_path / "new")[0].read_text(encoding="utf-8"))
    assert made["promotes"]["nodes"] == {}
    assert "no matrix that makes logits" in made["promotes"]["why_not"]
    assert made["question"] == f'Why does {answer.model} find the text like "a cat"?'


# ---- questions that do not work --------------------------------------------------------------


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
