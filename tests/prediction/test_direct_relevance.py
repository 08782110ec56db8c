"""Relevance of a target to the tokens of a layer, against Integrated Gradients by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel
from transformers.utils import ModelOutput

from captum_lig import FlowGraph, LayerFlow, LigError
from captum_lig.prediction import (
    compare_with_layer_integrated_gradients,
    direct_relevance,
    last_layer_relevance,
    layer_baselines,
    logit,
)
from captum_lig.prediction.comparison import compare
from tests.helpers import models
from tests.helpers.models import blocks as blocks_of
from tests.helpers.readings import DIRECTION, flows_of, hooks, read, small_causal, with_stream

FAMILIES = ("bert", "gpt2", "llama")


# --- the twin: Integrated Gradients of the rest of the model, from its definition -----------------


def streams(model: Any, ids: Tensor) -> list[Tensor]:
    """What enters each block, and what leaves the last one, ``(S, D)`` each."""
    ends = [
        models.block_input_output(model, n, input_ids=ids) for n in range(len(blocks_of(model)))
    ]
    return [entering[0] for entering, _ in ends] + [ends[-1][1][0]]


def twin_direct(model: Any, ids: Tensor, start: Tensor, nodes: int = 60) -> list[list[float]]:
    """Relevance of each token at each place: a loop over places, nodes and tokens."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    rows = []
    ends = zip(streams(model, start), streams(model, ids), strict=True)
    for place, (z0, z1) in enumerate(ends):
        gradient = torch.zeros_like(z1)
        for node, weight in zip((x + 1) / 2, w / 2, strict=True):
            z = (z0 + float(node) * (z1 - z0)).requires_grad_()
            with_stream(model, place, z, lambda: read(model(ids))[0]).backward()
            assert z.grad is not None
            gradient += float(weight) * z.grad
        rows.append([float(gradient[i] @ (z1 - z0)[i]) for i in range(len(z1))])
    return rows


