"""The benchmark of attributions beside patching: truth, rivals and measures from definitions.

The twin runs whole Hugging Face models with one hook at a time; the benchmark runs blocks, in
batches, and in causal models only the tokens from the first that differs on.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.patching import __main__ as command
from benchmarks.patching import cases, chain, measures, passes, relp
from benchmarks.patching.gradients import attribution_patching, integrated
from benchmarks.patching.layer_ig import layer_integrated_gradients, left_in_place
from benchmarks.patching.net import KINDS, Net, Question, Scores
from benchmarks.patching.others import chance, rollout, shares_of_lengths
from benchmarks.patching.truth import effects
from captum_lig.errors import LigError
from captum_lig.prediction import direct_relevance
from tests.helpers import models
from tests.helpers.correlations import mean_ranks, pearson

LENGTH, CHANGED, WORDS = 6, 2, (7, 11)
"""Tokens from `CHANGED` on differ in the decoder's texts, but for one."""


def llama(bias: bool = True) -> Any:
    shape = {**models.GROUPED, "attention_bias": bias, "mlp_bias": bias}
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(LlamaConfig(**shape))
    models.randomise(model, 0)
    for block in model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(block, name)
            setattr(block, name, models.ExactRMSNorm(norm.weight, norm.variance_epsilon))
    model.model.norm = models.ExactRMSNorm(model.model.norm.weight, 1e-5)
    return model.double().eval()


def difference(output: Any) -> Tensor:
    return output.logits[:, -1, WORDS[0]] - output.logits[:, -1, WORDS[1]]


def similarity(output: Any) -> Tensor:
    other = torch.linspace(-1, 1, models.WIDTH, dtype=torch.float64)[None]
    return torch.cosine_similarity(output.last_hidden_state.mean(1), other)


def asked(kind: str) -> Question:
    """A decoder whose texts share their beginning, or an encoder whose texts share two tokens."""
    model: Any = llama() if kind == "llama" else models.tiny_bert()
    ids, other = (models.tokens(model, 1, LENGTH, seed) for seed in (1, 2))
    same = [*range(CHANGED), 4] if kind == "llama" else [0, LENGTH - 1]
    other[0, same] = ids[0, same]
    read, words = (difference, WORDS) if kind == "llama" else (similarity, ())
    case = cases.Case(kind, "", "", {"input_ids": ids}, {"input_ids": other}, read, words)
    return Question(Net(model), case)


def without_prefix(question: Question) -> Question:
    return Question(question.net, question.case, prefix=False)


# --- the twin -----------------------------------------------------------------------------------


