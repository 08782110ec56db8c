"""When memory runs out in the middle, work goes on in halves: one warning, the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from captum_lig import LayerFlowIG, LigError, SetToSetIG, circuits, patching
from captum_lig.flow.layer_flow import LayerFlow
from tests.helpers import models
from tests.helpers.state import snapshot

OF_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
OF_THE_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


class Small:
    """A machine on which a module can only be called with so many vectors at once."""

    def __init__(self, module: nn.Module, error: Exception) -> None:
        self.module, self.error, self.most, self.largest, self.failed = module, error, 2**62, 0, 0

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        count = args[0].numel() // args[0].shape[-1]
        if count > self.most:
            self.failed += 1
            raise self.error
        self.largest = max(self.largest, count)

    @contextmanager
    def there(self, most: int = 2**62) -> Iterator[None]:
        self.most, self.largest, self.failed = most, 0, 0
        handle = self.module.register_forward_pre_hook(self)
        try:
            yield
        finally:
            handle.remove()


def decoder() -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(models.tiny_gpt2().config).eval().double()
    models.randomise(model, 0)
    return model


def run(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        found = call()
    ours = [w for w in given if "memory ran out" in str(w.message)]
    assert all(w.filename == __file__ for w in ours)
    return found, [str(w.message) for w in ours]


def tensors(found: Any) -> list[Tensor]:
    """Of whatever a call gives, in order."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, LayerFlow):
        return list(found.tensors.values())
    if isinstance(found, (list, tuple)):
        return [x for part in found for x in tensors(part)]
    return [
        values
        for way in (found.out, found.into)
        for values in (way.tokens, way.heads, way.feed_forward)
        if values is not None
    ]


IDS = torch.tensor([[3, 9, 4, 17, 8, 30], [5, 6, 40, 21, 7, 11]])


def lengths(model: Any, **given: Any) -> Any:
    return LayerFlowIG(model).attribute(IDS, **given)


def number(model: Any, **given: Any) -> Any:
    return LayerFlowIG(model).attribute(IDS, IDS.roll(1, 1), (-1, 5), **given)


def effects(model: Any) -> Any:
    return patching.effects(model, IDS[:1], IDS[1:], (-1, 5), ("heads", "feed_forward", "tokens"))


def kept(model: Any) -> Any:
    with circuits.of_nodes(model, IDS[:1], IDS[1:], (-1, 5)) as found:
        return found.values(torch.eye(found.count, dtype=torch.bool)[:20])


CALLS: dict[str, Callable[[Any], Any]] = {
    "lengths": lengths,
    "lengths from zero": lambda model: lengths(model, baselines="zero", n_steps=40),
    "each pair runs the block": lambda model: lengths(
        model,
        boundaries=("attention",),
        baselines=torch.linspace(-1, 1, 6 * 6 * 32).double().view(1, 6, 6, 32),
        n_steps=2,
        tolerance=None,
    ),
    "a number": lambda model: number(model, n_steps=24, tolerance=None),
    "a number, sums alone": lambda model: number(
        model, boundaries=("mlp",), n_steps=12, tolerance=None
    ),
    "effects": effects,
    "circuits": kept,
}


KINDS = [(name, OF_CUDA) for name in CALLS] + [("lengths", OF_THE_CPU), ("lengths", MemoryError())]


