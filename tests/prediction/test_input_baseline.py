"""What a model is called with where a path begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertTokenizerFast,
    ViTConfig,
    ViTModel,
)

from captum_lig import LigError
from captum_lig.prediction import (
    direct_relevance,
    input_baseline,
    log_probability,
    target_value,
)
from tests.helpers import models
from tests.helpers.readings import read, small_causal
from tests.helpers.saved import VOCABULARY


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\n".join(VOCABULARY))
    return BertTokenizerFast(str(words))


def small_bart() -> Any:
    config = BartConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
    )
    return models.randomised(BartForConditionalGeneration(config))


# --- None: padding --------------------------------------------------------------------------------


def test_padding_keeps_special_tokens(tokenizer: BertTokenizerFast) -> None:
    model = models.tiny_bert()
    text = dict(
        tokenizer(["the cats sat on the mat", "the cat"], return_tensors="pt", padding=True)
    )
    start = input_baseline(model, text, tokenizer=tokenizer)
    assert isinstance(start, dict)
    assert start["input_ids"].tolist() == [[2, *[0] * 7, 3], [2, 0, 0, 3, *[0] * 5]]
    for name in ("attention_mask", "token_type_ids"):
        assert start[name] is text[name]


def test_padding_by_the_models_own_numbers() -> None:
    """The padding token stands in for all but special ones and the first token of each text."""
    model = models.tiny_gpt2()  # pad 0, bos 1, eos 2
    ids = torch.tensor([[9, 8, 2, 7, 6]])
    torch.testing.assert_close(input_baseline(model, ids), torch.tensor([[9, 0, 2, 0, 0]]))
    left = {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 0, 1, 1]])}
    start = input_baseline(model, left)
    assert isinstance(start, dict)
    assert start["input_ids"].tolist() == [[9, 8, 2, 7, 0]]  # padding stays what it was
    assert input_baseline(model, ids, fixed=2).tolist() == [[9, 0, 2, 7, 6]]  # type: ignore[union-attr]
    right = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}
    start = input_baseline(model, right, fixed=1)
    assert isinstance(start, dict)
    assert start["input_ids"].tolist() == [[9, 0, 2, 7, 6]]
    model.config.pad_token_id = None
    assert input_baseline(model, ids).tolist() == [[9, 2, 2, 2, 2]]  # type: ignore[union-attr]
    model.config.eos_token_id = None
    with pytest.raises(LigError, match=r"no padding and no end-of-text token.*give tokenizer="):
        input_baseline(model, ids)


def test_vectors_and_pixels_begin_at_zero() -> None:
    model = models.tiny_bert()
    vectors = torch.randn(2, 4, models.WIDTH).double()
    start = input_baseline(model, {"inputs_embeds": vectors})
    torch.testing.assert_close(start, {"inputs_embeds": 0 * vectors})
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    vit = models.randomised(ViTModel(config))
    pixels = torch.rand(2, 3, 8, 8).double()
    for given, wanted in ((None, 0 * pixels), (0.5, 0 * pixels + 0.5), (pixels[:1], None)):
        start = input_baseline(vit, pixels, given)
        torch.testing.assert_close(
            start, pixels[:1].expand(2, -1, -1, -1) if wanted is None else wanted
        )
    with pytest.raises(LigError, match="holds vectors or pixels"):
        input_baseline(vit, pixels, "the cat")


def test_padding_by_its_name() -> None:
    """The word means what None does; no other name of a baseline of maps is taken for a text."""
    model = models.tiny_bert()
    batch = models.padded_batch(model, (5, 3))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    wanted = input_baseline(model, batch)
    for given in ("padding", {"input_ids": "padding"}):
        torch.testing.assert_close(input_baseline(model, batch, given), wanted)
    torch.testing.assert_close(
        input_baseline(model, (ids, mask), "padding"), input_baseline(model, (ids, mask))
    )
    vectors = torch.randn(1, 4, models.WIDTH).double()
    start = input_baseline(model, {"inputs_embeds": vectors}, "padding")
    torch.testing.assert_close(start, {"inputs_embeds": 0 * vectors})
    for name in ("zero", "target_token"):
        for inputs, given in ((batch, name), (batch, {"input_ids": name}), ((ids,), (name,))):
            with pytest.raises(LigError, match=f"'{name}' is for maps without a target"):
                input_baseline(model, inputs, given)


def test_a_text_that_is_the_name_of_a_baseline(tokenizer: BertTokenizerFast) -> None:
    model = models.tiny_bert()
    text = dict(tokenizer("mat", return_tensors="pt"))
    for word in ("zero", "target_token", "padding"):
        own = tokenizer(word)["input_ids"]
        assert isinstance(own, list)
        text["input_ids"] = torch.tensor([[2, *[5] * (len(own) - 2), 3]])
        given = {"input_ids": text["input_ids"]}
        start = input_baseline(model, given, [word], tokenizer=tokenizer)
        assert isinstance(start, dict)
        assert start["input_ids"].tolist() == [own]


# --- what is given --------------------------------------------------------------------------------


def test_each_form_of_a_text(tokenizer: BertTokenizerFast) -> None:
    model = models.tiny_bert()
    both = ["the cat sat", "the mat"]
    text = dict(tokenizer(both, return_tensors="pt", padding=True))
    other = dict(tokenizer(["on the mat", "on on"], return_tensors="pt", padding=True))
    wanted = {**text, "input_ids": other["input_ids"]}
    for given in (["on the mat", "on on"], other["input_ids"], other):
        start = input_baseline(model, text, given, tokenizer=tokenizer)
        torch.testing.assert_close(start, wanted)
        ids = (text["input_ids"], text["attention_mask"])
        if isinstance(given, list):
            torch.testing.assert_close(
                input_baseline(model, ids, given, tokenizer=tokenizer),
                (other["input_ids"], text["attention_mask"]),
            )
        torch.testing.assert_close(
            input_baseline(model, ids[0], given, ids[1], tokenizer=tokenizer), other["input_ids"]
        )
    left = {name: x.roll(1, 1) for name, x in text.items()}
    left["input_ids"][0] = text["input_ids"][0]
    left["attention_mask"][0] = 1
    start = input_baseline(model, left, ["on the mat", "on on"], tokenizer=tokenizer)
    assert isinstance(start, dict)
    assert start["input_ids"][1].tolist() == other["input_ids"][1].roll(1).tolist()
    assert input_baseline(model, text, 4)["input_ids"].unique().tolist() == [4]  # type: ignore[call-overload, index]


def test_one_for_all_texts(tokenizer: BertTokenizerFast) -> None:
    model = models.tiny_bert()
    text = dict(tokenizer(["the cat", "the mat"], return_tensors="pt"))
    one = dict(tokenizer("on mat", return_tensors="pt"))
    for given in ("on mat", ["on mat"], one, one["input_ids"]):
        start = input_baseline(model, text, given, tokenizer=tokenizer)
        assert isinstance(start, dict)
        assert start["input_ids"].tolist() == one["input_ids"].tolist() * 2


def test_a_tuple_has_one_for_each() -> None:
    model = models.tiny_bert()
    batch = models.padded_batch(model, (5, 3))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    start = input_baseline(model, (ids, mask), (7, mask))
    torch.testing.assert_close(start, (torch.full_like(ids, 7), mask))
    start = input_baseline(model, (ids, mask))
    assert isinstance(start, tuple)
    assert start[1] is mask
    torch.testing.assert_close(start[0], input_baseline(model, ids, None, mask))


def test_an_encoder_decoder() -> None:
    """The decoder's text has a baseline if one is given."""
    model = small_bart()
    ids, decoder = models.tokens(model, 1, 6), models.tokens(model, 1, 4, seed=2)
    inputs = {"input_ids": ids, "decoder_input_ids": decoder}
    start = input_baseline(model, inputs, fixed=2)
    assert isinstance(start, dict)
    assert start["decoder_input_ids"] is decoder
    assert start["input_ids"].tolist() == [[int(ids[0, 0]), *[1] * 5]]
    other = {"input_ids": ids.flip(1), "decoder_input_ids": decoder.flip(1)}
    torch.testing.assert_close(input_baseline(model, inputs, other), other)
    relevance = direct_relevance(model.model, lambda o: o[0][:, -1, 0], inputs, other, last=1)
    with torch.no_grad():
        ends = [model.model(**x)[0][0, -1, 0] for x in (inputs, other)]
    assert relevance.change == pytest.approx(float(ends[0] - ends[1]))