def sites(model: Any) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where the nodes are: a module, and whether its input or its output is read."""
    if isinstance(model, LlamaForCausalLM):
        blocks = list(model.model.layers)
        heads = [block.self_attn.o_proj for block in blocks]
        mlps = [block.mlp.down_proj for block in blocks]
    else:
        blocks = list(model.encoder.layer)
        heads = [block.attention.output.dense for block in blocks]
        mlps = [block.output.dense for block in blocks]
    stream = [(block, "in") for block in blocks] + [(blocks[-1], "out")]
    return {
        "stream": stream,
        "heads": [(module, "in") for module in heads],
        "mlp": [(module, "out") for module in mlps],
    }


@contextmanager
def watched(site: tuple[nn.Module, str], see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a function see, and replace, a value of a module in a run of the whole model."""
    module, end = site
    if end == "in":
        handle = module.register_forward_pre_hook(lambda _, args: (see(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, args, output: see(output))
    with handle:
        yield


def twin_run(question: Question, ids: dict[str, Tensor], see: Any = None) -> Any:
    """Values of all nodes ``(T, width)`` and the target of the whole model, differentiable."""
    found: dict[str, list[Tensor]] = {"stream": [], "heads": [], "mlp": []}
    with ExitStack() as stack:
        for place, modules in sites(question.net.model).items():
            for layer, site in enumerate(modules):

                def keep(x: Tensor, place: str = place, layer: int = layer) -> Tensor:
                    x = x if see is None else see(place, layer, x)
                    found[place].append(x)
                    return x

                stack.enter_context(watched(site, keep))
        value = question.case.read(question.net.model(**ids))
    return found, value


def twin_nodes(question: Question) -> Iterator[tuple[str, str, int, int, Any]]:
    """Kind, place, layer, number and the part of ``(T, width)`` of every node."""
    count, heads = len(question.net.blocks), question.net.heads
    width = models.WIDTH // heads
    for layer in range(count + 1):
        for j in range(LENGTH):
            yield "tokens", "stream", layer, j, (j, slice(None))
    for layer in range(count):
        for j in range(LENGTH):
            yield "attention", "heads", layer, j, (j, slice(None))
            yield "mlp", "mlp", layer, j, (j, slice(None))
        for h in range(heads):
            yield "heads", "heads", layer, h, (slice(None), slice(h * width, (h + 1) * width))


def twin_effects(question: Question) -> tuple[Scores, Scores]:
    """One run of the whole model for each node and direction."""
    texts = question.case.inputs, question.case.baseline
    with torch.no_grad():
        (ours, value), (theirs, base) = (twin_run(question, ids) for ids in texts)
    count, heads = len(question.net.blocks), question.net.heads
    shapes = {"tokens": (count + 1, LENGTH), "heads": (count, heads)}
    out, into = (
        {k: torch.zeros(shapes.get(k, (count, LENGTH))).double() for k in KINDS} for _ in range(2)
    )
    for kind, place, layer, number, part in twin_nodes(question):

        def put(other: Tensor, part: Any = part) -> Callable[[Tensor], Tensor]:
            def see(x: Tensor) -> Tensor:
                x = x.clone()
                x[0][part] = other[0][part]
                return x

            return see

        site = sites(question.net.model)[place][layer]
        with torch.no_grad():
            with watched(site, put(theirs[place][layer])):
                out[kind][layer, number] = value - question.case.read(
                    question.net.model(**texts[0])
                )
            with watched(site, put(ours[place][layer])):
                into[kind][layer, number] = (
                    question.case.read(question.net.model(**texts[1])) - base
                )
    return out, into


def twin_gradients(question: Question, parts: list[float]) -> Scores:
    """Gradients of every node, averaged over runs from interpolated embeddings, times changes."""
    with torch.no_grad():
        runs = [twin_run(question, x)[0] for x in (question.case.inputs, question.case.baseline)]
    start, end = runs[1]["stream"][0], runs[0]["stream"][0]
    total: Any = {place: [0] * len(values) for place, values in runs[0].items()}
    for part in parts:

        def see(place: str, layer: int, x: Tensor, part: float = part) -> Tensor:
            if (place, layer) == ("stream", 0):
                return (start + part * (end - start)).requires_grad_()
            return x

        found, value = twin_run(question, question.case.inputs, see)
        for place, values in found.items():
            for layer, gradient in enumerate(torch.autograd.grad(value, values, retain_graph=True)):
                total[place][layer] = total[place][layer] + gradient / len(parts)
    times = {
        place: torch.stack(
            [
                (total[place][layer] * (runs[0][place][layer] - runs[1][place][layer]))[0]
                for layer in range(len(total[place]))
            ]
        )
        for place in total
    }
    heads = times["heads"].unflatten(-1, (question.net.heads, -1)).sum(-1)
    return {
        "tokens": times["stream"].sum(-1),
        "attention": heads.sum(-1),
        "mlp": times["mlp"].sum(-1),
        "heads": heads.sum(1),
    }


def same(ours: Scores, theirs: Scores, within: float = 1e-10) -> None:
    assert set(ours) == set(theirs)
    for kind in ours:
        assert ours[kind].shape == theirs[kind].shape, kind
        size = float(theirs[kind].abs().max())
        assert size > 1e-3, f"{kind}: nothing to compare"
        assert float((ours[kind] - theirs[kind]).abs().max()) < within * size, kind


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


# --- cases, costs and measures ------------------------------------------------------------------


def test_passes_are_counted_by_the_work_of_the_blocks() -> None:
    question = asked("llama")
    blocks = question.net.blocks
    z = torch.randn(2, LENGTH, models.WIDTH, dtype=torch.float64)
    whole = without_prefix(question)
    with passes.counted(blocks, LENGTH) as cost:
        whole.value(z[:1])
        whole.value(z, start=1)  # two texts, half of the blocks
    assert cost.forward == pytest.approx(2)
    assert cost.backward == 0
    with passes.counted(blocks, LENGTH) as cost:
        question.gradients(question.input.stream[0])
    assert cost.forward == pytest.approx(1 - CHANGED / LENGTH)
    assert cost.backward == pytest.approx(1 - CHANGED / LENGTH)


def test_compared_and_interval() -> None:
    s, t = [3.0, -1.0, -1.0, 2.0, 0.5], [2.5, 0.0, -3.0, 2.0, 2.0]
    found = measures.compared(torch.tensor(s), torch.tensor(t))
    assert found["pearson"] == pytest.approx(pearson(s, t))
    assert found["spearman"] == pytest.approx(pearson(mean_ranks(s), mean_ranks(t)))
    norm = math.sqrt(sum(x * x for x in t))
    off = math.sqrt(sum((x - y) ** 2 for x, y in zip(s, t, strict=True)))
    assert found["distance"] == pytest.approx(off / norm)
    assert math.isnan(measures.compared(torch.ones(3), torch.arange(3))["pearson"])
    values = [float(x) for x in range(100)]
    row = measures.interval([*values, math.nan])
    assert (row["mean"], row["texts"]) == (49.5, 100)
    half = 1.96 * math.sqrt(sum((x - 49.5) ** 2 for x in values) / 100) / 10
    assert row["low"] == pytest.approx(49.5 - half, abs=0.5)
    assert row["high"] == pytest.approx(49.5 + half, abs=0.5)


def test_nodes_that_did_not_move_are_not_compared() -> None:
    moved = {"mlp": torch.tensor([[False, True, True], [True, True, False]])}
    truth = torch.tensor([[9.0, 1.0, 2.0], [3.0, 4.0, 9.0]])
    scores = {"mlp": torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 0.0]])}
    (row,) = measures.against(scores, {"mean": {"mlp": truth}}, moved)
    assert (row["distance"], row["size"]) == (0, 1)
    layers = measures.by_layer(scores, {"mlp": truth}, moved)
    assert [(one["layer"], one["distance"]) for one in layers] == [(0, 0), (1, 0)]


