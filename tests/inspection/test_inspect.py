"""What is found in a model is what it was built with; what cannot be used is said, not raised."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    Gemma2Config,
    Gemma2Model,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from captum_lig import LayerFlowIG, LigError, ModelReport, inspect_model
from captum_lig.inspection.inspect import mask_kind
from captum_lig.paths.norm import Norm, recognise_norm
from captum_lig.views.model_table import model_table
from tests.helpers import models
from tests.helpers.embedded import minilm_folder

EVERYTHING = ("attention", "mlp", "layer", "influence")


def mistral(window: int | None) -> PreTrainedModel:
    return models.randomised(
        MistralModel(MistralConfig(**models.GROUPED, sliding_window=window)), torch.float32
    )


def inspected(model: PreTrainedModel, length: int = 7) -> ModelReport:
    report = inspect_model(model, {"input_ids": models.tokens(model, 1, length)})
    agrees_with_itself(report)
    return report


def agrees_with_itself(report: ModelReport) -> None:
    """What holds for whatever model."""
    assert [block.index for block in report.blocks] == list(range(len(report.blocks)))
    for block in report.blocks:
        assert (block.not_supported is None) == (block.boundaries == EVERYTHING)
        if block.not_supported is None:
            errors = block.forward_error
            assert errors is not None
            assert set(errors) == {"attention", "block"}
            assert max(errors.values()) < 1e-5
    json.dumps(report.to_json(), allow_nan=False)


def shown(report: ModelReport) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(model_table(report))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    return text


# --- what is found ------------------------------------------------------------------------------


def test_bert() -> None:
    report = inspected(models.tiny_bert(torch.float32, layers=3))
    assert report.class_name == "BertModel"
    assert report.not_supported == ()
    assert [block.name for block in report.blocks] == [f"encoder.layer.{i}" for i in range(3)]
    (modules,) = report.module_lists
    assert (modules.name, modules.class_name) == ("encoder.layer", "BertLayer")
    assert (modules.count, modules.reached) == (3, 3)
    for block in report.blocks:
        assert block.norm == Norm("identity")
        assert (block.keys_know_position, block.values_know_position) == (False, False)
        assert block.paths == {"zero": "closed_form", "target_token": "closed_form"}
        assert (block.tokens, block.width, block.dtype) == (7, 32, "float32")
        attention = block.attention
        assert attention is not None
        assert (attention.heads, attention.key_value_heads) == (4, 4)
        assert (attention.head_width, attention.value_width) == (8, 8)
        assert attention.scaling == pytest.approx(8**-0.5)
        assert (attention.mask, attention.reach, attention.bias) == ("full", None, False)
        # 4 d^2 + 4 d of attention, 2 (2 d^2) + 3 d of feed-forward, two norms of 2 d
        assert block.parameters == 4 * 32**2 + 4 * 32 + 4 * 32**2 + 3 * 32 + 4 * 32


def test_gpt2() -> None:
    for block in inspected(models.tiny_gpt2(torch.float32, eps=1e-4)).blocks:
        assert block.norm == Norm("layer", 1e-4)
        assert block.keys_know_position is False
        assert block.attention is not None
        assert (block.attention.mask, block.attention.reach) == ("causal", None)
        assert block.boundaries == EVERYTHING


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_llama(dtype: torch.dtype) -> None:
    for block in inspected(models.tiny_llama(dtype, eps=1e-4)).blocks:
        assert block.norm == Norm("rms", 1e-4)
        assert (block.keys_know_position, block.values_know_position) == (True, False)
        assert block.attention is not None
        assert (block.attention.heads, block.attention.key_value_heads) == (4, 2)
        assert block.dtype == str(dtype).removeprefix("torch.")


def test_norms_on_keys_have_a_closed_form_for_target_tokens() -> None:
    model = models.randomised(Qwen3Model(Qwen3Config(**models.GROUPED)), torch.float32)
    for block in inspected(model).blocks:
        assert block.norm is not None
        assert block.norm.kind == "rms"
        assert block.paths == {"zero": "run_block", "target_token": "closed_form"}
        assert (block.keys_know_position, block.values_know_position) == (True, False)
        assert block.boundaries == EVERYTHING


@pytest.mark.parametrize(("window", "reach"), [(3, 2), (6, 5), (7, None), (99, None), (None, None)])
def test_sliding_window(window: int | None, reach: int | None) -> None:
    report = inspected(mistral(window), length=7)
    for block in report.blocks:
        assert block.attention is not None
        assert (block.attention.mask, block.attention.reach) == ("causal", reach)
        assert block.boundaries == EVERYTHING
    text = shown(report)
    assert (f"sliding window of {window}" in text) == (reach is not None)


def test_window_on_either_side_and_blocks_of_two_kinds() -> None:
    config = ModernBertConfig(
        **{**models.SHAPE, "num_hidden_layers": 5},
        cls_token_id=1,
        sep_token_id=2,
        local_attention=4,
        global_attn_every_n_layers=3,
    )
    report = inspected(models.randomised(ModernBertModel(config), torch.float32), length=9)
    found = [block.attention for block in report.blocks]
    assert [None if a is None else a.mask for a in found] == ["full"] * 5
    assert [None if a is None else a.reach for a in found] == [None, 2, 2, None, 2]
    # The first block has no norm before its attention, so there are three kinds.
    assert [block.norm == Norm("identity") for block in report.blocks] == [True] + [False] * 4
    text = shown(report)
    (heading, more) = (line.split() for line in text.splitlines() if line.startswith("blocks"))
    assert (heading, more) == (["blocks", "0", "1-2,4"], ["blocks", "3"])
    assert "window of 2 on either" in text


def test_softcap_is_seen_and_the_verdict_is_that_of_an_attribution() -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
    model = models.randomised(
        Gemma2Model(Gemma2Config(**models.GROUPED, **kinds, attn_logit_softcapping=1.5)),
        torch.float32,
    )
    report = inspected(model)
    attentions = [block.attention for block in report.blocks]
    for attention, reach in zip(attentions, [2, None], strict=True):
        assert attention is not None
        assert "1.5" in attention.arguments["softcap"]
        assert attention.reach == reach
    assert "softcap (1.5)" in " ".join(shown(report).split())
    assert_attribution_agrees(model, report)


def assert_attribution_agrees(model: PreTrainedModel, report: ModelReport) -> None:
    """Each boundary can be attributed if the report says so, and only then."""
    ids = models.tokens(model, 1, 4)
    for block in report.blocks:
        for boundary in ("attention", "mlp"):
            lig = LayerFlowIG(model, layer=block.index)
            if boundary in block.boundaries:
                lig.attribute(ids, n_steps=2, tolerance=None, boundaries=(boundary,))
            else:
                with pytest.raises(LigError):
                    lig.attribute(ids, n_steps=2, tolerance=None, boundaries=(boundary,))


class AcrossTokens(nn.Module):
    """A projection whose output at a token depends on the token before."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)
        return output + output.roll(1, -2)