def test_what_a_target_changes_by_is_of_this_baseline() -> None:
    model = models.tiny_gpt2()
    batch = models.padded_batch(model, (5,))
    direct = direct_relevance(model, read, batch, n_steps=60)
    with torch.no_grad():
        change = target_value(model, read, batch) - target_value(
            model, read, input_baseline(model, batch)
        )
    assert direct.change == pytest.approx(float(change))
    assert direct.target == "read(output)"


# --- what is wrong is said ------------------------------------------------------------------------


def test_errors_name_what_was_given(tokenizer: BertTokenizerFast) -> None:
    model = models.tiny_bert()
    text = dict(tokenizer("the cat sat", return_tensors="pt"))
    padded = dict(tokenizer(["the cat sat", "the cat"], return_tensors="pt", padding=True))
    ids = text["input_ids"]

    def start(inputs: Any, baseline: Any, **more: Any) -> Callable[[], Any]:
        return lambda: input_baseline(model, inputs, baseline, **more)

    def mapped(**more: Tensor) -> dict[str, Tensor]:
        return {**text, **more}

    tokens = {"tokenizer": tokenizer}
    for wrong, words in (
        (start(text, "the cats sat", **tokens), r"5 tokens, its baseline 6\. .*'sat'.*'##s'"),
        (start(ids, ids[:, :4]), r"has 5 tokens, its baseline 4\. the ids .*exchange words"),
        (start(text, mapped(input_ids=ids[:, :4], attention_mask=ids[:, :4])), "its baseline 4"),
        (start(padded, "the cat sat", **tokens), "text 1 has 4 tokens, its baseline 5"),
        (start(padded, ["the cat", "on"], **tokens), "text 0 has 5 tokens, its baseline 4"),
        (start(padded, ["on"] * 3, **tokens), "3 baselines for 2 texts"),
        (start(padded, ids.expand(3, -1)), r"\(3, 5\) does not fit an input of \(2, 5\)"),
        (
            start(text, mapped(attention_mask=torch.tensor([[1, 1, 1, 0, 0]]))),
            "baseline's attention_mask, .*from padding to a token.*padded alike",
        ),
        (
            start(ids, mapped(attention_mask=torch.tensor([[1, 1, 1, 0, 0]]))),
            "baseline's attention_mask",
        ),
        (start(text, mapped(token_type_ids=torch.ones_like(ids))), "only the main input"),
        (start({"input_ids": ids}, mapped(position_ids=ids)), "position_ids"),
        (start(text, {"attention_mask": ids}), "not 'input_ids': give it"),
        (start(ids, ids.double()), "float64 tensor, and the input holds token ids"),
        (start(ids, 0.7), "baseline=0.7, and .* give a token id"),
        (start(ids, True), "baseline True is a bool"),
        (start(ids, (0, 0)), "2 baselines for 1 inputs"),
        (start((ids, torch.ones_like(ids)), 0), "1 baseline for 2 inputs"),
        (start(text, "the cat sat"), "has no tokenizer beside it.*Give tokenizer="),
        (start({"attention_mask": torch.ones_like(ids)}, None), "none of 'input_ids'"),
    ):
        with pytest.raises(LigError, match=words):
            wrong()
    torch.testing.assert_close(input_baseline(model, {"input_ids": ids}, text), {"input_ids": ids})


def test_a_target_that_a_baseline_has_to_keep() -> None:
    """log_probability's tokens stay, so that the default baseline is one of its texts."""
    model = small_causal()
    batch = models.padded_batch(model, (5,))
    end = batch["input_ids"][0, -2:].tolist()
    target = log_probability(end)
    direct = direct_relevance(model, target, batch, layers=[0], n_steps=60)
    filled = torch.tensor([[int(batch["input_ids"][0, 0]), 0, 0, *end]])
    with torch.no_grad():
        change = target_value(model, target, batch) - target_value(model, target, filled)
    assert direct.change == pytest.approx(float(change))
    with pytest.raises(LigError, match="or its baseline"):
        direct_relevance(model, target, batch, 4)
