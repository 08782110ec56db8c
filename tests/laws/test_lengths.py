"""Laws of flows in lengths, whatever the model, its texts and where paths start."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers import models
from tests.helpers.drawn import Texts, few, texts
from tests.helpers.random_blocks import HEADS, Options, build

STARTS = st.sampled_from(["target_token", "zero", 0.3, "states"])
BOUNDARIES = ("attention", "mlp", "layer", "feed_forward")
SAME = 1e-6
"""Of what is computed otherwise, relative to the largest number of a field; Llama's softmax rounds
to float32."""


def start_of(name: Any, rows: int) -> Any:
    """The baseline: for ``"states"`` a vector that targets share."""
    if name != "states":
        return name
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(models.WIDTH, generator=generator, dtype=torch.float64)


def attribute(drawn: Texts, start: Any, scalarization: str, inputs: Any, **given: Any) -> LayerFlow:
    """The flow of one layer."""
    lig = LayerFlowIG(drawn.model, 1, scalarization)
    flow: LayerFlow = lig.attribute(
        inputs, start_of(start, drawn.seed), **{"boundaries": BOUNDARIES, **given}
    )
    return flow


@few
@example(drawn=Texts("bert", 4, 4, (2, 5), True, 3), start="zero", scalarization="l2", most=256)
@given(
    drawn=texts(),
    start=STARTS,
    scalarization=st.sampled_from(["l2", "projection"]),
    most=st.sampled_from([4, 256]),
)
def test_rows_add_up_or_are_named(drawn: Texts, start: Any, scalarization: str, most: int) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        flow = attribute(drawn, start, scalarization, drawn.batch(), n_steps=4, max_steps=most)
    said = any("rows are not within tolerance" in str(one.message) for one in seen)
    assert said == any(not bool(x.all()) for x in flow.converged.values())
    whole = flow.need("mlp").sum(-1) + flow.need("residual")
    if flow.feed_forward_token is not None:
        whole = whole + flow.feed_forward_token
    sums = {
        "attention": (flow.need("attention").sum(-1), flow.need("attention_total")),
        "layer": (flow.need("layer").sum(-1), flow.need("layer_total")),
        "mlp": (whole, flow.need("mlp_total")),
    }
    if flow.feed_forward is not None:
        past = flow.need("mlp") - flow.need("feed_forward_heads")
        missing = past.sum(-1) + flow.feed_forward + flow.need("residual")
        sums["feed_forward"] = missing, flow.need("mlp_total")
    for name, (found, total) in sums.items():
        kept = flow.converged[name] if name in flow.converged else flow.converged["mlp"]
        gap = (found - total).abs() - 2e-3 * total.abs()
        assert bool((gap[kept] <= 1e-12).all()), name
    valid = drawn.batch()["attention_mask"].bool()
    for name in ("attention", "layer"):
        x, hidden = flow.need(name), drawn.hidden()
        assert not x[(hidden[:, None] if name == "attention" else hidden).expand_as(x)].any()
    assert not flow.need("layer_total")[~valid].any()
    if said:
        return
    conserved = flow.compose("conserve").sum(-1)
    # A head that did not move has nothing to share out, and what it has is rounding.
    torch.testing.assert_close(conserved, whole, rtol=3e-3, atol=3e-3 * float(whole.abs().max()))


@few
@given(drawn=texts(), start=STARTS, size=st.integers(1, 9))
def test_batches_portions_and_chosen_targets(drawn: Texts, start: Any, size: int) -> None:
    given: dict[str, Any] = {"n_steps": 6, "tolerance": None}
    whole = attribute(drawn, start, "l2", drawn.batch(), **given)
    parts = attribute(drawn, start, "l2", drawn.batch(), internal_batch_size=size, **given)
    for name, x in whole.tensors.items():
        assert_same(name, parts.tensors[name], x)
    longest = max(drawn.lengths)
    for chosen in ([0, longest - 1], list(range(longest))[::-1]):
        if not drawn.batch()["attention_mask"][:, chosen].any():
            continue
        some = attribute(drawn, start, "l2", drawn.batch(), output_indices=chosen, **given)
        for name, axis in (("attention", 2), ("layer", 1), ("mlp", 1), ("residual", 1)):
            assert_same(name, some.need(name), whole.need(name)[(slice(None),) * axis + (chosen,)])
    for n, length in enumerate(drawn.lengths):
        alone = attribute(drawn, start, "l2", drawn.alone(n), **given)
        there = slice(drawn.place(n, 0), drawn.place(n, 0) + length)
        assert_same(
            "attention", whole.need("attention")[n, :, there, there], alone.need("attention")[0]
        )
        assert_same("layer", whole.need("layer")[n, there, there], alone.need("layer")[0])
        assert_same("mlp", whole.need("mlp")[n, there], alone.need("mlp")[0])


@few
@given(
    key_heads=st.sampled_from([4, 2, 1]),
    post_norm=st.booleans(),
    start=st.sampled_from(["target_token", "zero"]),
    seed=st.integers(1, 30),
    order=st.permutations(range(5)),
)
def test_tokens_in_another_order(
    key_heads: int, post_norm: bool, start: str, seed: int, order: list[int]
) -> None:
    options = Options(key_heads=key_heads, post_norm=post_norm)
    model, x = build(options, 5, torch.float64, seed)
    lig, there = LayerFlowIG(model, 0), torch.tensor(order)
    given: dict[str, Any] = {"n_steps": 6, "tolerance": None}
    flow, other = lig.attribute(x, start, **given), lig.attribute(x[:, there], start, **given)
    assert_same("layer", other.need("layer"), flow.need("layer")[:, there][:, :, there])
    attention = flow.need("attention")[:, :, there][..., there]
    assert_same("attention", other.need("attention"), attention)
    assert_same("mlp", other.need("mlp"), flow.need("mlp")[:, there])
    assert flow.need("attention").shape[1] == HEADS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_the_wide_model_up_to_their_rounding(dtype: torch.dtype) -> None:
    model = models.tiny_bert(torch.float64)
    with torch.no_grad():  # numbers that every dtype has
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).to(torch.float16))
    ids = models.tokens(model, 2, 4)
    wide = LayerFlowIG(model, 0).attribute(ids)
    found = LayerFlowIG(models.tiny_bert(dtype=torch.float64).to(dtype), 0)
    found.forward_func.load_state_dict({n: p.to(dtype) for n, p in model.state_dict().items()})
    flow = found.attribute(ids)
    assert flow.layer.dtype == torch.float32
    bound = {torch.float32: 1e-3, torch.bfloat16: 0.01, torch.float16: 4e-3}[dtype]
    gap = (flow.layer.double() - wide.layer).abs().amax(-1)
    assert bool((gap <= bound * wide.layer_total).all())


def assert_same(name: str, found: Tensor, wanted: Tensor) -> None:
    """Equal up to rounding, relative to the largest entry."""
    assert found.shape == wanted.shape, name
    gap = float((found - wanted).abs().max())
    assert gap <= SAME * max(float(wanted.abs().max()), 1e-9), (name, gap)