def test_a_block_that_cannot_be_cut_is_refused_and_its_neighbour_is_not() -> None:
    model = models.tiny_bert(torch.float32)
    model.encoder.layer[1].output.dense = AcrossTokens(model.encoder.layer[1].output.dense)
    model.eval()
    report = inspected(model)
    first, second = report.blocks
    assert first.boundaries == EVERYTHING
    assert second.boundaries == ()
    assert second.not_supported is not None
    assert report.not_supported == (f"block 1: {second.not_supported}",)
    assert_attribution_agrees(model, report)
    text = " ".join(shown(report).split())
    assert "supported: block 0: attention, mlp, layer, influence" in text
    assert "not supported: block 1: it " in text


def test_half_precision_is_looked_at_on_a_copy() -> None:
    report = inspected(models.tiny_llama(torch.bfloat16))
    assert report.dtype == "bfloat16"
    for block in report.blocks:
        assert block.dtype == "float32"
        assert block.norm == Norm("rms", 1e-5)


def test_first_text_of_a_padded_batch_is_looked_at_without_its_padding() -> None:
    model = models.tiny_gpt2(torch.float32)
    batch = models.padded_batch(model, (5, 7))
    alone = {"input_ids": batch["input_ids"][:1, :5]}
    found, expected = (inspect_model(model, x).blocks for x in (batch, alone))
    for left, right in zip(found, expected, strict=True):
        assert left.attention == right.attention
        assert left.norm == right.norm
        assert (left.tokens, right.tokens) == (7, 5)


@pytest.mark.parametrize("family", models.MODELS)
def test_model_is_left_as_it_was(family: str) -> None:
    model = models.MODELS[family](torch.float32)
    ids = models.tokens(model, 1, 5)
    before = model.config._attn_implementation, model(ids).last_hidden_state
    inspect_model(model, ids)
    assert model.config._attn_implementation == before[0]
    assert torch.equal(model(ids).last_hidden_state, before[1])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())


def test_minilm() -> None:
    folder = minilm_folder()
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    report = inspect_model(model, tokenizer("The cat sat on the mat.", return_tensors="pt"))
    agrees_with_itself(report)
    assert report.parameters == 22_713_216
    assert report.not_supported == ()
    assert [block.norm for block in report.blocks] == [Norm("identity")] * 6
    assert "0-5" in shown(report)


# --- what cannot be worked with -----------------------------------------------------------------


