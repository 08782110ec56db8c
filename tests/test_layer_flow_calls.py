"""LayerFlowIG: ways to ask for the same flow give the same flow."""

from __future__ import annotations

import itertools
import math
import warnings
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers import models

PARTS = ("attention", "attention_total", "mlp", "residual", "layer", "layer_total", "chain")
ROW_AXIS = {"attention": 2, "attention_total": 2, "chain": 2}  # else 1


@pytest.fixture(scope="module", params=models.MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    built: PreTrainedModel = models.MODELS[request.param]()
    return built


PLAIN: dict[str, Any] = {"n_steps": 6, "tolerance": None}
REFINED: dict[str, Any] = {"n_steps": 2, "tolerance": 1e-3}


def attribute(model: nn.Module, inputs: Any, layer: Any = 1, **kwargs: Any) -> LayerFlow:
    flow = LayerFlowIG(model, layer).attribute(inputs, **{**PLAIN, **kwargs})
    assert isinstance(flow, LayerFlow)
    return flow


def rows_of(flow: LayerFlow, name: str, rows: list[int]) -> Tensor:
    part: Tensor = getattr(flow, name)
    return part.index_select(ROW_AXIS.get(name, 1), torch.tensor(rows))


def assert_same(actual: LayerFlow, expected: LayerFlow, rows: list[int] | None = None) -> None:
    """All parts; `actual` may hold some rows of `expected` only."""
    for name in PARTS:
        part, right = getattr(actual, name), getattr(expected, name)
        right = right if rows is None else rows_of(expected, name, rows)
        assert part.shape == right.shape, name
        torch.testing.assert_close(part, right, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: n + m)
    for rule in ("conserve", "chain", "product"):
        right = expected.compose(rule)
        right = right if rows is None else right[:, rows]
        torch.testing.assert_close(actual.compose(rule), right, rtol=1e-9, atol=1e-9)


BASELINES = ["zero", "target_token"]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(
    ("steps", "sizes"), [(PLAIN, (1, 3, 50)), (REFINED, (3, 50))], ids=["plain", "refined"]
)
def test_internal_batch_size(
    model: PreTrainedModel, steps: dict[str, Any], sizes: tuple[int, ...], baseline: str
) -> None:
    inputs = models.padded_batch(model, (4, 2))
    whole = attribute(model, inputs, baselines=baseline, **steps)
    for size in sizes:
        part = attribute(model, inputs, baselines=baseline, internal_batch_size=size, **steps)
        assert_same(part, whole)


@pytest.mark.parametrize("method", ["riemann_left", "riemann_trapezoid"])
def test_internal_batch_size_with_a_node_where_the_path_starts(method: str) -> None:
    """The limit of the l2 norm's gradient belongs to the first node only."""
    model = models.tiny_bert()
    ids = models.tokens(model, 1, 4)
    whole = attribute(model, ids, method=method)
    for size in (1, 3, 50):
        assert_same(attribute(model, ids, method=method, internal_batch_size=size), whole)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("steps", [PLAIN, REFINED], ids=["plain", "refined"])
def test_output_indices(model: PreTrainedModel, steps: dict[str, Any], baseline: str) -> None:
    """In a padded batch some of them are padding in one of the texts."""
    inputs = models.padded_batch(model, (5, 3))
    whole = attribute(model, inputs, baselines=baseline, **steps)
    for indices in ([3, 0], torch.tensor([1, 4, 2]), [-5], [-1, 1]):
        rows = [int(i) % 5 for i in indices]
        part = attribute(model, inputs, baselines=baseline, output_indices=indices, **steps)
        assert part.targets.tolist() == rows
        assert_same(part, whole, rows)


@pytest.mark.parametrize("baseline", [*BASELINES, 0.2])
def test_output_indices_that_are_padding_in_one_text(model: PreTrainedModel, baseline: Any) -> None:
    inputs = models.padded_batch(model, (5, 3))
    whole = attribute(model, inputs, baselines=baseline)
    part = attribute(model, inputs, baselines=baseline, output_indices=[4, 3])
    assert_same(part, whole, [4, 3])
    assert part.layer is not None
    assert bool((part.layer[1] == 0).all())
    assert bool((part.layer[0] != 0).any())


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("steps", [PLAIN, REFINED], ids=["plain", "refined"])
def test_each_text_of_a_batch_is_attributed_alone(
    model: PreTrainedModel, steps: dict[str, Any], baseline: str
) -> None:
    lengths = (3, 5)
    inputs = models.padded_batch(model, lengths)
    both = attribute(model, inputs, baselines=baseline, **steps)
    for text, length in enumerate(lengths):
        ids = inputs["input_ids"][[text], :length]
        alone = attribute(model, ids, baselines=baseline, **steps)
        for name in PARTS:
            part = getattr(both, name)[text]
            axes = {"attention": (1, 2), "chain": (1, 2), "layer": (0, 1), "attention_total": (1,)}
            for axis in axes.get(name, (0,)):
                outside = part.narrow(axis, length, max(lengths) - length)
                assert bool((outside == 0).all())
                part = part.narrow(axis, 0, length)
            torch.testing.assert_close(part, getattr(alone, name)[0], rtol=1e-9, atol=1e-9)


def test_a_baseline_for_each_target(model: PreTrainedModel) -> None:
    """In parts, in another order, for one text or both: each target keeps its own."""
    inputs = models.padded_batch(model, (2, 4))
    generator = torch.Generator().manual_seed(3)
    starts = torch.randn(2, 4, 4, models.WIDTH, generator=generator, dtype=torch.float64)
    whole = attribute(model, inputs, baselines=starts)
    for size in (1, 3):
        assert_same(attribute(model, inputs, baselines=starts, internal_batch_size=size), whole)
    rows = [3, 0, 1]
    some = attribute(model, inputs, baselines=starts[:, rows], output_indices=rows)
    assert_same(some, whole, rows)
    shared = attribute(model, inputs, baselines=starts[1:])
    assert_same(shared, attribute(model, inputs, baselines=starts[1:].expand(2, -1, -1, -1)))
    assert shared.layer is not None
    assert whole.layer is not None
    torch.testing.assert_close(shared.layer[1], whole.layer[1], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(shared.layer[0], whole.layer[0])


def test_padding_on_the_left(model: PreTrainedModel) -> None:
    if model.config.model_type == "llama":
        # Its softmax is in float32, in which the float64 mask is -inf: whole rows are not finite.
        model = models.tiny_llama(dtype=torch.float32)
    text = models.tokens(model, 1, 3)
    alone = attribute(model, text)
    padding = torch.full((1, 2), models.PADDING_ID)
    padded = attribute(
        model,
        {
            "input_ids": torch.cat([padding, text], 1),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]),
            "position_ids": torch.tensor([[0, 0, 0, 1, 2]]),
        },
    )
    assert alone.layer is not None
    assert padded.layer is not None
    tolerance = 1e-9 if alone.layer.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(padded.layer[:, 2:, 2:], alone.layer, rtol=tolerance, atol=tolerance)
    assert bool((padded.layer[:, :2] == 0).all())
    assert bool((padded.layer[:, :, :2] == 0).all())


