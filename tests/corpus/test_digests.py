"""A run goes on with its own model and tokenizer alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import NormalizedString, PreTokenizedString
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertModel, ByT5Tokenizer, PreTrainedTokenizerBase

from captum_lig import LigError
from captum_lig.corpus import load, run
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.digests import digest_of_model, digest_of_tokenizer
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.worker import Worker
from tests.helpers.saved import save_tiny_gpt2

TEXTS = ["the cat sat", "mat", "the mat sat on"]
SETTINGS: dict[str, Any] = {"measures": ("totals",), "n_steps": 2, "tolerance": None, "window": 1}


@pytest.fixture
def model(tiny: Path) -> BertModel:
    found: BertModel = BertModel.from_pretrained(tiny).eval()
    return found


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def without_separators(tokenizer: Any) -> Any:
    """The same vocabulary, and other tokens of a text."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 2)]
    )
    return tokenizer


# ---- tokenizers ------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_tokenizer_alone(
    tiny: Path, model: BertModel, tokenizer: Any, tmp_path: Path
) -> None:
    given: dict[str, Any] = {**SETTINGS, "out": tmp_path / "out"}
    ran: list[int] = []

    def cut(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
        assert settings.tokenizer == digest_of_tokenizer(tokenizer)
        for batch in batches:
            if ran:
                return
            ran.append(batch.number)
            yield worker(batch)

    worker = Worker(Settings(str(tiny), **SETTINGS))
    with pytest.raises(LigError, match="run the same again"):
        run(TEXTS, model, tokenizer=tokenizer, engine=cut, **given)
    other = without_separators(AutoTokenizer.from_pretrained(tiny))
    with pytest.raises(LigError, match=r"belongs to another run \(another tokenizer\): give the"):
        run(TEXTS, model, tokenizer=other, **given)
    found = run(TEXTS, model, tokenizer=tokenizer, **given)
    assert {tokens[-1] for tokens in found.to_pandas("texts")["tokens"]} == {"[SEP]"}
    with pytest.raises(LigError, match="another tokenizer"):  # nor is a finished one of it
        run(TEXTS, model, tokenizer=other, **given)
    assert run(TEXTS, model, tokenizer=tokenizer, **given).counts == {"done": 3}


def test_a_tokenizer_beside_a_name(tiny: Path, tokenizer: Any, tmp_path: Path) -> None:
    """It was passed over."""
    with pytest.raises(LigError, match="is of a model that is there already"):
        run(TEXTS, tiny, tokenizer=tokenizer, out=tmp_path / "out", **SETTINGS)


def written_in_part(tiny: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer with a part in Python, which has no description."""

    class Words:
        def pre_tokenize(self, text: PreTokenizedString) -> None:
            text.split(self.words)

        def words(self, _: int, text: NormalizedString) -> list[NormalizedString]:
            found: list[NormalizedString] = text.split(" ", "removed")
            return found

    found: Any = AutoTokenizer.from_pretrained(tiny)
    found.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Words())
    return found  # type: ignore[no-any-return]


KINDS: dict[str, Callable[[Path], Any]] = {
    "fast": AutoTokenizer.from_pretrained,
    "partly in Python": written_in_part,
    "in Python": lambda _: ByT5Tokenizer(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_use_of_a_tokenizer_does_not_change_its_digest(tiny: Path, kind: str) -> None:
    tokenizer = KINDS[kind](tiny)
    before = digest_of_tokenizer(tokenizer)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=3)
    assert digest_of_tokenizer(tokenizer) == before == digest_of_tokenizer(KINDS[kind](tiny))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.add_tokens(["cats sat"]),
        lambda one: setattr(one, "model_max_length", 3),
        lambda one: setattr(one, "pad_token", "x"),
        lambda one: setattr(one, "model_input_names", ["input_ids"]),
    ],
)
def test_what_another_tokenizer_is(tiny: Path, kind: str, change: Callable[[Any], Any]) -> None:
    tokenizer = KINDS[kind](tiny)
    before = digest_of_tokenizer(tokenizer)
    change(tokenizer)
    assert digest_of_tokenizer(tokenizer) != before


def test_a_saved_tokenizer_is_the_same(tiny: Path, tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    for folder in (tiny, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.save_pretrained(tmp_path / "again")
        again = AutoTokenizer.from_pretrained(tmp_path / "again")
        assert digest_of_tokenizer(again) == digest_of_tokenizer(tokenizer)


# ---- hooks -----------------------------------------------------------------------------------


def add(_: Any, __: Any, output: Any) -> Any:
    return (output[0] + 1, *output[1:]) if isinstance(output, tuple) else output + 1


def test_a_run_does_not_go_on_with_hooks(model: BertModel, tokenizer: Any, tmp_path: Path) -> None:
    """What they do now is not what they did."""
    given: dict[str, Any] = {**SETTINGS, "tokenizer": tokenizer}
    plain = run(TEXTS, model, out=tmp_path / "plain", **given).to_pandas("layers")
    handle = model.encoder.layer[0].register_forward_hook(add)
    with pytest.raises(LigError, match=r"plain' holds a run, and .* hooks on 'encoder.layer.0': "):
        run(TEXTS, model, out=tmp_path / "plain", **given)
    hooked = run(TEXTS, model, out=tmp_path / "hooked", **given).to_pandas("layers")
    assert abs(hooked["layer_total"] - plain["layer_total"]).max() > 1e-3
    with pytest.raises(LigError, match=r"hooked' holds a run"):
        run(TEXTS, model, out=tmp_path / "hooked", **given)
    assert load(tmp_path / "hooked").counts == {"done": 3}
    handle.remove()
    with pytest.raises(LigError, match="a model with other weights or hooks"):
        run(TEXTS, model, out=tmp_path / "hooked", **given)
    run(TEXTS, model, out=tmp_path / "plain", **given)


def test_hooks_are_part_of_a_model(model: BertModel) -> None:
    plain = digest_of_model(model)
    model(torch.tensor([[2, 5, 3]]), output_hidden_states=True)  # transformers puts hooks on
    assert digest_of_model(model) == plain
    found = {plain}
    for put_on in (
        model.register_forward_hook,
        model.encoder.register_forward_hook,
        model.encoder.layer[0].register_forward_pre_hook,
    ):
        for hook in (add, lambda *_: None, torch.nn.Identity()):
            handle = put_on(hook)
            found.add(digest_of_model(model))
            handle.remove()
    assert len(found) == 1 + 3 * 3
    assert digest_of_model(model) == plain
