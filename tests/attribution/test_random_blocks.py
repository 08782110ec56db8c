"""Models of two random blocks: laws of all parts, and every edge from the definition."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_lig import Block, LayerFlow, LayerFlowIG, LigError
from tests.helpers.laws import assert_near, assert_same, check_laws
from tests.helpers.random_blocks import HEADS, WIDTH, Options, RandomBlock, build

LENGTH = 5

OPTIONS = st.builds(
    Options,
    site=st.sampled_from(["sdpa", "sdpa", "interface", "eager"]),
    key_heads=st.sampled_from([4, 2, 1]),
    causal=st.booleans(),
    window=st.sampled_from([None, None, 1, 2]),
    norm=st.sampled_from(["layer", "rms", "none"]),
    post_norm=st.booleans(),
    parallel=st.booleans(),
    rotary=st.booleans(),
    key_norm=st.sampled_from(["none", "none", "before", "after"]),
    bias=st.sampled_from(["none", "none", "none", "normed", "raw", "values"]),
    mix=st.sampled_from(["none"] * 4 + ["keys", "values", "queries", "inputs"]),
    gate=st.booleans(),
    softcap=st.booleans(),
    sinks=st.booleans(),
    after=st.sampled_from(["tokens"] * 5 + ["mixed", "away"]),
    massive=st.sampled_from([False, False, False, True]),
)


class TwoBlocks(nn.Module):
    def __init__(self, options: Options, seed: int) -> None:
        super().__init__()
        both = [build(options, LENGTH, torch.float64, seed=s)[0] for s in (seed, seed + 1)]
        self.blocks = nn.ModuleList(model.blocks[0] for model in both)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def asked(options: Options, seed: int = 1) -> tuple[TwoBlocks, Tensor, Tensor]:
    """A model, its input and a baseline in which the first and the fourth token are the same."""
    x = build(options, LENGTH, torch.float64, seed=seed)[1]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 7)).to(x)
    noise[:, [0, 3]] = 0
    return TwoBlocks(options, seed).eval(), x, x + 0.7 * noise


def number(y: Tensor) -> Tensor:
    weights = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(0)).to(y)
    return torch.asinh((y * weights).flatten(1).mean(-1))


def may_be_refused(options: Options) -> bool:
    mixed = options.mix != "none"
    if options.after != "tokens" or (mixed and (options.causal or options.window is not None)):
        return True
    early = mixed and (options.mix == "inputs" or options.bias == "values")
    return options.site == "eager" and early


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(options=OPTIONS, seed=st.integers(1, 50))
def test_laws(options: Options, seed: int) -> None:
    model, x, start = asked(options, seed)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            flows = LayerFlowIG(model).attribute(x, start, number, max_steps=256)
        except LigError:
            assert may_be_refused(options)
            return
    missed = any("sums are not within tolerance" in str(one.message) for one in seen)
    assume(not missed)  # more nodes were needed, and it said so
    check_laws(flows, 1e-3)
    assert not flows[0].need("entering")[:, [0, 3]].any()  # the same in both runs
    attention = flows[0].need("attention")
    if options.mix == "none":
        place = torch.arange(LENGTH)
        back = place[:, None] - place
        hidden = (back < 0) & options.causal
        if options.window is not None:
            hidden |= back.abs() > options.window
        assert not attention[..., hidden].any()


# ---- from the definition ---------------------------------------------------------------------


NODES = [(float(t), float(w)) for t, w in zip(*np.polynomial.legendre.leggauss(24), strict=True)]


def integral(function: Callable[..., Tensor], lines: list[Any], g: Tensor) -> list[Tensor]:
    """``J^T g`` of each argument."""
    total = [torch.zeros_like(start) for start, _ in lines]
    for t, w in NODES:
        points = [(s + (1 + t) / 2 * (e - s)).requires_grad_() for s, e in lines]
        found = torch.autograd.grad(function(*points), points, g, allow_unused=True)
        for part, x in zip(total, found, strict=True):
            part += 0 if x is None else w / 2 * x
    return total


def layer(
    block: RandomBlock, z: Tensor, start: Tensor, g: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The multiplier of the tokens entering, and the parts."""
    held: list[Tensor] = []
    seen: list[Tensor] = []

    def at_down(_: Any, args: Any, own: Tensor) -> Tensor:
        seen.append(own)
        return held[-1] if held else own

    handle = block.down.register_forward_hook(at_down)

    def feed(z: Tensor, u: Tensor) -> Tensor:
        held.clear()
        block.finish(u, z)
        return seen[-1]

    def output(z: Tensor, u: Tensor, m: Tensor) -> Tensor:
        held[:] = [m]
        return block.finish(u, z)

    ends = [start, z]
    with torch.no_grad():
        us = [block.attend(x) for x in ends]
        ms = [feed(x, u) for x, u in zip(ends, us, strict=True)]
    past_z, past_u, g_m = integral(output, [ends, us, ms], g)
    by_z, by_u = integral(feed, [ends, us], g_m)
    handle.remove()
    g_u = past_u + by_u
    edges = torch.zeros(HEADS, LENGTH, LENGTH, dtype=torch.float64)
    for h in range(HEADS):
        for j in range(LENGTH):
            own = torch.zeros_like(g_u)
            own[0, j, h] = g_u[0, j, h]
            (part,) = integral(block.attend, [ends], own)
            edges[h, j] = (part * (z - start)).sum(-1)[0]
    (by_heads,) = integral(block.attend, [ends], g_u)
    d_z, d_u, d_m = z - start, us[1] - us[0], ms[1] - ms[0]
    parts = {
        "attention": edges,
        "mlp": (g_u * d_u).sum(-1)[0],
        "residual": (past_z * d_z).sum(-1)[0],
        "feed_forward": (g_m * d_m).sum(-1)[0],
        "feed_forward_heads": (by_u * d_u).sum(-1)[0],
        "feed_forward_token": (by_z * d_z).sum(-1)[0],
    }
    entering = past_z + by_z + by_heads
    return entering, {**parts, "entering": (entering * d_z).sum(-1)[0]}


