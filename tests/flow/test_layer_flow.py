"""LayerFlow: compositions by hand and their laws; and calls that must not change a flow."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from captum_lig import LayerFlow, LayerFlowIG, LigError
from tests.helpers import models
from tests.helpers.synthetic import make_flow, number

PARTS = ("attention", "attention_total", "mlp", "residual", "layer", "layer_total", "chain")
ROW_AXIS = {"attention": 2, "attention_total": 2, "chain": 2}  # else 1


# ---- by hand ---------------------------------------------------------------------------------
#
# Two heads, three sources; the targets are the tokens 2 and 0, in this order.

HAND: dict[str, Any] = {
    "attention": [[[1, 2, 1], [3, 0, -1]], [[0, 5, 5], [2, 2, 4]]],  # [head][target][source]
    "attention_total": [[4, 2], [10, 8]],
    "mlp": [[8, 5], [1, -4]],  # [target][head]
    "residual": [7, 3],
    "layer": [[2, 9, 9], [0, 0, 0]],
    "layer_total": [20, 0],
    "chain": [[[4, 4, 0], [0.5, 1, -0.5]], [[1, 1, 3], [-2, -2, 0]]],
}


def hand(**changes: Any) -> LayerFlow:
    return make_flow([2, 0], 3, **{**HAND, **changes})


def test_product_by_hand() -> None:
    # target 2: 8 * (1, 2, 1) + 5 * (0, 5, 5); target 0: 1 * (3, 0, -1) - 4 * (2, 2, 4)
    expected = number([[[8, 41, 33], [-5, -8, -17]]])
    torch.testing.assert_close(hand().compose("product"), expected)


def test_conserve_by_hand() -> None:
    # target 2: 8/4 * (1, 2, 1) + 5/10 * (0, 5, 5), and 7 on token 2
    # target 0: 1/2 * (3, 0, -1) - 4/8 * (2, 2, 4), and 3 on token 0
    expected = number([[[2, 6.5, 4.5 + 7], [0.5 + 3, -1, -2.5]]])
    torch.testing.assert_close(hand().compose("conserve"), expected)


def test_chain_by_hand() -> None:
    expected = number([[[5, 5, 3 + 7], [-1.5 + 3, -1, -0.5]]])
    torch.testing.assert_close(hand().compose("chain"), expected)
    torch.testing.assert_close(hand().compose(), expected)


def test_heads_apart_by_hand() -> None:
    """Target 2 of the first head: 8/4 (1, 2, 1), of the second 5/10 (0, 5, 5)."""
    apart = {rule: hand().compose(rule, by_head=True) for rule in ("conserve", "product", "chain")}
    torch.testing.assert_close(
        apart["conserve"],
        number([[[[2, 4, 2], [1.5, 0, -0.5]], [[0, 2.5, 2.5], [-1, -1, -2]]]]),
    )
    torch.testing.assert_close(
        apart["product"], number([[[[8, 16, 8], [3, 0, -1]], [[0, 25, 25], [-8, -8, -16]]]])
    )
    torch.testing.assert_close(apart["chain"], number([HAND["chain"]]))


def test_select() -> None:
    first, second = hand(), hand(layer=[[0, 1, 19], [0, 0, 0]], mlp=[[1, 2], [3, 4]])
    both = replace(
        first,
        **{name: torch.cat([getattr(f, name) for f in (first, second)]) for name in PARTS},
        valid=first.valid.expand(2, -1),
        mlp_total=torch.cat([first.mlp_total, second.mlp_total]),  # type: ignore[list-item]
        chain_total=torch.cat([first.chain_total, second.chain_total]),  # type: ignore[list-item]
    )
    for text, right in ((0, first), (1, second), (-1, second), (-2, first)):
        one = both.select(text)
        for name in (*PARTS, "targets", "valid", "mlp_total", "chain_total"):
            assert torch.equal(getattr(one, name), getattr(right, name)), name
        assert all(torch.equal(one.delta[name], right.delta[name]) for name in right.delta)
    for text in (2, -3, True, "0", None):
        with pytest.raises(LigError, match="2 texts"):
            both.select(text)  # type: ignore[arg-type]


def test_what_the_quadrature_left_over_is_spread_by_size() -> None:
    """One head, one target (token 1): attention misses 2 of 4, the mlp boundary 3 of 12."""
    flow = make_flow(
        [1],
        2,
        attention=[[[3, -1]]],
        attention_total=[[4]],
        mlp=[[6]],
        residual=[3],
        layer=[[0, 12]],
        layer_total=[12],
        chain=[[[8, -2]]],
    )
    # mlp and residual become 6 + 3 * 6/9 = 8 and 3 + 3 * 3/9 = 4;
    # attention 3 + 2 * 3/4 = 4.5 and -1 + 2 * 1/4 = -0.5; chain misses 2: 8 + 1.6, -2 + 0.4.
    torch.testing.assert_close(flow.compose("conserve"), number([[[4.5 * 2, -0.5 * 2 + 4]]]))
    torch.testing.assert_close(flow.compose("chain"), number([[[9.6, -1.6 + 4]]]))
    torch.testing.assert_close(flow.compose("product"), number([[[18, -6]]]))


def test_composing_leaves_the_flow_alone() -> None:
    flow = hand(layer_total=[25, 1])
    before = {name: getattr(flow, name).clone() for name in PARTS}
    for rule in ("product", "conserve", "chain"):
        flow.compose(rule)
        flow.agreement(rule)
    assert all(torch.equal(getattr(flow, name), before[name]) for name in PARTS)


def test_agreement_by_hand() -> None:
    # Composed (conserve) minus direct for target 2: (0, -2.5, 2.5); its direct row is (2, 9, 9).
    agreement = hand().agreement("conserve")
    assert agreement.shape == (1, 2)
    assert float(agreement[0, 0]) == pytest.approx(math.sqrt(12.5) / math.sqrt(166))
    assert math.isnan(float(agreement[0, 1])), "a direct row of zeros has nothing to compare with"
    same = hand(layer=[[2, 6.5, 11.5], [3.5, -1, -2.5]])
    torch.testing.assert_close(same.agreement("conserve"), number([[0.0, 0.0]]))
    assert float(hand().agreement("chain")[0, 0]) == pytest.approx(math.sqrt(26 / 166))


def test_completeness_error_by_hand() -> None:
    flow = hand(layer=[[2, 9, 8], [0, 0, 0]], attention_total=[[5, 2], [10, 0]])
    torch.testing.assert_close(flow.completeness_error("layer"), number([[1 / 20, 0]]))
    torch.testing.assert_close(flow.completeness_error(), number([[1 / 20, 0]]))
    torch.testing.assert_close(flow.completeness_error("mlp"), number([[0, 0]]))
    infinite = float("inf")  # sums to 8, of a total of 0
    expected = number([[[1 / 5, 0], [0, infinite]]])
    torch.testing.assert_close(flow.completeness_error("attention"), expected)


def test_completeness_error_of_chain_by_hand() -> None:
    # Head 0 hands 8.5 to target 2, not 8; its layer total is 20.
    flow = hand(chain=[[[4, 4, 0.5], [0.5, 1, -0.5]], [[1, 1, 3], [-2, -2, 0]]])
    expected = number([[[0.5 / 20, 0], [0, 0]]])
    torch.testing.assert_close(flow.completeness_error("chain"), expected)


def test_converged_by_hand() -> None:
    """Relative errors are 0.05 and 0 at the layer boundary, 0.2 of one head of attention."""
    flow = hand(layer=[[2, 9, 8], [0, 0, 0]], attention_total=[[5, 2], [10, 8]])
    assert flow.converged == {}
    for tolerance, layer, head in ((0.01, False, False), (0.06, True, False), (0.3, True, True)):
        converged = replace(flow, tolerance=tolerance).converged
        assert converged.keys() == {"attention", "mlp", "layer", "chain"}
        assert converged["layer"].tolist() == [[layer, True]]
        assert converged["attention"].tolist() == [[[head, True], [True, True]]]
        assert converged["mlp"].tolist() == [[True, True]]
        assert converged["chain"].tolist() == [[[True, True], [True, True]]]


def test_an_error_that_is_not_a_number_is_not_called_exact() -> None:
    flow = hand(layer=[[2, float("nan"), 9], [0, 0, 0]])
    error = flow.completeness_error("layer")
    assert not bool(error[0, 0] == 0)
    assert float(error[0, 1]) == 0
    assert replace(flow, tolerance=0.5).converged["layer"].tolist() == [[False, True]]


@pytest.mark.parametrize("rule", ["mean", "", "Conserve", None, 3, ["chain"]])
def test_unknown_rule(rule: Any) -> None:
    with pytest.raises(LigError) as caught:
        hand().compose(rule)
    assert type(caught.value) is LigError
    for said in (repr(rule), "conserve", "chain", "product"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        (lambda f: f.compose("product"), "attention"),
        (lambda f: f.compose("product"), "mlp"),
        (lambda f: f.compose("conserve"), "attention"),
        (lambda f: f.compose("conserve"), "mlp"),
        (lambda f: f.compose("chain"), "chain"),
        (lambda f: f.agreement(), "layer"),
        (lambda f: f.agreement("chain"), "chain"),
        (lambda f: f.completeness_error(), "layer"),
        (lambda f: f.completeness_error("mlp"), "mlp"),
        (lambda f: f.completeness_error("attention"), "attention"),
        (lambda f: f.completeness_error("chain"), "chain"),
    ],
)
def test_missing_boundary(call: Callable[[LayerFlow], Tensor], missing: str) -> None:
    with pytest.raises(LigError) as caught:
        call(hand(**{missing: None}))
    assert type(caught.value) is LigError
    assert missing in str(caught.value)
    assert "boundaries=" in str(caught.value)


def test_chain_says_which_boundaries_it_needs() -> None:
    """`chain` is not the name of a boundary: asking for it again would fail again."""
    with pytest.raises(LigError) as caught:
        hand(chain=None).compose("chain")
    message = str(caught.value)
    assert "attention" in message
    assert "mlp" in message


@pytest.mark.parametrize("boundary", ["norm", "residual", "", None, 0])
def test_completeness_of_an_unknown_boundary(boundary: Any) -> None:
    with pytest.raises(LigError) as caught:
        hand().completeness_error(boundary)
    assert type(caught.value) is LigError
    assert repr(boundary) in str(caught.value)


# ---- laws ------------------------------------------------------------------------------------


@st.composite
def random_flows(draw: st.DrawFn) -> LayerFlow:
    """Parts of either sign that miss their totals; some heads and some targets do nothing."""
    heads, rows, sources = (draw(st.integers(1, 4)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    targets = torch.randint(sources, (rows,), generator=generator).tolist()

    def parts(*shape: int) -> Tensor:
        """Never so small that there is nothing to spread an error over."""
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return sign * (0.1 + torch.rand(shape, generator=generator, dtype=torch.float64))

    silent = torch.rand(heads, rows, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    still = torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    silent = silent | still
    moves = (~silent).double()
    return make_flow(
        targets,
        sources,
        attention=(parts(heads, rows, sources) * moves[..., None]).tolist(),
        attention_total=(parts(heads, rows).abs() * moves).tolist(),
        mlp=(parts(rows, heads) * moves.T).tolist(),
        residual=(parts(rows) * ~still).tolist(),
        layer=(parts(rows, sources) * ~still[:, None]).tolist(),
        layer_total=(parts(rows).abs() * ~still).tolist(),
        chain=(parts(heads, rows, sources) * moves[..., None]).tolist(),
    )


@settings(deadline=None, derandomize=True, max_examples=80)
@given(flow=random_flows(), rule=st.sampled_from(["conserve", "chain"]))
def test_rows_of_a_composition_add_up_to_the_layers_total(flow: LayerFlow, rule: str) -> None:
    composed = flow.compose(rule)
    assert flow.layer_total is not None
    assert flow.layer is not None
    assert composed.shape == flow.layer.shape
    assert bool(torch.isfinite(composed).all())
    torch.testing.assert_close(composed.sum(-1), flow.layer_total, rtol=1e-10, atol=1e-10)
    still = flow.layer_total == 0
    assert bool((composed[still] == 0).all())


@settings(deadline=None, derandomize=True, max_examples=40)
@given(flow=random_flows(), rule=st.sampled_from(["conserve", "chain", "product"]))
def test_what_is_not_in_a_head_is_the_residual_on_the_diagonal(flow: LayerFlow, rule: str) -> None:
    past = flow.compose(rule) - flow.compose(rule, by_head=True).sum(1)
    rows = torch.arange(len(flow.targets))
    own = past[:, rows, flow.targets]
    past[:, rows, flow.targets] = 0
    torch.testing.assert_close(past, torch.zeros_like(past))
    assert flow.residual is not None
    assert bool((own.abs() > 0).any()) == (rule != "product" and bool((flow.residual != 0).any()))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(flow=random_flows())
def test_agreement_is_not_a_number_where_the_direct_row_is_zero(flow: LayerFlow) -> None:
    assert flow.layer_total is not None
    agreement = flow.agreement()
    assert torch.equal(agreement.isnan(), flow.layer_total == 0)
    assert bool((agreement[~agreement.isnan()] >= 0).all())


@settings(deadline=None, derandomize=True, max_examples=40)
@given(flow=random_flows(), factor=st.sampled_from([1e-9, 1e-3, 1e6]))
def test_compositions_scale_with_the_outputs(flow: LayerFlow, factor: float) -> None:
    """z' in other units: what ends in z' scales, what ends in u stays."""
    scaled = make_flow(
        flow.targets.tolist(),
        flow.valid.shape[1],
        **{
            name: (getattr(flow, name)[0] * (1 if name.startswith("att") else factor)).tolist()
            for name in PARTS
        },
    )
    for rule in ("conserve", "chain", "product"):
        torch.testing.assert_close(
            scaled.compose(rule), flow.compose(rule) * factor, rtol=1e-9, atol=1e-11 * factor
        )


# ---- calls that must not change a flow -------------------------------------------------------


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