class Words:
    """A tokenizer of one token a word, but for one word."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str, return_tensors: str | None = None) -> dict[str, Any]:
        found = [w for word in text.split() for w in ([word] * 2 if word == "key" else [word])]
        ids = [self.known.setdefault(word, len(self.known)) for word in found]
        return {"input_ids": torch.tensor([ids]) if return_tensors else ids}


def test_prompts_that_cannot_be_used_are_counted() -> None:
    tokenizer = Words()
    plurals = [noun + "s" for noun in cases.NOUNS.split() if noun != "child"]
    for word in ("is", "are", *plurals):
        tokenizer(word)

    def model(input_ids: Tensor) -> Any:
        """Looks at the noun, and is always for " is" after "box" and "boxs"."""
        noun = int(input_ids[0, 1])
        plural = noun in [tokenizer.known[one] for one in plurals if one != "boxs"]
        logits = torch.zeros(1, input_ids.shape[1], 500)
        logits[0, -1, tokenizer.known["are" if plural else "is"]] = 1
        return SimpleNamespace(logits=logits)

    dropped = cases.Dropped()
    count = len(cases.NOUNS.split()) - 3
    found = list(cases.prompts(model, tokenizer, "agreement", count, dropped))
    assert len(found) == count
    # "key" is two tokens; the model is wrong on "boxs" and, as "children" is no plural, there.
    assert (dropped.length, dropped.answer) == (1, 2)
    for case in found:
        assert float(case.read(model(**case.inputs))) > 0 > float(case.read(model(**case.baseline)))
        assert case.words == tuple(
            tokenizer(" are" if one else " is")["input_ids"][0]
            for one in ((case.text.split()[1] in plurals), (case.other.split()[1] in plurals))
        )


def test_the_command_writes_every_method_and_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        command.load(None)
    except LigError:
        pytest.skip("the embedded model is not installed")
    corpus, out = tmp_path / "lines.txt", tmp_path / "out.json"
    corpus.write_text("A small dog ran over the wide field.\nTwo men sat in a boat on the lake.\n")
    given = ["patching", "--corpus", str(corpus), "--sentences", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    command.main()
    printed = capsys.readouterr()
    assert "agreement, objects, capitals left out" in printed.err
    found = json.loads(out.read_text())
    (text,) = found["texts"]
    assert set(text["costs"]) == {"patching", *command.methods()}
    rows = {(row["method"], row["kind"], row["truth"]): row for row in text["rows"]}
    for method in ("RelP", "EAP-IG path, 16", "chance"):
        for kind in KINDS:
            for truth in ("out", "into", "mean"):
                assert math.isfinite(rows[method, kind, truth]["pearson"])
    assert rows["LayerIntegratedGradients", "tokens", "mean"]["pearson"] > 0.5
    for method in command.methods():
        assert f"| {method} |" in printed.out