NAMED = {
    "nothing special": Options(causal=True),
    "after the norm": Options(post_norm=True),
    "parallel": Options(parallel=True, norm="rms", rotary=True, key_heads=2),
    "keys of two tokens": Options(mix="keys"),
    "values of two tokens": Options(mix="values"),
    "queries of two tokens": Options(mix="queries"),
    "a convolution before the attention": Options(mix="inputs", norm="rms"),
    "a bias made of raw tokens": Options(bias="raw"),
    "behind the output projection": Options(site="eager", gate=True, softcap=True, causal=True),
    "sinks": Options(site="interface", sinks=True, softcap=True, key_norm="after"),
}


@pytest.mark.parametrize("name", NAMED)
def test_every_edge(name: str) -> None:
    model, x, start = asked(NAMED[name])
    flows = LayerFlowIG(model).attribute(x, start, number, tolerance=1e-6)
    runs = [(start, x)]
    with torch.no_grad():
        for block in model.blocks:
            runs.append((block(runs[-1][0]), block(runs[-1][1])))
    (g,) = integral(number, [runs[-1]], torch.ones(1).to(x))
    for block, flow, (below, above) in zip(
        reversed(model.blocks), reversed(flows), reversed(runs[:-1]), strict=True
    ):
        g, parts = layer(block, above, below, g)
        for field, wanted in parts.items():
            assert_near(flow.need(field), wanted[None], flow, 1e-4)


# ---- sums of targets, orders of heads, descriptions ------------------------------------------


def test_the_order_of_heads() -> None:
    model, x, start = asked(Options(causal=True))
    flows = LayerFlowIG(model).attribute(x, start, number)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for block in model.blocks:
            for linear in (block.query, block.key, block.value):
                for parameter in linear.parameters():
                    parameter.copy_(parameter.unflatten(0, (HEADS, -1))[order].flatten(0, 1))
            weight = block.out.weight
            weight.copy_(weight.unflatten(1, (HEADS, -1))[:, order].flatten(1))
    for flow, other in zip(flows, LayerFlowIG(model).attribute(x, start, number), strict=True):
        for field, found in flow.tensors.items():
            axis = {"attention": 1, "attention_value": 1, "attention_total": 1,
                    "mlp": 2, "feed_forward_heads": 2}.get(field)  # fmt: skip
            wanted = found if axis is None else found.index_select(axis, order)
            assert_near(other.tensors[field], wanted, flow, 1e-9)


def test_blocks_that_the_user_describes() -> None:
    model, x, start = asked(Options(causal=True))
    found = LayerFlowIG(model).attribute(x, start, number, tolerance=1e-6)
    described = [Block(b, attention=b.out, heads=HEADS, feed_forward=b.down) for b in model.blocks]
    parts = [
        Block(b, pre=lambda z: z, core=b.attend, post=b.finish)  # no MLP is looked for
        for b in model.blocks
    ]
    for blocks in (described, parts):
        flows = LayerFlowIG(model, blocks).attribute(x, start, number, tolerance=1e-6)
        check_laws(flows)
        for flow, wanted in zip(flows, found, strict=True):
            if blocks is described:
                assert_same(without(flow, "attention_value"), without(wanted, "attention_value"),
                            bound=1e-4)  # fmt: skip
            else:
                assert flow.feed_forward is None
    one = LayerFlowIG(model, described[1]).attribute(x, start, number, tolerance=1e-6)
    assert isinstance(one, LayerFlow)
    assert_near(one.need("mlp"), found[1].need("mlp"), found[1], 1e-4)


def without(flow: LayerFlow, field: str) -> LayerFlow:
    flow.tensors.pop(field, None)  # type: ignore[attr-defined]
    return flow
