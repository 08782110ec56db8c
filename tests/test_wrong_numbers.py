"""No wrong number in silence: what would give one is refused or warned of, and named."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
)

from captum_lig import FlowGraph, LayerFlow, LayerFlowIG, LigError, SetToSetIG, circuits, patching
from captum_lig.metrics import CompletenessErrors, completeness, erasure
from captum_lig.prediction import (
    compare_with_layer_integrated_gradients,
    last_layer_relevance,
    log_probability,
    logit,
    target_value,
)
from tests.helpers import models
from tests.helpers.random_blocks import Options, build

NAN = float("nan")
LAST = (-1, 3)


def decoder(seed: int = 0) -> GPT2LMHeadModel:
    """A language model of two layers."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                   bos_token_id=1, eos_token_id=2, pad_token_id=0)
    )  # fmt: skip
    models.randomise(model, seed)
    return model.double().eval()


IDS = models.tokens(models.tiny_bert(), 1, 5)
OTHER = torch.cat([IDS[:, :1], (7 * IDS[:, 1:] + 5) % 45 + 4], 1)


@contextmanager
def refused(*says: str) -> Iterator[None]:
    with pytest.raises(LigError) as caught:
        yield
    for part in says:
        assert part in str(caught.value), str(caught.value)


def last(output: Any) -> Tensor:
    """A number of a model of this file."""
    return (output if isinstance(output, Tensor) else output[0])[:, -1].tanh().sum(-1)


# ---- not finite ------------------------------------------------------------------------------


