"""Why SmolLM2 says that the capital of France is Paris, and that patching says so, too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from captum_lig import Answer, why
from captum_lig.answers.asker import Asker
from captum_lig.answers.wanted import Wanted
from captum_lig.patching import Node, effects
from tests.helpers.embedded import need_smollm2


@pytest.fixture(scope="module")
def answer() -> Answer:
    need_smollm2()
    return why("The capital of France is", "smollm2", "The capital of Italy is")


def test_it_names_both_tokens(answer: Answer) -> None:
    assert answer.says.options[0].words == '" Paris"'
    assert answer.would_say.options[0].words == '" Rome"'
    assert answer.favours == ('" Paris"', '" Rome"')
    assert answer.target == 'logit of " Paris" less logit of " Rome", as the next token'
    assert answer.says.value > 5
    assert answer.would_say.value < -5
    (word,) = answer.strongest_tokens()
    assert (word.token, answer.other_tokens[word.position]) == (" France", " Italy")
    assert answer.sum_error < 1e-3


def test_its_strongest_heads_are_among_those_of_patching(answer: Answer) -> None:
    """At least four of its five among the ten with the largest mean effect."""
    run = answer.run
    everywhere = [
        Node("heads", layer, position, head)
        for layer in range(30)
        for head in range(9)
        for position in (3, 4)  # the others are the same in both texts
    ]
    found = effects(run.model, run.inputs, run.other, run.target, everywhere)
    assert found.put_in is not None
    sizes = ((found.taken_out + found.put_in) / 2).abs()
    best = {found.nodes[int(n)] for n in sizes.argsort(descending=True)[:10]}
    ours = [
        Node("heads", part.layer or 0, part.position, part.head)
        for part in answer.strongest_heads(5)
    ]
    assert ours[0] == Node("heads", 23, 4, 4)
    assert len(set(ours) & best) >= 4


def test_the_documentation_shows_this_screen(answer: Answer) -> None:
    """But for what depends on the machine."""
    page = Path(__file__).parents[2] / "docs" / "why.md"
    (shown, *_) = re.findall(
        r"^```text\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )

    def lasting(screen: str) -> list[str]:
        lines = screen.strip().splitlines()
        return [one for one in lines if not re.search(r"to within | for the parts\.$", one)]

    assert len(lasting(shown)) > 35
    assert lasting(str(answer)) == lasting(shown)


def test_the_questions_of_the_documentation_work() -> None:
    """As far as they are checked before the model is loaded."""
    need_smollm2()
    page = (Path(__file__).parents[2] / "docs" / "why.md").read_text("utf-8")
    (shown,) = re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    asker = Asker("smollm2")
    asked = [asker.prepare(Wanted(**json.loads(line))) for line in shown.splitlines()]
    assert [question.kind for question in asked] == ["causal", "causal"]
