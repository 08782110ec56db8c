"""A family that nobody here has heard of: it uses transformers' interface, and that is enough."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers.families import drawn
from tests.helpers.state import Unchanged
from tests.helpers.twins import by_autograd


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    key, value = (x.repeat_interleave(2, 1) for x in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if attention_mask is not None:
        logits = logits + attention_mask
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sinks], -1)
    weights = logits.softmax(-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2).contiguous(), weights


def causal_mask(config: PretrainedConfig, x: Tensor, attention_mask: Tensor | None) -> Any:
    """transformers' own, whose arguments go by other names in each release."""
    known = {
        "config": config,
        **dict.fromkeys(("inputs_embeds", "input_embeds"), x),
        "attention_mask": attention_mask,
        "cache_position": torch.arange(x.shape[1]),
        **dict.fromkeys(("past_key_values", "cache")),
    }
    asked = signature(create_causal_mask).parameters.values()
    return create_causal_mask(**{p.name: known[p.name] for p in asked if p.default is p.empty})


class TomorrowConfig(PretrainedConfig):
    model_type = "tomorrow"

    def __init__(self, **given: Any) -> None:
        self.hidden_size, self.num_attention_heads, self.num_hidden_layers = 16, 4, 2
        self.vocab_size = 40
        super().__init__(**given)


class TomorrowAttention(nn.Module):
    """Capped logits, sinks, grouped keys, wider values, and a gate that uses z after the core."""

    def __init__(self, config: TomorrowConfig) -> None:
        super().__init__()
        self.config, self.is_causal = config, True
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 12)
        self.gate, self.o = nn.Linear(16, 24), nn.Linear(24, 16)
        self.sinks = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, heads in ((self.q, 4), (self.k, 2), (self.v, 2))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get(
            self.config._attn_implementation, eager_attention_forward
        )
        u, _ = attend(
            self, q, k, v, attention_mask, scaling=0.4, dropout=0.0, softcap=2.0, s_aux=self.sinks
        )
        out: Tensor = self.o(u.flatten(2) * torch.sigmoid(self.gate(x)))
        return out


class TomorrowBlock(nn.Module):
    def __init__(self, config: TomorrowConfig) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), TomorrowAttention(config)
        self.feed = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, *, states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        x = self.norm(states)  # parallel parts
        return (states + self.attention(x, attention_mask) + self.feed(x),)


class TomorrowModel(PreTrainedModel):
    config_class = TomorrowConfig
    _supports_attention_backend = True

    def __init__(self, config: TomorrowConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(40, 16)
        self.stack = nn.ModuleList(TomorrowBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        mask = causal_mask(self.config, x, attention_mask)
        for block in self.stack:
            (x,) = block(states=x, attention_mask=mask)
        return {"states": x}


def test_it_works_without_a_change() -> None:
    with torch.random.fork_rng(devices=[]):
        model = TomorrowModel._from_config(TomorrowConfig(), attn_implementation="eager")
    model = drawn(model)
    inputs = {"input_ids": torch.tensor([[3, 17, 8, 29, 5]])}
    with Unchanged(model, inputs):
        flows = LayerFlowIG(model).attribute(inputs)
        assert isinstance(flows, list)
        plain = LayerFlowIG(model, 1).attribute(inputs, n_steps=8, tolerance=None)
    assert [flow.name for flow in flows] == ["stack.0", "stack.1"]
    for flow in flows:
        for boundary in ("attention", "mlp", "layer"):
            assert float(flow.completeness_error(boundary).max()) <= 1e-3
        assert bool((flow.attention.triu(1) == 0).all())
        assert bool((flow.layer.triu(1) == 0).all())
    assert isinstance(plain, LayerFlow)
    z: list[tuple[Tensor, Any]] = []
    handle = model.stack[1].register_forward_pre_hook(
        lambda _, args, kwargs: z.append((kwargs["states"], kwargs["attention_mask"])),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    (states, mask) = z[0]

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = model.stack[1](states=x, attention_mask=mask)[0]
            return out

    expected = by_autograd(Alone(), states[0], 8)
    torch.testing.assert_close(plain.layer[0], expected, rtol=1e-7, atol=1e-9)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


TABLE = {"sdpa": functional.scaled_dot_product_attention, "eager": by_hand}


class YesterdayAttention(nn.Module):
    """As ModernBERT was: its functions are in a table of its own, which knows no others."""

    def __init__(self, config: TomorrowConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, _: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        u = TABLE[self.config._attn_implementation](q, k, v)
        out: Tensor = self.o(u.transpose(1, 2).flatten(2))
        return out


class YesterdayModel(TomorrowModel):
    _supports_sdpa = True

    def __init__(self, config: TomorrowConfig) -> None:
        super().__init__(config)
        for block in self.stack:
            block.attention = YesterdayAttention(config)


@pytest.mark.parametrize("implementation", TABLE)
def test_a_family_with_a_table_of_its_own(implementation: str) -> None:
    with torch.random.fork_rng(devices=[]):
        model = YesterdayModel._from_config(TomorrowConfig(), attn_implementation=implementation)
    model = drawn(model)
    inputs = {"input_ids": torch.tensor([[3, 17, 8, 29, 5]])}
    with Unchanged(model, inputs):
        flows = LayerFlowIG(model).attribute(inputs, n_steps=8, tolerance=None)
    assert [flow.name for flow in flows] == ["stack.0", "stack.1"]
    seen: list[Tensor] = []
    last = model.stack[1]
    with last.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["states"]), with_kwargs=True
    ):
        model(**inputs)

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = last(states=x)[0]
            return out

    expected = by_autograd(Alone(), seen[0][0].detach(), 8)
    torch.testing.assert_close(flows[1].layer[0], expected, rtol=1e-7, atol=1e-9)
    if implementation == "sdpa":
        assert flows[1].attention.shape == (1, 4, 5, 5)
