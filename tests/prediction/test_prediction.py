"""From a scalar to the last layer's tokens and down the graph, against loops from definitions."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from rich.console import Console
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import ModelOutput

from captum_lig import FlowGraph, LayerFlow, LayerFlowIG, LigError
from captum_lig.prediction import (
    class_logit,
    compare_with_layer_integrated_gradients,
    cosine,
    direct_relevance,
    last_layer_relevance,
    layer_baselines,
    logit,
    logit_difference,
    token_baseline,
)
from captum_lig.prediction.comparison import RelevanceComparison, compare
from captum_lig.pretrained.minilm import embedded_model_path
from captum_lig.views.relevance_table import relevance_table
from tests.helpers import models

FAMILIES = ("bert", "gpt2", "llama")
DIRECTION = torch.randn(models.WIDTH, generator=torch.Generator().manual_seed(5)).double()


def read(model: nn.Module) -> Callable[..., Tensor]:
    """A scalar of the user's own: something not linear of the last token."""

    def scalar(*args: Any, **kwargs: Any) -> Tensor:
        hidden = model(*args, **kwargs).last_hidden_state
        return torch.tanh(hidden[:, -1] @ DIRECTION.to(hidden) / 8)

    return scalar


def flows_of(model: nn.Module, inputs: Any, baseline: Any = "zero", **settings: Any) -> Any:
    settings = {"boundaries": ("attention", "mlp")} | settings
    return LayerFlowIG(model).attribute(inputs, baseline, **settings)


def small_causal(seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=models.WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
    )
    return models.randomised(LlamaForCausalLM(config), seed=seed)


# --- the twin: Integrated Gradients of the rest of the model, from its definition -----------------


def streams(model: Any, ids: Tensor) -> list[Tensor]:
    """What enters each block, and what leaves the last one, ``(S, D)`` each."""
    ends = [
        models.block_input_output(model, n, input_ids=ids) for n in range(len(blocks_of(model)))
    ]
    return [entering[0] for entering, _ in ends] + [ends[-1][1][0]]


def blocks_of(model: Any) -> nn.ModuleList:
    return models.blocks(model)


