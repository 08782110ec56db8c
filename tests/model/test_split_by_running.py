"""Blocks without a closed form: the path by running the block, slower and just as right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from captum_lig import LayerFlowIG, SetToSetIG
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.paths import choose as paths
from captum_lig.paths.choose import Structure
from tests.helpers import models
from tests.helpers.attributions import attribute


def qwen3() -> PreTrainedModel:
    """Norms on queries and keys: from zero a key along the path takes running the block."""
    return models.randomised(Qwen3Model(Qwen3Config(**models.GROUPED)))


def gemma3() -> PreTrainedModel:
    """The same, with sandwich norms and sliding windows."""
    kinds = ["sliding_attention", "full_attention"]
    return models.randomised(
        Gemma3TextModel(Gemma3TextConfig(**models.GROUPED, sliding_window=2, layer_types=kinds))
    )


@pytest.mark.parametrize("baseline", ["zero", "target_token", 0.4])
@pytest.mark.parametrize("build", [qwen3, gemma3])
def test_layer_map_is_that_of_the_block_as_a_callable(
    build: Callable[[], PreTrainedModel], baseline: Any
) -> None:
    """One autograd pass per target through the model's own block, the same nodes."""
    model = build()
    model.set_attn_implementation("eager")
    ids = models.tokens(model, 1, 5)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    (z, *args), kwargs = calls[0]

    def block(x: Tensor) -> Tensor:
        output = model.layers[0](x, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    expected = SetToSetIG(block).attribute(z, baseline, n_steps=5)
    flow = LayerFlowIG(model, 0).attribute(ids, baseline, n_steps=5, tolerance=None)
    assert isinstance(flow, LayerFlow)
    assert flow.layer is not None
    # Both families take norms and softmax in float32, whatever the dtype.
    torch.testing.assert_close(flow.layer, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("build", [qwen3, gemma3])
def test_rows_are_certified(build: Callable[[], PreTrainedModel], baseline: str) -> None:
    model = build().to(torch.float32)
    flows = LayerFlowIG(model).attribute(models.tokens(model, 1, 5), baseline)
    assert isinstance(flows, list)
    for flow in flows:
        for converged in flow.converged.values():
            assert bool(converged.all())


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("family", models.MODELS)
def test_running_the_block_and_the_closed_form_agree(
    family: str, baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.MODELS[family]()
    inputs = {"input_ids": models.tokens(model, 1, 5)}
    asked = ("attention", "mlp", "layer", "influence")
    closed = attribute(model, 1, inputs, baseline, boundaries=asked)
    seen: list[Structure] = []

    def unrecognised(*_: Any) -> None:
        seen.append(Structure(None))

    monkeypatch.setattr(paths, "recognise_norm", unrecognised)
    run = attribute(model, 1, inputs, baseline, boundaries=asked)
    assert seen
    for name in (*asked, "chain", "attention_influence"):
        torch.testing.assert_close(getattr(run, name), getattr(closed, name), rtol=1e-6, atol=1e-8)
