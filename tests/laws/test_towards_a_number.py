"""Laws of flows towards a number, whatever the model, its texts and the number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers.drawn import Texts, few, texts
from tests.helpers.laws import assert_same, check_laws
from tests.helpers.random_blocks import HEADS, Options, build

Number = Callable[[Any], Tensor]
ROUNDING = 1e-9
"""Of sums, products and their order in float64, relative to the scale."""
AXES = {
    "attention": (1, 2, 3),
    "attention_value": (1, 2, 3),
    "attention_total": (1, 2),
    "mlp": (2, 1),
    "feed_forward_heads": (2, 1),
}
"""Where fields have heads, targets and sources; others have tokens on axis 1."""


def attribute(drawn: Texts, feature: int, **given: Any) -> list[LayerFlow]:
    """The flows of all texts, each towards a feature of its last token."""
    lengths = drawn.lengths
    target = [(drawn.place(n, length - 1), feature) for n, length in enumerate(lengths)]
    lig = LayerFlowIG(drawn.model)
    flows: list[LayerFlow] = lig.attribute(drawn.batch(), drawn.other(), target, **given)
    return flows


@few
@given(drawn=texts(), feature=st.integers(0, 31))
def test_sums_and_what_is_hidden(drawn: Texts, feature: int) -> None:
    flows = attribute(drawn, feature)
    check_laws(flows)
    valid = drawn.batch()["attention_mask"].bool()
    for flow in flows:
        edges = flow.need("attention")
        assert not edges[drawn.hidden()[:, None].expand_as(edges)].any()
        assert not flow.need("entering")[~valid].any()
        assert edges.any()


@few
@example(drawn=Texts("bert", 2, 1, (2, 5), True, 3), feature=4)
@example(drawn=Texts("llama", 4, 2, (5, 2), True, 1), feature=4)
@given(drawn=texts(least=2), feature=st.integers(0, 31))
def test_texts_of_a_batch_are_as_they_are_alone(drawn: Texts, feature: int) -> None:
    flows = attribute(drawn, feature)
    lig = LayerFlowIG(drawn.model)
    for n, length in enumerate(drawn.lengths):
        target = (length - 1, feature)
        alone = lig.attribute(drawn.alone(n), drawn.ids(n, other=True), target)
        for flow, own in zip(flows, alone, strict=True):
            assert_same(flow, own, text=n, bound=ROUNDING)


@few
@example(drawn=Texts("gpt2", 4, 4, (3,), True, 2), feature=7, size=1)
@given(drawn=texts(), feature=st.integers(0, 31), size=st.integers(4, 9))
def test_portions_do_not_matter(drawn: Texts, feature: int, size: int) -> None:
    whole, parts = attribute(drawn, feature), attribute(drawn, feature, internal_batch_size=size)
    for flow, own in zip(parts, whole, strict=True):
        for n in range(len(drawn.lengths)):
            assert_same(flow, own, n, n, bound=ROUNDING)


@few
@given(drawn=texts(), weight=st.sampled_from([1.0, -3.0, 0.1]), steps=st.sampled_from([3, 5]))
def test_a_sum_of_numbers_has_the_sum_of_their_flows(
    drawn: Texts, weight: float, steps: int
) -> None:
    def first(output: Any) -> Tensor:
        return output[0][:, -1, :7].tanh().sum(-1)

    def second(output: Any) -> Tensor:
        return output[0][:, 0, 3] * output[0][:, 1, 9]

    def flows(number: Number) -> list[LayerFlow]:
        lig, (ids, other) = LayerFlowIG(drawn.model), (drawn.ids(0), drawn.ids(0, other=True))
        found: list[LayerFlow] = lig.attribute(ids, other, number, n_steps=steps, tolerance=None)
        return found

    every = map(flows, (lambda o: first(o) + weight * second(o), first, second))
    for both, one, two in zip(*every, strict=True):
        assert set(both.tensors) == set(one.tensors)
        for name in set(both.tensors) - {"scale"}:
            wanted = one.tensors[name] + weight * two.tensors[name]
            # Llama's softmax rounds to float32.
            scale = (one.need("scale") + two.need("scale")) * (
                1e3 if drawn.family == "llama" else 1
            )
            assert_near(both.tensors[name], wanted, scale)


def assert_near(found: Tensor, wanted: Tensor, scale: Tensor) -> None:
    """The same up to rounding, relative to ``scale (1,)``."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= ROUNDING * float(scale)


# ---- orders, in models without positions -----------------------------------------------------

PLAIN: dict[str, Any] = {"n_steps": 4, "tolerance": None}
ANYWHERE = st.builds(
    Options,
    site=st.sampled_from(["sdpa", "interface"]),
    key_heads=st.sampled_from([4, 2, 1]),
    norm=st.sampled_from(["layer", "rms"]),
    post_norm=st.booleans(),
    parallel=st.booleans(),
    bias=st.sampled_from(["none", "raw"]),
    gate=st.booleans(),
)


def of_tokens(y: Tensor) -> Tensor:
    """A number that does not mind the tokens' order."""
    return y.tanh().square().sum((1, 2))


def asked(options: Options, seed: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    model, x = build(options, 5, torch.float64, seed)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1)).to(x)
    return model, x, x + 0.5 * noise


@few
@given(options=ANYWHERE, seed=st.integers(1, 30), order=st.permutations(range(5)))
def test_tokens_in_another_order(options: Options, seed: int, order: list[int]) -> None:
    model, x, start = asked(options, seed)
    lig, there = LayerFlowIG(model, [0]), torch.tensor(order)
    (flow,) = lig.attribute(x, start, of_tokens, **PLAIN)
    (other,) = lig.attribute(x[:, there], start[:, there], of_tokens, **PLAIN)
    for name, found in flow.tensors.items():
        wanted = found
        for axis in AXES[name][1:] if name in AXES else range(1, found.dim()):
            wanted = wanted.index_select(axis, there)
        assert_near(other.tensors[name], wanted, flow.need("scale"))


@few
@given(options=ANYWHERE, seed=st.integers(1, 30), data=st.data())
def test_heads_in_another_order(options: Options, seed: int, data: st.DataObject) -> None:
    model, x, start = asked(options, seed)
    (flow,) = LayerFlowIG(model, [0]).attribute(x, start, of_tokens, **PLAIN)
    groups, size = options.key_heads, HEADS // options.key_heads
    keys = data.draw(st.permutations(range(groups)))
    inside = data.draw(st.permutations(range(size)))
    order = torch.tensor([size * g + n for g in keys for n in inside])
    reorder(model.blocks[0], torch.tensor(keys), order)
    (other,) = LayerFlowIG(model, [0]).attribute(x, start, of_tokens, **PLAIN)
    for name, found in flow.tensors.items():
        wanted = found.index_select(AXES[name][0], order) if name in AXES else found
        assert_near(other.tensors[name], wanted, flow.need("scale"))


def reorder(block: Any, keys: Tensor, order: Tensor) -> None:
    """Exchange the heads of a block, those that share a key together."""
    with torch.no_grad():
        for linear, own in ((block.query, order), (block.key, keys), (block.value, keys),
                            (block.gate, order), (block.bias, order)):  # fmt: skip
            for p in linear.parameters():
                p.copy_(p.unflatten(0, (len(own), -1))[own].flatten(0, 1))
        weight = block.out.weight
        weight.copy_(weight.unflatten(1, (HEADS, -1))[:, order].flatten(1))
