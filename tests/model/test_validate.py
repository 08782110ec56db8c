"""A split block that is not the block is refused, with one sentence that says what was seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2Model
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from captum_lig import Block, LayerFlow, LayerFlowIG, LigError, SetToSetIG
from captum_lig.model import hf_attention as interface
from tests.helpers import models
from tests.helpers.families import FAMILIES, drawn, noise
from tests.helpers.sdpa_blocks import HEADS, LENGTH, WIDTH, Attending, Model
from tests.helpers.state import Unchanged


def refused(model: nn.Module, x: Any, *says: str, **given: Any) -> None:
    with pytest.raises(LigError) as caught:
        LayerFlowIG(model).attribute(x, **given)
    for words in says:
        assert words in str(caught.value), str(caught.value)


class Mixing(Attending):
    """What follows the attention looks across tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + x.mean(1, keepdim=True)


class Deaf(Attending):
    """It calls the attention and mixes tokens in another way, without order or places."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return x + self.out(x.mean(1, keepdim=True) + x)  # type: ignore[no-any-return]


class Peeking(Attending):
    """Its attention is causal, and then it looks at what follows all the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.roll(-1, 1)


class Forgetful(Attending):
    """It keeps a state."""

    def forward(self, x: Tensor) -> Tensor:
        self.times = getattr(self, "times", 0) + 1
        return super().forward(x) * self.times


class Dropping(Model):
    """It leaves its last block out in every second run."""

    def forward(self, x: Tensor) -> Tensor:
        self.times = getattr(self, "times", 0) + 1
        for block in list(self.blocks)[: 2 - self.times % 2]:
            x = block(x)
        return x


class Windows(Attending):
    """Attention in windows, each a sequence of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 2, x.shape[-1])).reshape(x.shape)


def test_a_block_that_does_not_run_each_time() -> None:
    model = drawn(Dropping(Attending({}), Attending({})))
    refused(model, noise(2, LENGTH, WIDTH), "blocks.1", "Attending", "layerdrop")


@pytest.mark.parametrize(
    ("block", "length", "says"),
    [
        (Mixing({}), LENGTH, ("something else", "each token by itself")),
        (Deaf({}), LENGTH, ("depends on other tokens", "scaled_dot_product_attention")),
        (Peeking({"is_causal": True}), LENGTH, ("target 1 depends on source 2", "forbids")),
        (Forgetful({}), LENGTH, ("something else", "state")),
        (Windows({}), 4, ("2 sequences", "2 targets", "windows")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_blocks_that_are_not_what_they_seem(
    block: nn.Module, length: int, says: tuple[str, ...]
) -> None:
    model = drawn(Model(block))
    refused(model, noise(1, length, WIDTH), "blocks.0", type(block).__name__, *says)


def test_what_the_sentence_recommends_works() -> None:
    model = drawn(Model(Mixing({})))
    flow = LayerFlowIG(model, [Block(model.blocks[0])]).attribute(
        noise(1, LENGTH, WIDTH), boundaries=("layer",)
    )[0]
    assert float(flow.completeness_error("layer").max()) <= 1e-3


def test_a_random_block() -> None:
    class Random(Attending):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand_like(x)

    model = drawn(Model(Random({})))
    with torch.random.fork_rng(devices=[]):
        refused(model, noise(1, LENGTH, WIDTH), "something else while it is recorded")


def test_a_mask_that_gets_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causality gone without a word: the block is not what it is in the unmodified model."""
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, interface.NAME, lambda *_, **__: None)
    model = models.tiny_gpt2()
    model.set_attn_implementation("eager")
    refused(model, models.tokens(model, 1, 4), "h.0", "GPT2Block", "while it is recorded", "eager")


def test_attention_of_another_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no softmax of scaled products is run as it is."""
    from transformers.models.gpt2 import modeling_gpt2

    own = modeling_gpt2.eager_attention_forward

    def squared(*args: Any, **kwargs: Any) -> Any:
        output, weights = own(*args, **kwargs)
        return output**2, weights

    monkeypatch.setattr(modeling_gpt2, "eager_attention_forward", squared)
    model = models.tiny_gpt2()
    model.set_attn_implementation("eager")
    ids = models.tokens(model, 1, 4)
    with Unchanged(model, {"input_ids": ids}):
        flow = LayerFlowIG(model, 0).attribute(ids, "zero", n_steps=5, tolerance=None)
    assert isinstance(flow, LayerFlow)
    assert flow.cost is not None
    assert flow.cost.path == "autograd"
    z = models.block_input_output(model, 0, input_ids=ids)[0]
    mask = torch.full((4, 4), -1e30, dtype=z.dtype).triu(1)[None, None]
    block = models.blocks(model)[0]
    expected = SetToSetIG(lambda x: block(x, attention_mask=mask)).attribute(z, n_steps=5)
    torch.testing.assert_close(flow.layer, expected, rtol=1e-6, atol=1e-8)


def test_a_stack_in_a_stack() -> None:
    """Blocks in stages, and an expert's layers in a Sequential that is no block."""
    stages = [Model(Attending({}), Attending({})), Model(Attending({}), Attending({}))]
    model = drawn(Model(*stages))
    flows = LayerFlowIG(model).attribute(noise(1, 3, WIDTH), n_steps=2, tolerance=None)
    names = [flow.name for flow in flows]
    assert names == [f"blocks.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]


def test_one_token() -> None:
    model = drawn(GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=20)))
    flow = LayerFlowIG(model, 0).attribute(torch.tensor([[3]]), "zero", n_steps=4, tolerance=None)
    assert flow.layer.shape == (1, 1, 1)


def test_sinks_and_cap_are_part_of_the_formula() -> None:
    """The formula that the cut is checked against, on its own."""
    from captum_lig.model.attention_call import AttentionCall

    q, k, v = noise(1, HEADS, 3, 4), noise(1, 2, 3, 4), noise(1, 2, 3, 6)
    plain = AttentionCall(q, k, v, None, 0.5)
    expected = functional.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(plain.eager().transpose(1, 2), expected)
    sinks = torch.full((HEADS,), -1e9, dtype=torch.float64)
    weak = AttentionCall(q, k, v, None, 0.5, 1e6, sinks)
    torch.testing.assert_close(weak.eager(), plain.eager())
    strong = AttentionCall(q, k, v, None, 0.5, None, sinks.neg())
    assert float(strong.eager().abs().max()) < 1e-6


def test_a_model_that_is_not_finite_by_itself() -> None:
    """Windows, padding and float64: its own mask is an infinity in its float32 softmax."""
    family = next(family for family in FAMILIES if family.name == "gemma2")
    model = family.build()
    model.set_attn_implementation("eager")
    inputs = {
        "input_ids": torch.tensor([[7, 19, 5, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }
    refused(
        model, inputs, "layers.1", "not finite when the model runs by itself", "without padding"
    )


@pytest.mark.parametrize("repeated", [2, 5])
def test_repeated_tokens_are_no_difference(repeated: int) -> None:
    """Tokens that are all alike differ by nothing, and rounding is not held against that."""
    model = models.tiny_llama(dtype=torch.float32)
    ids = models.tokens(model, 1, 5)
    ids[0, :repeated] = ids[0, 0]
    flow = LayerFlowIG(model, 1).attribute({"input_ids": ids}, baselines="zero", max_steps=4096)
    assert bool((flow.layer_total > 0).all())