class Root(nn.Module):
    """Its value is finite, its gradient is not where a feature is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x).abs().sqrt() + x


@pytest.mark.parametrize("tolerance", [1e-3, None])
def test_gradients_on_the_path(tolerance: float | None) -> None:
    model = models.tiny_bert()
    model.encoder.layer[1].intermediate.intermediate_act_fn = Root().eval()
    with refused("encoder.layer.1", "mlp of target 0 of text 0", "not finite", "5 of 5"):
        LayerFlowIG(model).attribute(IDS, tolerance=tolerance)
    with refused("encoder.layer.1", "feed_forward", "token 0", "not finite"):
        LayerFlowIG(model).attribute(IDS, OTHER, last, tolerance=tolerance)


@pytest.mark.parametrize("token", [1, 3])
def test_vectors_that_are_not_finite(token: int) -> None:
    model = models.tiny_bert()
    good = model.embeddings.word_embeddings(torch.cat([IDS, OTHER])).detach()
    bad = good.clone()
    bad[1, token, 4] = NAN
    named = "encoder.layer.0", f"token {token} of text 1", "entering"
    with refused(*named):
        LayerFlowIG(model).attribute({"inputs_embeds": bad})
    with refused("text 1 of the batch", f"token {token} ", "these inputs"):
        LayerFlowIG(model).attribute({"inputs_embeds": bad}, good, last)
    with refused("text 1 of the batch", f"token {token} ", "the baseline"):
        LayerFlowIG(model).attribute({"inputs_embeds": good}, bad, last)


def test_what_overflows_half_precision() -> None:
    model = models.tiny_gpt2(torch.float16)
    with torch.no_grad():
        model.h[1].mlp.c_proj.weight.mul_(2e4)
    with refused("h.1", "leaving", "float16", "wider dtype"):
        LayerFlowIG(model).attribute(IDS)


def test_sets_that_are_not_finite_on_the_path() -> None:
    x = torch.rand(2, 3, 2, dtype=torch.float64) + 1

    def broken(x: Tensor) -> Tensor:
        middle = (x.detach()[:, 1:2] > 0.5) & (x.detach()[:, 1:2] < 0.9)
        hole = torch.where(middle, NAN, 0.0)
        return torch.cat([x[:, :1], x[:, 1:2] * (1 + hole), x[:, 2:]], 1)

    for tolerance in (None, 1e-3):
        with refused("target 1 of example 0", "not finite"):
            SetToSetIG(broken).attribute(x, tolerance=tolerance)


def test_rows_of_sets_that_miss_are_named() -> None:
    x = torch.ones(2, 2, 1, dtype=torch.float64)

    def steep(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], (3000 * x[:, 1:]).sin()], 1)

    arguments: dict[str, Any] = {"tolerance": 1e-3, "max_steps": 20, "n_steps": 5}
    with pytest.warns(UserWarning, match="target 1 of example 0, target 1 of example 1[.]"):
        SetToSetIG(steep).attribute(x, **arguments)


def test_errors_of_what_is_not_finite() -> None:
    assert completeness(torch.tensor([[1.0, NAN]]), torch.ones(1)).worst != 0
    good = LayerFlowIG(models.tiny_bert(), 0).attribute(IDS)
    assert isinstance(good, LayerFlow)
    bad = replace(good, tensors={**good.tensors, "layer": good.layer.clone().fill_(NAN)})
    for flows in ([good, bad], [bad, good]):
        errors = CompletenessErrors()
        errors.update(flows)
        errors.update(good)
        assert math.isnan(errors.worst()["layer"])
        assert errors.worst()["mlp"] < 1e-3
    with refused("finite"):
        erasure(decoder(), IDS, torch.tensor([[1.0, NAN, 2, 3, 4]]), LAST, OTHER)


# ---- random ----------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Drops whatever the mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weight = inner, getattr(inner, "weight", None)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return dropout(self.inner(x), 0.3, training=True)  # type: ignore[no-any-return]


def test_dropout_between_the_blocks_and_the_number() -> None:
    model = decoder()
    model.transformer.ln_f = Dropping(model.transformer.ln_f)
    asked: dict[str, Callable[[], Any]] = {
        "flows": lambda: LayerFlowIG(model).attribute(IDS, OTHER, LAST),
        "edges": lambda: LayerFlowIG(model).direct_edges(IDS, OTHER, LAST),
        "patching": lambda: patching.effects(model, IDS, OTHER, LAST),
        "erasure": lambda: erasure(model, IDS, torch.rand(1, 5), LAST, OTHER),
    }
    for ask in asked.values():
        torch.manual_seed(1)
        with refused("random"):
            ask()
    with refused("random"), circuits.of_nodes(model, IDS, OTHER, LAST):
        pass


@pytest.mark.parametrize("kind", ["dropout", "training", "batch norm"])
def test_sets_that_are_random_or_reach_each_other(kind: str) -> None:
    model: nn.Module = {
        "dropout": Dropping(nn.Identity()),
        "training": nn.Dropout(0.5),
        "batch norm": nn.BatchNorm1d(3, dtype=torch.float64),
    }[kind]
    with refused("forward_func", "random", ".eval()"):
        SetToSetIG(model).attribute(torch.rand(2, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("baselines", [None, "target_token"])
def test_path_points_of_sets_that_reach_each_other(batch: int, baselines: Any) -> None:
    x = torch.rand(batch, 3, 4, dtype=torch.float64)

    def centred(x: Tensor) -> Tensor:
        return (x - x.mean(0)).tanh() + x**2

    for function in (centred, nn.BatchNorm1d(3, dtype=torch.float64)):
        with refused("forward_func", "reach each other"):
            SetToSetIG(function).attribute(x, baselines)


def test_sets_that_are_worked_on_in_place() -> None:
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    kept = x.clone()

    def in_place(x: Tensor) -> Tensor:
        x[:, 1] += 1
        return x.mul_(2).tanh().cumsum(1)

    def plain(x: Tensor) -> Tensor:
        return (2 * torch.stack([x[:, 0], x[:, 1] + 1, x[:, 2]], 1)).tanh().cumsum(1)

    found, wanted = (SetToSetIG(f).attribute(x) for f in (in_place, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, kept)


def centred(output: Any) -> Tensor:
    each = last(output)
    return each - each.mean()


def largest(output: Any) -> Tensor:
    each = last(output)
    return each / each.abs().max()


@pytest.mark.parametrize("target", [centred, largest])
def test_numbers_that_read_other_texts(target: Any) -> None:
    """Path points and patched copies of a text run together."""
    model = decoder()
    with refused(target.__name__):
        LayerFlowIG(model).attribute(IDS, OTHER, target)
    with refused(target.__name__, "the texts beside it", "internal_batch_size=1"):
        patching.effects(model, IDS, OTHER, target)
    with refused(target.__name__), circuits.of_nodes(model, IDS, OTHER, target):
        pass
    patching.effects(model, IDS, OTHER, target, "tokens", internal_batch_size=1)
    with circuits.of_nodes(model, IDS, OTHER, largest, internal_batch_size=1) as found:
        assert float(found.values(torch.ones(found.count, dtype=torch.bool))) == pytest.approx(
            float(largest(model(IDS))), rel=1e-9
        )


def test_patching_a_number_without_a_gradient() -> None:
    def likeliest(output: Any) -> Tensor:
        return output[0][:, -1].argmax(-1).double()  # type: ignore[no-any-return]

    found = patching.effects(decoder(), IDS, OTHER, likeliest, "tokens")
    assert found.value == float(likeliest(decoder()(IDS)))


def test_a_continuation_is_the_baselines_too() -> None:
    """Patching runs from the padding that the flows start from."""
    model, target = decoder(), log_probability(IDS[0, -2:].tolist())
    flows = LayerFlowIG(model).attribute(IDS, None, target)
    assert isinstance(flows, list)
    found = patching.effects(model, IDS, None, target, "tokens")
    assert found.baseline_value is not None
    assert float(flows[0].tensors["change"]) == pytest.approx(found.value - found.baseline_value)


def first(output: Any) -> Tensor:
    """Another number."""
    return output[0][:, 0, 5] + output[0][:, 2, 7]  # type: ignore[no-any-return]


def test_graphs_of_another_question() -> None:
    """Of as many tokens: its text, its baseline or its number is another one."""
    model, third = decoder(), (3 * IDS + 1) % 45 + 4
    graph = FlowGraph(LayerFlowIG(model).attribute(IDS, OTHER, last))
    own: tuple[Any, ...] = IDS, OTHER, last
    patching.check(graph, model, *own, k=1)
    with circuits.of_nodes(model, *own) as found:
        found.scores(graph)
    compare_with_layer_integrated_gradients(graph, model, last, IDS, OTHER)
    for asked in ((third, OTHER, last), (IDS, third, last), (IDS, OTHER, first)):
        with refused("the same", "changes by"):
            patching.check(graph, model, *asked, k=1)
        with refused("the same", "changes by"), circuits.of_nodes(model, *asked) as found:
            found.scores(graph)
        with refused("the same", "changes by"):
            compare_with_layer_integrated_gradients(graph, model, asked[2], *asked[:2])


def test_arguments_that_would_do_nothing() -> None:
    model = decoder()
    projecting = LayerFlowIG(model, scalarization="projection")
    for ask in (projecting.attribute, projecting.direct_edges):
        with refused("scalarization='projection'", "without a target"):
            ask(IDS, OTHER, last)
    with refused("n_steps=0"):
        LayerFlowIG(model).direct_edges(IDS, OTHER, last, n_steps=0)


# ---- a model that was changed ----------------------------------------------------------------


def linear(inner: int, outer: int) -> nn.Linear:
    made = nn.Linear(inner, outer, dtype=torch.float64).eval()
    models.randomise(made, 3)
    return made


class Adapter(nn.Module):
    """Low-rank, as PEFT wraps linear maps."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a = base, linear(base.in_features, 2)
        self.b = linear(2, base.out_features)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))  # type: ignore[no-any-return]


