"""Blocks of unusual code: their rows are those of the block itself, or they are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from captum_lig import Block, LayerFlow, LayerFlowIG, SetToSetIG, inspect_model
from tests.helpers.wrong_numbers import refused

WIDTH, TOKENS = 16, 6
TEXT = torch.randn(
    1, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)


class Attending(nn.Module):
    """A hand-written block; how it calls what it has is for the tests to say."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v)[:, 0])  # type: ignore[no-any-return]


class Model(nn.Module):
    """Two blocks of one class, called as ``call`` says, in double precision."""

    def __init__(self, block: type[nn.Module], call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers, self.call = (
            nn.ModuleList([block(), block()]),
            call or (lambda one, *given: one(*given)),
        )
        self.eval().double()

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        for layer in self.layers:
            x = self.call(layer, x, *args)
        return x


def first(model: nn.Module, x: Tensor, baseline: Any = "zero", **given: Any) -> LayerFlow:
    given = {"layer": None, "boundaries": ("layer",), "tolerance": 1e-4, "max_steps": 2048, **given}
    flows = LayerFlowIG(model, given.pop("layer")).attribute(x, baseline, **given)
    assert isinstance(flows, list)
    return flows[0]


def literal(block: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, points: int) -> Tensor:
    """Integrated Gradients of l2 lengths of a block's change ``(T, S)``, midpoints, one by one."""
    with torch.no_grad():
        begin = block(start)
    rows = torch.zeros(TOKENS, TOKENS, dtype=x.dtype)
    for n in range(points):
        z = (start + (n + 0.5) / points * (x - start)).requires_grad_()
        y = block(z)
        for j in range(TOKENS):
            (gradient,) = torch.autograd.grad((y - begin)[0, j].norm(), z, retain_graph=True)
            rows[j] += (gradient * (x - start)).sum(-1)[0] / points
    return rows


# --- what is closed at the text and open elsewhere ------------------------------------------------


class Gated(Attending):
    """A gate, made before the attention and used after it, that is closed at the text."""

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.gate(x))
        return x + self.attend(x) + 3 * gate


def test_a_gate_that_is_closed_at_the_text() -> None:
    model, x = Model(Gated), TEXT.clone()
    x[..., 0] = 3 + x[..., 0].abs()
    block: Any = model.layers[0]
    with torch.no_grad():
        for one in model.layers:
            gate: Any = one.gate
            gate.weight.zero_()
            gate.weight[:, 0], gate.bias[:] = -1, 1  # 1 - x_0: 0 at the text, 1 at its baseline
        assert not torch.relu(block.gate(x)).any()
    flow, start = first(model, x), torch.zeros_like(x)
    right = (block(x) - block(start)).detach().norm(dim=-1)[0]
    assert torch.allclose(flow.layer_total[0], right, rtol=1e-9)
    assert torch.allclose(flow.layer[0], literal(block, x, start, 2000), atol=2e-2)


# --- what is run together -------------------------------------------------------------------------


class Scaled(Attending):
    """Scales by the largest entry of all that it gets: path points change each other."""

    def forward(self, x: Tensor) -> Tensor:
        x = x / (1 + x.abs().amax())
        return torch.tanh(self.gate(x).cumsum(1)) if self.whole else x + self.attend(x)

    whole = True


class ScaledSplit(Scaled):
    whole = False


def test_points_that_would_change_each_other_run_alone() -> None:
    x = TEXT.clone()
    x[0, 0, 0] = 5.0
    model = Model(Scaled)
    layer: Any = model.layers[0]
    flow = first(model, x, "target_token", layer=[Block(layer)])
    with torch.no_grad():
        right = torch.stack(
            [
                (layer(x)[0, j] - layer(x[:, [j]].expand_as(x).clone())[0, j]).norm()
                for j in range(TOKENS)
            ]
        )
    assert torch.allclose(flow.layer_total[0], right, rtol=1e-9)
    with refused("layers.0", "cannot be split at its attention"):
        first(Model(ScaledSplit), x, "target_token")


@pytest.mark.parametrize("baseline", ["target_token", "zero"])
def test_functions_whose_points_change_each_other(baseline: str) -> None:
    x = TEXT.clone()
    x[0, 0, 0] = 5.0
    block = Model(Scaled).layers[0]
    with refused("forward_func", "reach each other", "internal_batch_size=1"):
        SetToSetIG(block).attribute(x, baseline)
    alone = SetToSetIG(block).attribute(x, "zero", internal_batch_size=1, tolerance=None)
    assert torch.allclose(alone[0], literal(block, x, torch.zeros_like(x), 1000), atol=1e-3)


