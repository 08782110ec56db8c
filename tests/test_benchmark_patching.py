"""Patching and its rivals in the benchmark: twins of whole models, and models that are known.

The twin runs whole Hugging Face models with one hook at a time; the benchmark runs blocks, in
batches, and in causal models only the tokens from the first that differs on.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.patching import cases, chain, relp
from benchmarks.patching.gradients import attribution_patching, integrated
from benchmarks.patching.layer_ig import layer_integrated_gradients, left_in_place
from benchmarks.patching.net import KINDS, Net, Question
from benchmarks.patching.others import chance, rollout, shares_of_lengths
from benchmarks.patching.truth import effects
from captum_lig.errors import LigError
from captum_lig.prediction import direct_relevance
from tests.helpers import models
from tests.helpers.patched_runs import (
    CHANGED,
    LENGTH,
    asked,
    llama,
    same,
    twin_effects,
    twin_gradients,
    twin_nodes,
    twin_run,
    without_prefix,
)

# --- runs and truth -----------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("kind", ["llama", "bert"])


@BOTH
def test_runs_of_blocks_are_runs_of_the_model(kind: str) -> None:
    question = asked(kind)
    assert question.first == (CHANGED if kind == "llama" else 0)
    for here in (question, without_prefix(question)):
        for run, ids in (
            (here.input, here.case.inputs),
            (here.baseline, here.case.baseline),
        ):
            found, value = twin_run(here, ids)
            torch.testing.assert_close(run.value, value, rtol=1e-10, atol=1e-10)
            for place, values in found.items():
                for layer, theirs in enumerate(values):
                    ours = run.at(place, layer)
                    torch.testing.assert_close(ours, theirs[:, here.first :], rtol=1e-9, atol=1e-9)


@BOTH
def test_effects_are_those_of_the_whole_model_with_one_hook(kind: str) -> None:
    question = asked(kind)
    twins = twin_effects(question)
    for ours, theirs in zip(effects(question), twins, strict=True):
        same(ours, theirs)
    for ours, theirs in zip(effects(without_prefix(question)), twins, strict=True):
        same(ours, theirs)


@BOTH
def test_nodes_that_did_not_move_are_known(kind: str) -> None:
    question = asked(kind)
    runs = [twin_run(question, x)[0] for x in (question.case.inputs, question.case.baseline)]
    moved = question.moved()
    for kind_, place, layer, number, part in twin_nodes(question):
        change = (runs[0][place][layer] - runs[1][place][layer])[0][part]
        assert bool(moved[kind_][layer, number]) == (float(change.norm()) > 1e-6)
    assert not moved["tokens"][0].all()
    assert moved["heads"].all()


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(LigError, match="GPT2Model"):
        Net(models.tiny_gpt2())


# --- rivals -------------------------------------------------------------------------------------


@BOTH
def test_attribution_patching_is_one_gradient_at_the_input(kind: str) -> None:
    question = asked(kind)
    theirs = twin_gradients(question, [1.0])
    for here in (question, without_prefix(question)):
        same(attribution_patching(here), theirs)
        same(integrated(here, 1), theirs)


@BOTH
def test_eap_ig_averages_over_runs_of_the_whole_model(kind: str) -> None:
    question = asked(kind)
    same(integrated(question, 3), twin_gradients(question, [1 / 3, 2 / 3, 1.0]))
    # Where the path starts it is Integrated Gradients: complete, in the limit.
    missed = [float(integrated(question, n)["tokens"][0].sum()) - question.change for n in (1, 400)]
    assert abs(missed[1]) < min(abs(missed[0]) / 5, 0.01 * abs(question.change))


@BOTH
def test_layer_integrated_gradients_is_captums(kind: str) -> None:
    question, nodes = asked(kind), 12
    case, model = question.case, question.net.model

    def target(output: Any = None, **inputs: Tensor) -> Tensor:
        return case.read(model(**inputs) if output is None else output)

    baseline = case.baseline["input_ids"]
    captum = direct_relevance(model, target, case.inputs, baseline, n_steps=nodes).tokens
    ours = layer_integrated_gradients(question, nodes)
    # Captum rounds the weights of its nodes to float32.
    same(ours, {"tokens": captum}, within=1e-7)
    whole = layer_integrated_gradients(without_prefix(question), nodes)
    same(whole, ours)
    left = left_in_place(question, nodes)["tokens"]
    assert torch.equal(left, ours["tokens"][-1].expand_as(left))


class Scaled(nn.Module):
    """In the place of a norm, or an activation: nothing but a constant."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


