"""Ways of calling `attribute` with a target: each gives the numbers of the plain call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    GPT2LMHeadModel,
    Qwen2VLTextConfig,
    Qwen2VLTextModel,
)

from captum_lig import LayerFlow, LayerFlowIG
from captum_lig.prediction import class_logit, cosine, log_probability, logit, state
from tests.helpers import models
from tests.helpers.ids import words
from tests.helpers.laws import EXACT, assert_same, check_laws, number_of, sum_entering
from tests.helpers.state import Unchanged

IDS = torch.tensor([[5, 17, 31, 8, 44]])
OTHER = torch.tensor([[5, 22, 9, 8, 13]])


def decoder(layers: int = 3) -> GPT2LMHeadModel:
    config = models.tiny_gpt2(layers=layers).config
    return models.randomised(GPT2LMHeadModel(config))  # type: ignore[return-value]


def classifier() -> BertForSequenceClassification:
    config = models.tiny_bert().config
    config.num_labels, config.label2id = 3, {"joy": 0, "anger": 1, "fear": 2}
    config.id2label = {n: label for label, n in config.label2id.items()}
    return models.randomised(BertForSequenceClassification(config))  # type: ignore[return-value]


def flows_of(model: nn.Module, inputs: Any = IDS, baselines: Any = OTHER, target: Any = number_of,
             layer: Any = None, **settings: Any) -> list[LayerFlow]:  # fmt: skip
    found = LayerFlowIG(model, layer).attribute(inputs, baselines, target, **settings)
    flows = [found] if isinstance(found, LayerFlow) else found
    check_laws(flows) if layer is None else None
    return flows


# ---- what is asked for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [0, 1, 2, [0], [1, 2], [2, 0], "transformer.h.1", ["transformer.h.0"]]
)
def test_some_layers_are_those_of_all(layer: Any) -> None:
    model = decoder()
    every = flows_of(model)
    asked = layer if isinstance(layer, list) else [layer]
    numbers = sorted(int(str(one).rsplit(".", 1)[-1]) for one in asked)
    some = flows_of(model, layer=layer)
    assert [flow.index for flow in some] == numbers
    for flow in some:
        assert_same(flow, every[flow.index])


def test_a_block_given_as_a_module() -> None:
    model = decoder()
    (flow,) = flows_of(model, layer=model.transformer.h[1])
    assert_same(flow, flows_of(model)[1])


def test_sums_alone() -> None:
    model = decoder()
    for flow, full in zip(flows_of(model, boundaries=("mlp",)), flows_of(model), strict=True):
        assert flow.attention is None
        for name, x in flow.tensors.items():
            torch.testing.assert_close(x, full.tensors[name], rtol=1e-3, atol=1e-3)


def test_small_portions_and_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model = decoder()
    flows = flows_of(model, internal_batch_size=1, show_progress=True)
    assert "3/3" in capsys.readouterr().err
    for flow, full in zip(flows, flows_of(model), strict=True):
        assert_same(flow, full)


def test_delta() -> None:
    model = decoder()
    rough = {"n_steps": 2, "tolerance": None}
    for layer in (None, 1):
        lig = LayerFlowIG(model, layer)
        flows, delta = lig.attribute(
            IDS,
            OTHER,
            number_of,
            return_convergence_delta=True,
            **rough,  # type: ignore[call-overload]
        )
        lowest = flows if isinstance(flows, LayerFlow) else flows[0]
        assert delta.shape == (1,)
        assert delta.abs() > 1e-6
        torch.testing.assert_close(delta, lowest.entering.sum(-1) - lowest.change)


# ---- precision -------------------------------------------------------------------------------


def test_precision() -> None:
    exact = flows_of(decoder(), tolerance=1e-6)
    model = decoder().float()
    for dtype, bound in ((None, 1e-3), (torch.float64, 1e-5)):
        with Unchanged(model, {"input_ids": IDS}):
            flows = flows_of(model, dtype=dtype, tolerance=1e-6 if dtype else 1e-3)
        for flow, wanted in zip(flows, exact, strict=True):
            assert_same(flow, wanted, bound=bound)


def test_half_precision_is_copied() -> None:
    model, rounded = decoder().bfloat16(), decoder()
    rounded.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
    before = {name: x.clone() for name, x in model.state_dict().items()}
    flows = flows_of(model)
    for flow, wanted in zip(flows, flows_of(rounded), strict=True):
        assert flow.need("attention").dtype == torch.float32
        assert_same(flow, wanted, bound=1e-3)
    (one,) = flows_of(model, layer=model.transformer.h[2])  # a block of the model, not of the copy
    assert_same(one, flows[2])
    for name, x in model.state_dict().items():
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, before[name])


# ---- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_a_padded_batch_is_its_texts(kind: str, side: str) -> None:
    model = {"gpt2": models.tiny_gpt2, "llama": models.tiny_llama, "bert": models.tiny_bert}[kind]()
    texts = [([5, 17, 31, 8, 44], [5, 22, 9, 8, 13]), ([7, 12, 40], [7, 33, 6])]
    padded = {name: padded_batch([pair[n] for pair in texts], side)
              for n, name in enumerate(("own", "other"))}  # fmt: skip
    mask = padded_batch([[1] * len(own) for own, _ in texts], side)
    inputs = {"input_ids": padded["own"], "attention_mask": mask}
    if kind != "llama":  # learned positions: those of the text
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)

    def number(output: Any) -> Tensor:
        hidden = output.last_hidden_state
        last = hidden[:, -1] if side == "left" else hidden[:, 2]
        return torch.tanh(last[:, :7].sum(-1) / 5)

    whole = flows_of(model, inputs, padded["other"], target=number)
    for text, pair in enumerate(texts):
        own, other = (torch.tensor([ids]) for ids in pair)
        alone = flows_of(model, own, other, target=number)
        for flow, wanted in zip(whole, alone, strict=True):
            assert_same(flow, wanted, text, bound=2e-4)
            padding = ~flow.valid[text]
            assert not flow.need("entering")[text, padding].any()
            assert not flow.need("attention")[text][:, :, padding].any()
            assert not flow.need("attention")[text][:, padding].any()
            assert not flow.need("mlp")[text, padding].any()


@pytest.mark.parametrize("batch", [2, 3])
def test_positions_of_several_axes_are_those_of_their_texts(batch: int) -> None:
    """Images and text have three coordinates, which come before the texts ``(3, B, S)``."""
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = Qwen2VLTextConfig(**models.GROUPED, rope_parameters=rotary)
    model = models.randomised(Qwen2VLTextModel(config))
    generator = torch.Generator().manual_seed(0)
    ids, places = (torch.randint(3, 20, (n, batch, 5), generator=generator) for n in (2, 3))
    own = {"input_ids": ids[0], "position_ids": places}
    flows = flows_of(model, own, ids[1], target=number_of)
    for text in range(batch):
        at = slice(text, text + 1)
        inputs = {"input_ids": ids[0, at], "position_ids": places[:, at]}
        for flow, wanted in zip(flows, flows_of(model, inputs, ids[1, at]), strict=True):
            assert_same(flow, wanted, text)


def test_token_types_of_all_texts() -> None:
    """``(S,)``, of as many tokens as there are texts."""
    ids, other = torch.arange(3, 12).view(3, 3), torch.arange(21, 30).view(3, 3)
    own = {"input_ids": ids, "token_type_ids": torch.tensor([4, 5, 5])}
    flows = flows_of(models.tiny_gpt2(), own, other)
    each = {**own, "token_type_ids": own["token_type_ids"].expand(3, -1)}
    for flow, wanted in zip(flows, flows_of(models.tiny_gpt2(), each, other), strict=True):
        assert_same(flow, wanted)


def padded_batch(rows: list[list[int]], side: str) -> Tensor:
    longest = max(map(len, rows))
    spare = [[0] * (longest - len(row)) for row in rows]
    both = zip(rows, spare, strict=True)
    return torch.tensor([s + row if side == "left" else row + s for row, s in both])


# ---- targets ---------------------------------------------------------------------------------


def value(model: nn.Module, read: Any, inputs: Any = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = read(model(inputs))
    return found


def of_two(output: Any) -> Tensor:
    logits = output.logits[:, 2]
    return logits[:, 7:9].mean(-1) - logits[:, 9]  # type: ignore[no-any-return]


def of_all(output: Any) -> Tensor:
    return output[0][:, -1].log_softmax(-1)[:, 3]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ((3, 7), lambda o: o.logits[:, 3, 7]),
        ((-1, 7), lambda o: o.logits[:, -1, 7]),
        ([(2, 9)], lambda o: o.logits[:, 2, 9]),
        (logit(7), lambda o: o.logits[:, -1, 7]),
        (logit([7, 8], minus=9, position=2), of_two),
        (of_all, of_all),
    ],
    ids=words,
)
def test_numbers_of_a_decoder(target: Any, read: Any) -> None:
    model = decoder(2)
    with Unchanged(model, {"input_ids": IDS}):
        flows = flows_of(model, target=target)
    change = value(model, read) - value(model, read, OTHER)
    torch.testing.assert_close(flows[0].change, change)
    assert isinstance(flows[0].target, str)


def test_log_probability() -> None:
    model, inputs = decoder(2), torch.tensor([[5, 17, 31, 8, 44]])
    other = torch.tensor([[5, 22, 9, 8, 44]])

    def read(output: Any) -> Tensor:
        row = output.logits.log_softmax(-1)
        return row[:, 2, 8] + row[:, 3, 44]  # type: ignore[no-any-return]

    for baselines, start in ((other, other), (None, torch.tensor([[5, 0, 0, 8, 44]]))):
        flows = flows_of(model, inputs, baselines, log_probability([8, 44]))
        change = value(model, read, inputs) - value(model, read, start)
        torch.testing.assert_close(flows[0].change, change)


def test_one_target_for_each_text() -> None:
    model = classifier()
    both, others = torch.cat([IDS, OTHER]), torch.cat([OTHER, IDS.flip(-1)])
    for given in ([2, 0], torch.tensor([2, 0])):
        flows = flows_of(model, both, others, given)
        for text, label in enumerate((2, 0)):
            alone = flows_of(model, both[text : text + 1], others[text : text + 1], label)
            for flow, wanted in zip(flows, alone, strict=True):
                assert_same(flow, wanted, text)
    named = flows_of(model, both, others, class_logit("fear"))
    for flow, wanted in zip(named, flows_of(model, both, others, 2), strict=True):
        assert_same(flow, wanted)


def test_cosine() -> None:
    model, text = models.tiny_bert(), torch.tensor([[9, 10, 11]])
    other = model(text).last_hidden_state.mean(1)
    flows = flows_of(model, target=cosine(text))
    means = [model(x).last_hidden_state.mean(1) for x in (IDS, OTHER)]
    first, second = (torch.cosine_similarity(x, other) for x in means)
    torch.testing.assert_close(flows[0].change, (first - second).detach())


@pytest.mark.parametrize("layer", [None, 1])
def test_state(layer: int | None) -> None:
    model = models.tiny_gpt2(layers=3)
    flows = flows_of(model, target=state(-1), layer=layer)
    assert flows[0].change.item() > 0
    for flow in flows:
        torch.testing.assert_close(sum_entering(flow), flow.change, rtol=1e-3, atol=1e-3)
    direction = torch.randn(models.WIDTH, generator=torch.Generator().manual_seed(0)).double()
    double = flows_of(model, target=state(2, 2 * direction))
    for flow, wanted in zip(double, flows_of(model, target=state(2, direction)), strict=True):
        torch.testing.assert_close(flow.entering, 2 * wanted.entering)


# ---- baselines -------------------------------------------------------------------------------


def test_baselines() -> None:
    model = decoder(2)
    padding = torch.tensor([[5, 0, 0, 0, 0]])
    wanted = flows_of(model, IDS, padding)
    for baselines in (None, padding[0:1], {"input_ids": padding}):
        for flow, full in zip(flows_of(model, IDS, baselines), wanted, strict=True):
            assert_same(flow, full, bound=0)
    named = flows_of(model, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, padding)
    for flow, full in zip(named, wanted, strict=True):
        assert_same(flow, full)
    everywhere = flows_of(model, IDS, 0)
    assert everywhere[0].need("entering")[0, 0] != 0


def test_vectors_for_an_input() -> None:
    model = models.tiny_llama()
    vectors = model.get_input_embeddings()(IDS).detach()
    others = model.get_input_embeddings()(OTHER).detach()
    named = flows_of(model, {"inputs_embeds": vectors}, others)
    for flow, wanted in zip(named, flows_of(model), strict=True):
        assert_same(flow, wanted)
    for flow in flows_of(model, {"inputs_embeds": vectors}, 0.1):
        assert flow.need("entering").all()


def test_the_input_itself() -> None:
    flows = flows_of(decoder(), IDS, IDS)
    for flow in flows:
        for name, x in flow.tensors.items():
            assert not x.any(), name


def test_tokens_that_are_the_same_have_no_relevance() -> None:
    model = decoder()
    lowest = flows_of(model)[0]
    assert torch.equal(lowest.entering != 0, OTHER != IDS)


def test_two_numbers_add_up() -> None:
    model = decoder(2)
    read = [lambda o: o.logits[:, -1, 3], lambda o: 2 * o.logits[:, 2, 9].tanh()]
    one, two = (flows_of(model, target=r, tolerance=1e-7) for r in read)
    both = flows_of(model, target=lambda o: read[0](o) + read[1](o), tolerance=1e-7)
    for name in both[0].tensors.keys() - {"scale"}:
        for flow, first, second in zip(both, one, two, strict=True):
            gap = flow.tensors[name] - first.tensors[name] - second.tensors[name]
            assert gap.abs().max() <= EXACT * float(flow.scale), name
