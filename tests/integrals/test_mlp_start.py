"""The mlp boundary from an attention output of zero, and the totals that are its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from captum_lig import LayerFlow, LayerFlowIG, LigError
from tests.helpers import models, twin_blocks, twins
from tests.helpers.attributions import NODES, attribute, block_input
from tests.helpers.synthetic import number


@pytest.mark.parametrize("scalarization", ["l2", "projection"])
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("family", models.MODELS)
def test_equals_the_twin(family: str, baseline: str, scalarization: str) -> None:
    model = models.MODELS[family]()
    inputs = {"input_ids": models.tokens(model, 1, 4)}
    z = block_input(model, 1, **inputs)[0]
    block = twin_blocks.twin_block(model, 1, torch.ones(4))
    flow = attribute(model, 1, inputs, baseline, scalarization=scalarization, mlp_start="zero")
    nodes = twins.gauss_legendre(NODES)
    m, totals, means = twins.mlp_map_from_zero(block, z, scalarization, *nodes)
    chained, chain_totals = twins.chain_map_with(block, z, baseline, means, *nodes)
    scale = totals.clamp_min(1e-12)
    for found, right, by in (
        (flow.mlp, m, scale[:, None]),
        (flow.mlp_total, totals, scale),
        (flow.chain, chained, scale[:, None]),
        (flow.chain_total, chain_totals, scale),
    ):
        assert found is not None
        assert float(((found[0] - right).abs() / by).max()) <= 1e-6
    assert flow.residual is not None
    assert bool((flow.residual == 0).all()), "the residual stream is held"


def test_the_attention_weight_on_itself() -> None:
    for family, build in models.MODELS.items():
        model = build()
        inputs = models.padded_batch(model, (3, 5))
        z = block_input(model, 1, **inputs)
        for baseline in ("zero", "target_token", torch.ones(5, 5, models.WIDTH) * z[0].mean()):
            flow = attribute(model, 1, inputs, baseline, boundaries=("attention",))
            assert flow.self_weight is not None
            for text, length in enumerate((3, 5)):
                block = twin_blocks.twin_block(model, 1, inputs["attention_mask"][text])
                q, k, _ = block.pre(z[text])
                p = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + block.mask).softmax(-1)
                own = p.diagonal(dim1=-2, dim2=-1)[:, :length]
                found = flow.self_weight[text]
                torch.testing.assert_close(
                    found[:, :length], own, rtol=1e-6, atol=1e-9, msg=lambda m, f=family: f + m
                )
                assert bool((found[:, length:] == 0).all())


# ---- laws ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=models.MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    built: PreTrainedModel = models.MODELS[request.param]()
    return built


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_rows_add_up_to_their_own_totals(model: PreTrainedModel, baseline: str) -> None:
    inputs = models.padded_batch(model, (4, 6))
    kinds: dict[str, Any] = {"n_steps": 12, "tolerance": 1e-4}
    flow = attribute(model, 1, inputs, baseline, mlp_start="zero", **kinds)
    usual = attribute(model, 1, inputs, baseline, **kinds)
    assert flow.mlp_start == "zero"
    assert usual.mlp_start == "attention"
    assert flow.mlp is not None
    assert flow.chain is not None
    assert flow.mlp_total is not None
    assert flow.chain_total is not None
    assert flow.layer_total is not None
    assert all(bool(rows.all()) for rows in flow.converged.values())
    torch.testing.assert_close(flow.mlp.sum(-1), flow.mlp_total, rtol=1e-4, atol=1e-9)
    # A causal model's first token does not move on its target-token path: its heads have no
    # attention attributions that could carry on what the mlp boundary gives them.
    assert flow.attention_total is not None
    moved = (flow.attention_total > 0).all(1)
    carried = torch.where(moved, flow.mlp_total, 0.0)
    torch.testing.assert_close(flow.compose("conserve").sum(-1), carried, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        flow.compose("chain").sum(-1), flow.chain_total.sum(1), rtol=1e-9, atol=1e-9
    )
    # It is another change than the layer's, which closing must not hide.
    assert float((flow.mlp_total - flow.layer_total).abs().max()) > 0.1
    assert float((flow.chain_total.sum(1) - flow.mlp_total).abs().max()) > 1e-3
    for name in ("attention", "attention_total", "layer", "layer_total", "self_weight"):
        torch.testing.assert_close(getattr(flow, name), getattr(usual, name))
    assert usual.mlp_total is not None
    assert usual.chain_total is not None
    assert usual.mlp is not None
    assert torch.equal(usual.mlp_total, usual.layer_total)  # type: ignore[arg-type]
    assert torch.equal(usual.chain_total, usual.mlp.transpose(1, 2))


def test_a_target_that_is_padding_only(model: PreTrainedModel) -> None:
    inputs = models.padded_batch(model, (3, 6))
    flow = attribute(model, 1, inputs, "zero", mlp_start="zero", output_indices=[4, 5])
    for name in ("mlp", "mlp_total", "chain", "chain_total", "self_weight"):
        part = getattr(flow, name)
        assert bool((part[0] == 0).all()), name
        assert bool((part[1] != 0).any()), name


def test_an_mlp_boundary_alone(model: PreTrainedModel) -> None:
    inputs = {"input_ids": models.tokens(model, 1, 5)}
    whole = attribute(model, 1, inputs, "zero", mlp_start="zero")
    alone = attribute(model, 1, inputs, "zero", mlp_start="zero", boundaries=("mlp",))
    torch.testing.assert_close(alone.mlp, whole.mlp)
    torch.testing.assert_close(alone.mlp_total, whole.mlp_total)
    assert alone.chain is None
    assert alone.chain_total is None
    assert alone.self_weight is None


@pytest.mark.parametrize("start", ["", "Zero", None, 0, ["zero"]])
def test_unknown_start(model: PreTrainedModel, start: Any) -> None:
    with pytest.raises(LigError, match=r"mlp_start=.*unknown: use 'attention' or 'zero'"):
        LayerFlowIG(model).attribute(models.tokens(model, 1, 3), mlp_start=start)


# ---- by hand ---------------------------------------------------------------------------------


def by_hand(**changes: Any) -> LayerFlow:
    """Two heads, one target (token 1) of two sources; the mlp boundary starts at zero."""
    parts: dict[str, Any] = {
        "attention": number([[[[1, 1]], [[3, 1]]]]),
        "attention_total": number([[[2], [4]]]),
        "mlp": number([[[6, 2]]]),
        "residual": number([[0]]),
        "mlp_total": number([[8]]),
        "layer": number([[[2, 3]]]),
        "layer_total": number([[5]]),
        "chain": number([[[[2, 1]], [[1, 1]]]]),
        "chain_total": number([[[3], [2]]]),
    }
    return LayerFlow(
        name="layer.0",
        index=0,
        targets=torch.tensor([1]),
        valid=torch.ones(1, 2, dtype=torch.bool),
        scalarization="l2",
        baseline="zero",
        mlp_start="zero",
        **{**parts, **changes},
    )


def test_compositions_by_hand() -> None:
    flow = by_hand()
    # conserve: 6/2 (1, 1) + 2/4 (3, 1); product: 6 (1, 1) + 2 (3, 1)
    torch.testing.assert_close(flow.compose("conserve"), number([[[4.5, 3.5]]]))
    torch.testing.assert_close(flow.compose("product"), number([[[12, 8]]]))
    torch.testing.assert_close(flow.compose("chain"), number([[[3, 2]]]))


def test_only_what_the_quadrature_left_over_is_spread() -> None:
    flow = by_hand(chain=number([[[[2, 0.5]], [[1, 1]]]]), mlp=number([[[6, 1]]]))
    # The first chain row misses 0.5 of its own total 3, in proportion 4 : 1.
    torch.testing.assert_close(flow.compose("chain"), number([[[2.4 + 1, 0.6 + 1]]]))
    # The mlp row misses 1 of 8: 6 + 6/7, 1 + 1/7.
    torch.testing.assert_close(flow.compose("conserve").sum(-1), number([[8]]))


def test_completeness_errors_by_hand() -> None:
    flow = by_hand(chain=number([[[[2, 0.5]], [[1, 1]]]]), mlp=number([[[4, 2]]]), layer=None)
    torch.testing.assert_close(flow.completeness_error("chain"), number([[[0.5 / 8], [0]]]))
    torch.testing.assert_close(flow.completeness_error("mlp"), number([[2 / 8]]))


@pytest.mark.parametrize("missing", ["mlp_total", "chain_total", "residual", "layer_total"])
def test_a_boundary_comes_with_its_totals(missing: str) -> None:
    with pytest.raises(LigError, match=f"needs '{missing}', too"):
        by_hand(**{missing: None})
