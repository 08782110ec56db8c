"""What cannot be handed down is refused in words, or said in a warning; nothing stays changed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from captum_lig import Block, LayerFlowIG, LigError
from captum_lig.prediction import state
from tests.helpers import models
from tests.helpers.families import FAMILIES
from tests.helpers.laws import assert_same, check_laws, number_of, other_inputs, sum_entering
from tests.helpers.state import Unchanged

IDS = torch.tensor([[5, 17, 31, 8, 44]])
OTHER = torch.tensor([[5, 22, 9, 8, 13]])
FAMILY = {family.name: family for family in FAMILIES}


@pytest.fixture(scope="module")
def decoder() -> GPT2LMHeadModel:
    return made()


def made() -> GPT2LMHeadModel:
    return models.randomised(GPT2LMHeadModel(models.tiny_gpt2().config))  # type: ignore[return-value]


def last(output: Any) -> Tensor:
    return output.logits[:, -1, 3]  # type: ignore[no-any-return]


def root_of_nothing(output: Any) -> Tensor:
    x = last(output)
    return x + (x - x.detach()).sqrt()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shorter": ({"baselines": OTHER[:, :4]}, "has 5 tokens, its baseline 4"),
    "longer": ({"baselines": {"input_ids": torch.ones(1, 9).long()}}, "its baseline 9"),
    "another mask": (
        {
            "inputs": {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
            "baselines": {"input_ids": OTHER, "attention_mask": torch.tensor([[1, 1, 1, 1, 0]])},
        },
        "padded alike",
    ),
    "unknown tokens": (
        {"baselines": OTHER + 900},
        "token id 905 at position 0 of text 0, the first of 5",
    ),
    "target_token": ({"baselines": "target_token"}, r"'target_token' is for maps without a"),
    "zero": ({"baselines": "zero"}, r"leave it out for padding .*\['zero'\] is the text"),
    "one of a tuple": ({"inputs": (IDS,), "baselines": ("zero",)}, "for maps without a target"),
    "vectors for ids": ({"baselines": OTHER.double()}, "token ids"),
    "a constant": ({"target": lambda o: torch.ones(len(o.logits))}, "does not depend"),
    "nan": ({"target": lambda o: last(o) * torch.nan}, "has to be finite"),
    "inf": ({"target": lambda o: last(o) / 0}, "has to be finite"),
    "an infinite gradient": ({"target": root_of_nothing}, "gradient .* is not finite"),
    "a vector": (
        {"target": lambda o: o.logits[:, -1]},
        r"\(1, 50\) for 1 text: it has to be \(1,\)",
    ),
    "all texts": ({"target": lambda o: o.logits.sum()}, "one number a text"),
    "all copies": (
        {"target": lambda o: o.logits.sum().reshape(1)},
        r"shape \(1,\) for 2 texts.*on copies of a text together.*write it for each by itself",
    ),
    "an int of three axes": ({"target": 3}, r"give \(position, token\)"),
    "out of range": ({"target": (9, 7)}, "not in the output"),
    "of other texts": ({"target": [1, 2, 3]}, "3 targets for 1 texts"),
    "a string": ({"target": " are"}, r"logit\(' are'\)"),
    "a token that stays": ({"target": state(0)}, "its change has no direction"),
    "no nodes": ({"n_steps": 0}, "n_steps=0"),
    "a boundary": ({"boundaries": ("layer",)}, "with a target there are"),
    "a self term": ({"self_term": "zero_ratio"}, "goes with flows without a target"),
    "too long": ({"inputs": torch.ones(1, 70).long(), "baselines": 2}, "64 positions"),
    "the batch's mean": (
        {
            "inputs": torch.cat([IDS, OTHER]),
            "baselines": torch.cat([OTHER, IDS]),
            "target": lambda o: last(o) - last(o).mean(),
        },
        "reads more than the tokens leaving",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, decoder: GPT2LMHeadModel) -> None:
    given, words = REFUSED[name]
    call = {"inputs": IDS, "baselines": OTHER, "target": last, **given}
    with Unchanged(decoder, {"input_ids": IDS}), pytest.raises(LigError, match=words):
        LayerFlowIG(decoder).attribute(**call)


def test_a_layer_that_is_not_there(decoder: GPT2LMHeadModel) -> None:
    part = decoder.transformer.h[1].attn
    for layer, words in (
        (7, "0 to 1"),
        (decoder.lm_head, "not a block"),
        ("transformer.h.1.attn", r"is a part of the block 'transformer\.h\.1': name the block"),
        (part, r"is a part of the block 'transformer\.h\.1': name the block"),
    ):
        with pytest.raises(LigError, match=words):
            LayerFlowIG(decoder, layer).attribute(IDS, OTHER, last)


def test_an_mlp_that_is_named_in_a_block_left_whole(decoder: GPT2LMHeadModel) -> None:
    names = [f"transformer.h.{n}" for n in range(len(decoder.transformer.h))]
    whole = [Block(name, feed_forward="mlp") for name in names]
    with pytest.raises(LigError, match=r"'transformer\.h\.\d' .*left whole.*name its attention"):
        LayerFlowIG(decoder, whole).attribute(IDS, OTHER, last)
    split = [
        Block(name, attention=f"{name}.attn.c_proj", heads=4, feed_forward="mlp") for name in names
    ]
    given = {"baselines": OTHER, "target": last}
    for one, own in zip(
        LayerFlowIG(decoder, split).attribute(IDS, **given),
        LayerFlowIG(decoder).attribute(IDS, **given),
        strict=True,
    ):
        torch.testing.assert_close(one.feed_forward, own.feed_forward)


def test_a_baseline_that_is_the_input_is_said(decoder: GPT2LMHeadModel) -> None:
    both = torch.cat([IDS, IDS])
    with pytest.warns(UserWarning, match="the baseline of text 1 is the text itself") as seen:
        LayerFlowIG(decoder).attribute(both, torch.cat([OTHER, IDS]), last)
    assert [one.filename for one in seen if "text itself" in str(one.message)] == [__file__]


def test_a_target_that_reads_other_layers() -> None:
    model = made()
    model.config.output_hidden_states = True
    lig = LayerFlowIG(model)
    for read in (
        lambda o: o.hidden_states[1].sum((1, 2)),
        lambda o: sum(h.tanh().sum((1, 2)) for h in o.hidden_states),
    ):
        with pytest.raises(LigError, match="reads more than the tokens leaving"):
            lig.attribute(IDS, OTHER, read)
    check_laws(lig.attribute(IDS, OTHER, lambda o: o.hidden_states[-1].tanh().sum((1, 2))))


def test_a_target_that_reads_padding() -> None:
    inputs = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}
    other = torch.tensor([[5, 17, 3, 8, 9]])
    lig = LayerFlowIG(models.tiny_bert())
    with pytest.raises(LigError, match="reads more than the tokens leaving"):
        lig.attribute(inputs, other, lambda o: o.last_hidden_state[:, :, 2].mean(-1))
    check_laws(lig.attribute(inputs, other, lambda o: o.last_hidden_state[:, :4, 2].mean(-1)))


def test_a_classifier_that_looks_for_padding_in_its_ids() -> None:
    config = models.tiny_gpt2().config
    config.num_labels = 3
    model = models.randomised(GPT2ForSequenceClassification(config))
    lig = LayerFlowIG(model)
    check_laws(lig.attribute(IDS, OTHER, 1))
    with pytest.raises(LigError, match="give a baseline with padding at the same places"):
        lig.attribute(IDS, None, 1)


def test_training_and_inference_mode() -> None:
    model = made().train()
    with pytest.raises(LigError, match="training mode"):
        LayerFlowIG(model).attribute(IDS, OTHER, last)
    with torch.inference_mode():
        model = made()
    with pytest.raises(LigError, match=r"made under torch.inference_mode"):
        LayerFlowIG(model).attribute(IDS, OTHER, last)


def test_a_jump_is_said_in_a_warning(decoder: GPT2LMHeadModel) -> None:
    with torch.no_grad():
        middle = (last(decoder(IDS)) + last(decoder(OTHER))) / 2

    def jump(output: Any) -> Tensor:
        return (last(output) > middle).double() + 0 * last(output)

    with pytest.warns(UserWarning, match=r"all that enters layer 0 of text 0: 1.0e\+00") as seen:
        flows, delta = LayerFlowIG(decoder).attribute(
            IDS, OTHER, jump, return_convergence_delta=True, max_steps=32
        )
    assert [one.filename for one in seen if "all that enters" in str(one.message)] == [__file__]
    assert delta.abs().item() == 1
    assert not flows[0].need("entering").any()


# ---- what makes no difference ----------------------------------------------------------------


def plain(model: nn.Module, **given: Any) -> Any:
    call = {"inputs": IDS, "baselines": OTHER, "target": last, **given}
    return LayerFlowIG(model).attribute(**call)


def without_gradients(model: nn.Module) -> Any:
    model.requires_grad_(False)
    return plain(model)


def checkpointed(model: Any) -> Any:
    model.transformer.gradient_checkpointing = True
    return plain(model)


def under_no_grad(model: nn.Module) -> Any:
    with torch.no_grad():
        return plain(model)


def under_inference_mode(model: nn.Module) -> Any:
    with torch.inference_mode():
        return plain(model)


def in_threads(model: nn.Module) -> Any:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(plain(model))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    return found[1]


def with_hooks(model: Any) -> Any:
    seen: list[str] = []
    model.transformer.h[1].register_forward_hook(lambda *_: seen.append("forward"))
    model.transformer.h[0].mlp.register_full_backward_hook(lambda *_: seen.append("backward"))
    found = plain(model)
    assert "forward" in seen
    return found


SAME: dict[str, Callable[[Any], Any]] = {
    "requires_grad": without_gradients,
    "checkpointing": checkpointed,
    "no_grad": under_no_grad,
    "inference_mode": under_inference_mode,
    "use_cache": lambda model: plain(model, inputs={"input_ids": IDS, "use_cache": True}),
    "labels": lambda model: plain(model, inputs={"input_ids": IDS, "labels": IDS}),
    "a tuple": lambda model: plain(
        model, inputs={"input_ids": IDS, "return_dict": False}, target=lambda o: o[0][:, -1, 3]
    ),
    "hooks": with_hooks,
    "threads": in_threads,
    "DataParallel": lambda model: plain(nn.DataParallel(model).eval()),
    "compiled": lambda model: plain(torch.compile(model)),
    "position_ids": lambda m: plain(
        m, inputs={"input_ids": IDS, "position_ids": torch.arange(5)[None]}
    ),
    "a changed output": lambda m: plain(m, target=lambda o: o.logits.mul_(1)[:, -1, 3]),
}


@pytest.mark.parametrize("name", SAME)
def test_no_difference(name: str, decoder: GPT2LMHeadModel) -> None:
    flows = SAME[name](copy.deepcopy(decoder))
    check_laws(flows)
    for flow, wanted in zip(flows, plain(decoder), strict=True):
        assert_same(flow, wanted)


@pytest.mark.parametrize("shape", ["position_ids", "attention_mask"])
def test_arguments_that_all_texts_share(shape: str, decoder: GPT2LMHeadModel) -> None:
    least = torch.finfo(torch.float64).min
    mask = torch.full((5, 5), least, dtype=torch.float64).triu(1)[None, None]
    shared = {"position_ids": torch.arange(5)[None], "attention_mask": mask}[shape]
    for count in (2, 5):  # as many texts as tokens
        ids = (torch.arange(5 * count).view(count, 5) * 3) % 43 + 3
        whole = plain(decoder, inputs={"input_ids": ids, shape: shared}, baselines=ids.roll(1, 1))
        alone = plain(decoder, inputs=ids[1:2], baselines=ids.roll(1, 1)[1:2])
        check_laws(whole)
        for flow, wanted in zip(whole, alone, strict=True):
            assert_same(flow, wanted, 1)


# ---- encoder-decoders ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_one_of_two_streams_moves(name: str) -> None:
    model = FAMILY[name].build()
    inputs = FAMILY[name].inputs(model)
    main, other = model.main_input_name, other_inputs(inputs)
    lig = LayerFlowIG(model)
    for baseline in (other[main], {**other, main: inputs[main]}, other):
        check_laws(lig.attribute(inputs, baseline, number_of))
    decoder_alone = lig.attribute(inputs, {**other, main: inputs[main]}, number_of)
    for flow in decoder_alone[:2]:
        assert not flow.need("entering").any()
        torch.testing.assert_close(flow.elsewhere, flow.change, rtol=1e-3, atol=0)
    for number in (0, 3):
        (flow,) = LayerFlowIG(model, [number]).attribute(inputs, other, number_of)
        assert flow.index == number
        torch.testing.assert_close(sum_entering(flow), flow.change, rtol=1e-3, atol=0)


def test_padding_of_an_encoder() -> None:
    model = FAMILY["bart"].build()
    one = FAMILY["bart"].inputs(model)
    ids, decoder_ids = one["input_ids"], one["decoder_input_ids"]
    inputs = {
        "input_ids": torch.cat([ids, ids.flip(-1)]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "decoder_input_ids": torch.cat([decoder_ids, decoder_ids]),
    }
    other = {name: x for name, x in other_inputs(inputs).items() if name != "attention_mask"}
    flows = LayerFlowIG(model).attribute(inputs, other, number_of)
    check_laws(flows)
    short = {name: x[1:, :3] for name, x in inputs.items()}
    start = {name: x[1:, :3] for name, x in other.items()}
    alone = LayerFlowIG(model).attribute(short, start, number_of)
    for flow, wanted in zip(flows, alone, strict=True):
        ours = flow.need("entering")[1, flow.valid[1]]
        scale = float(wanted.need("scale"))
        assert (ours - wanted.need("entering")[0]).abs().max() <= 1e-6 * scale
