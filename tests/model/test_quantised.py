"""Models in 8 or 4 bits, on several devices, in parallel: right, or refused with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlowIG, LigError, SetToSetIG, inspect_model, patching
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.graph import FlowGraph
from tests.helpers import models
from tests.helpers.state import snapshot


class Eight(nn.Module):
    """As libraries keep weights in 8 bits: whole numbers, a scale a row, widened to multiply."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        whole = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def wide(self) -> Tensor:
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        return nn.functional.linear(x, self.wide().to(x), bias)


class Four(Eight):
    """In 4 bits: two weights in a byte, of 16 levels."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        level = ((self.weight.int() + 127) // 16).to(torch.uint8)
        packed = level[:, ::2] * 16 + level[:, 1::2]
        self.weight = nn.Parameter(packed, requires_grad=False)

    def wide(self) -> Tensor:
        level = torch.stack([self.weight // 16, self.weight % 16], -1).flatten(1)
        return (level.to(self.scale) * 16 - 119) * self.scale


class Forward(Four):
    """As bitsandbytes' on a CPU: made for going forward, an error where gradients are wanted."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("a view of a leaf Variable is used in an in-place operation.")
        return super().forward(x)


class Halved(Forward):
    """As bitsandbytes' for 4 bits: it multiplies in bfloat16, whatever it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16()).to(x)


class Rounding(Eight):
    """As torchao's and bitsandbytes' for 8 bits: vectors are rounded, gradients as if not."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        step = x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
        return super().forward(x + ((x / step).round() * step - x).detach())


class RoundingInHooks(Rounding):
    """As optimum-quanto's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.register_forward_pre_hook(lambda _, args: ((args[0] / 0.05).round() * 0.05,))

    def forward(self, x: Tensor) -> Tensor:
        return Eight.forward(self, x)


def wide(linear: nn.Linear, kind: type[Eight]) -> nn.Linear:
    """The layer with the same weights in full."""
    found = copy.deepcopy(linear)
    found.weight = nn.Parameter(kind(linear).wide())
    return found


def exchanged(model: nn.Module, by: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    other = copy.deepcopy(model)
    for name, module in list(other.named_modules()):
        if isinstance(module, nn.Linear):
            owner, _, own = name.rpartition(".")
            setattr(other.get_submodule(owner), own, by(module))
    return other.eval()


def number(output: Any) -> Tensor:
    found: Tensor = output.last_hidden_state[:, -1, 3]
    return found


def all_of(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What lengths, a number and patching say."""
    lig = LayerFlowIG(model)
    flows = [*lig.attribute(ids), *lig.attribute(ids, ids.roll(1, 1), number)]
    found = [x for flow in flows for x in flow.tensors.values()]
    effects = patching.effects(model, ids, ids.roll(1, 1), number, ("heads",)).out.heads
    assert effects is not None
    return [*found, effects]


def check_same(model: nn.Module, other: nn.Module, ids: Tensor) -> None:
    before = snapshot(model)
    found = all_of(model, ids)
    assert before.changes() == []
    for one, wanted in zip(found, all_of(other, ids), strict=True):
        torch.testing.assert_close(one, wanted, rtol=2e-3, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize("kind", [Eight, Four])
def test_weights_in_few_bits(kind: type[Eight]) -> None:
    """Numbers are those of a model with the same weights in full, and not of the one before."""
    model = models.tiny_llama(torch.float32)
    ids = models.tokens(model, 1, 4)
    few = exchanged(model, kind)
    few.requires_grad_(False)
    full = exchanged(model, lambda linear: wide(linear, kind))
    check_same(few, full, ids)
    own, rounded = (LayerFlowIG(x, 1).attribute(ids) for x in (model, few))
    assert isinstance(own, LayerFlow)
    assert isinstance(rounded, LayerFlow)
    assert own.layer is not None
    assert not torch.allclose(own.layer, rounded.need("layer"), rtol=1e-3)
    half = copy.deepcopy(few).half()
    for flow in LayerFlowIG(half).attribute(ids, ids.roll(1, 1), number):
        assert all(bool(rows.all()) for rows in flow.converged.values())


def some_of(model: nn.Module, ids: Tensor, **given: Any) -> list[Tensor]:
    lig = LayerFlowIG(model)
    flow = LayerFlowIG(model, 1).attribute(ids, boundaries=["layer", "influence"], **given)
    assert isinstance(flow, LayerFlow)
    flows = [flow, *lig.attribute(ids, ids.roll(1, 1), number, **given)]
    edges = lig.direct_edges(ids, ids.roll(1, 1), number, **given)
    found = [x for flow in flows for x in flow.tensors.values()]
    return [*found, torch.tensor([edges.change, edges.into_target, edges.out_of_embedding])]


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=["own", "float64"])
def test_kernels_without_gradients(dtype: torch.dtype | None) -> None:
    """The numbers of plain layers with the same weights, also what comes in a wider precision."""
    model = models.tiny_llama(torch.float32)
    ids = models.tokens(model, 1, 4)
    few = exchanged(model, Forward)
    full = exchanged(model, lambda linear: wide(linear, Forward))
    before = snapshot(few)
    found = some_of(few, ids, dtype=dtype)
    assert before.changes() == []
    for one, wanted in zip(found, some_of(full, ids, dtype=dtype), strict=True):
        torch.testing.assert_close(one, wanted, rtol=2e-3, atol=2e-4, equal_nan=True)
    assert all(b.not_supported is None for b in inspect_model(few, ids).blocks)