# --- which of the arguments the tokens are --------------------------------------------------------


class Three(nn.Module):
    """Queries, keys and values as three arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q + (self.q(q) @ self.k(k).transpose(1, 2)).softmax(-1) @ self.v(v)


class Beside(Attending):
    """The residual stream as an argument of its own."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.attend(x)


CALLS: dict[str, tuple[type[nn.Module], Callable[..., Tensor]]] = {
    "three times": (Three, lambda block, x: block(x, x, x)),
    "twice": (Beside, lambda block, x: block(x, residual=x)),
    "views": (Beside, lambda block, x: block(x, residual=x[:])),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_tokens_that_a_block_gets_more_than_once(name: str, dtype: torch.dtype) -> None:
    block, call = CALLS[name]
    model, x = Model(block, call).to(dtype), TEXT.to(dtype)
    layer: Any = model.layers[0]
    start = torch.zeros_like(x)
    right = literal(lambda z: call(layer, z), x, start, 500)
    total = (call(layer, x) - call(layer, start)).detach().norm(dim=-1)[0]
    given: dict[str, Any]
    for given in ({}, {"dtype": torch.float64}):
        flow = first(model, x, **given)
        assert torch.allclose(flow.layer[0].to(dtype), right, atol=1e-2)
        assert torch.allclose(flow.layer_total[0].to(dtype), total, rtol=1e-4)


class PositionFirst(Attending):
    """What it adds to its tokens comes first."""

    def forward(self, position: Tensor, x: Tensor) -> Tensor:
        return x + self.attend(x + position)


@pytest.mark.parametrize("named", [False, True])
def test_something_else_that_looks_like_the_tokens(named: bool) -> None:
    position = TEXT.flip(1)

    def call(block: nn.Module, x: Tensor) -> Tensor:
        given: Tensor = block(position=position, x=x) if named else block(position, x)
        return given

    model = Model(PositionFirst, call)
    with refused("layers.1", "several tensors of shape (1, 6, 16)", "tokens first"):
        first(model, TEXT)
    with refused("layers.1", "tokens first"):
        LayerFlowIG(model).attribute(TEXT, 0 * TEXT, lambda y: y[:, -1, 0])


# --- which module the MLP is ----------------------------------------------------------------------


class GatedAtTheEnd(Attending):
    """A gate on all that it gives."""

    def forward(self, x: Tensor) -> Tensor:
        r = x + self.attend(x)
        return (r + self.mlp(r)) * torch.sigmoid(self.gate(x))


def test_a_factor_of_the_output_is_not_the_mlp() -> None:
    model = Model(GatedAtTheEnd)
    assert [block.feed_forward for block in inspect_model(model, TEXT).blocks] == ["mlp", "mlp"]
    parts = {name: model.layers[0].get_submodule(name) for name in ("out", "gate")}
    described = Block(model.layers[0], attention=parts["out"], heads=1, feed_forward=parts["gate"])
    with refused("feed_forward='gate'", "is a factor of what the block gives"):
        first(model, TEXT, layer=[described])


# --- what was found out of another text -----------------------------------------------------------


class Times(Attending):
    """A factor for each token."""

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return (x + self.attend(x)) * factor


def test_an_argument_that_was_the_same_for_all_tokens_of_another_text() -> None:
    model, factor = Model(Times), TEXT[..., :1].abs() + 0.5
    lig = LayerFlowIG(model)
    given: dict[str, Any] = {"boundaries": ("layer",), "n_steps": 8, "tolerance": None}
    lig.attribute(TEXT, "zero", additional_forward_args=torch.ones_like(factor), **given)
    after = lig.attribute(TEXT, "zero", additional_forward_args=factor, **given)
    alone = LayerFlowIG(model).attribute(TEXT, "zero", additional_forward_args=factor, **given)
    assert torch.equal(after[1].layer, alone[1].layer)


# --- what it writes into, and how it is differentiated --------------------------------------------


class InPlace(Attending):
    def forward(self, x: Tensor) -> Tensor:
        x += self.attend(x)
        return x


def test_a_block_that_writes_into_its_tokens_is_told_so() -> None:
    with refused("layers.0", "writes into the tokens that it gets", "x = x + ..."):
        first(Model(InPlace, lambda block, x: block(x.clone())), TEXT)


class Checkpointed(Attending):
    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.attend, x, use_reentrant=True)  # type: ignore[no-any-return]


def test_a_block_under_checkpoint_is_refused_by_name() -> None:
    with refused("layers.0", "cannot be differentiated", "torch.utils.checkpoint"):
        first(Model(Checkpointed), TEXT)
