"""The cross boundary: an encoder's tokens to the heads of a decoder's cross-attention.

The twin knows nothing of the cut. The model runs as it is, a hook keeps what a block's
cross-attention got, and that module is run again on states along the path: one target, one head
and one node at a time, with autograd for the gradient by the states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.bart import modeling_bart

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.explain import Explanation
from captum_lig.io.flows import load_flows, save_flows
from tests.helpers import families, models
from tests.helpers.state import Unchanged

ENCODER = torch.tensor([[11, 45, 23, 8, 31]])
DECODER = torch.tensor([[1, 9, 23]])


@dataclass(frozen=True)
class Case:
    kind: str
    attention: str
    """The cross-attention in a block, and the module whose input is its output by head."""
    out: str
    inputs: Callable[[], dict[str, Any]]

    def model(self) -> nn.Module:
        return families.built(self.kind)()


def texts() -> dict[str, Any]:
    return {"input_ids": ENCODER, "decoder_input_ids": DECODER}


def sound() -> dict[str, Any]:
    return {"input_features": families.noise(1, 8, 8), "decoder_input_ids": DECODER}


CASES = [
    Case("t5", "layer.1.EncDecAttention", "o", texts),
    Case("bart", "encoder_attn", "out_proj", texts),
    Case("whisper", "encoder_attn", "out_proj", sound),
]
BART = CASES[1]


class Twin:
    """A block's cross-attention by itself: states (S, D) to u (T, H * d)."""

    def __init__(self, model: nn.Module, name: str, case: Case, inputs: dict[str, Any]) -> None:
        self.module = model.get_submodule(f"{name}.{case.attention}")
        self.out = self.module.get_submodule(case.out)
        calls: list[tuple[Any, Any]] = []
        handle = self.module.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        with torch.no_grad():
            model(**inputs, use_cache=False)
        handle.remove()
        self.args, self.kwargs = calls[0]
        self.states = self.kwargs["key_value_states"][0]

    def __call__(self, states: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.module(*self.args, **{**self.kwargs, "key_value_states": states[None]})
        finally:
            handle.remove()
        return seen[0][0]

    def row(self, start: Tensor, j: int, channels: slice, scalarization: str) -> Tensor:
        """Attributions (S,) of one head of one target, from the definition."""
        step = self.states - start
        with torch.no_grad():
            first, last = self(start)[j, channels], self(self.states)[j, channels]
        direction = (last - first) / (last - first).norm()
        row = torch.zeros(len(step), dtype=step.dtype)
        nodes, weights = np.polynomial.legendre.leggauss(40)
        for x, w in zip(nodes, weights, strict=True):
            states = (start + (x + 1) / 2 * step).requires_grad_()
            change = self(states)[j, channels] - first
            value = change.norm() if scalarization == "l2" else change @ direction
            (gradient,) = torch.autograd.grad(value, states)
            row += w / 2 * (gradient * step).sum(-1)
        return row


def cross_of(model: nn.Module, inputs: dict[str, Any], **given: Any) -> list[LayerFlow]:
    scalarization = given.pop("scalarization", "l2")
    lig = LayerFlowIG(model, scalarization=scalarization)
    flows = lig.attribute(inputs, boundaries=("cross",), **given)
    assert isinstance(flows, list)
    return flows


@pytest.mark.parametrize(
    ("baseline", "scalarization"), [("zero", "l2"), ("mean", "projection"), (0.2, "l2")]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_rows_are_those_of_the_definition(case: Case, baseline: Any, scalarization: str) -> None:
    model, inputs = case.model(), case.inputs()
    flows = cross_of(
        model,
        inputs,
        scalarization=scalarization,
        cross_baseline=baseline,
        n_steps=32,
        tolerance=1e-6,
    )
    assert len(flows) == 2  # the decoder's blocks
    for flow in flows:
        twin = Twin(model, flow.name, case, inputs)
        start = {
            "zero": torch.zeros_like(twin.states),
            "mean": twin.states.mean(0).expand_as(twin.states),
        }.get(baseline, torch.full_like(twin.states, 0.2))
        cross, total, delta = flow.cross, flow.cross_total, flow.delta["cross"]
        assert cross is not None
        assert total is not None
        assert cross.shape == (1, 4, 3, len(twin.states))
        assert flow.cross_baseline == str(baseline)
        width = twin(start).shape[-1] // 4
        for j in (0, 2):
            for h in range(4):
                channels = slice(h * width, (h + 1) * width)
                row = twin.row(start, j, channels, scalarization)
                moved = (twin(twin.states) - twin(start))[j, channels].norm()
                scale = float(moved.detach())
                torch.testing.assert_close(cross[0, h, j], row, rtol=0, atol=1e-6 * scale)
                torch.testing.assert_close(total[0, h, j], moved.detach(), rtol=1e-9, atol=1e-12)
                assert abs(float(delta[0, h, j])) <= 1e-6 * scale
        assert bool(flow.converged["cross"].all())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_beside_the_other_boundaries(case: Case) -> None:
    """Blocks of the encoder go without, and nothing else changes."""
    model, inputs = case.model(), case.inputs()
    lig = LayerFlowIG(model)
    with Unchanged(model, inputs):
        flows = lig.attribute(inputs, boundaries=("attention", "layer", "cross"))
        alone = lig.attribute(inputs, boundaries=("attention", "layer"))
    assert [flow.cross is None for flow in flows] == [True, True, False, False]
    for flow, other in zip(flows, alone, strict=True):
        assert torch.equal(flow.layer, other.layer)
        assert torch.equal(flow.attention, other.attention)
    for flow, other in zip(flows[2:], cross_of(model, inputs), strict=True):
        assert torch.equal(flow.cross, other.cross)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.kind)
def test_padding(case: Case) -> None:
    """A text in a batch is what it is alone; padded tokens of either side have zeros."""
    model = case.model()
    batch = {
        "input_ids": torch.tensor([[11, 45, 23, 8, 31], [7, 19, 40, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
        "decoder_input_ids": torch.tensor([[1, 9, 23, 5], [1, 14, 0, 0]]),
        "decoder_attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
    }
    one = {"input_ids": batch["input_ids"][1:, :3], "decoder_input_ids": torch.tensor([[1, 14]])}
    for baseline in ("zero", "mean"):
        flows = cross_of(model, batch, cross_baseline=baseline)
        alone = cross_of(model, one, cross_baseline=baseline)
        for flow, other in zip(flows, alone, strict=True):
            cross = flow.cross
            assert cross is not None
            torch.testing.assert_close(cross[1:, :, :2, :3], other.cross, rtol=1e-6, atol=1e-8)
            assert bool((cross[1, :, :, 3:] == 0).all())
            assert bool((cross[1, :, 2:] == 0).all())
            assert bool((flow.cross_total[1, :, 2:] == 0).all())
            assert bool((cross[0] != 0).all())
            text = flow.select(1)
            assert torch.equal(text.cross, cross[1:])
            assert torch.equal(text.cross_total, flow.cross_total[1:])


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["l2", "projection"]))
@settings(max_examples=15, deadline=None)
def test_any_start_is_complete(seed: int, shared: bool, scalarization: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (32,) if shared else (5, 32)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    for flow in cross_of(MODEL, texts(), cross_baseline=start, scalarization=scalarization):
        assert float(flow.completeness_error("cross").max()) <= 1e-3
        assert flow.cross_baseline == "tensor"


MODEL = BART.model()


def test_what_does_not_move_contributes_nothing() -> None:
    model = families.drawn(Decoder())
    inputs = {name: x[:1] for name, x in VECTORS.items()}
    memory = inputs["memory"][0]
    start = torch.zeros_like(memory)
    start[1:3] = memory[1:3]
    for flow in cross_of(model, inputs, cross_baseline=start):
        assert bool((flow.cross[..., 1:3] == 0).all())
        assert bool((flow.cross[..., [0, 3, 4, 5]] != 0).all())
    for flow in cross_of(model, inputs, cross_baseline=memory):
        assert bool((flow.cross == 0).all())
        assert bool((flow.cross_total == 0).all())


def test_some_targets_in_small_pieces() -> None:
    flows = cross_of(MODEL, texts())
    some = cross_of(MODEL, texts(), output_indices=[2, 0], internal_batch_size=1)
    for flow, other in zip(flows, some, strict=True):
        torch.testing.assert_close(other.cross, flow.cross[:, :, [2, 0]])


def test_half_precision() -> None:
    """The path runs in float32 on a copy of the block."""
    half = BART.model().to(torch.bfloat16)
    for flow in cross_of(half, texts()):
        assert flow.cross.dtype == torch.float32
        assert float(flow.completeness_error("cross").max()) <= 1e-3


class NormedKeys(nn.Module):
    """Torch's decoder by hand, with a norm on keys that has no closed form, and some variants."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.q, self.kv, self.out = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(32, 32)
        self.norm, self.prompt = nn.LayerNorm(8), nn.Parameter(torch.ones(5, 32))
        self.own = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.own(x, x, x, need_weights=False)[0]
        states = {
            "learned": self.prompt.expand(len(x), -1, -1),
            "mixed": memory.cumsum(1),
            "pooled": memory[:, :2],
        }.get(self.variant, memory)
        q, k, v = (
            t.unflatten(-1, (4, 8)).transpose(1, 2)
            for t in (self.q(x), *self.kv(states).chunk(2, -1))
        )
        u = nn.functional.scaled_dot_product_attention(q, self.norm(k), v)
        found: Tensor = x + self.out(u.transpose(1, 2).flatten(2))
        return found


class Decoder(nn.Module):
    def __init__(self, variant: str = "") -> None:
        super().__init__()
        self.layers = nn.ModuleList(NormedKeys(variant) for _ in range(2))

    def forward(self, x: Tensor, memory: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x, memory)
        return {"x": x}


class TorchDecoder(nn.Module):
    """torch.nn.TransformerDecoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(32, 4, 48, batch_first=True), 2
        )

    def forward(self, x: Tensor, memory: Tensor) -> dict[str, Tensor]:
        return {"x": self.decoder(x, memory)}


VECTORS = {"x": families.noise(2, 3, 32), "memory": families.noise(2, 6, 32).flip(1)}


@pytest.mark.parametrize("build", [Decoder, TorchDecoder])
def test_models_that_call_torchs_function(build: Callable[[], nn.Module]) -> None:
    """Found by what depends on what; by running the block where keys have no closed form."""
    model = families.drawn(build())
    with Unchanged(model, VECTORS):
        flows = LayerFlowIG(model).attribute(
            VECTORS, boundaries=("cross",), cross_baseline="mean", n_steps=32, tolerance=1e-6
        )
    for flow in flows:
        assert flow.cross.shape == (2, 4, 3, 6)
        assert bool(flow.converged["cross"].all())
    if build is not Decoder:
        return
    layer = model.layers[0]
    got: list[Tensor] = []
    handle = layer.out.register_forward_pre_hook(lambda _, args: got.append(args[0]))

    def attend(memory: Tensor) -> Tensor:
        layer(VECTORS["x"][:1], memory[None])
        return got.pop()[0]

    twin = Twin.__new__(Twin)
    twin.states = VECTORS["memory"][0]
    twin.__class__ = type("Own", (Twin,), {"__call__": lambda _, states: attend(states)})
    row = twin.row(twin.states.mean(0).expand(6, -1), 1, slice(8, 16), "l2")
    handle.remove()
    torch.testing.assert_close(flows[0].cross[0, 1, 1], row, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("learned", ("calls attention 2 times", "no keys and values depend", "other than its own")),
        ("mixed", ("6 keys and values", "token by token", "leave 'cross' out")),
        ("pooled", ("2 keys and values", "6 states")),
    ],
)
def test_keys_that_are_not_the_encoders_tokens(variant: str, words: tuple[str, ...]) -> None:
    model = families.drawn(Decoder(variant))
    with Unchanged(model, VECTORS), pytest.raises(LigError) as caught:
        LayerFlowIG(model).attribute(VECTORS, boundaries=("cross",))
    for word in ("layers.", "NormedKeys of Decoder", *words):
        assert word in str(caught.value)


def test_blocks_without_a_second_attention() -> None:
    bert = models.tiny_bert()
    for model, inputs, layer in (
        (bert, {"input_ids": ENCODER}, None),
        (bert, {"input_ids": ENCODER}, 0),
        (MODEL, texts(), 0),
        (MODEL, texts(), [0, 2]),
    ):
        with Unchanged(model, inputs), pytest.raises(LigError) as caught:
            LayerFlowIG(model, layer).attribute(inputs, boundaries=("layer", "cross"))
        for word in ("no second attention call", "it makes one", "('cross',)", "layer=["):
            assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["sharper", "biased"])
