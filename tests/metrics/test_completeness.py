"""Completeness and composition, from their definitions in loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.metrics import (
    CompletenessErrors,
    ComposedAgainstDirect,
    completeness,
    composed_against_direct,
    flow_completeness,
    flow_composition,
)
from tests.helpers import models


def flows_of(inputs: dict[str, Any], **settings: Any) -> list[LayerFlow]:
    found = LayerFlowIG(models.tiny_bert()).attribute(inputs, n_steps=4, tolerance=None, **settings)
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def flows() -> list[LayerFlow]:
    return flows_of({"input_ids": models.tokens(models.tiny_bert(), 1, 5)})


def test_rows_beside_loops() -> None:
    parts = torch.tensor([[[1.0, 2], [3, -1]], [[0, 0], [2, 2]]])
    total = torch.tensor([[3.5, 2], [0, -4]])
    errors = [
        abs(sum(row) - whole) / abs(whole) if sum(row) != whole else 0.0
        for rows, wholes in zip(parts.tolist(), total.tolist(), strict=True)
        for row, whole in zip(rows, wholes, strict=True)
    ]
    found = completeness(parts, total)
    assert found.worst == pytest.approx(max(errors))
    assert found.mean == pytest.approx(sum(errors) / 4)
    assert found.rows == 4
    scaled = completeness(parts, total, torch.full((2, 2), 10.0))
    assert scaled.worst == pytest.approx(0.8)
    assert completeness(torch.tensor([[1.0]]), torch.tensor([0.0])).worst == math.inf
    with pytest.raises(LigError, match=r"\(2, 2, 2\).*\(2,\)"):
        completeness(parts, total[0])


def test_padding_is_no_row() -> None:
    model = models.tiny_bert()
    alone = flows_of({"input_ids": models.padded_batch(model, (3, 5))["input_ids"][:1, :3]})
    both = flows_of(models.padded_batch(model, (3, 5)))
    for one, padded in zip(alone, both, strict=True):
        for name, own in flow_completeness(one).items():
            found = flow_completeness(padded.select(0))[name]
            assert found.rows == own.rows
            assert found.mean == pytest.approx(own.mean, rel=1e-4)
            assert own.mean > 0


def test_fields_of_flows(flows: list[LayerFlow]) -> None:
    found = flow_completeness(flows[0])
    assert found["attention"].rows == 4 * 5
    layer = flows[0].need("layer")[0].double()
    total = flows[0].need("layer_total")[0].double()
    errors = [abs(float(layer[j].sum() - total[j])) / float(total[j]) for j in range(5)]
    assert found["layer"].worst == pytest.approx(max(errors))
    assert found["layer"].mean == pytest.approx(sum(errors) / 5)
    over = CompletenessErrors()
    over.update(flows)
    worst = [flow_completeness(flow)["layer"].worst for flow in flows]
    mean = [flow_completeness(flow)["layer"].mean for flow in flows]
    assert over.compute()["layer worst"].mean == max(worst)
    assert over.compute()["layer mean"].mean == pytest.approx(sum(mean) / 2)
    assert over.worst()["layer"] == max(worst)


def test_composed_maps(flows: list[LayerFlow]) -> None:
    flow = flows[1]
    direct, composed = flow.need("layer")[0].tolist(), flow.compose("chain")[0].tolist()
    cells = [(j, i) for j in range(5) for i in range(5)]
    gap = sum((direct[j][i] - composed[j][i]) ** 2 for j, i in cells)
    size = sum(direct[j][i] ** 2 for j, i in cells)
    assert float(flow_composition(flow, "chain")) == pytest.approx(math.sqrt(gap / size))
    zeros = torch.zeros(2, 3, 3)
    assert composed_against_direct(torch.ones(2, 3, 3), zeros).tolist() == [1, 1]
    assert composed_against_direct(zeros, zeros).isnan().all()
    with pytest.raises(LigError, match="twice"):
        composed_against_direct(zeros, zeros[0])
    over = ComposedAgainstDirect("chain")
    over.update(flows)
    each = [float(flow_composition(one, "chain")) for one in flows]
    assert over.compute()["layer 1"].mean == each[1]
    assert over.compute()["all layers"].mean == pytest.approx(sum(each) / 2)
    with pytest.raises(LigError, match="several texts"):
        over.update(flows_of({"input_ids": models.tokens(models.tiny_bert(), 2, 3)}))
