"""Each target against its definition, from what the model gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
)

from captum_lig import LigError
from captum_lig.model.inputs import ModelCall
from captum_lig.prediction import (
    class_logit,
    cosine,
    log_probability,
    logit,
    read_target,
    state,
    target_value,
)
from captum_lig.prediction.targets import BoundTarget
from tests.helpers import models
from tests.helpers.readings import read, small_causal
from tests.helpers.saved import VOCABULARY


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def padded(model: Any, left: bool, lengths: tuple[int, ...] = (5, 3)) -> dict[str, Tensor]:
    batch = models.padded_batch(model, lengths)
    if left:
        for row, length in enumerate(lengths):
            for x in batch.values():
                x[row] = x[row].roll(x.shape[1] - length)
    return batch


def own_logits(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Logits of each text at its own tokens."""
    pairs = zip(model(**batch).logits, batch["attention_mask"], strict=True)
    return [logits[mask.bool()] for logits, mask in pairs]


def plain_gpt2() -> Any:
    """A model that cannot leave the logits of other tokens out."""
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    model = models.randomised(GPT2LMHeadModel(config))
    whole = model.forward

    def forward(input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return whole(input_ids=input_ids, attention_mask=attention_mask)

    model.forward = forward
    return model


def classifier() -> Any:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        label2id={"bad": 0, "good": 1, "neither": 2},
        id2label={0: "bad", 1: "good", 2: "neither"},
    )
    return models.randomised(BertForSequenceClassification(config))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\n".join(VOCABULARY))
    return BertTokenizerFast(str(words))


# --- logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small_causal, plain_gpt2])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("position", [-1, 0, 2, -3])
def test_logit(make: Callable[[], Any], left: bool, position: int) -> None:
    model = make()
    batch = padded(model, left)
    rows = torch.stack([logits[position] for logits in own_logits(model, batch)])
    for target, wanted in (
        (logit(7, position=position), rows[:, 7]),
        (logit(7, minus=9, position=position), rows[:, 7] - rows[:, 9]),
        (logit([7, 8], [9, 3, 4], position), rows[:, [7, 8]].mean(1) - rows[:, [9, 3, 4]].mean(1)),
    ):
        torch.testing.assert_close(target_value(model, target, batch), wanted)


def test_logits_of_all_tokens_or_of_the_kept_ones() -> None:
    model = small_causal()
    for left in (False, True):
        batch = padded(model, left)
        call = ModelCall.of(model, batch)
        bound = read_target(logit(7, position=-2), model, 2)
        kept = bound.arguments(call)
        assert set(kept) == {"logits_to_keep"}
        few = model(**batch, **kept)
        assert few.logits.shape[1] == (1 if left else 2)
        torch.testing.assert_close(bound(few, call), bound(model(**batch), call))
    assert bound.words == "logit(7) at position -2"
    model = plain_gpt2()
    assert read_target(logit(7), model, 2).arguments(ModelCall.of(model, batch)) == {}


@pytest.mark.parametrize("target", [logit(7), log_probability([11])])
def test_copies_of_one_text(target: Any) -> None:
    """The points of a path: the call may be of the one text or of as many copies."""
    model = small_causal()
    one = {name: x[1:] for name, x in padded(model, False).items()}
    last = one["input_ids"][0, 2]
    target = log_probability([int(last)]) if "Log" in type(target).__name__ else target
    copies = {name: x.expand(4, -1) for name, x in one.items()}
    bound = read_target(target, model, 1)
    value = target_value(model, target, one)
    for given in (one, copies):
        values = bound(model(**copies), ModelCall.of(model, given))
        torch.testing.assert_close(values, value.expand(4))