@pytest.mark.parametrize(("name", "error"), KINDS, ids=lambda x: str(x)[:27])
def test_halves(name: str, error: Exception) -> None:
    model = decoder()
    # What runs for each point of such a path is the attention, in parts that are small already.
    each_pair = name == "each pair runs the block"
    block = model.transformer.h[1]
    small = Small(block.attn.c_attn if each_pair else block.mlp, error)
    with small.there():
        wanted, none = run(lambda: CALLS[name](model))
    assert none == []
    largest = small.largest
    assert largest > 4 * IDS.numel()
    before = snapshot(model)
    with small.there(largest - 1 if each_pair else largest // 3):
        found, given = run(lambda: CALLS[name](model))
        assert len(given) == 1
        assert 0 < small.failed < 50
        again, given = run(lambda: CALLS[name](model))
        assert len(given) == 1, "each call begins with everything, and says so when it halves"
    assert before.changes() == []
    for ours in (found, again):
        for one, other in zip(tensors(ours), tensors(wanted), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, equal_nan=True)


FIVE = torch.tensor(
    [
        [3, 9, 4, 17, 8, 30],
        [5, 6, 40, 21, 7, 11],
        [12, 4, 9, 0, 0, 0],
        [8, 33, 20, 14, 6, 0],
        [7, 5, 0, 0, 0, 0],
    ]
)
"""Texts of a batch, padded on the right."""

OF_FIVE: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "a baseline for each text": {
        "baselines": torch.linspace(-1, 1, 5 * 6 * 32).double().view(5, 6, 32)
    },
    "a baseline for each layer": {"baselines": ("zero", torch.linspace(-1, 1, 32).double())},
    "a self term": {"self_term": "zero_ratio"},
    "some texts have no targets": {"output_indices": [3, 5]},
}


@pytest.mark.parametrize("room", [1, 2], ids=["for one", "for two"])
@pytest.mark.parametrize("name", OF_FIVE)
def test_texts_of_a_batch(name: str, room: int) -> None:
    """The model's own run does not fit: it runs on halves of the batch, down to a text."""
    model = models.tiny_bert()
    # Only the model itself calls this one, and on all texts at once.
    small = Small(model.embeddings.LayerNorm, OF_CUDA)

    def call() -> Any:
        inputs = {"input_ids": FIVE, "attention_mask": (FIVE != 0).long()}
        return LayerFlowIG(model).attribute(inputs, n_steps=8, **OF_FIVE[name])

    with small.there():
        wanted, none = run(call)
    assert none == []
    assert small.largest == FIVE.numel()
    before = snapshot(model)
    with small.there(room * FIVE.shape[1]):
        found, given = run(call)
    assert len(given) == 1
    assert small.largest == room * FIVE.shape[1]
    assert before.changes() == []
    for one, other in zip(found, wanted, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert torch.equal(one.valid, other.valid)
        assert (one.baseline, one.name, one.tolerance) == (other.baseline, other.name, 1e-3)
        assert one.cost.path_points > 0
    for one, other in zip(tensors(found), tensors(wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_targets_that_no_text_has_in_halves() -> None:
    model = models.tiny_bert()
    small = Small(model.embeddings.LayerNorm, OF_CUDA)
    inputs = {"input_ids": FIVE[2:], "attention_mask": (FIVE[2:] != 0).long()}
    with small.there(FIVE.shape[1]), pytest.raises(LigError, match="in every text"):
        run(lambda: LayerFlowIG(model).attribute(inputs, output_indices=[5]))


@pytest.mark.parametrize("scalarization", ["l2", "projection", "vector"])
def test_halves_of_sets(scalarization: str) -> None:
    small = Small(nn.Linear(4, 4).double(), OF_CUDA)
    x = torch.linspace(-1, 2, 2 * 5 * 4).double().view(2, 5, 4)

    def function(tokens: Tensor) -> Tensor:
        return torch.tanh(small.module(tokens)).cumsum(1)

    def call() -> Any:
        return SetToSetIG(function, scalarization=scalarization).attribute(x, 0.1)

    with small.there():
        wanted, _ = run(call)
    with small.there(small.largest // 2):
        found, given = run(call)
    assert len(given) == 1
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_a_single_point_that_does_not_fit() -> None:
    """Nothing is left to halve: the error is torch's own, and all is as it was."""
    model = decoder()
    small = Small(model.transformer.h[1].mlp, OF_CUDA)
    before = snapshot(model)
    with small.there():
        lengths(model)
        small.most = IDS.shape[1] - 1  # less than one text
        with pytest.raises(torch.OutOfMemoryError):
            run(lambda: lengths(model))
    assert before.changes() == []


def test_other_errors_are_not_memory() -> None:
    model = decoder()
    small = Small(model.transformer.h[1].mlp, RuntimeError("a fault of the model"))
    with small.there():
        lengths(model)
        small.most = small.largest // 3
        with pytest.raises(RuntimeError, match="a fault of the model"):
            run(lambda: lengths(model))
        assert small.failed == 1
