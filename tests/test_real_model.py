"""The engine on real weights: all-MiniLM-L6-v2, the embedded model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertModel

from captum_lig import LayerFlowIG
from captum_lig.flow.layer_flow import LayerFlow
from tests.helpers import models, twin_blocks
from tests.helpers.attributions import assert_equals_twin
from tests.helpers.embedded import minilm_folder

SENTENCES = (
    "The keys to the cabinet, which nobody had seen since the spring, are on the table because "
    "the old man left them there before he went to the sea.",
    "When Mary and John went to the store to buy milk for their neighbours, John gave a drink to "
    "the girl who was waiting outside.",
    "Although the committee had read the report, none of its members could say why the bridge "
    "was closed, or when it would be open again.",
)


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, BertModel]:
    path = minilm_folder()
    return AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()


def flows_of(model: BertModel, inputs: Any, baseline: str, **kwargs: Any) -> list[LayerFlow]:
    scalarization = kwargs.pop("scalarization", "l2")
    flows = LayerFlowIG(model, scalarization=scalarization).attribute(inputs, baseline, **kwargs)
    assert isinstance(flows, list)
    return flows


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize(
    ("scalarization", "layer", "dtype", "tolerance"),
    [
        ("l2", 1, torch.float64, 1e-6),
        ("projection", 4, torch.float64, 1e-6),
        ("l2", 3, torch.float32, 1e-3),
    ],
)
def test_equals_the_twin(
    minilm: tuple[Any, BertModel],
    baseline: str,
    scalarization: str,
    layer: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    tokenizer, single = minilm
    double = copy.deepcopy(single).double()
    inputs = dict(tokenizer("keys are there", return_tensors="pt"))
    double.set_attn_implementation("eager")
    z = block_input(double, layer, inputs)
    model = double if dtype == torch.float64 else single
    flow = LayerFlowIG(model, layer, scalarization).attribute(
        inputs, baseline, n_steps=6, tolerance=None
    )
    assert isinstance(flow, LayerFlow)
    block = twin_blocks.twin_block(double, layer, inputs["attention_mask"][0])
    assert_equals_twin(flow, block, z, baseline, scalarization, tolerance)


def block_input(model: BertModel, layer: int, inputs: dict[str, Tensor]) -> Tensor:
    return models.block_input_output(model, layer, **inputs)[0][0]


@pytest.mark.parametrize("scalarization", ["l2", "projection"])
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_every_row_is_certified(
    minilm: tuple[Any, BertModel], baseline: str, scalarization: str
) -> None:
    tokenizer, model = minilm
    batch = tokenizer(list(SENTENCES), return_tensors="pt", padding=True)
    flows = flows_of(model, batch, baseline, scalarization=scalarization)
    for flow in flows:
        for boundary in ("attention", "mlp", "layer", "chain"):
            assert float(flow.completeness_error(boundary).max()) <= 1e-3
            assert bool(flow.converged[boundary].all())
    if scalarization == "projection":
        assert_composed_maps_conserve_and_agree(flows)


def assert_composed_maps_conserve_and_agree(flows: list[LayerFlow]) -> None:
    """The bounds are on the mean over targets, here of three sentences of about 30 tokens."""
    for flow in flows:
        assert flow.layer_total is not None
        for rule in ("conserve", "chain"):
            gap = (flow.compose(rule).sum(-1) - flow.layer_total).abs()
            assert bool((gap <= 1e-5 * flow.layer_total).all())
        assert float(flow.agreement("conserve").nanmean()) < 0.30
        assert float(flow.agreement("chain").nanmean()) < 0.25


@pytest.mark.parametrize("layer", [0, 3])
def test_entries_equal_many_nodes_in_float64(minilm: tuple[Any, BertModel], layer: int) -> None:
    """Sums are not enough: every entry, against the engine's own plain rule with 96 nodes."""
    tokenizer, model = minilm
    inputs = tokenizer(SENTENCES[1], return_tensors="pt")
    double = copy.deepcopy(model).double()
    for baseline in ("zero", "target_token"):
        flow = LayerFlowIG(model, layer).attribute(inputs, baseline)
        exact = LayerFlowIG(double, layer).attribute(
            inputs, baseline, n_steps=96, method="gausslegendre_graded", tolerance=None
        )
        assert isinstance(flow, LayerFlow)
        assert isinstance(exact, LayerFlow)
        for name, total in (("layer", "layer_total"), ("attention", "attention_total")):
            gap = (getattr(flow, name) - getattr(exact, name)).abs().amax(-1)
            assert bool((gap <= 2e-3 * getattr(exact, total)).all())
