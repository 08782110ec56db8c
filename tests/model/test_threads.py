"""Several threads: attributions beside each other, and beside a model that just runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_lig import Block, LayerFlow, LayerFlowIG
from tests.helpers.families import FAMILIES

TABLE = {family.name: family for family in FAMILIES}
NAMES = ("bert", "llama", "gpt_oss", "deberta-v2", "falcon", "a hand-written GPT", "bart")
"""Cut at the interface, at torch's function, at the projection; with experts, with two lists."""


def built(name: str, implementation: str = "sdpa") -> tuple[nn.Module, dict[str, Any]]:
    model = TABLE[name].build()
    if implementation == "eager":
        model.set_attn_implementation("eager")
    return model, TABLE[name].inputs(model)


def bits(output: Any) -> bytes:
    """Of all tensors that a model gives."""
    if isinstance(output, Tensor):
        return output.detach().contiguous().numpy().tobytes()
    if isinstance(output, dict):
        output = output.values()
    return b"".join(map(bits, output)) if hasattr(output, "__iter__") else b""


def maps(model: nn.Module, inputs: dict[str, Any], layer: Any = None) -> bytes:
    flows = LayerFlowIG(model, layer).attribute(inputs, n_steps=4, tolerance=None)
    flows = [flows] if isinstance(flows, LayerFlow) else flows
    found = [x for f in flows for x in (f.layer, f.attention, f.mlp, f.chain) if x is not None]
    return bits(found)


@contextmanager
def at_every_step(model: nn.Module, do: Callable[[], None]) -> Iterator[list[int]]:
    """Do something before each call of a module without children, in this thread, and not inside
    itself; gives how often it was done."""
    owner, done, busy = threading.get_ident(), [0], [False]

    def hook(*_: object) -> None:
        if threading.get_ident() == owner and not busy[0]:
            busy[0] = True
            try:
                do()
                done[0] += 1
            finally:
                busy[0] = False

    linear = [m for m in model.modules() if not list(m.children())]
    handles = [module.register_forward_pre_hook(hook) for module in linear]
    try:
        yield done
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def beside(model: nn.Module, do: Callable[[], None]) -> Iterator[list[int]]:
    """The same in another thread, while this one waits for it."""
    with (
        ThreadPoolExecutor(1) as other,
        at_every_step(model, lambda: other.submit(do).result()) as done,
    ):
        yield done


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_runs_in_another_thread_is_never_touched(name: str) -> None:
    """Whatever the attribution is at: the same model gives another thread the same bits."""
    model, inputs = built(name)
    q = torch.rand(1, 2, 3, 4)
    with torch.no_grad():
        expected = bits(model(**inputs))
        attended = bits(functional.scaled_dot_product_attention(q, q, q))

    def run() -> None:
        with torch.no_grad():
            assert bits(model(**inputs)) == expected
            assert bits(functional.scaled_dot_product_attention(q, q, q)) == attended

    alone = maps(model, inputs)
    with beside(model, run) as done:
        found = maps(model, inputs)
    assert done[0] > 50
    assert found == alone


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_what_its_config_says_in_another_thread(implementation: str) -> None:
    model, inputs = built("bert", implementation)

    def look() -> None:
        assert model.config._attn_implementation == implementation
        assert model.config.to_dict() == expected

    expected = model.config.to_dict()
    with beside(model, look) as done:
        maps(model, inputs)
    assert done[0] > 50


@pytest.mark.parametrize("name", NAMES)
def test_attributions_beside_each_other(name: str) -> None:
    """On one model, and on another one of the same classes."""
    models = [built(name), built(name)]
    expected = maps(*models[0])
    before = functional.scaled_dot_product_attention
    barrier = threading.Barrier(4)

    def attribute(number: int) -> bytes:
        barrier.wait()
        return maps(*models[number % 2])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(attribute, range(4))) == [expected] * 4
    assert functional.scaled_dot_product_attention is before


def test_one_object_in_several_threads() -> None:
    """What it remembers of the blocks is shared."""
    model, inputs = built("deberta-v2")
    lig = LayerFlowIG(model, 1)

    def attribute(_: int) -> bytes:
        return bits(lig.attribute(inputs, n_steps=4).layer)

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(attribute, range(6)))) == 1


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "a hand-written GPT"])
def test_an_attribution_inside_a_hook_of_another(name: str) -> None:
    """It waits for nobody, is right, and the outer one does not see it."""
    model, inputs = built(name)
    expected = maps(model, inputs)
    inner: list[bytes] = []

    def attribute_again() -> None:
        if len(inner) < 3 or len(inner) == 40:
            inner.append(maps(model, inputs))
        else:
            inner.append(expected)

    with at_every_step(model, attribute_again):
        outer = maps(model, inputs)
    assert len(inner) > 40
    assert set(inner) == {expected}
    assert outer == expected


def test_a_block_of_the_callers() -> None:
    """A span from one module to another runs the model with hooks on both."""
    model, inputs = built("bert")
    block = Block(model.encoder.layer[0], output=model.encoder.layer[1])
    with torch.no_grad():
        expected = bits(model(**inputs))

    def run() -> None:
        with torch.no_grad():
            assert bits(model(**inputs)) == expected

    def attribute() -> Any:
        return LayerFlowIG(model, block).attribute(inputs, boundaries=("layer",), n_steps=4).layer

    alone = attribute()
    with beside(model, run):
        assert torch.equal(attribute(), alone)


def test_what_is_compiled_in_another_thread() -> None:
    """It stays compiled, while the attribution runs the model as it was written."""
    model, inputs = built("bert")
    expected = maps(model, inputs)
    ran: list[bool] = []

    def backend(graph: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            ran.append(True)
            return graph.forward(*args)

        return run

    double = torch.compile(lambda x: x * 2, backend=backend)
    double(torch.ones(2))
    count = len(ran)

    def run() -> None:
        nonlocal count
        double(torch.ones(2))
        count += 1
        assert len(ran) == count

    with beside(model, run) as done:
        assert maps(model, inputs) == expected
    assert done[0] > 50
    run()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception_others_may_attribute(error: type[BaseException]) -> None:
    model, inputs = built("bert")
    expected = maps(model, inputs)
    steps = [0]

    def fail() -> None:
        steps[0] += 1
        if steps[0] == 30:
            raise error

    with at_every_step(model, fail), pytest.raises(error):
        maps(model, inputs)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(maps, model, inputs).result(timeout=60) == expected
