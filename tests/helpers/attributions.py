"""A layer's attribution and its twin: the same nodes, the same starts, compared entry by entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers import models, twin_blocks, twins

NODES = 6  # both sides use the same nodes: agreement does not depend on how many
BASELINES = ["zero", "target_token", "number", "tensor", "per_target"]


def baseline_for(name: str, z: Tensor) -> Any:
    """What the twin takes for one text with residual stream z (S, D)."""
    generator = torch.Generator().manual_seed(5)
    if name == "number":
        return 0.3
    if name == "tensor":
        return torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
    if name == "per_target":
        shape = (len(z), *z.shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(z)
    return name


def block_input(model: PreTrainedModel, layer: int, **inputs: Tensor) -> Tensor:
    """z (B, S, D), with the family's eager attention, which the cut runs too: Llama's takes its
    softmax in float32 whatever the dtype, so another implementation has another z at 1e-8."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    z, _ = models.block_input_output(model, layer, **inputs)
    model.set_attn_implementation(before)
    return z


def attribute(
    model: nn.Module, layer: int, inputs: dict[str, Tensor], baseline: Any, **kwargs: Any
) -> LayerFlow:
    batched = baseline[None] if isinstance(baseline, Tensor) else baseline
    kwargs = {"n_steps": NODES, "method": "gausslegendre", "tolerance": None, **kwargs}
    scalarization = kwargs.pop("scalarization", "l2")
    flow = LayerFlowIG(model, layer, scalarization).attribute(inputs, batched, **kwargs)
    assert isinstance(flow, LayerFlow)
    return flow


def assert_equals_twin(
    flow: LayerFlow,
    block: twin_blocks.TwinBlock,
    z: Tensor,
    baseline: Any,
    scalarization: str,
    tolerance: float,
    text: int = 0,
    length: int | None = None,
) -> None:
    """Every boundary of one text, entry by entry, within `tolerance` of the row's total."""
    length = len(z) if length is None else length
    nodes = twins.gauss_legendre(NODES)
    args = (block, z, baseline, scalarization, *nodes)
    attention, attention_total = twins.attention_map(*args)
    mlp, residual, total = twins.mlp_map(*args)
    layer, layer_total = twins.layer_map(*args)
    chain = twins.chain_map(*args)

    def close(actual: Tensor | None, expected: Tensor, scale: Tensor) -> None:
        assert actual is not None
        assert actual[text].shape == expected.shape
        gap = (actual[text].to(expected) - expected).abs()
        if gap.dim() > scale.dim():
            gap = gap.amax(-1)
        parts = (gap / scale.clamp_min(1e-12))[..., :length]
        assert float(parts.max()) <= tolerance

    close(flow.attention, attention, attention_total)
    close(flow.attention_total, attention_total, attention_total)
    close(flow.mlp, mlp, total)
    close(flow.residual, residual, total)
    close(flow.chain, chain, total.expand(len(chain), -1))
    close(flow.layer, layer, layer_total)
    close(flow.layer_total, layer_total, layer_total)