def test_tokens_as_strings(tokenizer: BertTokenizerFast) -> None:
    model = small_causal()
    ids = models.tokens(model, 1, 6)
    logits = model(ids).logits[0]
    cat, s = VOCABULARY.index("cat"), VOCABULARY.index("##s")

    def value(target: Any) -> float:
        return float(target_value(model, target, ids, tokenizer=tokenizer))

    assert value(logit("cat", "##s", 3)) == pytest.approx(float(logits[3, cat] - logits[3, s]))
    words = read_target(logit("cat", "sat", 3), model, 1, tokenizer).words
    assert words == "logit('cat') - logit('sat') at position 3"
    for text, message in (
        ("cats", r"'cats' is 2 tokens, \['cat', '##s'\]: give one of them.*' cats'"),
        ("dog", "'dog' is unknown"),
        ("", "is 0 tokens"),
    ):
        with pytest.raises(LigError, match=message):
            value(logit(text))
    with pytest.raises(LigError, match=r"has no tokenizer beside it.*Give tokenizer="):
        target_value(model, logit("cat"), ids)


def test_an_encoder_decoder_has_the_decoders_positions() -> None:
    config = BartConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
    )
    model = models.randomised(BartForConditionalGeneration(config))
    inputs = padded(model, False)
    decoder = models.tokens(model, 2, 4, seed=3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {**inputs, "decoder_input_ids": decoder, "decoder_attention_mask": mask}
    logits = model(**batch).logits
    wanted = torch.stack([logits[0, 3, 7], logits[1, 1, 7]])
    torch.testing.assert_close(target_value(model, logit(7), batch), wanted)
    with pytest.raises(LigError, match="without decoder_input_ids"):
        target_value(model, logit(7), inputs)


def test_class_logit() -> None:
    model = classifier()
    batch = models.padded_batch(model, (5, 3))
    logits = model(**batch).logits
    torch.testing.assert_close(target_value(model, class_logit("neither"), batch), logits[:, 2])
    torch.testing.assert_close(target_value(model, class_logit(1), batch), logits[:, 1])
    with pytest.raises(LigError, match=r"'fine' is no class .* knows 'bad', 'good', 'neither'\."):
        read_target(class_logit("fine"), model, 2)
    with pytest.raises(LigError, match="label=3"):
        target_value(model, class_logit(3), batch)


@pytest.mark.parametrize("make", [small_causal, plain_gpt2])
@pytest.mark.parametrize("left", [False, True])
def test_log_probability(make: Callable[[], Any], left: bool) -> None:
    model = make()
    batch = padded(model, left)
    end = [11, 12]
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids[mask.nonzero().flatten()[-2:]] = torch.tensor(end)
    wanted = [
        sum(
            float(logits[at].softmax(-1)[token].log())
            for at, token in zip((-3, -2), end, strict=True)
        )
        for logits in own_logits(model, batch)
    ]
    value = target_value(model, log_probability(end), batch)
    torch.testing.assert_close(value, torch.tensor(wanted, dtype=torch.float64))
    assert read_target(log_probability(end), model, 2).fixed == 2
    with pytest.raises(LigError, match=r"ends with the ids \[12\].*of the ids \[11\]"):
        target_value(model, log_probability([11]), batch)
    short = {name: x[1:] for name, x in batch.items()}
    with pytest.raises(LigError, match="3 tokens, and 3 of them"):
        target_value(model, log_probability([5, 11, 12]), short)
    with pytest.raises(LigError, match="continuation"):
        read_target(log_probability([]), model, 2)


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
def test_cosine(left: bool) -> None:
    model = models.tiny_bert()
    batch = padded(model, left)
    other = models.padded_batch(model, (4,), seed=1)
    pairs = zip(model(**batch).last_hidden_state, batch["attention_mask"], strict=True)
    hidden = [x[mask.bool()] for x, mask in pairs]
    one = model(**other).last_hidden_state[0]
    means = torch.stack([x.mean(0) for x in hidden])
    first = torch.stack([x[0] for x in hidden])
    for pooling, mine, theirs in (("mean", means, one.mean(0)), ("cls", first, one[0])):
        wanted = (mine @ theirs) / (mine.norm(dim=-1) * theirs.norm())
        torch.testing.assert_close(target_value(model, cosine(other, pooling), batch), wanted)
    ids = cosine(other["input_ids"])
    torch.testing.assert_close(
        target_value(model, ids, batch), target_value(model, cosine(other), batch)
    )


def test_cosine_of_a_text_of_a_model_with_a_tokenizer(tokenizer: BertTokenizerFast) -> None:
    model = models.tiny_bert()
    ids = models.tokens(model, 1, 5)
    mapping = cosine(dict(tokenizer("the cat", return_tensors="pt")))
    bound = read_target(cosine("the cat"), model, 1, tokenizer)
    call = ModelCall.of(model, ids)
    value = bound(model(ids), call)
    torch.testing.assert_close(value, target_value(model, mapping, ids))
    assert bound.words == "cosine with 'the cat' (mean pooling)"
    (tensors,) = (model(ids, return_dict=False)[:1],)  # a tuple, and a tensor by itself
    torch.testing.assert_close(bound(tensors, call), value)
    torch.testing.assert_close(bound(tensors[0], call), value)


def test_state_is_checked_and_described() -> None:
    change = torch.tensor([3.0, 0, 4])
    assert state(-1).words == "state of the token at position -1, along its own change"
    torch.testing.assert_close(state(2).along(change), change / 5)
    given = state(2, direction=torch.tensor([0.0, 2, 0]))
    torch.testing.assert_close(given.along(change), torch.tensor([0.0, 2, 0]))
    kept = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]]).bool()
    assert state(-1).where(kept).tolist() == [2, 3]
    assert state(0).where(kept).tolist() == [0, 2]
    for wrong, words in (
        (lambda: state(1.5), "position=1.5"),  # type: ignore[arg-type]
        (lambda: state(2).where(kept), "text 1 has 2 tokens"),
        (lambda: state(0).along(0 * change), "change has no direction"),
        (lambda: given.along(torch.ones(4)), r"shape \(3,\).*width 4"),
        (lambda: state(0, torch.zeros(3)), "not all 0"),
        (lambda: state(0, torch.ones(1, 3)), r"vector \(D,\)"),
        (lambda: read_target(state(0), models.tiny_bert(), 1), "LayerFlowIG.attribute alone"),
    ):
        with pytest.raises(LigError, match=words):
            wrong()