def with_stream(model: Any, place: int, z: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """``run()`` with the stream at one place replaced by ``z (S, D)``."""
    blocks = blocks_of(model)

    def enter(module: nn.Module, args: Any) -> Any:
        return (z[None], *args[1:])

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return z[None]

    if place < len(blocks):
        handle = blocks[place].register_forward_pre_hook(enter)
    else:
        handle = blocks[-1].register_forward_hook(leave)
    try:
        return run()
    finally:
        handle.remove()


def twin_direct(model: Any, ids: Tensor, start: Tensor, nodes: int = 60) -> list[list[float]]:
    """Relevance of each token at each place: a loop over places, nodes and tokens."""
    scalar = read(model)
    x, w = np.polynomial.legendre.leggauss(nodes)
    rows = []
    ends = zip(streams(model, start), streams(model, ids), strict=True)
    for place, (z0, z1) in enumerate(ends):
        gradient = torch.zeros_like(z1)
        for node, weight in zip((x + 1) / 2, w / 2, strict=True):
            z = (z0 + float(node) * (z1 - z0)).requires_grad_()
            with_stream(model, place, z, lambda: scalar(ids)[0]).backward()
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
        FlowGraph(flows), model, read(model), ids, start, n_steps=60
    )
    direct = torch.tensor(twin_direct(model, ids, start), dtype=torch.float64)
    # Captum casts its step sizes to float32.
    torch.testing.assert_close(comparison.direct, direct, rtol=1e-6, atol=1e-7)
    carried = twin_carried(flows, direct[-1].tolist())
    torch.testing.assert_close(
        comparison.carried, torch.tensor(carried, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    with torch.no_grad():
        change = float(read(model)(ids) - read(model)(start))
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
        attributions, delta = LayerIntegratedGradients(read(model), block).attribute(
            ids, 4, n_steps=11, method="riemann_middle", return_convergence_delta=True
        )
        tokens, ours = last_layer_relevance(
            model,
            read(model),
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
        last_layer_relevance(model, read(model), ids, 4, n_steps=11, method="riemann_middle"),
        tokens,
    )


def test_a_mapping_tensors_and_batches_of_path_points() -> None:
    model = models.tiny_bert()
    inputs = models.padded_batch(model, (5,))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    whole = last_layer_relevance(model, read(model), inputs, 7)
    assert whole.shape == (5,)
    assert whole.dtype == torch.float64
    parts = last_layer_relevance(
        model, read(model), ids, 7, internal_batch_size=8, additional_forward_args=(mask,)
    )
    torch.testing.assert_close(parts, whole)
    both = last_layer_relevance(model, read(model), (ids, mask), (7, mask))
    torch.testing.assert_close(both, whole)
    start = layer_baselines(model, (ids, mask), (7, mask))
    torch.testing.assert_close(start, layer_baselines(model, inputs, torch.full_like(ids, 7)))


def test_blocks_that_give_tuples() -> None:
    model = models.tiny_llama()
    ids = models.tokens(model, 1, 5)
    plain = direct_relevance(model, read(model), ids).tokens
    for block, following in zip(blocks_of(model), (blocks_of(model)[1], model.norm), strict=True):
        block.register_forward_hook(lambda module, args, output: (output, None))
        following.register_forward_pre_hook(lambda module, args: (args[0][0], *args[1:]))
    torch.testing.assert_close(direct_relevance(model, read(model), ids).tokens, plain)


@pytest.mark.parametrize("kind", [dict, ModelOutput, list])
def test_blocks_that_give_records_and_take_names_of_their_own(kind: type) -> None:
    model = models.tiny_llama()
    ids = models.tokens(model, 1, 5)
    plain = direct_relevance(model, read(model), ids).tokens
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
    torch.testing.assert_close(direct_relevance(model, read(model), ids).tokens, plain)


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
    comparison = compare_with_layer_integrated_gradients(graph, model, read(model), ids)
    assert comparison.layers == (0, 1, 2, 3)
    assert comparison.direct_delta[1:].abs().max() < 1e-4 * abs(comparison.change)
    assert not torch.allclose(comparison.direct[0], comparison.direct[1])


def test_padding_is_left_out() -> None:
    model = models.tiny_bert()
    alone = models.padded_batch(model, (5,))
    padded = {name: nn.functional.pad(value, (0, 3)) for name, value in alone.items()}

    def mean(**kwargs: Any) -> Tensor:
        hidden = model(**kwargs).last_hidden_state[:, :5]
        return hidden.mean(1) @ DIRECTION

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
            graph, model, logit(model, 7), ids, other, rule=rule
        )
        whole = torch.tensor([0, 0, comparison.change, 0, 0, 0], dtype=torch.float64)
        torch.testing.assert_close(comparison.carried[0], whole, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(comparison.direct[0], whole, rtol=1e-3, atol=1e-6)


# --- scalars --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small_causal, None])
def test_logits(make: Any) -> None:
    """With and without a model that can leave the logits of other tokens out."""
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    model = make() if make else models.randomised(GPT2LMHeadModel(config))
    if not make:
        whole, model.forward = model.forward, None

        def forward(input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            return whole(input_ids=input_ids, attention_mask=attention_mask)

        model.forward = forward
    batch = models.padded_batch(model, (5, 3))
    with torch.no_grad():
        logits = model(**batch).logits
    for position, rows in ((-1, (4, 2)), (0, (0, 0)), (2, (2, 2)), (-3, (2, 0))):
        wanted = torch.stack([logits[b, row] for b, row in enumerate(rows)])
        torch.testing.assert_close(logit(model, 7, position)(**batch).detach(), wanted[:, 7])
        torch.testing.assert_close(
            logit_difference(model, 7, 9, position)(**batch).detach(), wanted[:, 7] - wanted[:, 9]
        )
    torch.testing.assert_close(logit(model, 3)(batch["input_ids"][:1]).detach(), logits[:1, -1, 3])


def test_class_logit() -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        label2id={"bad": 0, "good": 1, "neither": 2},
        id2label={0: "bad", 1: "good", 2: "neither"},
    )
    model = models.randomised(BertForSequenceClassification(config))
    batch = models.padded_batch(model, (5, 3))
    with torch.no_grad():
        logits = model(**batch).logits
    torch.testing.assert_close(class_logit(model, "neither")(**batch).detach(), logits[:, 2])
    torch.testing.assert_close(class_logit(model, 1)(**batch).detach(), logits[:, 1])
    with pytest.raises(LigError, match="'fine' is no class"):
        class_logit(model, "fine")
    with pytest.raises(LigError, match="label=3"):
        class_logit(model, 3)(**batch)


def test_cosine() -> None:
    model = models.tiny_bert()
    batch = models.padded_batch(model, (5, 3))
    other = models.padded_batch(model, (4,), seed=1)
    with torch.no_grad():
        hidden, one = model(**batch).last_hidden_state, model(**other).last_hidden_state[0]
    means = torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
    for pooling, mine, theirs in (("mean", means, one.mean(0)), ("cls", hidden[:, 0], one[0])):
        wanted = (mine @ theirs) / (mine.norm(dim=-1) * theirs.norm())
        torch.testing.assert_close(cosine(model, other, pooling)(**batch).detach(), wanted)


def test_a_baseline_without_content() -> None:
    class Tokenizer:
        pad_token_id, eos_token_id = 0, 2
        all_special_ids = (0, 1, 2)

    ids = torch.tensor([[0, 0, 1, 9, 8, 2]])
    kept = token_baseline(ids, Tokenizer())  # type: ignore[arg-type]
    assert kept.tolist() == [[0, 0, 1, 0, 0, 2]]
    assert token_baseline(ids, Tokenizer(), 5).tolist() == [[0, 0, 1, 5, 5, 2]]  # type: ignore[arg-type]
    assert token_baseline(ids, Tokenizer(), 5, keep_special=False).tolist() == [[5] * 6]  # type: ignore[arg-type]
    inputs = {"input_ids": ids[:, 2:] + 5, "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    assert token_baseline(inputs, Tokenizer()).tolist() == [[0, 14, 0, 0]]  # type: ignore[arg-type]
    Tokenizer.pad_token_id = None  # type: ignore[assignment]
    assert token_baseline(ids, Tokenizer()).tolist() == [[0, 0, 1, 2, 2, 2]]  # type: ignore[arg-type]


# --- what is compared -----------------------------------------------------------------------------


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
    whole = direct_relevance(model, read(model), ids)
    part = compare_with_layer_integrated_gradients(
        FlowGraph(flows[1:3]), model, read(model), ids, layers=[2, 1]
    )
    assert part.layers == (1, 2, 3)
    torch.testing.assert_close(part.direct, whole.tokens[1:4])
    few = compare(FlowGraph(flows), direct_relevance(model, read(model), ids, layers=[0, 3]))
    every = compare(FlowGraph(flows), whole)
    torch.testing.assert_close(few.carried, every.carried[[0, 3, 4]])
    torch.testing.assert_close(few.direct, every.direct[[0, 3, 4]])


# --- what is wrong is said, and nothing is left on the model --------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_errors_name_what_was_given() -> None:
    model = models.tiny_gpt2()
    ids = models.tokens(model, 1, 5)
    graph = FlowGraph(flows_of(model, ids))
    scalar = read(model)

    def twice(x: Tensor) -> Tensor:
        return scalar(x) + scalar(x)

    def wrong(call: Callable[[], Any], words: str) -> None:
        with pytest.raises(LigError, match=words):
            call()
        assert hooks(model) == 0

    relevance, bridge = last_layer_relevance, compare_with_layer_integrated_gradients
    wrong(lambda: relevance(model, twice, ids), "exactly once")
    wrong(lambda: relevance(model, lambda x: torch.ones(1), ids), "exactly once")
    wrong(lambda: relevance(model, lambda x: scalar(x)[0], ids), r"\(\) for one text")
    wrong(lambda: relevance(model, lambda x: scalar(x) / 0, ids), "finite")
    wrong(lambda: relevance(model, scalar, ids.expand(2, -1)), "2 texts")
    wrong(lambda: relevance(model, scalar, ids, ids[:, :4]), "does not fit")
    wrong(lambda: relevance(model, scalar, ids, ids.double()), "token ids")
    wrong(lambda: relevance(model, scalar, ids, 0.7), "baseline=0.7, and .* give a token id")
    wrong(lambda: relevance(model, scalar, ids, method="gausslegendre_graded"), "is unknown")
    wrong(lambda: relevance(model, scalar, ids, n_steps=0), "n_steps=0")
    wrong(lambda: relevance(model, scalar, ids, internal_batch_size=0), "internal_batch_size=0")
    wrong(lambda: relevance(model, scalar, ids, (0, 0)), "2 baselines for 1 inputs")
    wrong(lambda: relevance(model, scalar, ids, layer=2), "out of range")
    wrong(lambda: relevance(model, scalar, ids, layer="wte"), "'wte' is no block")
    wrong(lambda: relevance(model, scalar, {"attention_mask": ids}), "attention_mask")
    wrong(lambda: direct_relevance(model, scalar, ids, layers=[1], last=0), "comes after")
    wrong(lambda: bridge(graph, model, scalar, ids[:, :4]), "5 tokens, the inputs of 4")
    wrong(lambda: compare(graph, direct_relevance(model, scalar, ids, last=0)), "end with the same")
    wrong(lambda: bridge(graph, model, scalar, ids).measures("mean"), "no map 'mean'")
    wrong(lambda: logit(model, 3)(ids), "gives no logits")
    wrong(lambda: cosine(model, ids, "max"), "pooling 'max'")
    wrong(lambda: cosine(model, ids.expand(2, -1)), "2 texts")
    causal = small_causal()
    wrong(lambda: logit(causal, 50)(ids), "token=50")
    wrong(lambda: logit(causal, 1, 5)(ids), "position 5")
    wrong(lambda: logit(causal, 1, -6)(ids), "position -6")
    wrong(lambda: logit(causal, 1, 1.5)(ids), "position=1.5")  # type: ignore[arg-type]
    wrong(lambda: class_logit(causal, 1)(ids), "logits of shape")
    model.train()
    wrong(lambda: relevance(model, scalar, ids), "training mode")


# --- real weights ---------------------------------------------------------------------------------


def conserves(model: Any, scalar: Any, inputs: Any, start: Tensor, baseline: Any) -> None:
    settings = {"self_term": "zero_ratio"} if baseline == "zero_ratio" else {}
    chosen = "target_token" if settings else baseline
    graph = FlowGraph(flows_of(model, inputs, chosen, **settings))
    relevance, delta = last_layer_relevance(
        model, scalar, inputs, start, n_steps=20, return_convergence_delta=True
    )
    for rule in ("conserve", "chain"):
        tokens = graph.relevance(start=relevance, rule=rule).tokens
        assert len(tokens) == len(graph.layers) + 1
        gap = (tokens.sum(-1) - relevance.sum()).abs()
        assert bool((gap <= 1e-5 * relevance.sum().abs()).all())
    with torch.no_grad():
        change = scalar(**inputs) - scalar(**{**inputs, "input_ids": start})
    assert float((relevance.sum() - change).abs()) <= 1e-4 * float(change.abs())
    assert float(delta.abs()) <= 1e-4 * float(change.abs())


@pytest.mark.filterwarnings("ignore:.*not within tolerance")
@pytest.mark.parametrize("baseline", ["zero", "target_token", "zero_ratio", "layer_baselines"])
def test_minilm_conserves(baseline: str) -> None:
    try:
        folder = embedded_model_path()
    except LigError:
        pytest.skip("the embedded model is not installed")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = dict(tokenizer("The keys are on the table.", return_tensors="pt"))
    scalar = cosine(model.eval(), tokenizer("Where are my keys?", return_tensors="pt"))
    start = token_baseline(inputs, tokenizer)
    chosen = layer_baselines(model, inputs, start) if baseline == "layer_baselines" else baseline
    conserves(model, scalar, inputs, start, chosen)


@pytest.mark.filterwarnings("ignore:.*not within tolerance")
@pytest.mark.parametrize("baseline", ["zero", "layer_baselines"])
def test_smollm2_conserves(baseline: str) -> None:
    """Where ``SMOLLM2`` names the folder of a converted SmolLM2-135M."""
    folder = os.environ.get("SMOLLM2", "")
    if not Path(folder, "config.json").is_file():
        pytest.skip("SMOLLM2 does not name a folder with SmolLM2-135M")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = dict(tokenizer("The keys to the cabinet", return_tensors="pt"))
    start = tokenizer("The key to the cabinet", return_tensors="pt")["input_ids"]
    are, is_ = (tokenizer(word)["input_ids"][0] for word in (" are", " is"))
    chosen = layer_baselines(model, inputs, start) if baseline == "layer_baselines" else baseline
    conserves(model, logit_difference(model, are, is_), inputs, start, chosen)
