"""LayerFlowIG against the literal twins, and the laws that its maps obey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import LayerFlowIG, circuits
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.model.split import SplitBlock
from captum_lig.patching import effects
from tests.helpers import models, twin_blocks
from tests.helpers.attributions import (
    BASELINES,
    NODES,
    assert_equals_twin,
    attribute,
    baseline_for,
    block_input,
)


@pytest.mark.parametrize("scalarization", ["l2", "projection"])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("family", models.MODELS)
def test_equals_the_twin(family: str, baseline: str, scalarization: str) -> None:
    model = models.MODELS[family]()
    inputs = {"input_ids": models.tokens(model, 1, 4)}
    z = block_input(model, 1, **inputs)
    start = baseline_for(baseline, z[0])
    flow = attribute(model, 1, inputs, start, scalarization=scalarization)
    block = twin_blocks.twin_block(model, 1, torch.ones(4))
    assert_equals_twin(flow, block, z[0], start, scalarization, 1e-6)


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("family", models.MODELS)
def test_equals_the_twin_in_float32(family: str, baseline: str) -> None:
    model = models.MODELS[family]()
    inputs = {"input_ids": models.tokens(model, 1, 4)}
    z = block_input(model, 1, **inputs)
    block = twin_blocks.twin_block(model, 1, torch.ones(4))
    flow = attribute(models.MODELS[family](dtype=torch.float32), 1, inputs, baseline)
    assert flow.layer is not None
    assert flow.layer.dtype == torch.float32
    assert_equals_twin(flow, block, z[0], baseline, "l2", 1e-3)


@pytest.mark.parametrize("baseline", ["zero", "target_token", "per_target"])
@pytest.mark.parametrize("family", models.MODELS)
def test_padded_texts_equal_the_twin(family: str, baseline: str) -> None:
    model = models.MODELS[family]()
    lengths = (3, 5)
    inputs = models.padded_batch(model, lengths)
    z = block_input(model, 1, **inputs)
    starts = [baseline_for(baseline, z[text]) for text in range(2)]
    start = torch.stack(starts) if isinstance(starts[0], Tensor) else starts[0]
    flow = LayerFlowIG(model, 1).attribute(inputs, start, n_steps=NODES, tolerance=None)
    assert isinstance(flow, LayerFlow)
    for text, length in enumerate(lengths):
        block = twin_blocks.twin_block(model, 1, inputs["attention_mask"][text])
        assert_equals_twin(flow, block, z[text], starts[text], "l2", 1e-6, text, length)
    short = lengths[0]
    assert flow.attention is not None
    assert flow.layer is not None
    assert flow.layer_total is not None
    assert flow.attention_total is not None
    for exact_zero in (
        flow.attention[0, :, short:],
        flow.attention[0, ..., short:],
        flow.layer[0, short:],
        flow.layer[0, :, short:],
        flow.layer_total[0, short:],
        flow.attention_total[0, :, short:],
    ):
        assert bool((exact_zero == 0).all())


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("family", models.CAUSAL)
def test_later_tokens_get_exactly_nothing(family: str, baseline: str) -> None:
    model = models.MODELS[family]()
    flow = attribute(model, 1, {"input_ids": models.tokens(model, 1, 6)}, baseline)
    for part in (flow.attention, flow.layer, flow.chain, flow.compose("chain"), flow.compose()):
        assert part is not None
        assert bool((part.triu(1) == 0).all())
        assert bool((part != 0).any())


@pytest.mark.parametrize("family", models.CAUSAL)
def test_rows_that_do_not_move_are_exact_zeros(family: str) -> None:
    """On a target-token path a causal model's first token sees only itself, and stays put."""
    model = models.MODELS[family](dtype=torch.float32)
    flow = attribute(
        model,
        1,
        {"input_ids": models.tokens(model, 1, 4)},
        "target_token",
        boundaries=("attention", "mlp", "layer", "influence"),
        tolerance=1e-3,
    )
    for name in ("attention_total", "layer_total", "attention", "mlp", "residual", "layer"):
        part = getattr(flow, name)
        first = part[0, :, 0] if name.startswith("attention") else part[0, 0]
        assert bool((first == 0).all())
    assert all(bool(rows.all()) for rows in flow.converged.values())


def test_a_repeated_first_token_does_not_move_either() -> None:
    """Without absolute positions both have the same content in every layer."""
    model = models.tiny_llama(dtype=torch.float32)
    ids = models.tokens(model, 1, 4)
    ids[0, 1] = ids[0, 0]
    flow = attribute(model, 1, {"input_ids": ids}, "target_token")
    assert flow.layer is not None
    assert flow.layer_total is not None
    assert bool((flow.layer[0, :2] == 0).all())
    assert bool((flow.layer_total[0, :2] == 0).all())
    assert bool((flow.layer_total[0, 2:] > 0).all())


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_attention_that_is_run_for_some_rows_or_texts_alone(
    refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where our arithmetic fails at some rows they go by autograd, and give the same numbers."""
    model = models.MODELS["bert"]()
    batch = models.padded_batch(model, (5, 4))
    boundaries = ("attention", "mlp", "layer")
    settings: dict[str, Any] = {"boundaries": boundaries, "internal_batch_size": 3}
    expected = LayerFlowIG(model, 1).attribute(batch, **settings)
    asked, own = [0], SplitBlock.attends

    def attends(split: SplitBlock, rows: Tensor, u: Tensor) -> bool:
        asked[0] += 1
        return asked[0] != refused + 1 and own(split, rows, u)

    monkeypatch.setattr(SplitBlock, "attends", attends)
    found = LayerFlowIG(model, 1).attribute(batch, **settings)
    assert asked[0] > refused + 1
    assert isinstance(found, LayerFlow)
    assert isinstance(expected, LayerFlow)
    assert found.cost is not None
    assert found.cost.path == "autograd"
    assert expected.self_weight is not None
    assert found.self_weight is None
    for name in (*boundaries, "chain", "residual"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6
        )


def test_warnings_point_at_the_line_of_the_user() -> None:
    model, decoder = models.tiny_bert(), models.tiny_llama()
    text, other = torch.tensor([[5, 9, 7]]), torch.tensor([[5, 4, 7]])

    def number(output: Any) -> Tensor:
        found: Tensor = output.last_hidden_state[:, -1, 0]
        return found

    rough: dict[str, Any] = {"n_steps": 2, "max_steps": 4, "tolerance": 1e-16}
    half = models.tiny_llama(torch.bfloat16)

    def circuit() -> None:
        with circuits.of_nodes(half, text, other, number):
            pass

    calls: list[Callable[[], object]] = [
        lambda: LayerFlowIG(model).attribute(text, 0.5, **rough),
        lambda: LayerFlowIG(model).attribute(text, other, number, **rough),
        lambda: LayerFlowIG(decoder).direct_edges(text, other, number, **rough),
        lambda: effects(half, text, other, number, "heads"),
        circuit,
    ]
    for call in calls:
        with pytest.warns(match="not within tolerance|more than tolerance|comes in") as found:
            call()
        assert __file__ in {warning.filename for warning in found}
