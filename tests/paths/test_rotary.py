"""Probed maps of rotary encodings against running the block for every target."""

from __future__ import annotations

import pytest
import torch

from captum_lig.paths import choose as paths
from tests.helpers import models
from tests.helpers.attributions import attribute


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_probed_maps_give_what_running_the_block_gives(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.tiny_llama(dtype=dtype)
    inputs = {"input_ids": models.tokens(model, 1, 7)}
    direct = attribute(model, 1, inputs, "target_token", boundaries=("attention", "layer"))
    found = []
    find = paths.RotaryMaps.find

    def spy(*args: object) -> object:
        found.append(find(*args))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(paths.RotaryMaps, "find", spy)
    monkeypatch.setattr(paths, "probes_needed", lambda *_: 1)  # worth it for any text
    probed = attribute(model, 1, inputs, "target_token", boundaries=("attention", "layer"))
    assert len(found) == 1
    assert found[0] is not None
    assert len(found[0].entries) == 2 * 8  # a rotation of 4 pairs: 4 times 4 entries
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    for name in ("attention", "layer"):
        expected = getattr(direct, name)
        scale = float(expected.abs().max())
        torch.testing.assert_close(getattr(probed, name), expected, rtol=0, atol=limit * scale)


def test_places_that_do_not_act_by_such_maps_are_seen() -> None:
    def keys(x: torch.Tensor) -> torch.Tensor:
        """Place acts on the content, not on the key: no map of keys says how."""
        turn = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return torch.tanh(x * turn)[:, None, :, :4]

    z = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert paths.RotaryMaps.find(keys, z, 1, 4) is None
