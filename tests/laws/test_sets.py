"""Laws of ``SetToSetIG``, whatever the map's sizes, its texts and where paths start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import SetToSetIG
from tests.helpers.drawn import few

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
STARTS = st.sampled_from([None, 0.3, "target_token", "tensor", "per target"])
many = settings(few, max_examples=25)
PLAIN: dict[str, Any] = {"n_steps": 6}


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def attend(width: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A map of tokens that minds no order."""
    keys, values = normal(width, width, seed=seed), normal(width, width, seed=seed + 1)
    return lambda x: (x @ keys @ x.mT).softmax(-1) @ (x @ values).tanh()


def start_of(name: Any, x: Tensor) -> Any:
    if name == "tensor":
        return normal(*x.shape, seed=5)
    return normal(len(x), x.shape[1], *x.shape[1:], seed=6) if name == "per target" else name


@many
@given(sizes=SIZES, start=STARTS, seed=st.integers(0, 20), size=st.integers(1, 9))
def test_batches_portions_and_chosen_outputs(
    sizes: tuple[int, int, int], start: Any, seed: int, size: int
) -> None:
    x = normal(*sizes, seed=seed)
    ig, begin = SetToSetIG(attend(sizes[2], seed)), start_of(start, x)
    whole = ig.attribute(x, begin, **PLAIN)
    near(ig.attribute(x, begin, internal_batch_size=size, **PLAIN), whole)
    for n in range(len(x)):
        own = begin[n : n + 1] if isinstance(begin, Tensor) else begin
        near(ig.attribute(x[n : n + 1], own, **PLAIN), whole[n : n + 1])
    if start != "per target":
        for j in range(sizes[1]):
            near(ig.attribute(x, begin, output_indices=[j], **PLAIN), whole[:, [j]])


@many
@given(sizes=SIZES, start=STARTS, seed=st.integers(0, 20), weight=st.sampled_from([1.0, -2.5]))
def test_sums_of_numbers(sizes: tuple[int, int, int], start: Any, seed: int, weight: float) -> None:
    x = normal(*sizes, seed=seed)
    first, second = (attend(sizes[2], s) for s in (seed, seed + 9))
    numbers: list[Callable[[Tensor], Tensor]] = [
        lambda x: first(x).sum(-1) + weight * second(x).square().sum(-1),
        lambda x: first(x).sum(-1),
        lambda x: second(x).square().sum(-1),
    ]
    both, one, two = (SetToSetIG(f).attribute(x, start_of(start, x), **PLAIN) for f in numbers)
    near(both, one + weight * two)


@many
@given(sizes=SIZES, start=STARTS, seed=st.integers(0, 20), data=st.data())
def test_tokens_in_another_order(
    sizes: tuple[int, int, int], start: Any, seed: int, data: st.DataObject
) -> None:
    x = normal(*sizes, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(sizes[1]))))
    ig, begin = SetToSetIG(attend(sizes[2], seed)), start_of(start, x)
    other = begin
    if isinstance(begin, Tensor):
        other = begin[:, order] if start == "tensor" else begin[:, order][:, :, order]
    whole = ig.attribute(x, begin, **PLAIN)
    near(ig.attribute(x[:, order], other, **PLAIN), whole[:, order][..., order])


def near(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-10 * (1 + float(wanted.abs().max()))