def write(block: Any) -> None:
    with torch.no_grad():
        block.query.weight.mul_(1.5)


CHANGES: dict[str, Callable[[Any], None]] = {
    "weights": write,
    "projection": lambda b: setattr(b, "out", linear(16, 16)),
    "MLP": lambda b: setattr(b, "down", linear(24, 16)),
    "adapter": lambda b: setattr(b, "down", Adapter(b.down)),
    "dtype": lambda b: b.float() and b.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("site", ["sdpa", "eager"])
def test_what_was_found_out_of_a_model_that_is_another_one_now(site: str, change: str) -> None:
    model, x = build(Options(site=site, causal=True), 5, torch.float64, seed=1)
    start = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    lig = LayerFlowIG(model, [0])
    plain: dict[str, Any] = {"n_steps": 3, "tolerance": None}
    for given in (plain, {**plain, "baselines": start, "target": last}):
        lig.attribute(x, **given)
    CHANGES[change](model.blocks[0])
    for given in (plain, {**plain, "baselines": start, "target": last}):
        (found,), (wanted,) = (
            lig.attribute(x, **given),
            LayerFlowIG(model, [0]).attribute(x, **given),
        )
        assert set(found.tensors) == set(wanted.tensors)
        for name, value in wanted.tensors.items():
            assert torch.equal(found.tensors[name], value), name


def test_dropout_that_was_put_in_meanwhile() -> None:
    model, x = build(Options(causal=True), 5, torch.float64, seed=1)
    lig = LayerFlowIG(model)
    lig.attribute(x)
    model.blocks[0].down = Dropping(model.blocks[0].down)
    with refused("blocks.0", "random"):
        lig.attribute(x)


def test_a_model_that_is_changed_while_it_is_attributed() -> None:
    model = models.tiny_bert()
    runs = 0

    def train(module: nn.Module, *_: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 12:
            with torch.no_grad():
                model.embeddings.word_embeddings.weight.mul_(2)

    model.encoder.layer[0].register_forward_hook(train)
    with refused("embeddings.word_embeddings.weight", "while it was attributed"):
        LayerFlowIG(model).attribute(IDS)


@pytest.mark.parametrize("ask", [circuits.of_nodes, circuits.of_edges])
def test_circuits_of_a_model_that_is_changed_or_left(ask: Any) -> None:
    model = decoder()
    with ask(model, IDS, OTHER, LAST) as found:
        kept = torch.ones(found.count, dtype=torch.bool)
        model.transformer.h[1].mlp.train()
        with refused("transformer.h.1.mlp", "training mode"):
            found.values(kept)
        model.eval()
        found.values(kept)
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.weight.mul_(2)
        with refused("transformer.h.1.mlp.c_fc.weight"):
            found.values(kept)
    with refused("context is left"):
        found.values(kept)


# ---- masks and texts -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.5, 2, -1, -1e9, NAN])
@pytest.mark.parametrize("target", [None, last])
def test_masks_that_are_read_another_way(value: float, target: Any) -> None:
    mask = torch.ones(1, 5, dtype=torch.float64)
    mask[0, 3] = value
    given = {} if target is None else {"baselines": OTHER, "target": target}
    shown = "NaN" if value != value else f"{value:g}"
    with refused("attention_mask", shown, "1 for tokens and 0 for padding"):
        LayerFlowIG(models.tiny_gpt2()).attribute(
            {"input_ids": IDS, "attention_mask": mask}, **given
        )


@pytest.mark.parametrize("shape", [(), (5,)])
def test_masks_without_texts(shape: tuple[int, ...]) -> None:
    inputs = {"input_ids": IDS, "attention_mask": torch.ones(shape)}
    with refused("attention_mask", str(shape), "(B, S)"):
        LayerFlowIG(models.tiny_gpt2()).attribute(inputs)


@pytest.mark.parametrize("family", models.MODELS)
def test_padding_before_a_text(family: str) -> None:
    """Rotary positions are relative, the others are counted from the padding."""
    ids = torch.cat([torch.zeros(1, 2, dtype=torch.long), IDS], 1)
    mask = (ids != 0).long()
    given = {"input_ids": ids, "attention_mask": mask}
    lig = LayerFlowIG(models.MODELS[family](), 1)
    if family == "llama":
        lig.attribute(given)
    else:
        with pytest.warns(UserWarning, match="text 0 has padding before it.*position_ids") as seen:
            lig.attribute(given)
        assert seen[-1].filename == __file__
        other = torch.where(ids > 5, ids - 1, ids)
        with pytest.warns(UserWarning, match="text 0 has padding before it") as seen:
            LayerFlowIG(models.MODELS[family]()).attribute(given, other, last)
        assert {Path(one.filename).name for one in seen} <= {Path(__file__).name, "_script.py"}
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = LayerFlowIG(models.MODELS[family](), 1).attribute({**given, "position_ids": places})
    assert isinstance(found, LayerFlow)
    wanted = LayerFlowIG(models.MODELS[family](), 1).attribute(IDS)
    torch.testing.assert_close(found.layer[:, 2:, 2:], wanted.layer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", models.CAUSAL)
def test_positions_that_start_anew(family: str) -> None:
    """One text with a cache, two packed ones without."""
    model = models.MODELS[family]()
    ids, places = IDS[:, :4], torch.tensor([[0, 1, 0, 1]])
    given = {"input_ids": ids, "position_ids": places}
    with torch.no_grad():
        one, packed = (model(**given, use_cache=use)[0] for use in (True, False))
        seen = model(**given, attention_mask=torch.ones_like(ids))[0]
    assert not torch.allclose(one, packed)
    assert torch.equal(one, seen)
    with refused("position_ids", "attention_mask", "use_cache=False"):
        LayerFlowIG(model).attribute(given)
    with refused("position_ids"):
        target_value(model, last, given)
    whole = {**given, "attention_mask": torch.ones_like(ids)}
    for asked, output in ((whole, one), ({**given, "use_cache": False}, packed)):
        torch.testing.assert_close(target_value(model, last, asked), last((output,)))
    flow = LayerFlowIG(model, 0).attribute({**given, "use_cache": False}, "zero")
    assert isinstance(flow, LayerFlow)
    assert not flow.layer[:, 2:, :2].any()


def test_a_text_that_no_token_of_can_be_read() -> None:
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    mask[1] = -torch.inf
    inputs = {"input_ids": IDS.expand(2, -1), "attention_mask": mask}
    with pytest.warns(UserWarning, match="every token of text 1 is padding"):
        flow = LayerFlowIG(models.tiny_gpt2(), 0).attribute(inputs, "zero")
    assert not flow.layer[1].any()
    assert flow.layer[0].any()


@pytest.mark.parametrize("sides", [(2, 0), (0, 2)])
def test_numbers_that_read_padding(sides: tuple[int, int]) -> None:
    """Something is worked out there, and it is nobody's node."""
    model = decoder()
    ids, other = (pad(x, sides) for x in (IDS, OTHER))
    mask = (ids != 0).long()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}

    def everywhere(output: Any) -> Tensor:
        return output[0][..., 3].sum(-1)  # type: ignore[no-any-return]

    with refused("padding"):
        LayerFlowIG(model).attribute(given, other, everywhere)
    if sides == (0, 2):  # before a text nothing is read, and both runs have the same there
        with refused("reads tokens that are padding"):
            patching.effects(model, given, other, everywhere, "tokens")
        with refused("reads token", "which is padding"):
            last_layer_relevance(model, everywhere, given, other)
    target = logit(3, position=1)
    here, there = (target_value(model, target, x) for x in (IDS, OTHER))
    patching.effects(model, given, other, target, "tokens")
    found = last_layer_relevance(model, target, given, other)
    torch.testing.assert_close(found.sum(-1), (here - there)[0].detach(), rtol=1e-3, atol=1e-9)


def test_ids_that_the_model_does_not_know() -> None:
    model = decoder()
    for ids, other in ((IDS + 60, OTHER), (IDS, OTHER + 60)):
        with refused("token id 97 at position 0"):
            patching.effects(model, ids, other, LAST)
        with refused("token id 97 at position 0"):
            erasure(model, ids, torch.rand(1, 5), LAST, other)
    with refused("token id 97 at position 0"):
        target_value(model, LAST, IDS + 60)


def test_a_graph_of_layers_of_two_texts() -> None:
    flows = [LayerFlowIG(models.tiny_bert()).attribute(ids, "zero") for ids in (IDS, OTHER)]
    for flow, tokens in zip(
        flows, (["a", "b", "c", "d", "e"], ["a", "f", "g", "h", "i"]), strict=True
    ):
        flow[:] = [LayerFlow(**{**vars(f), "tokens": [tokens]}) for f in flow]
    FlowGraph(flows[0])
    with refused("layer 1", "'f'", "layer 0", "'b'", "one call"):
        FlowGraph([flows[0][0], flows[1][1]])


ARGUMENTS: dict[str, dict[str, Any]] = {
    "which logits": {"logits_to_keep": torch.tensor([1, 2, 0])},
    "positions": {
        "position_ids": torch.tensor([4, 0, 7]),
        "attention_mask": torch.ones(3, 3, dtype=torch.long),  # without, it reads packed texts
    },
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_as_many_texts_as_an_argument_has_tokens(arguments: str) -> None:
    """An axis of three tokens is none of three texts."""
    model, more = decoder(), ARGUMENTS[arguments]
    ids = torch.cat([IDS[:, :3], IDS[:, 1:4], IDS[:, 2:]])
    other = (7 * ids + 5) % 45 + 4
    target = (1, 3)
    with torch.no_grad():
        here, there = (
            torch.stack([model(input_ids=one, **more).logits[n, 1, 3] for n in range(3)])
            for one in (ids, other)
        )
    given = {"input_ids": ids, **more}
    flows = LayerFlowIG(model).attribute(given, other, target)
    assert isinstance(flows, list)
    torch.testing.assert_close(flows[0].tensors["change"], here - there, rtol=1e-9, atol=1e-9)
    for text in range(3):
        found = patching.effects(model, given, other, target, "tokens", text=text)
        assert found.value == pytest.approx(float(here[text]), rel=1e-9)
        assert found.baseline_value == pytest.approx(float(there[text]), rel=1e-9)
    erased = erasure(model, given, torch.rand(3, 3), target, other)
    torch.testing.assert_close(
        torch.tensor([one.value for one in erased]).double(), here, rtol=1e-6, atol=1e-6
    )


def test_texts_in_the_output_of_an_encoder() -> None:
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1,
                   encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=20,
                   decoder_ffn_dim=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                   forced_eos_token_id=None)
    )  # fmt: skip
    models.randomise(model, 0)
    model = model.double().eval()
    ids, other = (torch.cat([x[:, :3], x[:, 2:]]) for x in (IDS, OTHER))
    with torch.no_grad():
        given = {"decoder_input_ids": ids, "encoder_outputs": model.model.encoder(ids + 1)}
        here, there = (
            model(**{**given, "decoder_input_ids": x}).logits[:, -1, 3] for x in (ids, other)
        )
    flows = LayerFlowIG(model).attribute(given, {"decoder_input_ids": other}, LAST)
    assert isinstance(flows, list)
    torch.testing.assert_close(flows[0].tensors["change"], here - there, rtol=1e-9, atol=1e-9)
    found = patching.effects(model, given, {"decoder_input_ids": other}, LAST, "tokens", text=1)
    assert found.value == pytest.approx(float(here[1]), rel=1e-9)
