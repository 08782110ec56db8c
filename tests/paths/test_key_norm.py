"""Families with norms on queries and keys: closed form for target tokens, as running the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    Olmo2Config,
    Olmo2Model,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from captum_lig.integrals.rows import Rows
from captum_lig.paths.key_norm import NormedKeys
from captum_lig.paths.per_target import PerTargetPath
from captum_lig.paths.target_token import TargetTokenPath
from tests.helpers import models
from tests.helpers.attributions import attribute

FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "qwen3": lambda **more: Qwen3Model(Qwen3Config(**models.GROUPED, **more)),
    "gemma3": lambda **more: Gemma3TextModel(Gemma3TextConfig(**models.GROUPED, **more)),
    "olmo2": lambda **more: Olmo2Model(Olmo2Config(**models.GROUPED, **more)),
}
ASKED = ("attention", "mlp", "layer", "influence")
IDS = {
    "mixed": [[7, 9, 4, 11, 3, 8, 5]],
    "repeated": [[7, 9, 7, 9, 7, 9]],  # tokens some places apart are alike
}


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The kinds of the paths that were taken."""
    seen: list[type] = []
    plain = Rows.between.__func__  # type: ignore[attr-defined]

    def between(cls: type[Rows], path: Any, *args: Any, **kwargs: Any) -> Rows:
        seen.append(type(path))
        return plain(cls, path, *args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(Rows, "between", classmethod(between))
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("text", IDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_closed_form_is_running_the_block(
    family: str,
    text: str,
    dtype: torch.dtype,
    paths: list[type],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models.randomised(FAMILIES[family](), dtype)
    inputs = {"input_ids": torch.tensor(IDS[text])}
    closed = attribute(model, 1, inputs, "target_token", boundaries=ASKED)
    monkeypatch.setattr(NormedKeys, "find", lambda *_: None)
    run = attribute(model, 1, inputs, "target_token", boundaries=ASKED)
    assert paths == [TargetTokenPath, PerTargetPath]
    # The families take their norms in float32, whatever the dtype.
    for name in (*ASKED, "chain", "attention_influence"):
        expected = getattr(run, name)
        limit = 2e-4 * float(expected.abs().max())
        torch.testing.assert_close(getattr(closed, name), expected, rtol=0, atol=limit)


def test_a_bias_before_the_norm_is_seen(paths: list[type]) -> None:
    """Raw keys are no mixture then: the block is run along each path."""
    model = models.randomised(FAMILIES["qwen3"](attention_bias=True), torch.float64)
    flow = attribute(
        model, 1, {"input_ids": torch.tensor(IDS["mixed"])}, "target_token", n_steps=24
    )
    assert paths == [PerTargetPath]
    assert flow.layer_total is not None
    assert float((flow.delta["layer"] / flow.layer_total.clamp_min(1e-6)).abs().max()) < 1e-2