class Ones(nn.Module):
    """In the place of a gate's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def linear() -> Question:
    """A decoder that is linear in its embeddings: patterns alone are fixed, gates and norms too."""
    model = llama()
    for block in model.model.layers:
        block.self_attn.q_proj.weight.data.zero_()
        block.self_attn.k_proj.weight.data.zero_()
        block.input_layernorm, block.post_attention_layernorm = Scaled(0.7), Scaled(1.3)
        block.mlp.act_fn = Ones()
    model.model.norm = Scaled(0.9)
    question = asked("llama")
    return Question(Net(model), question.case)


def test_on_a_linear_model_all_that_take_gradients_are_patching() -> None:
    question = linear()
    out, into = effects(question)
    same(out, into)
    for scores in (
        attribution_patching(question),
        integrated(question, 5),
        integrated(question, 16),
    ):
        same(scores, out)
    same(layer_integrated_gradients(question), {"tokens": out["tokens"]})


def bias_free(kind: str) -> Net:
    model: Any = llama(bias=False) if kind == "llama" else models.tiny_bert()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return Net(model)


@BOTH
def test_relp_conserves_what_a_model_without_biases_says(kind: str) -> None:
    net = bias_free(kind)
    case = asked(kind).case
    if kind == "bert":  # a target that is linear, as logits are
        direction = torch.linspace(-1, 1, models.WIDTH, dtype=torch.float64)
        case = cases.Case(
            kind,
            "",
            "",
            case.inputs,
            case.baseline,
            lambda output: output.last_hidden_state.mean(1) @ direction,
        )
    question = Question(net, case, prefix=False)
    value = float(question.input.value)
    with relp.rules(net):
        found = question.gradients(question.input.stream[0])
    assert float(found.value) == pytest.approx(value, rel=1e-9)
    for layer in range(len(net.blocks) + 1):
        relevance = found.stream[layer] * question.input.stream[layer]
        assert float(relevance.sum()) == pytest.approx(value, rel=1e-8), layer
    plain = question.gradients(question.input.stream[0])
    off = float((plain.stream[0] * question.input.stream[0]).sum())
    assert off != pytest.approx(value, rel=1e-2)
    # The hooks are gone.
    again = question.gradients(question.input.stream[0])
    assert torch.equal(again.stream[0], plain.stream[0])


def test_relp_gives_each_factor_of_a_gate_one_half() -> None:
    net = Net(llama())
    mlp = net.blocks[0].mlp
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 3, models.WIDTH, generator=generator, dtype=torch.float64)
    back = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    with relp.rules(net):
        z = x.clone().requires_grad_()
        output = mlp(z)
        (ours,) = torch.autograd.grad((output * back).sum(), z)
    torch.testing.assert_close(output, mlp(x))
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    acted = nn.functional.silu(gate)
    into = back @ mlp.down_proj.weight
    to_up = (into * acted / 2) @ mlp.up_proj.weight
    to_gate = (into * up / 2 * acted / gate) @ mlp.gate_proj.weight
    torch.testing.assert_close(ours, to_up + to_gate)


def test_relp_holds_patterns_and_scales() -> None:
    """With patterns and scales of the run attention is linear, and its matrix can be written."""
    net = Net(llama())
    block, question = net.blocks[1], without_prefix(asked("llama"))
    z = question.input.stream[1].clone().requires_grad_()
    back = torch.linspace(-1, 1, z.numel(), dtype=torch.float64).reshape(z.shape)
    with relp.rules(net):
        u = block.self_attn(block.input_layernorm(z), **question.kwargs)[0]
        (ours,) = torch.autograd.grad((u * back).sum(), z)
    net.model.set_attn_implementation("eager")
    x = z.detach()
    pattern = block.self_attn(block.input_layernorm(x), **question.kwargs)[1][0]  # (H, T, S)
    scale = (x.pow(2).mean(-1, keepdim=True) + block.input_layernorm.variance_epsilon).rsqrt()
    expected = torch.zeros_like(x)
    width, group = 8, models.HEADS // models.KEY_VALUE_HEADS
    for h in range(models.HEADS):
        w_o = block.self_attn.o_proj.weight[:, h * width : (h + 1) * width]
        kv = h // group
        w_v = block.self_attn.v_proj.weight[kv * width : (kv + 1) * width]
        for j in range(LENGTH):
            for i in range(j + 1):
                expected[0, i] += pattern[h, j, i] * (back[0, j] @ w_o @ w_v)
    torch.testing.assert_close(ours, expected * scale * block.input_layernorm.weight)


def test_rollout_of_even_patterns_is_known() -> None:
    question = linear()
    net = question.net
    for block in net.blocks:  # no keys and queries at all: each token looks at all before it alike
        block.self_attn.q_proj.bias.data.zero_()
    question = Question(net, question.case)
    tokens = rollout(question)["tokens"] / question.change
    expected = torch.zeros(3, LENGTH).double()
    expected[2, -1] = 1
    for depth in (1, 0):
        for j in range(LENGTH):
            for i in range(LENGTH):
                share = (i == j) / 2 + (i <= j) / (j + 1) / 2
                expected[depth, i] += expected[depth + 1, j] * share
    torch.testing.assert_close(tokens, expected)
    assert net.model.config._attn_implementation == "sdpa"


@BOTH
def test_shares_of_lengths_start_at_the_top_and_conserve(kind: str) -> None:
    question = without_prefix(asked(kind))
    found = shares_of_lengths(question)
    top = left_in_place(question)["tokens"][-1]
    torch.testing.assert_close(found["tokens"][-1], top)
    torch.testing.assert_close(found["attention"].sum(-1), found["heads"].sum(-1))
    assert float(found["heads"].abs().sum()) > 1e-3


def test_chance_is_drawn_once_and_has_the_size_of_the_change() -> None:
    question = asked("llama")
    found = chance(question)
    assert set(found) == set(KINDS)
    for value, again in zip(found.values(), chance(question).values(), strict=True):
        assert torch.equal(value, again)
        sizes = value.abs().sum(-1)
        torch.testing.assert_close(sizes, torch.full_like(sizes, abs(question.change)))


def test_the_chain_is_read_from_the_fields_of_the_flows() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    flows = [
        SimpleNamespace(
            mlp=drawn(1, 5, 3),
            feed_forward=drawn(1, 5),
            entering=drawn(1, 5),
            mlp_total=drawn(1, 5),
        )
        for _ in range(2)
    ]
    found = chain.scores_of(flows)
    for layer, flow in enumerate(flows):
        for j in range(5):
            assert found["tokens"][layer, j] == flow.entering[0, j].double()
            assert found["mlp"][layer, j] == flow.feed_forward[0, j].double()
            heads = sum(float(flow.mlp[0, j, h]) for h in range(3))
            assert float(found["attention"][layer, j]) == pytest.approx(heads)
        for h in range(3):
            total = sum(float(flow.mlp[0, j, h]) for j in range(5))
            assert float(found["heads"][layer, h]) == pytest.approx(total)
    assert torch.equal(found["tokens"][2], flows[1].mlp_total[0].double())
