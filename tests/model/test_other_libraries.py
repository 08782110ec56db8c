"""Beside other libraries: they register attention functions and wrap modules and configs, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from captum_lig import FlowGraph, LayerFlowIG, LigError, SetToSetIG, circuits
from captum_lig.patching import effects
from tests.helpers import models
from tests.helpers.state import snapshot

QUICK: dict[str, Any] = {"n_steps": 3, "tolerance": None}
SAYS = "_attn_implementation"
TEXT, OTHER = torch.tensor([[5, 9, 7, 3]]), torch.tensor([[5, 4, 7, 3]])


@pytest.fixture(autouse=True)
def _registered_again() -> Iterator[None]:
    """The interface has no way to take out a name that was not there, such as "eager"."""
    registered = vars(AttentionInterface)["_global_mapping"]
    before = dict(registered)
    yield
    registered.clear()
    registered.update(before)


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    made = models.tiny_bert(layers=2)
    made.set_attn_implementation(request.param)
    return made


def maps(model: nn.Module) -> list[torch.Tensor]:
    return [flow.need("layer") for flow in LayerFlowIG(model).attribute(TEXT, **QUICK)]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))


def once_inside(model: PreTrainedModel, do: Callable[[], None]) -> list[torch.Tensor]:
    """The maps, and somewhere in the middle, in a hook, something is done."""
    runs = [0]

    def hook(*_: object) -> None:
        runs[0] += 1
        if runs[0] == 9:
            do()

    handle = models.blocks(model)[1].output.register_forward_hook(hook)
    try:
        found = maps(model)
    finally:
        handle.remove()
    assert runs[0] > 9
    return found


# ---- the registry ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["another library", "sdpa", "eager", "flash_attention_2"])
def test_one_registers_while_ours_is_active(model: PreTrainedModel, name: str) -> None:
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(*args, **kwargs)

    expected = maps(model)
    before = snapshot(model)
    assert same(once_inside(model, lambda: AttentionInterface.register(name, theirs)), expected)
    assert before.changes() == ["attention functions"]
    assert ALL_ATTENTION_FUNCTIONS[name] is theirs  # and stays


def test_a_model_that_another_library_attends_for() -> None:
    """Its function stands where the model's config says so, and ours sees the same calls."""
    model = models.tiny_llama()
    expected = maps(model)
    calls = [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("another library", counting)
    AttentionMaskInterface.register("another library", sdpa_mask)
    model.set_attn_implementation("another library")
    before = snapshot(model)
    assert same(maps(model), expected)
    assert before.changes() == []
    calls[0] = 0
    model(TEXT)
    assert calls == [2]


def test_one_takes_our_name(model: PreTrainedModel) -> None:
    """What is not reached there is reached in torch's own function, or is refused."""
    expected = maps(model)

    def wrong(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
        return torch.ones_like(value.transpose(1, 2)), None

    AttentionInterface.register("captum_lig", wrong)
    before = snapshot(model)
    if model.config._attn_implementation == "sdpa":
        assert same(maps(model), expected)
    else:
        with pytest.raises(LigError, match="gives something else while it is recorded"):
            maps(model)
    assert before.changes() == []


def test_one_replaces_what_configs_say_while_ours_is_active(model: PreTrainedModel) -> None:
    before = vars(PreTrainedConfig)[SAYS]
    said = model.config._attn_implementation

    def wrap() -> None:
        own = vars(PreTrainedConfig)[SAYS]
        replaced = property(lambda config: own.__get__(config), own.fset)
        setattr(PreTrainedConfig, SAYS, replaced)
        wrapped.append(replaced)

    wrapped: list[property] = []
    expected = maps(model)
    try:
        found = once_inside(model, wrap)
        assert vars(PreTrainedConfig)[SAYS] is wrapped[0]  # theirs stays
        assert model.config._attn_implementation == said  # and ours does nothing any more
        assert same(found, expected)
        assert same(maps(model), expected)
        assert vars(PreTrainedConfig)[SAYS] is wrapped[0]
    finally:
        setattr(PreTrainedConfig, SAYS, before)


# ---- modules ---------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_one_wraps_forwards(times: int) -> None:
    """Before, as accelerate does; and while ours stands there: theirs stays, ours is out of it."""
    model = models.tiny_llama(layers=2)
    expected = maps(model)
    mlp = models.blocks(model)[1].mlp

    def wrap() -> None:
        own = mlp.forward

        def forward(*args: Any) -> Any:
            calls[0] += 1
            return own(*args)

        mlp.forward = forward
        wrapped.append(forward)

    calls, wrapped = [0], []
    wrap()
    before = snapshot(model)
    assert same(maps(model), expected)
    assert before.changes() == []
    if times == 2:
        graph = LayerFlowIG(model).attribute(
            TEXT, OTHER, lambda output: output.last_hidden_state[:, -1, 0], **QUICK
        )
        runs = [0]

        def hook(*_: object) -> None:
            runs[0] += 1
            if runs[0] == 20:
                wrap()

        handle = models.blocks(model)[1].input_layernorm.register_forward_hook(hook)
        with circuits.of_nodes(model, TEXT, OTHER, number) as found:
            found.curve(FlowGraph(graph), [0.1, 0.5])
        handle.remove()
        assert runs[0] > 20
    assert mlp.forward is wrapped[-1]
    assert len(wrapped) == times
    calls[0] = 0
    with torch.no_grad():
        model(TEXT)
    assert calls == [times]
    assert same(maps(model), expected)


def number(output: Any) -> torch.Tensor:
    found: torch.Tensor = output.last_hidden_state[:, -1, 0]
    return found


class Counting(TorchFunctionMode):
    """A mode of the user, that is on while attributions run."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_under_a_mode_of_the_user(model: PreTrainedModel) -> None:
    expected = maps(model)
    with Counting() as mode:
        before = snapshot(model)
        assert same(maps(model), expected)
        assert before.changes() == []
        count = mode.count
        model(TEXT)
        assert mode.count > count > 0


# ---- threads ---------------------------------------------------------------------------------


def test_what_each_call_gives_beside_the_others() -> None:
    """Everything at once, on two models that several threads share."""
    bert, llama = models.tiny_bert(layers=1), models.tiny_llama(layers=1)
    with torch.random.fork_rng(devices=[]):
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).double().eval()
    z = torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, 3, 8)

    def towards(model: nn.Module) -> torch.Tensor:
        flow = LayerFlowIG(model, 0).attribute(TEXT, OTHER, number, **QUICK)
        return flow.need("attention")

    def of_a_circuit(model: nn.Module) -> torch.Tensor:
        with circuits.of_nodes(model, TEXT, OTHER, number) as found:
            return found.curve(torch.arange(found.count), [0.5]).faithfulness

    calls: list[Callable[[], torch.Tensor]] = [
        lambda: maps(bert)[0],
        lambda: towards(bert),
        lambda: of_a_circuit(bert),
        lambda: towards(llama),
        lambda: LayerFlowIG(llama).direct_edges(TEXT, OTHER, number, **QUICK).value,
        lambda: effects(llama, TEXT, OTHER, number, "heads").out.heads,
        lambda: SetToSetIG(layer).attribute(z, "zero", n_steps=3, method="riemann_left"),
        lambda: SetToSetIG(layer).attribute(z, "zero", n_steps=3, method="riemann_left"),
    ]
    expected = [call() for call in calls]
    before = snapshot(bert), snapshot(llama), snapshot(layer)
    barrier = Barrier(len(calls))

    def run(call: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        barrier.wait()
        return [call() for _ in range(2)]

    with ThreadPoolExecutor(len(calls)) as pool:
        for found, right in zip(pool.map(run, calls), expected, strict=True):
            assert all(torch.equal(one, right) for one in found)
    assert [one.changes() for one in before] == [[], [], []]


def test_attention_kernels_are_never_switched() -> None:
    """For all threads, that is: another one would compute with other kernels meanwhile."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).double().eval()
    z = torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, 3, 8)
    seen: set[tuple[bool, ...]] = set()

    def forward(z: torch.Tensor) -> torch.Tensor:
        backends = torch.backends.cuda
        seen.add((backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled()))
        out: torch.Tensor = layer(z)
        return out

    own = SetToSetIG(forward).attribute(z, "zero", n_steps=4, method="riemann_left")
    assert seen == {(True, True)}
    layer.self_attn.requires_grad_(False)
    fine = SetToSetIG(forward).attribute(z, "zero", n_steps=400, method="riemann_left")
    exact = SetToSetIG(forward).attribute(z, "zero", n_steps=64)
    assert (fine - exact).abs().max() < 0.02 * (own - exact).abs().max()
