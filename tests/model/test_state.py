"""What an attribution touches it puts back: the model, its config, and torch's global state."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.overrides import BaseTorchFunctionMode
from transformers import AttentionInterface, CLIPConfig, CLIPModel, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from captum_lig import LayerFlow, LayerFlowIG, LigError, SetToSetIG
from tests.helpers import models
from tests.helpers.state import Unchanged

BASELINES = ["zero", "target_token", 0.3]


def build(family: str, implementation: str) -> PreTrainedModel:
    """Some parameters frozen, so that the flags are not all alike."""
    model = models.MODELS[family]()
    model.set_attn_implementation(implementation)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    return model


@pytest.fixture(
    scope="module",
    params=[(family, name) for family in models.MODELS for name in ("sdpa", "eager")],
    ids="-".join,
)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(*request.param)


def test_the_check_itself_sees_changes() -> None:
    """Else the tests below would pass for a model that was changed."""
    model = build("bert", "sdpa")
    inputs = models.padded_batch(model, (3,))
    block = models.blocks(model)[1]

    frozen = next(p for p in block.parameters() if not p.requires_grad)

    def one_more_draw() -> None:
        torch.rand(1)

    hooks = block.output._forward_hooks
    hooks[0] = lambda *_: None
    mode, level = BaseTorchFunctionMode(), torch.nn.attention.sdpa_kernel(SDPBackend.MATH)

    changes: list[Callable[[], object]] = [
        lambda: hooks.update({0: lambda *_: None}),
        lambda: setattr(block.output, "forward", block.output.forward),
        lambda: setattr(block.output, "__class__", type("Other", (type(block.output),), {})),
        lambda: setattr(block, "remembered", 1),
        lambda: AttentionInterface.register("another library", print),
        lambda: ALL_MASK_ATTENTION_FUNCTIONS.register("another library", print),
        mode.__enter__,
        level.__enter__,
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: warnings.simplefilter("ignore", UserWarning),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: block.register_forward_hook(lambda *_: None),
        lambda: block.attention.register_forward_pre_hook(lambda *_: None),
        lambda: block.register_full_backward_hook(lambda *_: None),
        lambda: model.set_attn_implementation("eager"),
        lambda: block.intermediate.train(),
        lambda: frozen.requires_grad_(),
        lambda: block.output.dense.bias.data.add_(1e-9),
        lambda: setattr(block.output.dense.bias, "grad", torch.zeros(models.WIDTH).double()),
        lambda: setattr(model.config, "use_cache", not model.config.use_cache),
        lambda: torch.set_grad_enabled(False),
        one_more_draw,
    ]
    kept = list(warnings.filters)
    for change in changes:
        with pytest.raises(AssertionError), Unchanged(model, inputs):
            change()
        torch.set_grad_enabled(True)
    mode.__exit__(None, None, None)
    level.__exit__(None, None, None)
    torch.set_autocast_enabled("cpu", False)
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    warnings.filters[:] = kept


# ---- after success ---------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", BASELINES)
def test_success(model: PreTrainedModel, baseline: Any) -> None:
    inputs = models.padded_batch(model, (4, 3))
    with Unchanged(model, inputs):
        flows = LayerFlowIG(model).attribute(inputs, baseline, n_steps=4)
    assert len(flows) == 2


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", models.CAUSAL)
def test_the_cache_setting(family: str, use_cache: bool) -> None:
    model = build(family, "sdpa")
    model.config.use_cache = use_cache
    inputs = models.padded_batch(model, (4,))
    with Unchanged(model, inputs):
        LayerFlowIG(model, 1).attribute({**inputs, "use_cache": True}, n_steps=2)
    assert model.config.use_cache is use_cache


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode(model: PreTrainedModel, mode: Any) -> None:
    inputs = models.padded_batch(model, (4, 3))
    with Unchanged(model, inputs), mode():
        LayerFlowIG(model, 1).attribute(inputs, n_steps=3, method="riemann_trapezoid")
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


def test_what_the_caller_gave(model: PreTrainedModel) -> None:
    inputs: dict[str, Any] = models.padded_batch(model, (4, 3))
    vectors = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    inputs["inputs_embeds"] = vectors
    start = torch.full((1, 4, models.WIDTH), 0.1, dtype=torch.float64, requires_grad=True)
    bits = [x.detach().clone() for x in (*inputs.values(), start)]
    names = list(inputs)
    LayerFlowIG(model, 0).attribute(inputs, start, n_steps=3)
    assert list(inputs) == names
    for before, after in zip(bits, (*inputs.values(), start), strict=True):
        assert torch.equal(before, after.detach())
    for leaf in (vectors, start):
        assert leaf.grad is None
        assert leaf.requires_grad


def test_hooks_of_the_caller_stay_and_run(model: PreTrainedModel) -> None:
    inputs = models.padded_batch(model, (4,))
    runs = [0]

    def count(*_: object) -> None:
        runs[0] += 1

    handle = models.blocks(model)[1].register_forward_hook(count)
    try:
        with Unchanged(model, inputs):
            LayerFlowIG(model).attribute(inputs, n_steps=2)
        before = runs[0]
        model(**inputs)
        assert runs[0] == before + 1
    finally:
        handle.remove()


def test_two_on_one_model_do_not_know_of_each_other(model: PreTrainedModel) -> None:
    inputs = models.padded_batch(model, (4, 3))
    first, second = LayerFlowIG(model, 0), LayerFlowIG(model, 1, "projection")

    def run(lig: LayerFlowIG) -> LayerFlow:
        flow = lig.attribute(inputs, n_steps=3)
        assert isinstance(flow, LayerFlow)
        return flow

    with Unchanged(model, inputs):
        alone = run(first), run(second)
        again = run(second), run(first), run(second)
    for flow, expected in zip(again, (alone[1], alone[0], alone[1]), strict=True):
        assert flow.layer is not None
        assert expected.layer is not None
        assert torch.equal(flow.layer, expected.layer)


def test_nothing_keeps_the_model_alive() -> None:
    model = build("bert", "sdpa")
    inputs = models.padded_batch(model, (3,))
    flows = LayerFlowIG(model).attribute(inputs, n_steps=2)
    with pytest.raises(LigError):
        LayerFlowIG(model).attribute(inputs, "unknown")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(flows) == 2


def test_configs_inside_a_config() -> None:
    """A text and a vision tower, each with its own attention implementation."""
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 2},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=4,
    )
    with torch.random.fork_rng(devices=[]):
        model = CLIPModel(config).double().eval()
        image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    chosen = (config.text_config._attn_implementation, config.vision_config._attn_implementation)
    assert chosen == ("eager", "sdpa")
    inputs = {"input_ids": torch.tensor([[5, 7, 9, 2]]), "pixel_values": image}
    with Unchanged(model, inputs):
        flow = LayerFlowIG(model, "vision_model.encoder.layers.1").attribute(inputs, n_steps=2)
    assert isinstance(flow, LayerFlow)
    assert flow.layer is not None
    assert flow.layer.shape == (1, 5, 5)
    assert LayerFlowIG(model, "text_model.encoder.layers.0").attribute(
        inputs, n_steps=2
    ).layer.shape == (1, 4, 4)
    with Unchanged(model, inputs), pytest.raises(LigError):
        LayerFlowIG(model, "text_model.encoder.layers.1").attribute(inputs, "unknown")


def test_two_models_in_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = build("bert", "sdpa"), build("gpt2", "eager")

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            first = self.first(input_ids, attention_mask).last_hidden_state
            second = self.second(input_ids, attention_mask=attention_mask).last_hidden_state
            return {"first": first, "second": second}

    model = Two().eval()
    inputs = models.padded_batch(model.first, (4, 3))
    with Unchanged(model, inputs):
        flows = LayerFlowIG(model).attribute(inputs, n_steps=2)
        assert isinstance(flows, list)
        assert [flow.name for flow in flows] == [
            "first.encoder.layer.0",
            "first.encoder.layer.1",
            "second.h.0",
            "second.h.1",
        ]


# ---- after an exception ----------------------------------------------------------------------


class _Stop(BaseException):
    """Not even an Exception."""


ERRORS = [RuntimeError, KeyboardInterrupt, _Stop, IndexError]


def last_part(model: PreTrainedModel) -> nn.Module:
    """What runs last in the last block, after its attention."""
    block: Any = models.blocks(model)[-1]
    found: nn.Module = block.output if hasattr(block, "output") else block.mlp
    return found


def runs_of_a_success(model: PreTrainedModel, inputs: dict[str, Tensor]) -> int:
    counted = [0]

    def count(*_: object) -> None:
        counted[0] += 1

    handle = last_part(model).register_forward_hook(count)
    try:
        LayerFlowIG(model).attribute(inputs, n_steps=2)
    finally:
        handle.remove()
    return counted[0]


@pytest.mark.parametrize("error", ERRORS)
def test_an_exception_at_any_moment(model: PreTrainedModel, error: type[BaseException]) -> None:
    """In the recording run, in a step of what follows the attention, and in the very last one."""
    inputs = models.padded_batch(model, (3,))
    runs = runs_of_a_success(model, inputs)
    assert runs >= 3, "the block has to be called again after it was recorded"
    for moment in (1, 2, runs // 2 + 1, runs):
        countdown = [moment]

        def raise_in_time(*_: object, countdown: list[int] = countdown) -> None:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise error("on purpose")

        with Unchanged(model, inputs):
            handle = last_part(model).register_forward_hook(raise_in_time)
            try:
                with pytest.raises((error, LigError)) as caught:
                    LayerFlowIG(model).attribute(inputs, n_steps=2)
            finally:
                handle.remove()
            assert countdown[0] == 0
        # Only what the model makes of its inputs may be put in other words, with its cause.
        if caught.type is not error:
            assert moment == 1
            assert issubclass(error, Exception)
            assert type(caught.value.__cause__) is error


def test_after_an_exception_the_next_call_is_right(model: PreTrainedModel) -> None:
    inputs = models.padded_batch(model, (4, 3))
    expected = LayerFlowIG(model, 1).attribute(inputs, n_steps=3)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    handle = last_part(model).register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        LayerFlowIG(model, 1).attribute(inputs, n_steps=3)
    handle.remove()
    actual = LayerFlowIG(model, 1).attribute(inputs, n_steps=3)
    assert isinstance(actual, LayerFlow)
    assert isinstance(expected, LayerFlow)
    assert actual.layer is not None
    assert expected.layer is not None
    assert torch.equal(actual.layer, expected.layer)


@pytest.mark.parametrize(
    "change",
    [
        {"baselines": "unknown"},
        {"baselines": torch.zeros(7)},
        {"baselines": ["zero", "target_token", "zero"]},
        {"output_indices": [99]},
        {"layer": 9},
        {"layer": "embeddings"},
        {"n_steps": 0},
        {"boundaries": "unknown"},
    ],
    ids=str,
)
def test_a_refusal(model: PreTrainedModel, change: dict[str, Any]) -> None:
    inputs = models.padded_batch(model, (4, 3))
    arguments = {"n_steps": 2, **change}
    layer = arguments.pop("layer", None)
    with Unchanged(model, inputs), pytest.raises(LigError):
        LayerFlowIG(model, layer).attribute(inputs, **arguments)


def test_text_that_does_not_fit() -> None:
    for model in (build("bert", "sdpa"), build("gpt2", "eager")):
        inputs = models.padded_batch(model, (4,))
        for ids in (torch.full((1, 65), 5), torch.tensor([[5, 50]])):
            # That it is a LigError is for test_bad_input to see.
            with Unchanged(model, inputs), pytest.raises((LigError, RuntimeError)):
                LayerFlowIG(model).attribute(ids, n_steps=2)


def test_a_model_in_training_mode_stays_in_it() -> None:
    model = build("gpt2", "sdpa")
    model.h[1].train()
    flags = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(LigError):
        LayerFlowIG(model).attribute(models.tokens(model, 1, 3))
    assert {name: module.training for name, module in model.named_modules()} == flags


# ---- SetToSetIG ------------------------------------------------------------------------------


def layer_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    block = models.blocks(model)[1]

    def run(z: Tensor) -> Tensor:
        output = block(z)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    return run


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left"])
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_set_to_set(implementation: str, baseline: str, method: str) -> None:
    model = build("bert", implementation)
    inputs = models.padded_batch(model, (3,))
    z = torch.rand(1, 3, models.WIDTH, dtype=torch.float64)
    with Unchanged(model, inputs):
        SetToSetIG(layer_of(model)).attribute(z, baseline, n_steps=2, method=method)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left"])
def test_set_to_set_after_an_exception(method: str, error: type[BaseException]) -> None:
    model = build("bert", "eager")
    inputs = models.padded_batch(model, (3,))
    z = torch.rand(1, 3, models.WIDTH, dtype=torch.float64)
    run = layer_of(model)
    for moment in (1, 3, 4, 5):
        countdown = [moment]

        def fail(x: Tensor, countdown: list[int] = countdown) -> Tensor:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise error("on purpose")
            return run(x)

        with Unchanged(model, inputs), torch.no_grad(), pytest.raises(error):
            SetToSetIG(fail).attribute(z, n_steps=3, method=method, internal_batch_size=3)
        assert countdown[0] == 0