def test_kernels_in_half_precision() -> None:
    """The recorded run is held to what such kernels can tell: attention that is summed in another
    order sends some numbers to the next of bfloat16."""
    few = exchanged(models.tiny_llama(torch.float32, layers=24), Halved)
    ids = torch.arange(64).view(1, -1) % 40
    lig = LayerFlowIG(few, layer=[few.get_submodule("layers.23")])
    flow = lig.attribute(ids, n_steps=8, tolerance=None, output_indices=[-1])[0]
    assert bool(torch.isfinite(flow.layer).all())
    # One that is exact is held to what float32 can tell.
    moved = [False]

    def move(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        moved[0] = not moved[0]
        return output + 1e-3 * output.roll(1, -1) if moved[0] else output

    exact = exchanged(models.tiny_llama(torch.float32, layers=1), Eight)
    exact.get_submodule("layers.0.mlp").register_forward_hook(move)
    with pytest.raises(LigError, match="something else"):
        LayerFlowIG(exact).attribute(ids[:, :5], n_steps=8, tolerance=None)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_asked_of_kernels_in_half_precision_is_the_same_question(seed: int) -> None:
    """A graph is of the weights in full, and patching runs the kernels: their numbers differ."""
    few = exchanged(models.tiny_llama(torch.float32, layers=2, seed=seed), Halved)
    ids = models.tokens(few, 1, 5)
    other = (7 * ids + 5) % 40 + 4
    graph = FlowGraph(LayerFlowIG(few).attribute(ids, other, number))
    found = patching.check(graph, few, ids, other, number, k=3)
    change = found.value - found.baseline_value
    assert graph.change is not None
    assert abs(graph.change - change) > 1e-3 * abs(change)  # by more than a model that is exact
    with pytest.raises(LigError, match="the same text"):
        patching.check(graph, few, other, ids, number, k=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_in_full_of_half_precision(dtype: torch.dtype) -> None:
    """A large bias does not hide small weights."""
    linear = nn.Linear(64, 32)
    nn.init.constant_(linear.bias, 8.0)
    full = wide(linear, Forward)
    few: Any = nn.Sequential(Forward(linear), nn.GELU()).to(dtype)
    x = torch.linspace(-4, 4, 3 * 64).view(1, 3, 64).to(dtype)
    found = SetToSetIG(few).attribute(x, 0.0)
    wanted = SetToSetIG(nn.Sequential(full, nn.GELU())).attribute(x.float(), 0.0)
    torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.05)


def test_hooks_go_with_layers() -> None:
    layer = Forward(nn.Linear(8, 8))
    layer.register_forward_hook(lambda _, __, y: y * 3)
    x = torch.linspace(-1, 1, 2 * 8).view(1, 2, 8)
    found = SetToSetIG(layer, scalarization="vector").attribute(x, 0.0)
    torch.testing.assert_close(found.sum(2), (layer(x) - layer(x * 0)).detach())


@pytest.mark.parametrize("kind", [Rounding, RoundingInHooks])
def test_rounded_vectors_with_gradients_are_refused(kind: type[Eight]) -> None:
    """Gradients that are there are not those of what the layer does."""
    model = models.tiny_llama(torch.float32)
    ids = models.tokens(model, 1, 4)
    few = exchanged(model, kind)
    name = rf"layers\.0.*q_proj is a .*\.{kind.__name__}\).*weights alone"
    for call in (
        lambda: LayerFlowIG(few).attribute(ids),
        lambda: LayerFlowIG(few).attribute(ids, dtype=torch.float64),
        lambda: LayerFlowIG(few).attribute(ids, ids.roll(1, 1), number),
        lambda: LayerFlowIG(few).direct_edges(ids, ids.roll(1, 1), number),
        lambda: patching.effects(few, ids, ids.roll(1, 1), number, ("heads",)),
    ):
        with pytest.raises(LigError, match=name):
            call()
    assert "weights alone" in str(inspect_model(few, ids).unreachable)
    layer = kind(nn.Linear(8, 8))
    x = torch.linspace(-1, 1, 2 * 8).view(1, 2, 8)
    for function in (layer, lambda x: layer(x)):
        with pytest.raises(LigError, match=f"forward_func.*{kind.__name__}"):
            SetToSetIG(function).attribute(x, 0.0)


def test_a_function_of_a_kernel_without_gradients_is_refused() -> None:
    layer = Forward(nn.Linear(8, 8))
    x = torch.linspace(-1, 1, 2 * 8).view(1, 2, 8)
    with pytest.raises(LigError, match=r"Forward.*no gradients.*Give a torch\.nn\.Module"):
        SetToSetIG(lambda x: layer(x)).attribute(x, 0.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_vectors_that_are_rounded_are_refused() -> None:
    model = models.tiny_llama(torch.float32)
    ids = models.tokens(model, 1, 4)
    rounding = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
    )
    for call in (
        lambda: LayerFlowIG(rounding).attribute(ids),
        lambda: LayerFlowIG(rounding).attribute(ids, ids.roll(1, 1), number),
        lambda: patching.effects(rounding, ids, ids.roll(1, 1), number, ("heads",)),
    ):
        with pytest.raises(LigError, match=r"layers\.0.* is quantised .*Give the model as it was"):
            call()


def test_on_several_devices(tmp_path: Path) -> None:
    """The disk stands for a second device: hooks move weights and states between blocks."""
    accelerate = pytest.importorskip("accelerate")
    model = models.tiny_bert(torch.float32)
    ids = models.tokens(model, 1, 4)
    places = dict.fromkeys(("embeddings", "encoder.layer.0", "pooler"), "cpu")
    places["encoder.layer.1"] = "disk"
    spread = accelerate.dispatch_model(
        copy.deepcopy(model), places, main_device="cpu", offload_dir=str(tmp_path)
    )
    assert {p.is_meta for p in spread.parameters()} == {True, False}
    for one, wanted in zip(all_of(spread, ids), all_of(model, ids), strict=True):
        torch.testing.assert_close(one, wanted, equal_nan=True)
    assert {p.is_meta for p in spread.parameters()} == {True, False}


def test_data_parallel() -> None:
    """Without GPUs torch calls the module itself; names have ``module.`` before them."""
    model = models.tiny_bert(torch.float32)
    ids = models.tokens(model, 1, 4)
    parallel = nn.DataParallel(model).eval()
    check_same(parallel, model, ids)
    flow = LayerFlowIG(parallel, "module.encoder.layer.1").attribute(ids)
    assert isinstance(flow, LayerFlow)
    assert flow.name == "module.encoder.layer.1"


@pytest.mark.parametrize("how", ["parallel", "compiled"])
def test_sets_through_a_wrapper(how: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8)
    compiled: Any = torch.compile(layer, backend="eager")
    wrapped = nn.DataParallel(layer) if how == "parallel" else compiled
    found = SetToSetIG(wrapped).attribute(x, 0.0, n_steps=8)
    wanted = SetToSetIG(layer).attribute(x, 0.0, n_steps=8)
    torch.testing.assert_close(found, wanted)


def test_patching_what_is_compiled() -> None:
    model = models.tiny_llama(torch.float32)
    ids = models.tokens(model, 1, 4)
    compiled: Any = torch.compile(copy.deepcopy(model), backend="eager")
    for one, wanted in zip(all_of(compiled, ids), all_of(model, ids), strict=True):
        torch.testing.assert_close(one, wanted, equal_nan=True)