def test_ways_to_name_a_layer(model: PreTrainedModel) -> None:
    ids = models.tokens(model, 1, 4)
    module = models.blocks(model)[1]
    name = next(name for name, found in model.named_modules() if found is module)
    expected = attribute(model, ids, 1)
    assert expected.name == name
    assert expected.index == 1
    for layer in (module, name, -1):
        flow = attribute(model, ids, layer)
        assert (flow.name, flow.index) == (name, 1)
        assert_same(flow, expected)
    for layers in ([module], [name], [1], (-1,)):
        flows = LayerFlowIG(model, layers).attribute(ids, **PLAIN)
        assert isinstance(flows, list)
        assert len(flows) == 1
        assert_same(flows[0], expected)
    every = LayerFlowIG(model).attribute(ids, **PLAIN)
    assert isinstance(every, list)
    assert [flow.index for flow in every] == [0, 1]
    assert_same(every[1], expected)
    backwards = LayerFlowIG(model, [1, every[0].name]).attribute(ids, **PLAIN)
    assert isinstance(backwards, list)
    assert [flow.index for flow in backwards] == [1, 0]
    assert_same(backwards[0], expected)
    assert_same(backwards[1], every[0])


def test_a_baseline_for_each_layer(model: PreTrainedModel) -> None:
    ids = models.tokens(model, 1, 4)
    start = torch.linspace(-1, 1, models.WIDTH, dtype=torch.float64)
    flows = LayerFlowIG(model, [1, 0]).attribute(ids, ["target_token", start], **PLAIN)
    assert isinstance(flows, list)
    assert_same(flows[0], attribute(model, ids, 1, baselines="target_token"))
    assert_same(flows[1], attribute(model, ids, 0, baselines=start))
    assert (flows[0].baseline, flows[1].baseline) == ("target_token", "tensor")