def twin_carried(flows: list[LayerFlow], start: list[float]) -> list[list[float]]:
    """The rule conserve, edge by edge, in Python's numbers."""
    rows = [start]
    for flow in reversed(flows):
        assert flow.attention is not None
        assert flow.mlp is not None
        assert flow.residual is not None
        attention, mlp, residual = flow.attention[0], flow.mlp[0], flow.residual[0]
        below = [0.0] * len(start)
        for j, relevance in enumerate(rows[0]):
            total = float(mlp[j].sum() + residual[j])
            below[j] += relevance * float(residual[j]) / total
            for h in range(len(attention)):
                passed_on = relevance * float(mlp[j, h]) / total
                whole = float(attention[h, j].sum())
                for i in range(len(start)):
                    below[i] += passed_on * float(attention[h, j, i]) / whole
        rows.insert(0, below)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_twin(family: str) -> None:
    model = models.MODELS[family]()
    ids, start = models.tokens(model, 1, 6), models.tokens(model, 1, 6, seed=1)
    flows = flows_of(model, ids, layer_baselines(model, ids, start), tolerance=1e-7)
    comparison = compare_with_layer_integrated_gradients(
        FlowGraph(flows), model, read, ids, start, rule="conserve", n_steps=60
    )
    direct = torch.tensor(twin_direct(model, ids, start), dtype=torch.float64)
    # Captum casts its step sizes to float32.
    torch.testing.assert_close(comparison.direct, direct, rtol=1e-6, atol=1e-7)
    carried = twin_carried(flows, direct[-1].tolist())
    torch.testing.assert_close(
        comparison.carried, torch.tensor(carried, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    with torch.no_grad():
        change = float(read(model(ids)) - read(model(start)))
    assert comparison.change == pytest.approx(change, rel=1e-12)
    delta = comparison.direct.sum(-1) - comparison.change
    torch.testing.assert_close(comparison.direct_delta, delta, rtol=1e-9, atol=1e-9)
    assert comparison.carried_delta.abs().max() < 1e-5 * abs(change)
    assert comparison.layers == (0, 1, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_what_captum_gives(family: str) -> None:
    model = models.MODELS[family]()
    ids = models.tokens(model, 1, 7)
    for block in blocks_of(model):
        attributions, delta = LayerIntegratedGradients(
            lambda ids: read(model(ids)), block
        ).attribute(ids, 4, n_steps=11, method="riemann_middle", return_convergence_delta=True)
        tokens, ours = last_layer_relevance(
            model,
            read,
            ids,
            4,
            layer=block,
            n_steps=11,
            method="riemann_middle",
            return_convergence_delta=True,
        )
        torch.testing.assert_close(tokens, attributions[0].sum(-1))
        torch.testing.assert_close(ours, delta)
    torch.testing.assert_close(  # the last one is the default
        last_layer_relevance(model, read, ids, 4, n_steps=11, method="riemann_middle"),
        tokens,
    )


def test_a_mapping_tensors_and_batches_of_path_points() -> None:
    model = models.tiny_bert()
    inputs = models.padded_batch(model, (5,))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    whole = last_layer_relevance(model, read, inputs, 7)
    assert whole.shape == (5,)
    assert whole.dtype == torch.float64
    parts = last_layer_relevance(
        model, read, ids, 7, internal_batch_size=8, additional_forward_args=(mask,)
    )
    torch.testing.assert_close(parts, whole)
    both = last_layer_relevance(model, read, (ids, mask), (7, mask))
    torch.testing.assert_close(both, whole)
    start = layer_baselines(model, (ids, mask), (7, mask))
    torch.testing.assert_close(start, layer_baselines(model, inputs, torch.full_like(ids, 7)))


def test_blocks_that_give_tuples() -> None:
    model = models.tiny_llama()
    ids = models.tokens(model, 1, 5)
    plain = direct_relevance(model, read, ids).tokens
    for block, following in zip(blocks_of(model), (blocks_of(model)[1], model.norm), strict=True):
        block.register_forward_hook(lambda module, args, output: (output, None))
        following.register_forward_pre_hook(lambda module, args: (args[0][0], *args[1:]))
    torch.testing.assert_close(direct_relevance(model, read, ids).tokens, plain)


@pytest.mark.parametrize("kind", [dict, ModelOutput, list])
def test_blocks_that_give_records_and_take_names_of_their_own(kind: type) -> None:
    model = models.tiny_llama()
    ids = models.tokens(model, 1, 5)
    plain = direct_relevance(model, read, ids).tokens
    for block, following in zip(blocks_of(model), (blocks_of(model)[1], model.norm), strict=True):

        def named(x: Tensor, inner: Any = block.forward, **kwargs: Any) -> Any:
            output = inner(x, **kwargs)
            return [output, None] if kind is list else kind({"out": output, "more": ids})

        def out_of_it(module: nn.Module, args: Any) -> Any:
            (given, *further) = args
            return (given[0] if kind is list else given["out"], *further)

        following.register_forward_pre_hook(out_of_it)
        block.register_forward_pre_hook(
            lambda module, args, kwargs: ((), {"x": args[0], **kwargs}), with_kwargs=True
        )
        block.forward = named
    torch.testing.assert_close(direct_relevance(model, read, ids).tokens, plain)


def test_a_block_that_runs_several_times() -> None:
    config = AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = models.randomised(AlbertModel(config))
    ids = models.tokens(model, 1, 5)
    graph = FlowGraph(flows_of(model, ids))
    comparison = compare_with_layer_integrated_gradients(graph, model, read, ids)
    assert comparison.layers == (0, 1, 2, 3)
    assert comparison.direct_delta[1:].abs().max() < 1e-4 * abs(comparison.change)
    assert not torch.allclose(comparison.direct[0], comparison.direct[1])


def test_padding_is_left_out() -> None:
    model = models.tiny_bert()
    alone = models.padded_batch(model, (5,))
    padded = {name: nn.functional.pad(value, (0, 3)) for name, value in alone.items()}

    def mean(output: Any) -> Tensor:
        return output.last_hidden_state[:, :5].mean(1) @ DIRECTION

    torch.testing.assert_close(
        direct_relevance(model, mean, padded).tokens, direct_relevance(model, mean, alone).tokens
    )
    graph = FlowGraph(flows_of(model, padded))
    comparison = compare_with_layer_integrated_gradients(graph, model, mean, padded)
    assert comparison.carried.shape == comparison.direct.shape == (3, 5)


def test_with_the_paths_of_the_baseline_only_what_differs_is_relevant() -> None:
    """Both explain the same change: at layer 0 all of it is the token that was exchanged."""
    model = small_causal()
    ids = models.tokens(model, 1, 6)
    other = ids.clone()
    other[0, 2] = ids[0, 2] % 40 + 4
    assert other[0, 2] != ids[0, 2]
    graph = FlowGraph(flows_of(model, ids, layer_baselines(model, ids, other)))
    for rule in ("conserve", "chain"):
        comparison = compare_with_layer_integrated_gradients(
            graph, model, logit(7), ids, other, rule=rule
        )
        whole = torch.tensor([0, 0, comparison.change, 0, 0, 0], dtype=torch.float64)
        torch.testing.assert_close(comparison.carried[0], whole, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(comparison.direct[0], whole, rtol=1e-3, atol=1e-6)


# --- what is wrong is said, and nothing is left on the model --------------------------------------


def test_errors_name_what_was_given() -> None:
    model = models.tiny_gpt2()
    ids = models.tokens(model, 1, 5)
    graph = FlowGraph(flows_of(model, ids))

    def twice(output: Any) -> Tensor:
        return read(output) + read(model(ids))

    def wrong(call: Callable[[], Any], words: str) -> None:
        with pytest.raises(LigError, match=words):
            call()
        assert hooks(model) == 0

    relevance, bridge = last_layer_relevance, compare_with_layer_integrated_gradients
    wrong(lambda: relevance(model, twice, ids), "from one run of the model")
    wrong(lambda: relevance(model, lambda x: torch.ones(1), ids), "does not depend")
    wrong(lambda: relevance(model, lambda x: read(x).detach(), ids), "does not depend")
    wrong(lambda: relevance(model, lambda x: read(x)[0], ids), r"\(\) for 1 text:")
    wrong(lambda: relevance(model, lambda x: read(x) / 0, ids), "finite")
    wrong(lambda: relevance(model, read, ids.expand(2, -1)), "2 texts")
    wrong(lambda: relevance(model, read, ids, ids[:, :4]), "does not fit")
    wrong(lambda: relevance(model, read, ids, method="gausslegendre_graded"), "is unknown")
    wrong(lambda: relevance(model, read, ids, n_steps=0), "n_steps=0")
    wrong(lambda: relevance(model, read, ids, internal_batch_size=0), "internal_batch_size=0")
    wrong(lambda: relevance(model, read, ids, layer=2), "out of range")
    wrong(lambda: relevance(model, read, ids, layer="wte"), "'wte' is no block")
    wrong(lambda: relevance(model, read, {"attention_mask": ids}), "attention_mask")
    wrong(lambda: direct_relevance(model, read, ids, layers=[1], last=0), "comes after")
    wrong(lambda: bridge(graph, model, read, ids[:, :4]), "5 tokens, the inputs of 4")
    wrong(lambda: compare(graph, direct_relevance(model, read, ids, last=0)), "end with the same")
    wrong(lambda: bridge(graph, model, read, ids).measures("mean"), "no map 'mean'")
    model.train()
    wrong(lambda: relevance(model, read, ids), "training mode")
