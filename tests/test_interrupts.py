"""Interrupted anywhere, a call leaves the model, transformers and torch as they were.

`python -m tests.helpers.interrupted_calls` interrupts the same calls at every line.
"""

from __future__ import annotations

import gc
import random
import signal
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_lig import LayerFlowIG, LigError, SetToSetIG
from captum_lig.model import attention_call
from captum_lig.model.attention_call import AttentionCall
from captum_lig.paths.jvp import jvp, jvp_of_many
from tests.helpers import models
from tests.helpers.interrupted_calls import CALLS, QUICK, TEXT, Call
from tests.helpers.interrupts import AROUND, PACKAGE, Spot, inside, interrupted, spots
from tests.helpers.state import SAYS_HOOKS, snapshot

CHANGES = ("_restore.py", "hooks.py", "sdpa.py", "hf_attention.py", "attention_call.py")
"""Files of the package that change what is not theirs."""


def drawn(found: dict[Spot, list[int]], name: str) -> list[int]:
    """Moments to interrupt at: most where things are changed and put back, some anywhere."""
    generator = random.Random(zlib.crc32(name.encode()))
    delicate, others = [], []
    for spot, moments in found.items():
        delicate_file = not spot[0].startswith(PACKAGE) or spot[0].endswith(CHANGES)
        (delicate if delicate_file else others).append(generator.choice(moments))
    return sorted(generator.sample(delicate, 16) + generator.sample(others, 8))


@pytest.fixture(scope="module")
def calls() -> Callable[[str], Call]:
    made: dict[str, Call] = {}

    def call(name: str) -> Call:
        if name not in made:
            made[name] = CALLS[name]()
            made[name].run()
        return made[name]

    return call


@pytest.mark.parametrize("name", CALLS)
def test_at_any_line(calls: Callable[[str], Call], name: str) -> None:
    model, run = calls(name)
    found = spots(run)
    before, reached = snapshot(model), 0
    for number, moment in enumerate(drawn(found, name)):
        error = (KeyboardInterrupt, LigError, RuntimeError)[number % 3]
        where = interrupted(run, moment, error)
        reached += where is not None
        assert not before.changes(), where
        if error is KeyboardInterrupt and where is not None:
            assert "swallowed" not in where
    assert reached > 10
    run()
    assert before.changes() == []
    with ThreadPoolExecutor(1) as other:  # no lock is held
        other.submit(run).result(timeout=60)


@pytest.mark.parametrize("name", ["circuits_of_edges", "circuits_of_nodes"])
def test_as_a_context_is_entered_and_left(calls: Callable[[str], Call], name: str) -> None:
    """Where nothing of the context's own runs yet, too, once the exception is gone."""
    model, run = calls(name)
    before = snapshot(model)
    entered = [m for spot, m in spots(run).items() if spot[2].endswith("interrupted_calls.py")]
    moments = {moment for some in entered for moment in (some[0], some[-1])}
    assert len(moments) > 8
    for moment in sorted(moments):
        where = interrupted(run, moment, KeyboardInterrupt)
        assert where is not None
        assert not before.changes(), where


