"""Long texts: no tensor as large as all heads' weights, the same numbers, the same refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama import modeling_llama

from captum_lig import LayerFlowIG, LigError
from captum_lig.model import attention_call
from captum_lig.model.attention_call import AttentionCall, lowest
from captum_lig.prediction import logit
from tests.helpers.drawn_weights import drawn
from tests.helpers.largest import Largest

HEADS, WIDTH, LENGTH, VOCABULARY = 32, 64, 740, 50
SETTINGS: dict[str, Any] = {
    "boundaries": ("layer",),
    "output_indices": [LENGTH - 1, 7],
    "n_steps": 8,
    "tolerance": None,
}


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
    )
    return drawn(AutoModelForCausalLM.from_config(config))


def text(length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_no_tensor_holds_the_weights_of_all_heads(baseline: str) -> None:
    with Largest() as seen:
        LayerFlowIG(llama()).attribute(text(), baseline, **SETTINGS)
    assert LENGTH**2 <= seen.entries < 2 * LENGTH**2  # a mask, and no more


def test_nor_with_a_number_to_explain() -> None:
    other = text()
    other[0, 3] += 1
    lig = LayerFlowIG(llama())
    with Largest() as seen:
        lig.attribute(
            text(), other % VOCABULARY, logit(3), boundaries=("mlp",), n_steps=3, tolerance=None
        )
    assert LENGTH**2 <= seen.entries < 4 * LENGTH**2  # a mask for each point


def squared_weights(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention that is not softmax."""
    groups = module.num_key_value_groups
    key, value = (modeling_llama.repeat_kv(x, groups) for x in (key, value))
    weights = torch.softmax(query @ key.transpose(-1, -2) * scaling + mask, -1) ** 2
    return (weights @ value).transpose(1, 2).contiguous(), weights


@pytest.mark.parametrize("plain", [True, False])
def test_a_target_reads_no_later_token(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """So its row is that of the text that ends with it, which is short."""
    if not plain:  # fused attention is another function: what is recorded shows it
        monkeypatch.setattr(modeling_llama, "eager_attention_forward", squared_weights)
    model: Any = llama()
    model.set_attn_implementation("eager")
    settings = SETTINGS | {"output_indices": [40], "n_steps": 4}
    rows = []
    for ids in (text(), text()[:, :41]):
        (flow,) = LayerFlowIG(model).attribute(ids, "zero", **settings)
        assert (flow.cost.path == "autograd") == (not plain)
        rows.append(flow.need("layer")[0, 0])
    long, short = rows
    torch.testing.assert_close(long[:41], short, rtol=1e-3, atol=1e-3)
    assert not long[41:].any()


class Block(nn.Module):
    """A causal block with one head, and what follows the attention as its kind says."""

    def __init__(self, kind: str, length: int) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.at = nn.Parameter(torch.zeros(length, WIDTH))

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self.qkv(z)[:, None].chunk(3, -1)
        if self.kind == "bends late" and z.shape[1] > 250:
            v = torch.cat([v[:, :, :250], torch.tanh(3 * v[:, :, 250:] - 3)], 2)
        u = functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        r = z + u
        if self.kind == "mixes":
            r = r + torch.cumsum(r, 1) / r.shape[1]
        if self.kind == "knows positions":
            r = r + self.at[: z.shape[1]]
        if self.kind == "a grid":
            r = r.unflatten(1, (20, -1)).flatten(1, 2)
        return r + torch.tanh(self.mlp(r))


class Model(nn.Module):
    def __init__(self, kind: str, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(kind, length)])

    def forward(self, ids: Tensor) -> Tensor:
        return self.blocks[0](self.embedding(ids))  # type: ignore[no-any-return]


@pytest.mark.parametrize("length", [20, 300])
@pytest.mark.parametrize("kind", ["mixes", "knows positions"])
def test_what_cannot_be_split_is_refused_at_any_length(kind: str, length: int) -> None:
    model = drawn(Model(kind, length))
    with pytest.raises(LigError, match=r"split|mixed somewhere else"):
        LayerFlowIG(model).attribute(text(length), "zero", boundaries=("layer",))


@pytest.mark.parametrize("length", [20, 300])
def test_a_block_that_runs_on_all_its_tokens_alone(length: int) -> None:
    flows = [
        LayerFlowIG(drawn(Model(kind, length))).attribute(
            text(length), "zero", boundaries=("layer",), output_indices=[-1, 3]
        )
        for kind in ("a grid", "")
    ]
    grid, plain = (flow[0].need("layer") for flow in flows)
    torch.testing.assert_close(grid, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", ["softcap", "sinks"])
def test_attention_that_torch_has_no_function_for(
    more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are had for some targets after others, and once more for the derivative."""
    heads, length = 6, 90
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = [random(2, n, length, 4).requires_grad_() for n in (heads, 3, 3)]
    mask = torch.full((length, length), -torch.inf).triu(1).expand(1, 1, -1, -1).double()
    call = AttentionCall(
        *made,
        mask,
        0.7,
        softcap=0.9 if more == "softcap" else None,
        sinks=random(heads) if more == "sinks" else None,
    )
    monkeypatch.setattr(attention_call, "LARGE", 2 * heads * length**2 - 1)
    g = random(2, length, heads, 4)
    with Largest() as seen:
        fused = call.fused()
        grads = torch.autograd.grad(fused, made, g)
    assert seen.entries < heads * length**2
    eager = call.softmax_attention()
    torch.testing.assert_close(fused, eager, rtol=1e-12, atol=1e-12)
    for ours, expected in zip(grads, torch.autograd.grad(eager, made, g), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_only_a_causal_mask_is_left_to_torch() -> None:
    causal = torch.full((1, 1, 5, 5), lowest(torch.float32)).triu(1)
    assert attention_call.is_causal(causal)
    for target, source, value in ((3, 1, -1.0), (1, 3, -1.0), (3, 1, lowest(torch.float32))):
        other = causal.clone()
        other[0, 0, target, source] = value
        assert not attention_call.is_causal(other)
    moved = causal.clone()
    moved[0, 0, 1, 3], moved[0, 0, 3, 1] = 0.0, lowest(torch.float32)  # as many entries
    assert not attention_call.is_causal(moved)


def test_a_closed_form_that_fails_on_the_whole_text_alone_is_not_used() -> None:
    """On a few tokens it is right: the last ones of a longer text have other values."""
    flows = [
        LayerFlowIG(drawn(Model(kind, 300))).attribute(
            text(300), "zero", boundaries=("layer",), output_indices=[-1]
        )[0]
        for kind in ("", "bends late")
    ]
    assert [flow.cost.path for flow in flows] == ["closed_form", "run_block"]