def test_a_baseline_that_is_left_out(model: PreTrainedModel) -> None:
    """None is the target's own token: of all layers, and of one of them."""
    ids = models.tokens(model, 1, 4)
    expected = attribute(model, ids, 1, baselines="target_token")
    for flow in (
        LayerFlowIG(model, 1).attribute(ids, **PLAIN),
        LayerFlowIG(model, 1).attribute(ids, None, **PLAIN),
        LayerFlowIG(model, [0, 1]).attribute(ids, ["zero", None], **PLAIN)[1],  # type: ignore[index]
    ):
        assert flow.baseline == "target_token"  # type: ignore[union-attr]
        assert_same(flow, expected)


def test_ways_to_give_inputs(model: PreTrainedModel) -> None:
    inputs = models.padded_batch(model, (4, 3))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = attribute(model, inputs)
    # The second argument of BERT and Llama is the attention mask, of GPT-2 the third or fourth.
    between = (None,) * ([*signature(model.forward).parameters].index("attention_mask") - 1)
    for given_inputs, arguments in (
        (ids, (*between, mask)),
        ((ids,), (*between, mask)),
        *([((ids, mask), None), (ids, mask)] if not between else []),
    ):
        flow = attribute(model, given_inputs, additional_forward_args=arguments)
        assert torch.equal(flow.valid, mask.bool())
        assert_same(flow, expected)
    vectors = model.get_input_embeddings()(ids)
    assert_same(attribute(model, {"inputs_embeds": vectors, "attention_mask": mask}), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_callers_grad_mode(model: PreTrainedModel, mode: Any, baseline: str) -> None:
    inputs = models.padded_batch(model, (4, 3))
    expected = attribute(model, inputs, baselines=baseline, method="riemann_left")
    with mode():
        made_inside = {name: value.clone() for name, value in inputs.items()}
        flow = attribute(model, made_inside, baselines=baseline, method="riemann_left")
    assert_same(flow, expected)
    assert not any(getattr(flow, name).requires_grad for name in PARTS)


def test_a_baseline_made_in_inference_mode(model: PreTrainedModel) -> None:
    ids = models.tokens(model, 1, 4)
    shapes = [(models.WIDTH,), (1, 4, models.WIDTH), (1, 4, 4, models.WIDTH)]
    for shape, method in itertools.product(shapes, ["gausslegendre", "riemann_left"]):
        start = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)
        expected = attribute(model, ids, baselines=start, method=method)
        with torch.inference_mode():
            flow = attribute(model, ids, baselines=start.clone(), method=method)
        assert_same(flow, expected)


def test_parameters_without_gradients(model: PreTrainedModel) -> None:
    ids = models.tokens(model, 1, 4)
    expected = attribute(model, ids)
    model.requires_grad_(False)
    try:
        assert_same(attribute(model, ids), expected)
    finally:
        model.requires_grad_(True)


