"""Self-term estimates: by hand, their laws, and on flows of models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.flow.self_term import with_self_share, zero_share
from tests.helpers import models
from tests.helpers.synthetic import make_flow, number
from tests.helpers.twins import with_self_term

# ---- by hand ---------------------------------------------------------------------------------


def test_map_ratio_by_hand() -> None:
    # s = 8, p = 1/4: the target's own is 8 * (1/4) / (3/4) = 8/3, the sum 32/3; times 3/4.
    c = number([[2, 0, 6]])
    found = with_self_share(c, number([0.25]), torch.tensor([1]))
    torch.testing.assert_close(found, number([[1.5, 2, 4.5]]))
    torch.testing.assert_close(found, number([with_self_term([2, 0, 6], 1, 0.25 / 0.75)]))


def test_zero_ratio_by_hand() -> None:
    # s = 8, zero = (1, 3, 2): the target's own is 8 * 3 / 3 = 8, the sum 16; halved.
    share = zero_share(number([[1, 3, 2]]), torch.tensor([1]))
    torch.testing.assert_close(share, number([0.5]))
    found = with_self_share(number([[2, 0, 6]]), share, torch.tensor([1]))
    torch.testing.assert_close(found, number([[1, 4, 3]]))
    torch.testing.assert_close(found, number([with_self_term([2, 0, 6], 1, 3 / 3)]))


def test_a_share_against_the_target_by_hand() -> None:
    # zero = (4, -1, 1): the target's own is 8 * -1 / 5, its share -1/4.
    share = zero_share(number([[4, -1, 1]]), torch.tensor([1]))
    found = with_self_share(number([[2, 0, 6]]), share, torch.tensor([1]))
    torch.testing.assert_close(found, number([[2.5, -2, 7.5]]))
    torch.testing.assert_close(found, number([with_self_term([2, 0, 6], 1, -1 / 5)]))


def test_rows_without_an_estimate_stay() -> None:
    c = number([[2, 0, 6], [0, 1, 1]])
    share = zero_share(number([[0, 0, 0], [1, 0, 1]]), torch.tensor([1, 0]))
    assert math.isnan(float(share[0]))
    found = with_self_share(c, share, torch.tensor([1, 0]))
    assert torch.equal(found[0], c[0])
    torch.testing.assert_close(found[1], number([1, 0.5, 0.5]))


def test_a_target_that_sees_only_itself() -> None:
    found = with_self_share(number([[0, 0, 0]]), number([1]), torch.tensor([0]))
    assert torch.equal(found, number([[0, 0, 0]]))
    moved = with_self_share(number([[0, 2, 6]]), number([1]), torch.tensor([0]))
    torch.testing.assert_close(moved, number([[8, 0, 0]]))


# ---- laws ------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=80)
@given(seed=st.integers(0, 2**31), sources=st.integers(2, 6), rows=st.integers(1, 4))
def test_the_published_rule(seed: int, sources: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(sources, (rows,), generator=generator)
    c = torch.rand(2, rows, sources, generator=generator, dtype=torch.float64) + 0.1
    c[:, torch.arange(rows), targets] = 0
    zero = torch.rand(2, rows, sources, generator=generator, dtype=torch.float64) + 0.1
    found = with_self_share(c, zero_share(zero, targets), targets)
    torch.testing.assert_close(found.sum(-1), c.sum(-1))
    for h in range(2):
        for row, j in enumerate(targets.tolist()):
            z = zero[h, row].tolist()
            right = with_self_term(c[h, row].tolist(), j, z[j] / (sum(z) - z[j]))
            torch.testing.assert_close(found[h, row], number(right))


# ---- flows -----------------------------------------------------------------------------------


def two_flows() -> tuple[LayerFlow, LayerFlow]:
    shared: dict[str, Any] = {"attention_total": [[8]], "layer_total": [4]}
    flow = make_flow(
        [1],
        3,
        attention=[[[2, 0, 6]]],
        mlp=[[4]],
        residual=[0],
        layer=[[1, 0, 3]],
        chain=[[[3, 0, 1]]],
        **shared,
    )
    zero = make_flow(
        [1],
        3,
        attention=[[[1, 3, 2]]],
        mlp=[[4]],
        residual=[0],
        layer=[[2, 1, 1]],
        chain=[[[0, 0, 0]]],
        **shared,
    )
    own = {"baseline": "target_token", "self_weight": number([[[0.25]]]), "tolerance": 1e-3}
    return replace(flow, **own), zero


def test_a_flow_with_map_ratio_by_hand() -> None:
    flow, _ = two_flows()
    found = flow.with_self_term("map_ratio")
    torch.testing.assert_close(found.attention, number([[[[1.5, 2, 4.5]]]]))
    torch.testing.assert_close(found.chain, number([[[[2.25, 1, 0.75]]]]))
    assert torch.equal(found.layer, flow.layer)  # type: ignore[arg-type]
    assert found.baseline == "target_token+map_ratio"
    torch.testing.assert_close(found.delta["attention"], number([[[0]]]))
    assert all(bool(rows.all()) for rows in found.converged.values())


def test_a_flow_with_zero_ratio_by_hand() -> None:
    flow, zero = two_flows()
    found = flow.with_self_term("zero_ratio", zero=zero)
    torch.testing.assert_close(found.attention, number([[[[1, 4, 3]]]]))
    torch.testing.assert_close(found.layer, number([[[0.75, 1, 2.25]]]))
    torch.testing.assert_close(found.chain, flow.chain)  # zero's chain is all 0: no estimate
    assert found.baseline == "target_token+zero_ratio"
    torch.testing.assert_close(found.delta["layer"], number([[0]]))


def test_what_does_not_fit_is_said() -> None:
    flow, zero = two_flows()
    for call, said in (
        (lambda: flow.with_self_term("ratio"), "'ratio' is unknown: use map_ratio or zero_ratio"),
        (lambda: zero.with_self_term("map_ratio"), "baseline 'zero'"),
        (lambda: flow.with_self_term("zero_ratio"), "needs zero="),
        (lambda: flow.with_self_term("zero_ratio", flow), "has the baseline 'target_token'"),
        (lambda: flow.with_self_term("zero_ratio", replace(zero, index=3)), "has index 3"),
        (lambda: flow.with_self_term("zero_ratio", replace(zero, scalarization="p")), "has scala"),
        (
            lambda: flow.with_self_term("zero_ratio", replace(zero, targets=torch.tensor([2]))),
            "the same texts",
        ),
        (lambda: replace(flow, self_weight=None).with_self_term("map_ratio"), "are hidden"),
        (
            lambda: flow.with_self_term("zero_ratio", replace(zero, attention=None)),
            "no 'attention' boundary",
        ),
        (lambda: flow.with_self_term("map_ratio").with_self_term("map_ratio"), r"+map_ratio'"),
    ):
        with pytest.raises(LigError) as caught:
            call()
        assert said in str(caught.value)


@pytest.fixture(scope="module", params=models.MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    built: PreTrainedModel = models.MODELS[request.param]()
    return built


def attribute(model: PreTrainedModel, **kwargs: Any) -> LayerFlow:
    inputs = models.padded_batch(model, (4, 6))
    flow = LayerFlowIG(model, 1).attribute(inputs, n_steps=6, tolerance=1e-3, **kwargs)
    assert isinstance(flow, LayerFlow)
    return flow


PARTS = ("attention", "chain", "layer")


@pytest.mark.parametrize("start", ["attention", "zero"])
@pytest.mark.parametrize("estimate", ["map_ratio", "zero_ratio"])
def test_the_convenience_is_the_long_way(model: PreTrainedModel, estimate: str, start: str) -> None:
    flow = attribute(model, self_term=estimate, mlp_start=start)
    plain = attribute(model, mlp_start=start)
    zero = attribute(model, baselines="zero", mlp_start=start)
    right = plain.with_self_term(estimate, zero if estimate == "zero_ratio" else None)
    assert flow.baseline == right.baseline
    for name in PARTS:
        torch.testing.assert_close(getattr(flow, name), getattr(right, name))
    for name, delta in right.delta.items():
        torch.testing.assert_close(flow.delta[name], delta)
    assert flow.cost is not None
    assert plain.cost is not None
    assert (flow.cost.path_points > plain.cost.path_points) == (estimate == "zero_ratio")


@pytest.mark.parametrize("estimate", ["map_ratio", "zero_ratio"])
def test_rows_keep_their_sums_and_targets_get_something(
    model: PreTrainedModel, estimate: str
) -> None:
    plain, flow = attribute(model), attribute(model, self_term=estimate)
    scales = {"attention": "attention_total", "chain": "mlp_total", "layer": "layer_total"}
    for name in PARTS:
        before, after = getattr(plain, name), getattr(flow, name)
        assert bool(torch.isfinite(after).all())
        scale = getattr(plain, scales[name])
        scale = scale[:, None] if name == "chain" else scale
        gap = (after.sum(-1) - before.sum(-1)).abs()
        # Shares of rows that nearly cancel are large, and rounding with them.
        assert bool((gap <= 1e-8 * scale).all())
        own = after.diagonal(dim1=-2, dim2=-1)
        changed = not (name == "layer" and estimate == "map_ratio")
        assert bool((own != 0).any()) == changed
        assert bool((own[0, ..., 4:] == 0).all()), "padding"
    for name, rows in flow.converged.items():
        assert torch.equal(rows, plain.converged[name])


def test_map_ratio_gives_the_target_its_attention_weight(model: PreTrainedModel) -> None:
    flow = attribute(model, self_term="map_ratio")
    assert flow.attention is not None
    assert flow.self_weight is not None
    own = flow.attention.diagonal(dim1=-2, dim2=-1)
    right: Tensor = flow.self_weight * flow.attention.sum(-1)
    torch.testing.assert_close(own, right)


@pytest.mark.parametrize("estimate", ["map_ratio", "zero_ratio"])
def test_some_targets(model: PreTrainedModel, estimate: str) -> None:
    some = attribute(model, self_term=estimate, output_indices=[3, 1])
    every = attribute(model, self_term=estimate)
    for name in PARTS:
        axis = 1 if name == "layer" else 2
        right = getattr(every, name).index_select(axis, torch.tensor([3, 1]))
        torch.testing.assert_close(getattr(some, name), right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"self_term": "ratio"}, "self_term='ratio' is unknown"),
        ({"self_term": "map_ratio", "baselines": "zero"}, "with the baseline 'zero'"),
        ({"self_term": "map_ratio", "baselines": ["target_token", 0.0]}, "with the baseline 0.0"),
        ({"self_term": "map_ratio", "boundaries": ("layer",)}, "name 'attention', too"),
        ({"self_term": "zero_ratio", "boundaries": ("mlp",)}, "name 'attention' or 'layer', too"),
    ],
)
def test_the_convenience_says_what_does_not_fit(
    model: PreTrainedModel, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(LigError) as caught:
        LayerFlowIG(model).attribute(models.tokens(model, 1, 3), **asked)
    assert said in str(caught.value)
