"""What the graph carries beside what Captum gives: measures, controls, layers, table."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.prediction import (
    RelevanceComparison,
    compare_with_layer_integrated_gradients,
    direct_relevance,
)
from captum_lig.prediction.comparison import compare
from captum_lig.views.relevance_table import relevance_table
from tests.helpers import models
from tests.helpers.readings import flows_of, read


def test_measures_controls_rows_and_table() -> None:
    direct = torch.tensor([[1.0, 2, 3, 6], [4, 4, 2, 2]]).double()
    comparison = RelevanceComparison(
        layers=(3, 4),
        labels=("a", "b", "c", "d"),
        carried=torch.tensor([[2.0, 1, 3, 6], [4, 4, 2, 2]]).double(),
        direct=direct,
        direct_delta=torch.tensor([0.5, 0.5]).double(),
        change=11.5,
        rule="chain",
        absolute=False,
    )
    first = comparison.rows()[0]
    assert first["layer"] == 3
    assert first["carried_delta"] == first["direct_delta"] == 0.5
    assert first["spearman_carried"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert first["pearson_carried"] == pytest.approx(np.corrcoef([2, 1, 3, 6], [1, 2, 3, 6])[0, 1])
    assert first["l2_carried"] == pytest.approx(2**0.5)
    assert first["relative_l2_carried"] == pytest.approx(2**0.5 / 50**0.5)
    assert first["l2_stays"] == pytest.approx((9 + 4 + 1 + 16) ** 0.5)
    assert first["l2_uniform"] == pytest.approx((4 + 1 + 0 + 9) ** 0.5)
    assert np.isnan(first["pearson_uniform"])
    assert comparison.rows()[1]["relative_l2_carried"] == 0
    out = io.StringIO()
    Console(file=out, width=80).print(relevance_table(comparison))
    text = out.getvalue()
    assert "0.80 (-0.89)" in text
    assert "0.20 (0.77, 0.53)" in text
    assert "…" not in text
    assert [line.split()[0] for line in text.splitlines() if "e-0" in line] == ["3", "end"]


def test_a_range_of_layers() -> None:
    model = models.tiny_gpt2(layers=4)
    ids = models.tokens(model, 1, 5)
    flows = flows_of(model, ids)
    whole = direct_relevance(model, read, ids)
    part = compare_with_layer_integrated_gradients(
        FlowGraph(flows[1:3]), model, read, ids, layers=[2, 1]
    )
    assert part.layers == (1, 2, 3)
    torch.testing.assert_close(part.direct, whole.tokens[1:4])
    few = compare(FlowGraph(flows), direct_relevance(model, read, ids, layers=[0, 3]))
    every = compare(FlowGraph(flows), whole)
    torch.testing.assert_close(few.carried, every.carried[[0, 3, 4]])
    torch.testing.assert_close(few.direct, every.direct[[0, 3, 4]])


def test_a_graph_with_a_target_has_relevances_of_its_own() -> None:
    model = models.tiny_gpt2()
    ids = models.tokens(model, 1, 5)
    flows = LayerFlowIG(model).attribute(ids, ids.roll(1, -1), read)
    graph = FlowGraph(flows)
    comparison = compare_with_layer_integrated_gradients(graph, model, read, ids, ids.roll(1, -1))
    torch.testing.assert_close(comparison.carried, graph.relevance().tokens)
    # At the end of the last layer both are the integral along the same line.
    torch.testing.assert_close(comparison.direct[-1], comparison.carried[-1], rtol=1e-3, atol=1e-4)
    assert comparison.rule == "target"
