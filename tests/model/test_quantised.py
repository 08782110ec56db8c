"""Models in 8 or 4 bits, on several devices, in parallel: right, or refused with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlowIG, LigError, SetToSetIG, patching
from captum_lig.flow.layer_flow import LayerFlow
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
