"""Positions given by what the token there says: the same as their numbers, everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from captum_lig import LayerFlowIG, LigError, patching, why
from captum_lig.flow.flows import Flows
from captum_lig.metrics import erasure
from captum_lig.patching import Node
from captum_lig.prediction import logit, state, target_value
from tests.helpers.models import tiny_gpt2
from tests.helpers.saved import save_tiny_gpt2

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def words(loaded: tuple[Any, Any]) -> list[str]:
    tokenizer = loaded[1]
    return [str(t) for t in tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])]


@pytest.fixture(scope="module")
def single(words: list[str]) -> str:
    """A token that is there once, not at the end, and that the other text does not have."""
    return next(word for word in words[1:-1] if words.count(word) == 1)


def as_text(words: list[str]) -> tuple[str, ...]:
    return tuple(word.replace("Ġ", " ") for word in words)


def other_ids(tokenizer: Any) -> torch.Tensor:
    """Another text of as many tokens, without those of the text."""
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    return (ids + 5) % len(tokenizer)


def test_a_logit_at_a_token(loaded: tuple[Any, Any], words: list[str], single: str) -> None:
    model, tokenizer = loaded
    at, inputs = words.index(single), tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0, at, 7]
        found = target_value(model, logit(7, position=single), inputs)
    assert float(found) == float(expected)
    result: Any = LayerFlowIG(model).attribute(
        inputs, other_ids(tokenizer), target=logit(7, position=single)
    )
    same: Any = LayerFlowIG(model).attribute(inputs, other_ids(tokenizer), logit(7, position=at))
    assert result[0].target == same[0].target == f"logit(7) at position {at}"
    for one, other in zip(result, same, strict=True):
        assert torch.equal(one.entering, other.entering)


def test_erasing_towards_a_logit_at_a_token(
    loaded: tuple[Any, Any], words: list[str], single: str
) -> None:
    model, tokenizer = loaded
    inputs, relevance = tokenizer(TEXT, return_tensors="pt"), torch.arange(len(words))[None]
    named, numbered = (
        erasure(model, inputs, relevance, logit(7, position=at), other_ids(tokenizer))[0]
        for at in (single, words.index(single))
    )
    assert torch.equal(named.without, numbered.without)


def test_the_state_of_a_token(loaded: tuple[Any, Any], words: list[str], single: str) -> None:
    model, tokenizer = loaded
    inputs, lig = tokenizer(TEXT, return_tensors="pt"), LayerFlowIG(model)
    named: Any = lig.attribute(inputs, other_ids(tokenizer), state(single))
    numbered: Any = lig.attribute(inputs, other_ids(tokenizer), state(words.index(single)))
    assert torch.equal(named[0].entering, numbered[0].entering)


def test_targets_that_are_attributed(
    loaded: tuple[Any, Any], words: list[str], single: str
) -> None:
    model, tokenizer = loaded
    inputs, lig = tokenizer(TEXT, return_tensors="pt"), LayerFlowIG(model)
    flows: Any = lig.attribute(inputs, output_indices=[single, -1])
    assert flows[0].targets.tolist() == [words.index(single), len(words) - 1]
    assert isinstance(flows, Flows)
    assert flows[0].tokens == (as_text(words),)
    with pytest.raises(LigError, match="is no token of this text"):
        lig.attribute(inputs, output_indices=["zebra"])


def test_nodes_that_are_patched(loaded: tuple[Any, Any], words: list[str], single: str) -> None:
    model, tokenizer = loaded
    inputs, at = tokenizer(TEXT, return_tensors="pt"), words.index(single)
    question = (model, inputs, other_ids(tokenizer), logit(7))
    found = patching.effects(*question, nodes=[Node("tokens", 1, single), Node("heads", 0, at, 1)])
    assert found.nodes == (Node("tokens", 1, at), Node("heads", 0, at, 1))
    assert found.labels == as_text(words)
    table = found.to_pandas()
    assert table.out.tolist() == found.taken_out.tolist()
    assert found.put_in is not None
    assert table.into.tolist() == found.put_in.tolist()
    assert table["mean"].tolist() == ((found.taken_out + found.put_in) / 2).tolist()
    assert table.kind.tolist() == ["tokens", "heads"]
    assert table["head"].fillna(-1).tolist() == [-1, 1]
    assert table.position.tolist() == [at, at]
    assert found.out.of(Node("tokens", 1, at)) == float(found.taken_out[0])
    with pytest.raises(LigError, match="no token of this text"):
        patching.effects(*question, nodes=[Node("tokens", 1, "zebra")])
    with pytest.raises(LigError, match="give its position"):
        found.out.of(Node("tokens", 1, single))


def test_why_at_a_token(folder: Path, words: list[str], single: str) -> None:
    named = why(TEXT, folder, target=3, foil=4, position=single, tolerance=None)
    numbered = why(TEXT, folder, target=3, foil=4, position=words.index(single), tolerance=None)
    assert named.target == numbered.target
    assert named.change == numbered.change
    given = why(TEXT, folder, target=logit(3, position=single), tolerance=None)
    assert given.says.value == pytest.approx(
        why(TEXT, folder, target=logit(3, position=words.index(single)), tolerance=None).says.value
    )
    with pytest.raises(LigError, match="position='zebra' is no token"):
        why(TEXT, folder, position="zebra")


def test_an_answer_is_a_table(folder: Path) -> None:
    answer = why(TEXT, folder, target=3, foil=4, tolerance=None)
    table = answer.to_pandas()
    assert table.value.sum() != 0
    assert (table.share * answer.change - table.value).abs().max() < 1e-9
    answer.check(k=2)
    assert answer.checked is not None
    checked = answer.to_pandas()
    assert len(checked) == len(table)
    assert checked.value.tolist() == table.value.tolist()
    patched = checked[checked.out.notna()]
    rows = answer.checked.rows
    assert len(patched) == len(rows)
    assert sorted(patched.out) == sorted(row.out for row in rows)
    assert sorted(patched.into) == sorted(row.into for row in rows)
    for row in rows:
        same = patched[patched.out == row.out]
        assert (same.value - row.attributed).abs().min() < 1e-9
    assert answer.checked.to_pandas().attributed.tolist() == [row.attributed for row in rows]


def test_texts_have_the_token_at_one_position(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    single = tokenizer.convert_ids_to_tokens([int(ids[0, 1])])[0]
    again = torch.cat([ids, ids])
    assert len(target_value(model, logit(7, position=single), again)) == 2
    both = torch.cat([ids, ids.roll(1, dims=1)])
    with pytest.raises(LigError, match=r"the texts have it at \[1, 2\]"):
        target_value(model, logit(7, position=single), both)


def test_without_a_tokenizer_a_number_is_asked_for() -> None:
    model = tiny_gpt2()
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(LigError, match="Give a number, or tokenizer="):
        target_value(model, logit(1, position="cat"), ids)
    flows: Any = LayerFlowIG(model).attribute(ids)
    assert flows[0].tokens is None
