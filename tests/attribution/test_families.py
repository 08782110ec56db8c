"""Flows towards a number of every family of models."""

from __future__ import annotations

import warnings

import pytest

from captum_lig import LayerFlowIG
from tests.helpers.families import FAMILIES, Family
from tests.helpers.laws import check_laws, number_of, other_inputs

KINKS = {"t5": 4096}
"""ReLU: what a rule misses in a panel with a kink falls with its width alone, and every unit of
every token has one: more nodes are needed."""
WITHOUT_MLP = ("fnet", "mamba")
"""Nothing inside says which tokens it reads: the block is one stage."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_number_is_handed_down(family: Family) -> None:
    model = family.build()
    inputs = family.inputs(model)
    lig, other = LayerFlowIG(model), other_inputs(inputs)
    most = KINKS.get(family.name, 512)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*sums are not within tolerance")
        flows, delta = lig.attribute(
            inputs, other, number_of, return_convergence_delta=True, max_steps=most
        )
    assert isinstance(flows, list)
    assert [flow.index for flow in flows] == list(range(len(family.sites)))
    check_laws(flows, 1e-3)
    lowest = flows[0].need("entering").sum(-1)
    missing = lowest + (0 if flows[0].elsewhere is None else flows[0].elsewhere)
    assert (delta == missing - flows[0].need("change")).all()
    change = number_of(model(**inputs)) - number_of(model(**other))
    assert flows[0].need("change").item() == pytest.approx(change.item(), rel=1e-5)
    for flow in flows:
        assert flow.scalarization == "target"
        assert flow.target == "number_of(output)"
        assert (flow.feed_forward is None) == (family.name in WITHOUT_MLP)
        assert flow.cost is not None
        assert flow.cost.path_points >= 5
        heads = flow.need("attention").shape[1]
        assert heads == (1 if family.out is None and "whole" in family.sites else 4)
        if family.causal and flow.index >= len(family.sites) - 2:
            assert not flow.need("attention").triu(1).any()