def test_a_core_that_is_run_as_it_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another formula, or logits with a bias made of the encoder's values: by autograd."""
    own = modeling_bart.eager_attention_forward

    def core(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
        if query.shape[-2] == key.shape[-2]:
            return own(module, query, key, value, mask, **more)
        if kind == "sharper":
            return own(module, 1.5 * query, key, value, mask, **more)
        bias = torch.tanh(value.sum((1, 3)))[:, None, None].expand(-1, 1, query.shape[-2], -1)
        return own(module, query, key, value, bias if mask is None else mask + bias, **more)

    monkeypatch.setattr(modeling_bart, "eager_attention_forward", core)
    model = BART.model()
    model.set_attn_implementation("eager")
    (flow,) = LayerFlowIG(model, [2]).attribute(texts(), boundaries=("cross",))
    assert flow.cost is not None
    assert flow.cost.path == "autograd"
    assert float(flow.completeness_error("cross").max()) <= 1e-3


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ("target_token", "cross_baseline 'target_token' is unknown: use 'zero', 'mean', a number"),
        (True, "cross_baseline True is a bool"),
        (float("nan"), "cross_baseline nan is not finite"),
        (torch.full((32,), torch.inf), "not finite"),
        (torch.zeros(3, 32), r"shape \(3, 32\) does not fit .*: use \(32,\) or \(5, 32\)"),
        (torch.zeros(31), r"shape \(31,\) does not fit"),
    ],
)
def test_baselines_that_are_refused(baseline: Any, words: str) -> None:
    with pytest.raises(LigError, match=words):
        LayerFlowIG(MODEL).attribute(texts(), boundaries=("cross",), cross_baseline=baseline)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_files(tmp_path: Any, suffix: str) -> None:
    flows = LayerFlowIG(MODEL).attribute(texts(), boundaries=("cross", "layer"))
    path = save_flows(Explanation(flows, list("abcde")), tmp_path / f"flows{suffix}")
    for flow, loaded in zip(flows, load_flows(path).flows, strict=True):
        assert loaded.cross_baseline == flow.cross_baseline
        for name in ("cross", "cross_total"):
            before, after = getattr(flow, name), getattr(loaded, name)
            assert (before is None) == (after is None)
            assert before is None or torch.equal(before, after)
        assert flow.delta.keys() == loaded.delta.keys()