# --- Captum's, and functions ----------------------------------------------------------------------


def each_text(bound: BoundTarget, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of each text alone, as three copies."""
    values = []
    for text in range(len(batch["input_ids"])):
        one = {name: x[text : text + 1].expand(3, -1) for name, x in batch.items()}
        value = bound.for_text(text)(model(**one), ModelCall.of(model, one))
        assert value.shape == (3,)
        torch.testing.assert_close(value, value[:1].expand(3))
        values.append(value[0])
    return torch.stack(values)


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (1, (1, 1)),
        ((2,), (2, 2)),
        (torch.tensor(1), (1, 1)),
        (torch.tensor([1]), (1, 1)),
        (torch.tensor([2, 0]), (2, 0)),
        ([0, 2], (0, 2)),
        ([(1,), (2,)], (1, 2)),
        (lambda output: output.logits[:, 1], (1, 1)),
    ],
)
def test_captums_targets(target: Any, classes: tuple[int, int]) -> None:
    model = classifier()
    batch = models.padded_batch(model, (5, 3))
    wanted = model(**batch).logits[torch.arange(2), list(classes)]
    torch.testing.assert_close(target_value(model, target, batch), wanted)
    bound = read_target(target, model, 2)
    torch.testing.assert_close(each_text(bound, model, batch), wanted)


@pytest.mark.parametrize(
    ("target", "places"), [((-1, 7), ((4, 7), (4, 7))), ([(2, 7), (0, 8)], ((2, 7), (0, 8)))]
)
def test_captums_tuples(target: Any, places: Any) -> None:
    model = small_causal()
    batch = models.padded_batch(model, (5, 3))
    logits = model(**batch).logits
    wanted = torch.stack([logits[text, at, token] for text, (at, token) in enumerate(places)])
    torch.testing.assert_close(target_value(model, target, batch), wanted)
    bound = read_target(target, model, 2)
    torch.testing.assert_close(each_text(bound, model, batch), wanted)


def test_outputs_that_are_no_records() -> None:
    """The first tensor is read, of a model without logits as well."""
    linear = nn.Linear(4, 3).double().eval()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(target_value(linear, 2, x), linear(x)[:, 2])
    call = ModelCall.of(linear, x)
    bound = read_target(2, linear, 2)
    torch.testing.assert_close(bound((linear(x), None), call), linear(x)[:, 2])
    bound = read_target(class_logit(2), linear, 2)
    for output in (
        linear(x),
        (linear(x),),
        [linear(x)],
        {"loss": 0 * x[0, 0], "logits": linear(x)},
    ):
        torch.testing.assert_close(bound(output, call), linear(x)[:, 2])
        torch.testing.assert_close(read_target(2, linear, 2)(output, call), linear(x)[:, 2])
    model = models.tiny_bert()
    ids = models.tokens(model, 2, 5)
    hidden = model(ids).last_hidden_state
    torch.testing.assert_close(target_value(model, (1, 6), ids), hidden[:, 1, 6])


# --- what is wrong is said ------------------------------------------------------------------------


def test_errors_name_what_was_given() -> None:
    causal, encoder, labels = small_causal(), models.tiny_bert(), classifier()
    ids = models.tokens(causal, 2, 5)

    def value(model: Any, target: Any, **more: Any) -> Callable[[], Tensor]:
        return lambda: target_value(model, target, {"input_ids": ids, **more})

    for wrong, words in (
        (value(causal, 3), r"target=3 is not clear.*\(2, 5, 50\).*\(position, token\)"),
        (value(causal, torch.tensor([3, 4])), "is not clear"),
        (value(causal, (1, 50)), r"\(1, 50\) is not in the output"),
        (value(causal, (1, 2, 3)), "is not in the output"),
        (value(causal, (1,)), r"\(2, 50\) for 2 texts"),
        (value(labels, [1, 2, 0]), "3 targets for 2 texts"),
        (value(labels, torch.tensor([0.5, 1])), "whole numbers"),
        (value(labels, True), "target=True"),
        (value(labels, (True,)), "whole numbers"),
        (value(labels, None), "target=None"),
        (value(labels, "good"), r"class_logit\('good'\)"),
        (value(labels, lambda output: 1.0), r"<lambda>\(output\), gives 1.0"),
        (
            value(labels, lambda output: output.logits.argmax(-1)),
            r"gives a tensor of torch.int64: it has to be floating point\.$",
        ),
        (value(labels, lambda output: output.logits.sum()), r"\(\) for 2 texts: it has to be \("),
        (value(labels, lambda output: output.logits[:1, 0]), r"shape \(1,\) for 2 texts"),
        (value(labels, lambda output: output.logits[:, 0] / 0), "it has to be finite"),
        (value(encoder, logit(3)), "gives no logits: load the model with the head .*CausalLM"),
        (value(causal, class_logit("joy")), r"'joy': .*CausalLM is no classifier.* logit\(token"),
        (value(causal, logit(3, minus=3)), r"logit\(3, minus=3\) is 0 whatever the text"),
        (value(causal, logit([3, 4], [4, 3, 3, 4])), "is 0 whatever the text"),
        (value(labels, logit(3)), r"\(2, 3\), and a token is read from \(B, S, V\)"),
        (value(causal, class_logit(1)), r"\(2, 5, 50\), and a class is read from \(B, C\)"),
        (value(causal, logit(50)), "token=50"),
        (value(causal, logit(True)), "token=True"),
        (value(causal, logit(1, position=5)), "position 5 does not exist: text 0 has 5 tokens"),
        (value(causal, logit(1, position=-6)), "position -6"),
        (value(causal, logit(3), logits_to_keep=1), "inputs hold logits_to_keep"),
        (lambda: logit(1, position=1.5), "position=1.5"),  # type: ignore[arg-type]
        (lambda: logit([]), "empty list"),
        (lambda: cosine(ids, "max"), "pooling 'max'"),
        (value(encoder, cosine(ids)), "2 texts"),
        (value(causal, cosine(ids[:1])), r"last_hidden_state: .*its head \(AutoModel\), or"),
    ):
        with pytest.raises(LigError, match=words):
            wrong()


def test_a_target_has_to_depend_on_the_output() -> None:
    model = models.tiny_bert()
    ids = models.tokens(model, 1, 5)
    with torch.enable_grad():
        assert target_value(model, read, ids).requires_grad
        with pytest.raises(LigError, match="does not depend on the model's output"):
            target_value(model, lambda output: read(output).detach(), ids)