def test_a_model_with_a_classifier_on_top() -> None:
    inner = models.tiny_bert()
    settings = {
        k: v for k, v in inner.config.to_dict().items() if k not in ("id2label", "label2id")
    }
    config = BertConfig(**settings, num_labels=3)
    classifier = BertForSequenceClassification(config).double().eval()
    classifier.bert.load_state_dict(inner.state_dict())
    inputs = models.padded_batch(inner, (4, 3))
    expected = attribute(inner, inputs)
    for layer in (1, "bert.encoder.layer.1", classifier.bert.encoder.layer[1]):
        flow = attribute(classifier, inputs, layer)
        assert flow.name == "bert.encoder.layer.1"
        assert_same(flow, expected)
    labelled = {**inputs, "labels": torch.tensor([0, 2])}
    assert_same(attribute(classifier, labelled), expected)


def test_a_model_with_a_language_model_head_on_top() -> None:
    inner = models.tiny_gpt2()
    head = GPT2LMHeadModel(inner.config).double().eval()
    head.transformer.load_state_dict(inner.state_dict())
    inputs = models.padded_batch(inner, (4, 3))
    flow = attribute(head, inputs)
    assert flow.name == "transformer.h.1"
    assert_same(flow, attribute(inner, inputs))


def test_deltas_are_sums_minus_totals(model: PreTrainedModel) -> None:
    ids = models.tokens(model, 1, 4)
    lig = LayerFlowIG(model, 1)
    flow, delta = lig.attribute(ids, return_convergence_delta=True, **PLAIN)
    assert isinstance(flow, LayerFlow)
    assert isinstance(delta, dict)
    assert flow.attention is not None
    assert flow.mlp is not None
    assert flow.layer is not None
    expected = {
        "attention": flow.attention.sum(-1) - flow.attention_total,
        "mlp": flow.mlp.sum(-1) + flow.residual - flow.layer_total,
        "layer": flow.layer.sum(-1) - flow.layer_total,
        "chain": flow.chain.sum(-1) - flow.mlp.transpose(1, 2),
    }
    assert delta.keys() == expected.keys() == flow.delta.keys()
    for name, right in expected.items():
        torch.testing.assert_close(delta[name], right, rtol=1e-9, atol=1e-12)
    computed = lig.compute_convergence_delta(flow)
    assert isinstance(computed, dict)
    assert all(torch.equal(computed[name], flow.delta[name]) for name in expected)
    assert lig.has_convergence_delta()
    flows, deltas = LayerFlowIG(model).attribute(ids, return_convergence_delta=True, **PLAIN)
    assert isinstance(flows, list)
    assert isinstance(deltas, list)
    assert len(flows) == len(deltas) == 2


@pytest.mark.parametrize(
    "asked", [("attention",), ("mlp",), ("layer",), "layer", ("layer", "mlp"), ("mlp", "attention")]
)
def test_boundaries_asked_for_alone_are_the_same(model: PreTrainedModel, asked: Any) -> None:
    ids = models.tokens(model, 1, 4)
    whole, some = attribute(model, ids), attribute(model, ids, boundaries=asked)
    names = (asked,) if isinstance(asked, str) else asked
    there = set(names) | ({"chain"} if {"attention", "mlp"} <= set(names) else set())
    for name in ("attention", "mlp", "layer", "chain"):
        part = getattr(some, name)
        assert (part is not None) == (name in there)
        if part is not None:
            torch.testing.assert_close(part, getattr(whole, name), rtol=1e-9, atol=1e-10)
    assert some.delta.keys() == there


@pytest.mark.parametrize("boundary", ["attention", "mlp", "layer"])
@pytest.mark.parametrize("max_steps", [16, 32, 64, 100, 128])
def test_no_row_takes_more_nodes_than_it_may(max_steps: int, boundary: str) -> None:
    """A hard row, one at a time, so that the average over targets is its own number."""
    model = models.tiny_gpt2(eps=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may well not converge
        flow = attribute(
            model,
            models.tokens(model, 1, 3),
            baselines="zero",
            n_steps=16,
            tolerance=1e-8,
            max_steps=max_steps,
            boundaries=boundary,
            output_indices=[2],
        )
    assert flow.cost is not None
    assert flow.cost.path_points >= 16
    assert flow.cost.path_points <= max_steps