class Bag(nn.Module):
    """Token ids to vectors; ``layers`` of tokens without attention."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(9, 4), layers

    def forward(self, input_ids: Tensor) -> Tensor:
        z: Tensor = self.embed(input_ids)
        for layer in self.layers.children():
            z = layer(z)
        return z


@pytest.mark.parametrize(
    "layers",
    [nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Sequential(nn.Linear(4, 4))],
)
def test_a_model_without_attention(layers: nn.Module) -> None:
    model = Bag(layers).eval()
    report = inspect_model(model, torch.tensor([[1, 2, 3]]))
    assert report.not_supported
    assert all("attention" not in block.boundaries for block in report.blocks)
    text = " ".join(shown(report).split())
    assert "not supported: " in text
    found = [(m.name, m.class_name, m.count) for m in report.module_lists]
    assert found == [("layers", "Linear", len(layers))]


def test_a_model_that_fails_under_our_interface() -> None:
    class Picky(Bag):
        def __init__(self) -> None:
            super().__init__(nn.ModuleList([nn.Identity()]))
            self.config = models.tiny_bert(layers=1).config

        def forward(self, input_ids: Tensor) -> Tensor:
            if self.config._attn_implementation not in ("eager", "sdpa"):
                raise NotImplementedError("picky")
            return super().forward(input_ids)

    report = inspect_model(Picky().eval(), torch.tensor([[1, 2, 3]]))
    (reason,) = report.not_supported
    assert "NotImplementedError: picky" in reason
    assert report.blocks == ()


def test_activations_that_are_not_finite_are_no_crash() -> None:
    model = models.tiny_bert(torch.float32)
    model.encoder.layer[0].output.dense.bias.data[0] = float("nan")
    report = inspected(model)
    (reason,) = report.not_supported
    assert "block 'encoder.layer.0'" in reason
    assert "not finite" in reason
    assert f"not supported: {reason}" in " ".join(shown(report).split())


@pytest.mark.parametrize(
    ("change", "inputs", "said"),
    [
        (lambda model: model.train(), torch.tensor([[4, 5]]), "training mode"),
        (lambda model: model, "text", "give a tensor"),
        (lambda model: model, torch.tensor([[4]]), "one token"),
        (lambda model: model, torch.tensor([[4, 99]]), "token id 99 at position 1 of text 0"),
        (lambda model: "model", torch.tensor([[4, 5]]), "model is a str"),
    ],
)
def test_bad_input_is_an_error(change: Callable[[Any], Any], inputs: Any, said: str) -> None:
    with pytest.raises(LigError, match=said):
        inspect_model(change(models.tiny_bert(torch.float32)), inputs)


# --- the parts ----------------------------------------------------------------------------------


def literally(allowed: list[list[bool]]) -> tuple[str, int | None]:
    """Kind and reach of a mask by trying all that there are."""
    n = len(allowed)
    places = [(j, i) for j in range(n) for i in range(n)]
    for reach in range(n):
        kept = None if reach == n - 1 else reach
        if all(allowed[j][i] == (0 <= j - i <= reach) for j, i in places):
            return "causal", kept
        if all(allowed[j][i] == (abs(j - i) <= reach) for j, i in places):
            return "full", kept
    return "other", None


@given(data=st.data(), n=st.integers(2, 6), heads=st.integers(1, 3), bias=st.booleans())
def test_kind_of_a_mask(data: st.DataObject, n: int, heads: int, bias: bool) -> None:
    reach, causal = data.draw(st.integers(0, n - 1)), data.draw(st.booleans())
    allowed = [[(j >= i or not causal) and abs(j - i) <= reach for i in range(n)] for j in range(n)]
    if data.draw(st.booleans()):  # one place is another way
        j, i = data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
        allowed[j][i] = not allowed[j][i]
    open_ = torch.tensor(allowed).expand(heads, n, n)
    if not bool(open_.any()):
        return
    mask = torch.full((heads, n, n), 0.5 if bias else 0.0)
    mask = mask.masked_fill(~open_, torch.finfo(torch.float32).min)
    assert mask_kind(mask) == (*literally(allowed), bias)


def test_heads_with_masks_of_their_own_are_another_kind() -> None:
    mask = torch.zeros(2, 3, 3)
    mask[1].masked_fill_(torch.ones(3, 3).triu(1).bool(), -1e38)
    assert mask_kind(mask) == ("other", None, False)
    assert mask_kind(None) == ("full", None, False)


def test_the_norm_that_fits_best_is_found_where_tokens_have_next_to_no_mean() -> None:
    """LayerNorm reproduces these keys to 1e-4, RMSNorm to rounding."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 32, generator=generator)
    z = z - z.mean(-1, keepdim=True) + 0.005
    weight = torch.randn(32, 32, generator=generator)

    def pre(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        keys = (normed @ weight).unsqueeze(1)
        return keys, keys, keys

    assert recognise_norm(pre, z, [1e-5]) == Norm("rms", 1e-5)


@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_a_norm_has_to_fit_queries_keys_and_values(spoiled: int) -> None:
    """And what is not a number fits nothing."""
    z = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def pre(x: torch.Tensor, factor: float) -> tuple[torch.Tensor, ...]:
        normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        tables = [normed[:, None]] * 3
        tables[spoiled] = tables[spoiled] + factor * x.square()[:, None]
        return tuple(tables)

    assert recognise_norm(lambda x: pre(x, 0.0), z, [1e-5]) == Norm("rms", 1e-5)
    assert recognise_norm(lambda x: pre(x, 0.1), z, [1e-5]) is None
    assert recognise_norm(lambda x: pre(x, torch.nan), z, [1e-5]) is None
