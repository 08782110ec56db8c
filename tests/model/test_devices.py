"""Compiled, checkpointed, offloaded, in half precision, wrapped: it works, or says why not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.model.inputs import ModelCall
from tests.helpers import models
from tests.helpers.families import drawn, noise
from tests.helpers.sdpa_blocks import LENGTH, WIDTH, Attending, Model


def layer_of(model: Any, inputs: Any, **given: Any) -> Tensor:
    flow = LayerFlowIG(model, 1).attribute(inputs, n_steps=4, tolerance=None, **given)
    assert isinstance(flow, LayerFlow)
    assert flow.layer is not None
    return flow.layer


@pytest.mark.parametrize("how", ["model", "in place", "blocks", "blocks in place"])
def test_compiled(how: str) -> None:
    model = models.tiny_llama(torch.float32)
    ids = models.tokens(model, 1, 4)
    expected = layer_of(model, ids)
    compiled: Any = copy.deepcopy(model)
    if how == "model":
        compiled = torch.compile(compiled, backend="eager")
    elif how == "in place":
        compiled.compile(backend="eager")
    for index in range(2):
        if how == "blocks":
            compiled.layers[index] = torch.compile(compiled.layers[index], backend="eager")
        elif how == "blocks in place":
            compiled.layers[index].compile(backend="eager")
    torch.testing.assert_close(layer_of(compiled, ids), expected)
    torch.testing.assert_close(
        layer_of(compiled, ids, dtype=torch.float64).float(), expected, rtol=1e-3, atol=1e-4
    )


def test_checkpointed() -> None:
    model = models.tiny_gpt2()
    ids = models.tokens(model, 1, 4)
    expected = layer_of(model, ids)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(layer_of(model, ids), expected)

    class Checkpointed(Model):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    blocks = Attending({}), Attending({})
    plain, wrapped = drawn(Model(*blocks)), Checkpointed(*blocks).eval()
    x = noise(1, LENGTH, WIDTH)
    torch.testing.assert_close(layer_of(wrapped, x), layer_of(plain, x))


def test_data_parallel_wrapper() -> None:
    model = models.tiny_bert()
    ids = models.tokens(model, 1, 4)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    flow = LayerFlowIG(Wrapped().eval(), 1).attribute(ids, n_steps=4, tolerance=None)
    assert flow.name == "module.encoder.layer.1"
    torch.testing.assert_close(flow.layer, layer_of(model, ids))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded(where: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = models.tiny_bert(torch.float32)
    ids = models.tokens(model, 1, 4)
    expected = layer_of(model, ids)
    if where == "memory":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.encoder.parameters())
    torch.testing.assert_close(layer_of(model, ids), expected)
    assert all(parameter.is_meta for parameter in model.encoder.parameters())
    with pytest.raises(LigError, match=r"encoder\.layer\.1.*offloaded.*dtype=torch\.float64"):
        layer_of(model, ids, dtype=torch.float64)


def number(output: Any) -> Tensor:
    found: Tensor = output.last_hidden_state[:, -1, 3]
    return found


def test_loaded_onto_a_disk(tmp_path: Path) -> None:
    """Two blocks that accelerate's map leaves on a disk, and one in memory, with a number."""
    pytest.importorskip("accelerate")
    model = models.tiny_llama(torch.float32, layers=3, exact_norms=False)
    ids = models.tokens(model, 1, 4)
    model.save_pretrained(tmp_path / "model")
    places: dict[str, str] = dict.fromkeys(("embed_tokens", "norm", "rotary_emb"), "cpu")
    places |= {"layers.0": "disk", "layers.1": "cpu", "layers.2": "disk"}
    spread = LlamaModel.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path, dtype=torch.float32
    ).eval()
    before = [(name, p.is_meta) for name, p in spread.named_parameters()]
    assert {meta for _, meta in before} == {True, False}

    def flows(of: Any, **given: Any) -> list[Tensor]:
        lig = LayerFlowIG(of)
        towards = lig.attribute(ids, ids.roll(1, 1), number, **given)
        return [x for flow in [*lig.attribute(ids), *towards] for x in flow.tensors.values()]

    for one, wanted in zip(flows(spread), flows(model), strict=True):
        torch.testing.assert_close(one, wanted, equal_nan=True)
    with pytest.raises(LigError, match=r"offloaded.*dtype=torch\.float64"):
        flows(spread, dtype=torch.float64)
    assert before == [(name, p.is_meta) for name, p in spread.named_parameters()]


def test_inputs_go_where_the_model_is() -> None:
    """The meta device stands for another one: nothing is computed, the inputs are moved."""
    model = nn.Linear(2, 2, device="meta").eval()
    call = ModelCall.of(model, torch.zeros(1, 3, 2))
    assert call.args[0].device.type == "meta"
    call = ModelCall.of(model, {"input": torch.zeros(1, 3, 2)})
    assert call.kwargs["input"].device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    blocks = Attending({"is_causal": True}), Attending({"is_causal": True})
    model = drawn(Model(*blocks))
    x = noise(1, LENGTH, WIDTH)
    expected = layer_of(model, x)
    half = copy.deepcopy(model).to(dtype)
    actual = layer_of(half, x.to(dtype))
    assert actual.dtype == torch.float32
    bound = 0.003 if dtype == torch.float16 else 0.03
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound)
    assert bool((actual.triu(1) == 0).all())