@pytest.mark.parametrize("name", ["towards_a_number", "set_to_set", "circuits_of_nodes"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_the_callers_grad_mode(
    calls: Callable[[str], Call], name: str, mode: Callable[[], Any]
) -> None:
    model, run = calls(name)
    with mode():
        found = spots(run)
        before = snapshot(model)
        for moment in drawn(found, f"{name} {mode}")[::3]:
            where = interrupted(run, moment, KeyboardInterrupt)
            assert where is not None
            assert not before.changes(), where


def rates() -> Tensor:
    return jvp(torch.sin, (torch.ones(3),), (torch.ones(3),))[1]


def rates_of_many() -> Tensor:
    return jvp_of_many(torch.sin, (torch.ones(2, 3),), (torch.ones(2, 8, 3),))


def attended(z: Tensor) -> Tensor:
    """Attention as of a long text: some targets after others, whose weights are had again."""
    heads = z.unflatten(-1, (2, 4)).transpose(1, 2)
    return AttentionCall(heads, heads, heads, None, 1.0, softcap=2.0).fused().flatten(2)


def attributed() -> Tensor:
    z = torch.linspace(-1, 1, 32).view(1, 4, 8)
    return SetToSetIG(attended).attribute(z, "zero", **QUICK)


@pytest.mark.parametrize("run", [rates, rates_of_many, attributed, "set_to_set"])
def test_where_torch_counts(
    calls: Callable[[str], Call], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is inside of, in Python and in C++: interrupted between them, it miscounts."""
    if run is attributed and not SAYS_HOOKS:
        pytest.skip("this torch does not say what a checkpoint left")
    monkeypatch.setattr(attention_call, "LARGE", 16)
    if isinstance(run, str):
        run = calls(run).run
    run()
    expected = run()
    before, places = snapshot(nn.Linear(1, 1)), 0
    for spot, moments in spots(run).items():
        if spot[0] in AROUND:
            for moment in {moments[0], moments[-1]}:
                where = interrupted(run, moment, KeyboardInterrupt)
                assert not before.changes(), where
                assert where is not None
                assert "swallowed" not in where
                places += 1
    assert places > 50
    assert torch.equal(run(), expected)


class NoForwardMode(torch.autograd.Function):
    """Doubles. Has a backward pass and no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def test_while_the_user_handles_another_interrupt() -> None:
    """An error in forward mode has the user's interrupt as its context. That one is not raised."""
    point, direction = torch.ones(3), torch.arange(3.0)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        value, rate = jvp(NoForwardMode.apply, (point,), (direction,))
    assert torch.equal(value, 2 * point)
    assert torch.allclose(rate, 2 * direction)


@pytest.mark.skipif(not SAYS_HOOKS, reason="this torch does not say which hooks are on")
def test_under_the_users_hooks_on_saved_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an interrupted checkpoint end, the user's stay."""
    monkeypatch.setattr(attention_call, "LARGE", 16)
    packed = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal packed
        packed += 1
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        before = snapshot(nn.Linear(1, 1))
        hooking = torch.autograd.graph.__file__
        found = [moments for spot, moments in spots(attributed).items() if spot[0] == hooking]
        for moment in {moment for moments in found for moment in (moments[0], moments[-1])}:
            where = interrupted(attributed, moment, KeyboardInterrupt)
            assert where is not None
            assert not before.changes(), where
        earlier = packed
        torch.ones(1, requires_grad=True).exp()
        assert packed > earlier
    assert len(found) > 10


class Raising(TorchFunctionMode):
    """The user's own mode: raises at one of the functions of torch that are called."""

    def __init__(self, moment: int | None) -> None:
        super().__init__()
        self.moment, self.count = moment, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.moment:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_at_any_operation(calls: Callable[[str], Call], name: str) -> None:
    model, run = calls(name)
    with Raising(None) as counting:
        run()
    before = snapshot(model)
    for moment in range(1, counting.count + 1, max(1, counting.count // 8)):
        with Raising(None) as mode:
            under_it = snapshot(model)
            mode.count, mode.moment = 0, moment
            with pytest.raises(KeyboardInterrupt):
                run()
            mode.moment = None
            assert under_it.changes() == [], moment
        assert before.changes() == [], moment


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_by_a_signal(calls: Callable[[str], Call]) -> None:
    """At any time, as Ctrl-C comes."""
    model, run = calls("towards_a_number")

    def ring(_: int, frame: FrameType | None) -> None:
        if frame is not None and inside(frame):  # one that comes later would end the tests
            raise KeyboardInterrupt

    own = signal.signal(signal.SIGALRM, ring)
    before, interrupts = snapshot(model), 0
    gc.disable()  # Python swallows what is raised in its callbacks
    try:
        for microseconds in range(500, 60_000, 2500):
            try:
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                run()
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert before.changes() == [], microseconds
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, own)
    assert interrupts >= 5


# ---- in a hook of the user -------------------------------------------------------------------


def maps(model: nn.Module) -> bytes:
    flows = LayerFlowIG(model).attribute(TEXT, **QUICK)
    return b"".join(x.numpy().tobytes() for flow in flows for x in (flow.layer, flow.attention))


@pytest.mark.parametrize("inner", ["flows_of_llama", "towards_a_number", "circuits_of_nodes"])
def test_an_interrupted_call_inside_another(calls: Callable[[str], Call], inner: str) -> None:
    """A hook of the user attributes another model, and goes on when that was interrupted."""
    other, run = calls(inner)
    model = models.tiny_bert(layers=2)
    expected = maps(model)
    moments = drawn(spots(run), f"inside {inner}")
    wheres: list[str | None] = []

    def hook(*_: object) -> None:
        if moments:
            wheres.append(interrupted(run, moments.pop(), KeyboardInterrupt))

    # What runs between the hook's calls is an attribution: each interrupt comes at another point.
    handle = model.encoder.layer[1].output.dense.register_forward_hook(hook)
    before, of_other = snapshot(model), snapshot(other)
    try:
        for _ in range(20):
            assert maps(model) == expected, wheres
            assert before.changes() == [], wheres
            assert of_other.changes() == [], wheres
            if not moments:
                break
    finally:
        handle.remove()
    assert not moments
    assert len([where for where in wheres if where is not None]) > 12
