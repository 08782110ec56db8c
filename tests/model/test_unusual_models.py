"""Models that run by themselves, as they come: layouts, inference mode, torch.jit, integers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlow, LayerFlowIG, LigError, inspect_model
from tests.helpers import twins
from tests.helpers.families import FAMILIES, built, drawn, ids, noise
from tests.helpers.hand_written import HandGPT

TABLE = {family.name: family for family in FAMILIES}

LAYOUTS: dict[str, dict[str, Any]] = {
    "llama4_text": {"moe_layers": [], "attn_temperature_tuning": False},
    "afmoe": {},
    "jetmoe": {},
    "openai-gpt": {},
}
"""Their code says `view` or `view_as_complex` of what their own attention gives."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_code_that_counts_on_a_layout(kind: str, dtype: torch.dtype) -> None:
    model = built(kind, **LAYOUTS[kind])().to(dtype)
    assert inspect_model(model, ids(model)).not_supported == ()
    names = ("attention", "mlp", "layer", "influence")
    for baseline in ("target_token", "zero"):
        given = {"boundaries": names, "n_steps": 4, "tolerance": None}
        flow = LayerFlowIG(model, 1).attribute(ids(model), baseline, **given)
        assert isinstance(flow, LayerFlow)
        assert flow.layer is not None
        assert flow.attention.shape[-1] == 4


@pytest.mark.parametrize("kind", LAYOUTS)
def test_their_maps_are_the_blocks_own_integrals(kind: str) -> None:
    model = built(kind, **LAYOUTS[kind])()
    seen: dict[str, Any] = {}

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.update(module=module, args=args, kwargs=kwargs)

    block = dict(model.named_modules())["h.1" if kind == "openai-gpt" else "layers.1"]
    handle = block.register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(**ids(model), **({} if kind == "openai-gpt" else {"use_cache": False}))
    handle.remove()
    (z, *args), kwargs = seen["args"], seen["kwargs"]
    z = z.detach()

    def row(x: Tensor, target: int) -> Tensor:
        output = block(x[None], *args, **kwargs)
        return (output if isinstance(output, Tensor) else output[0])[0, target]

    flow = LayerFlowIG(model, 1).attribute(ids(model), "zero", n_steps=8, tolerance=None)
    for j in range(4):
        start = torch.zeros_like(z[0])
        (means,), _ = twins.mean_gradients(
            lambda x, j=j: row(x, j), (start,), (z[0],), "l2", *twins.gauss_legendre(8)
        )
        expected = (means * z[0]).sum(-1)
        # Their softmax and rotary encoding are float32, in a model of float64 as well.
        assert (flow.layer[0, j] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["bert", "llama", "deberta-v2", "a hand-written GPT", "bart"])
def test_a_model_made_in_inference_mode(name: str) -> None:
    """Its tensors take no part in gradients, so copies of them do; the map is the same."""
    family = TABLE[name]
    with torch.inference_mode():
        made = family.build()
        inputs = family.inputs(made)
    assert all(p.is_inference() for p in made.parameters())
    usual = family.build()
    names = ("attention", "mlp", "layer", "influence")
    for baseline in ("target_token", "zero"):
        found, expected = (
            LayerFlowIG(model, 1).attribute(inputs, baseline, boundaries=names, n_steps=4)
            for model in (made, usual)
        )
        for field in (*names, "chain"):
            torch.testing.assert_close(getattr(found, field), getattr(expected, field))
    assert all(p.is_inference() for p in made.parameters())


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids)["logits"]
        return found


def ways_to_freeze() -> dict[str, Any]:
    text = ids(nn.Identity())["input_ids"]
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    return {
        "traced": lambda: (torch.jit.trace(Logits(drawn(HandGPT())).eval(), (text,)), text),
        "scripted": lambda: (torch.jit.script(layer.double().eval()), noise(1, 4, 32)),
        "exported": lambda: (
            torch.export.export(Logits(drawn(HandGPT())).eval(), (text,)).module(),
            text,
        ),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("call", [inspect_model, lambda m, x: LayerFlowIG(m).attribute(x)])
@pytest.mark.parametrize("way", ["traced", "scripted", "exported"])
def test_a_model_that_is_code_no_more(way: str, call: Any) -> None:
    model, inputs = ways_to_freeze()[way]()
    with pytest.raises(LigError, match=r"traced, scripted or exported.*torch\.nn\.Module"):
        call(model, inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_traced_block_is_named() -> None:
    model = drawn(HandGPT())
    model.blocks[0] = torch.jit.trace(model.blocks[0], (noise(1, 4, 32),))
    inputs = ids(model)
    with pytest.warns(UserWarning, match=r"'blocks\.0' was traced"):
        flows = LayerFlowIG(model).attribute(inputs, n_steps=2, tolerance=None)
    assert [flow.name for flow in flows] == ["blocks.1"]
    assert any("blocks.0" in why for why in inspect_model(model, inputs).not_supported)


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("name", ["bert", "llama", "a hand-written GPT", "deberta-v2"])
def test_a_quantised_model(name: str, evaluated: bool) -> None:
    """The reason is said: not a training mode, nor tokens that are mixed."""
    model = TABLE[name].build().float()
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
            model = model.eval() if evaluated else model
            with pytest.raises(LigError, match=r"is quantised \(.*Linear\).*as it was"):
                LayerFlowIG(model).attribute(ids(model))
            assert "quantised" in inspect_model(model, ids(model)).not_supported[0]
    finally:
        torch.backends.quantized.engine = engine


@pytest.mark.parametrize("name", ["bert", "llama", "a hand-written GPT", "deberta-v2"])
def test_under_autocast(name: str) -> None:
    model = TABLE[name].build().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(LigError, match=r"autocast is on \(torch\.bfloat16\).*outside"):
            LayerFlowIG(model).attribute(ids(model))
        with torch.autocast("cpu", enabled=False):
            LayerFlowIG(model, 1).attribute(ids(model), n_steps=2, tolerance=None)
