"""Flows towards a number of every family of models."""

from __future__ import annotations

import warnings

import pytest
import torch

from captum_lig import FlowGraph, LayerFlowIG, patching
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


@pytest.mark.parametrize("name", ["bert", "bloom", "deberta-v2", "gpt2"])
@pytest.mark.parametrize("lengths", [(6, 3), (3, 6), (5, 4)])
def test_padded_texts_are_what_they_are_alone(name: str, lengths: tuple[int, int]) -> None:
    """Also where the blocks do not show their masks, and padding is seen from the inputs."""
    (model,) = (family.build() for family in FAMILIES if family.name == name)
    generator = torch.Generator().manual_seed(1)
    ids, other = (torch.randint(4, 40, (2, max(lengths)), generator=generator) for _ in range(2))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    given = {"input_ids": ids * mask, "attention_mask": mask}

    def number(output: object) -> torch.Tensor:
        return number_of({"of": output[0][:, :3]})  # type: ignore[index]

    flows = LayerFlowIG(model).attribute(given, other * mask, number)
    for text, length in enumerate(lengths):
        own, its = (x[text : text + 1, :length] for x in (ids, other))
        alone = FlowGraph(LayerFlowIG(model).attribute(own, its, number)).relevance()
        found = FlowGraph(flows, text=text).relevance()
        torch.testing.assert_close(found.tokens, alone.tokens, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.heads, alone.heads, rtol=1e-5, atol=1e-6)
        effects = patching.effects(model, given, other * mask, number, "tokens", text=text)
        wanted = patching.effects(model, own, its, number, "tokens")
        torch.testing.assert_close(effects.taken_out, wanted.taken_out, rtol=1e-5, atol=1e-6)
