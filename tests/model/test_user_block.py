"""Blocks that the caller describes: whole, at a projection, over a span, in three functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import Block, LayerFlow, LayerFlowIG, LigError
from tests.helpers.families import drawn, noise
from tests.helpers.ids import words
from tests.helpers.state import HOOKS
from tests.helpers.twins import by_autograd

WIDTH, HEADS, LENGTH = 16, 4, 5


class Heads(nn.Module):
    """Attention without any function that could be reached: linear, by running sums."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in "qkv")
        self.out = nn.Linear(WIDTH, WIDTH)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)) for part in (self.q, self.k, self.v))
        return q.softmax(-1), k.exp(), v

    @staticmethod
    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = torch.einsum("nshd,nshe->nshde", k, v).cumsum(1)
        return torch.einsum("nshd,nshde->nshe", q / k.cumsum(1).sum(-1, keepdim=True), state)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.core(*self.parts(x)).flatten(2))
        return out


class OwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(WIDTH), Heads()
        self.feed = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.heads(self.norm(x))
        return x + self.feed(x)  # type: ignore[no-any-return]


class Flat(nn.Module):
    """The blocks' parts lie side by side: no module is a block, but one stands before each."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Identity() for _ in "ab")
        self.block = nn.ModuleDict({name: OwnBlock() for name in "ab"})
        self.leave = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        for enter, block, leave in zip(self.enter, self.block.values(), self.leave, strict=True):
            x = enter(x)
            x = x + block.heads(block.norm(x))
            x = leave(x + block.feed(x))
        return x


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = OwnBlock(), OwnBlock()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model() -> Own:
    return drawn(Own())  # type: ignore[return-value]


@pytest.fixture(scope="module")
def x() -> Tensor:
    return noise(2, LENGTH, WIDTH)


def flow_of(model: nn.Module, block: Block, x: Tensor, **given: Any) -> LayerFlow:
    before = {name: [list(getattr(m, h, ())) for h in HOOKS] for name, m in model.named_modules()}
    flow = LayerFlowIG(model, block).attribute(x, **given)
    after = {name: [list(getattr(m, h, ())) for h in HOOKS] for name, m in model.named_modules()}
    assert before == after
    assert isinstance(flow, LayerFlow)
    return flow


def three_functions(block: OwnBlock) -> Block:
    def pre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return block.heads.parts(block.norm(z))

    def post(u: Tensor, z: Tensor) -> Tensor:
        z = z + block.heads.out(u.flatten(2))
        return z + block.feed(z)  # type: ignore[no-any-return]

    return Block(block, pre=pre, core=block.heads.core, post=post)


def test_whole(model: Own, x: Tensor) -> None:
    flow = flow_of(model, Block("second"), x, boundaries=("layer",), n_steps=8, tolerance=None)
    assert flow.name == "second"
    assert flow.attention is None
    with torch.no_grad():
        z = model.first(x)
    for text in range(2):
        torch.testing.assert_close(flow.layer[text], by_autograd(model.second, z[text], 8))


def test_projection_and_three_functions_agree(model: Own, x: Tensor) -> None:
    """And with the whole block, whose layer map needs no cut."""
    by_projection = Block(model.second, attention=model.second.heads.out, heads=HEADS)
    flows = [
        flow_of(model, block, x, n_steps=8, tolerance=None)
        for block in (by_projection, three_functions(model.second))
    ]
    whole = flow_of(model, Block("second"), x, boundaries=("layer",), n_steps=8, tolerance=None)
    for name in ("attention", "mlp", "residual", "layer", "chain"):
        torch.testing.assert_close(getattr(flows[0], name), getattr(flows[1], name))
    torch.testing.assert_close(flows[0].layer, whole.layer)
    assert flows[0].attention.shape == (2, HEADS, LENGTH, LENGTH)
    assert bool((flows[0].attention.triu(1) == 0).all())
    certified = flow_of(model, by_projection, x[:1])
    for boundary in ("attention", "mlp", "layer"):
        assert float(certified.completeness_error(boundary).max()) <= 1e-3


def test_a_projection_is_found_without_a_word(x: Tensor) -> None:
    model = drawn(nn.Sequential(OwnBlock(), OwnBlock()))
    found = LayerFlowIG(model, 1).attribute(x, n_steps=8, tolerance=None)
    own = Block(model[1], attention=model[1].heads.out, heads=HEADS)
    told = flow_of(model, own, x, n_steps=8, tolerance=None)
    assert isinstance(found, LayerFlow)
    torch.testing.assert_close(found.attention, told.attention)


def test_span(x: Tensor) -> None:
    model = drawn(Flat())
    heads = model.block["b"].heads
    block = Block(model.enter[1], model.leave[1], attention=heads.out, heads=HEADS)
    flow = flow_of(model, block, x, n_steps=8, tolerance=None)
    assert flow.name == "enter.1 to leave.1"
    z: list[Tensor] = []
    handle = model.enter[1].register_forward_pre_hook(lambda _, args: z.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()

    def last(x: Tensor) -> Tensor:
        x = x + heads(model.block["b"].norm(x))
        return model.leave[1](x + model.block["b"].feed(x))  # type: ignore[no-any-return]

    for text in range(2):
        torch.testing.assert_close(flow.layer[text], by_autograd(last, z[0][text], 8))


def test_a_residual_past_the_span_is_refused(x: Tensor) -> None:
    model = drawn(Flat())
    norm = model.block["b"].norm
    with pytest.raises(
        LigError, match=r"block\.b\.norm to leave\.1.*past the input.*pre, core and post"
    ):
        LayerFlowIG(model, Block(norm, model.leave[1])).attribute(x, boundaries=("layer",))


def test_functions_that_are_not_the_block_are_refused(model: Own, x: Tensor) -> None:
    right = three_functions(model.second)
    wrong = Block(
        model.second, pre=right.pre, core=right.core, post=lambda u, z: right.post(u, 0 * z)
    )
    with pytest.raises(LigError, match="something else"):
        LayerFlowIG(model, wrong).attribute(x)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_any_number_of_heads_that_divides_is_taken_at_its_word(
    model: Own, x: Tensor, heads: int
) -> None:
    block = Block("second", attention="second.heads.out", heads=heads)
    flow = flow_of(model, block, x[:1], n_steps=4, tolerance=None)
    assert flow.attention.shape[1] == heads


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"input": 3}, "input=3"),
        ({"input": "first", "attention": "first.heads.out"}, "heads=None"),
        ({"input": "first", "attention": "first.heads.out", "heads": 0}, "heads=0"),
        ({"input": "first", "attention": "first.heads.out", "heads": 3}, "heads=3"),
        ({"input": "first", "pre": torch.tanh}, "core, post missing"),
        ({"input": "nothing"}, "'nothing'"),
        ({"input": nn.Linear(2, 2)}, "Linear is not a module of the model"),
        ({"input": "first.heads.out", "output": "first"}, "past the input"),
        ({"input": "second", "output": "first"}, "did not run"),
        ({"input": "first", "attention": "second.heads.out", "heads": 4}, "did not reach"),
    ],
    ids=words,
)
def test_descriptions_that_make_no_sense(model: Own, x: Tensor, given: Any, says: str) -> None:
    with pytest.raises(LigError) as caught:
        LayerFlowIG(model, Block(**given)).attribute(x)
    assert says in str(caught.value)
