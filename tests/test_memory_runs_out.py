"""Memory that runs out anywhere: a right answer after one warning, or the error itself.

`python -m tests.helpers.memory_calls` lets it run out at every operation of the same calls.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from captum_lig import LayerFlowIG, LigError, SetToSetIG, inspect_model
from captum_lig.cli import app
from captum_lig.errors import out_of_memory
from captum_lig.flow.compare_maps import compare_maps
from tests.helpers import models
from tests.helpers.interrupted_calls import OTHER, QUICK, TEXT, number
from tests.helpers.memory_calls import CALLS, ERRORS, moments, runs_out, where
from tests.helpers.saved import save_tiny_bert


@pytest.mark.parametrize("name", CALLS)
def test_at_any_operation(name: str) -> None:
    call = CALLS[name]()
    wanted, found = call.run(), moments(call.run)
    generator = random.Random(zlib.crc32(name.encode()))
    for place in generator.sample(sorted(found), 8):
        kind = generator.choice(list(ERRORS))
        came, fault = runs_out(call, generator.choice(found[place]), ERRORS[kind](), wanted)
        assert not fault, f"{where(place)}, {kind}, {came}: {fault}"


# ---- where an error of the model is taken for an answer --------------------------------------


class Once:
    """Raises an error in a module, at one of its calls."""

    def __init__(self, module: nn.Module, error: Exception) -> None:
        self.error, self.left = error, -1
        module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error


def every_call(run: Callable[[], Any], once: Once, error: Exception) -> None:
    """Whichever call of the module it is, the error comes through, or memory is found for it."""
    raised = 0
    for moment in range(10_000):
        once.left = moment
        try:
            run()
        except (RuntimeError, LigError) as found:
            came = found
            raised += 1
        else:
            came = error
        assert came is error, moment
        if once.left >= 0:  # there were no more
            break
    assert raised > 3


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_inspecting() -> None:
    """A model for which there is no memory is not called one that is not supported."""
    model, error = models.tiny_llama(layers=1), ERRORS["CPU"]()
    every_call(
        lambda: inspect_model(model, TEXT), Once(model.layers[0].self_attn.q_proj, error), error
    )


@pytest.mark.parametrize("kind", ERRORS)
def test_a_text_that_is_long_for_the_model(kind: str) -> None:
    """Its positions are not what there were too few of."""
    model, error = models.tiny_bert(layers=1), ERRORS[kind]()
    model.config.max_position_embeddings = 2
    Once(model.encoder.layer[0].output.dense, error).left = 0
    with pytest.raises(type(error)) as found:
        LayerFlowIG(model).attribute(TEXT, OTHER, number, **QUICK)
    assert found.value is error


def test_a_target_for_which_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ERRORS["GPU"]()

    def select(*_: object) -> Tensor:
        raise error

    for module in ("set_to_set_ig", "prediction.targets"):
        monkeypatch.setattr(f"captum_lig.{module}.select_targets", select)
    with pytest.raises(torch.OutOfMemoryError):
        SetToSetIG(lambda z: z.tanh()).attribute(torch.ones(1, 3, 4), target=1)
    model = models.tiny_gpt2()
    with pytest.raises(torch.OutOfMemoryError):
        LayerFlowIG(model).attribute(TEXT, OTHER, (-1, 3), **QUICK)


def test_maps_for_which_there_is_no_memory() -> None:
    """Tensors that stand for more than there is."""
    large = torch.zeros(1, 1).expand(2**24, 2**24)
    with pytest.raises(RuntimeError) as found:
        compare_maps(large, large)
    assert out_of_memory(found.value)


@pytest.mark.parametrize("kind", ERRORS)
def test_on_the_command_line(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The text for which there is none is named, and the others go on."""
    save_tiny_bert(tmp_path)
    own = LayerFlowIG.attribute

    def attribute(self: LayerFlowIG, inputs: Any, *args: Any, **given: Any) -> Any:
        if inputs["input_ids"].shape[1] > 5:
            raise ERRORS[kind]()
        return own(self, inputs, *args, **given)

    monkeypatch.setattr(LayerFlowIG, "attribute", attribute)
    (tmp_path / "texts.txt").write_text("the cat\nthe cat sat on the mat\nthe mat\n")
    options = ["--model", str(tmp_path), "--layers", "0", "--steps", "2"]
    file = ["--file", str(tmp_path / "texts.txt"), "--format", "jsonl"]
    result = CliRunner().invoke(app, ["explain", *file, *options])
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) == 2
    assert "captum-lig: line 2: memory ran out (" in result.stderr
    result = CliRunner().invoke(app, ["explain", "the cat sat on the mat", *options])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("captum-lig: memory ran out (")


def test_what_says_that_memory_ran_out() -> None:
    assert all(out_of_memory(make()) for make in ERRORS.values())
    assert out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60)
    assert out_of_memory(found.value)
    for other in (RuntimeError("sizes do not fit"), ValueError("out of memory"), LigError("no")):
        assert not out_of_memory(other)
