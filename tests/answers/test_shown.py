"""An answer on the screen, in files and as a page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from captum_lig import Answer, LigError, why
from captum_lig.answers.page import answer_page
from captum_lig.answers.parts import Held
from captum_lig.answers.screen import Section, as_text, sections
from captum_lig.flow.byte_level import token_texts
from captum_lig.flow.tokens import readable_token
from captum_lig.patching import Node
from captum_lig.patching.writes import writes
from tests.helpers.answers import OTHER, TEXT
from tests.helpers.pages import header
from tests.helpers.saved import save_tiny_bert


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


@pytest.mark.parametrize("runs", [1, 2, 4, 5])
def test_who_holds_it_is_said_where_it_does_not_go_to_and_fro(answer: Answer, runs: int) -> None:
    names = ["a", None] * 3
    held = [Held(n, n, None if one is None else n, one) for n, one in enumerate(names[:runs])]
    shown = " ".join(as_text(sections(Holding(answer, held), 5)).split())
    assert ("is held by" in shown) == (runs in (2, 4))
    assert "...." not in shown
    if runs == 2:
        assert (
            'More than half of it is held by "a" (0) until layer 0, then by no one token to'
            in shown
        )


def test_several_that_hold_it_are_not_one(answer: Answer) -> None:
    held = [Held(0, 0, None, None, several=True), Held(1, 2, 0, "a")]
    shown = " ".join(as_text(sections(Holding(answer, held), 5)).split())
    assert "is held by each of several tokens until layer 0, then by" in shown


class Holding:
    """An answer, held by others."""

    def __init__(self, answer: Answer, held: list[Held]) -> None:
        self._answer, self._held = answer, held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answer, name)

    def held(self) -> list[Held]:
        return self._held


def test_the_text_is_shown_as_it_is(gpt2: Path) -> None:
    """A space at its end is a token that changes the answer."""
    found = why("the  cat\n sat ", gpt2, "the  dog\n sat ", tolerance=None)
    shown = str(found)
    assert 'the text      "the  cat\\n sat "\n' in shown
    assert 'compared with "the  dog\\n sat "\n' in shown
    page = found._repr_html_()
    assert 'white-space:pre-wrap">&quot;the  cat\\n sat &quot;</td>' in page


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
    for shown, option in zip(made["options"], answer.says.options, strict=True):
        other = answer.would_say.of(option.number)
        assert other is not None
        chances, logits = (option.probability, other.probability), (option.logit, other.logit)
        assert shown == [option.words, *chances, *logits]
    assert [(row["layer"], row["out"]) for row in made["checked"]] == [
        (row.node.layer, row.out) for row in check.rows
    ]
    assert made["checked_says"]


def test_what_the_model_does_not_say_is_asked_in_another_way(gpt2: Path, answer: Answer) -> None:
    assert answer.favours is not None
    first, second = answer.favours
    found = why(TEXT, gpt2, OTHER, target=second[1:-1], foil=first[1:-1], tolerance=None)
    asked = f"What speaks for {second} rather than {first} in {found.model}?"
    assert str(found.sections()[0].title) == asked
    assert header(answer_page(found))["question"] == asked
    assert answer.sections()[0].title == f"Why does {answer.model} say that?"


def test_the_token_that_padding_does_not_stand_for_is_told(gpt2: Path) -> None:
    found = why(TEXT, gpt2, tolerance=None)
    said = 'padding in place of all tokens but "the" (0), which stays'
    assert said in " ".join(str(found).split())
    assert any(said in note for note in header(answer_page(found))["notes"])


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
                tokens = token_texts(run.tokenizer, best.tolist())
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
