"""Nodes beside patching: which numbers are compared, with scipy's correlations."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from captum_lig import FlowGraph, LayerFlowIG, LigError, patching
from captum_lig.metrics import NodeAgreement, node_agreement
from captum_lig.patching.effects import Effects
from captum_lig.patching.nodes import NodeValues
from tests.helpers import models

KINDS = ("tokens", "heads", "attention", "feed_forward")


def number(output: Any) -> Tensor:
    hidden: Tensor = output.last_hidden_state
    return torch.tanh(hidden[:, -1] @ torch.linspace(-1, 2, hidden.shape[-1]).to(hidden) / 5)


@pytest.fixture(scope="module")
def both() -> tuple[NodeValues, Effects]:
    model = models.tiny_llama()
    ids, other = ({"input_ids": models.tokens(model, 1, 4, seed)} for seed in (0, 1))
    graph = FlowGraph(LayerFlowIG(model).attribute(ids, other, number))
    return patching.node_values_of(graph.relevance()), patching.effects(
        model, ids, other, number, KINDS
    )


def test_kind_by_kind(both: tuple[NodeValues, Effects]) -> None:
    score, truth = both
    found = node_agreement(score, truth.out)
    assert tuple(found) == KINDS
    for kind, one in found.items():
        s, t = (getattr(x, kind).flatten().numpy() for x in (score, truth.out))
        assert one.pearson == pytest.approx(scipy.stats.pearsonr(s, t).statistic)
        assert one.spearman == pytest.approx(scipy.stats.spearmanr(s, t).statistic)
    assert found["tokens"].pearson > 0.5


def test_some_nodes_alone(both: tuple[NodeValues, Effects]) -> None:
    score, truth = both[0], both[1].into
    assert score.tokens is not None
    assert truth.tokens is not None
    kept = torch.rand(score.tokens.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    found = node_agreement(score, truth, {"tokens": kept})
    s, t = score.tokens[kept].numpy(), truth.tokens[kept].numpy()
    assert found["tokens"].pearson == pytest.approx(scipy.stats.pearsonr(s, t).statistic)
    assert found["heads"] == node_agreement(score, truth)["heads"]


def test_all_positions_at_once(both: tuple[NodeValues, Effects]) -> None:
    score = both[0]
    assert score.heads is not None
    truth = NodeValues(score.layers, None, score.heads.sum(-1), None, None)
    found = node_agreement(score, truth)
    assert list(found) == ["heads"]
    assert found["heads"].distance == 0


def test_over_texts(both: tuple[NodeValues, Effects]) -> None:
    score, truth = both
    over = NodeAgreement()
    over.update(score, truth)
    found = over.compute()
    for name, values in (("mean", truth.mean), ("out", truth.out), ("into", truth.into)):
        right = node_agreement(score, values)
        assert found[f"heads {name} spearman"].mean == right["heads"].spearman
    between = node_agreement(truth.out, truth.into)["tokens"].pearson
    assert found["tokens out with into pearson"].mean == between


def test_others_are_refused(both: tuple[NodeValues, Effects]) -> None:
    score = both[0]
    with pytest.raises(LigError, match=r"layers \[0, 1\], truths of \[1\]"):
        node_agreement(score, NodeValues((1,), None, None, None, None))
    wrong = NodeValues(score.layers, torch.zeros(3, 9), None, None, None)
    with pytest.raises(LigError, match=r"tokens have the shape"):
        node_agreement(score, wrong)
