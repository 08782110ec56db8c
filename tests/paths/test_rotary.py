"""Probed maps of rotary encodings against running the block for every target."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_lig.model.split import LONG
from captum_lig.paths import choose
from captum_lig.paths.rotary import RotaryMaps, contents_of
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
    find = RotaryMaps.find

    def spy(*args: object) -> object:
        found.append(find(*args))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(RotaryMaps, "find", spy)
    monkeypatch.setattr(choose, "probes_needed", lambda *_: 1)  # worth it for any text
    probed = attribute(model, 1, inputs, "target_token", boundaries=("attention", "layer"))
    assert len(found) == 1
    assert found[0] is not None
    assert len(found[0].entries) == 2 * 8  # a rotation of 4 pairs: 4 times 4 entries
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    for name in ("attention", "layer"):
        expected = getattr(direct, name)
        scale = float(expected.abs().max())
        torch.testing.assert_close(getattr(probed, name), expected, rtol=0, atol=limit * scale)


def turned(angles: torch.Tensor, pairs: list[tuple[int, int]], key_heads: int = 2) -> Any:
    """Keys that turn pairs of entries by the angle of their position, and leave the others."""

    def keys(x: torch.Tensor) -> torch.Tensor:
        key = (x @ weights).unflatten(-1, (key_heads, 4)).transpose(1, 2)  # (N, Hkv, S, 4)
        out = key.clone()
        for a, b in pairs:
            cos, sin = angles.cos(), angles.sin()
            out[..., a] = cos * key[..., a] - sin * key[..., b]
            out[..., b] = sin * key[..., a] + cos * key[..., b]
        return out

    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(6, 4 * key_heads, generator=generator, dtype=torch.float64)
    return keys


@pytest.mark.parametrize("pairs", [[(0, 2), (1, 3)], [(0, 1), (2, 3)], [(1, 2)]])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_fewer_contents_do_where_the_entries_are_known(
    pairs: list[tuple[int, int]], key_heads: int
) -> None:
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys = turned(torch.arange(40, dtype=torch.float64) ** 2, pairs, key_heads)
    seen = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        found: torch.Tensor = keys(x)
        return found

    own = keys(z[None])[0]
    some = torch.arange(0, 40, 7)
    few = turned((some**2).double(), pairs, key_heads)
    of_some = RotaryMaps.find(few, z[some], few(z[some][None])[0])
    assert of_some is not None
    entries = of_some.entries
    assert len(entries) == 4 * len(pairs) + 4 - 2 * len(pairs)
    every = RotaryMaps.find(counted, z, own)
    known = RotaryMaps.find(counted, z, own, entries)
    assert every is not None
    assert known is not None
    assert seen[2] < seen[0]
    torch.testing.assert_close(known.values, every.values, rtol=0, atol=1e-9)
    assert known.entries.tolist() == every.entries.tolist()
    rows = torch.tensor([31, 2, 39])
    unturned = turned(torch.zeros(40, dtype=torch.float64), pairs, key_heads)(z[None])[0]
    torch.testing.assert_close(known.contents[:, rows], unturned[:, rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize("groups", [[[0, 2], [1, 3]], [[0], [1, 3, 4], [2], [5]], [[0, 1, 2, 3]]])
@pytest.mark.parametrize("singular", [False, True])
def test_contents_are_those_of_the_whole_maps(groups: list[list[int]], singular: bool) -> None:
    width, sources = sum(map(len, groups)), 5
    generator = torch.Generator().manual_seed(3)
    maps = torch.zeros(sources, width, width, dtype=torch.float64)
    for group in groups:
        size = sources, len(group), len(group)
        at = torch.tensor(group)
        maps[:, at[:, None], at] = torch.randn(size, generator=generator, dtype=torch.float64)
    if singular:
        maps[:, :, groups[-1][-1]] = 0  # of a content that no key has
    entries = maps[0].flatten().nonzero().squeeze(-1)
    own = torch.randn(2, sources, width, generator=generator, dtype=torch.float64)
    found = contents_of(maps.flatten(1)[:, entries], entries, own)
    expected = (torch.linalg.pinv(maps) @ own.permute(1, 2, 0)).permute(2, 0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_entries_that_a_few_positions_do_not_show_are_missed_and_seen() -> None:
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = torch.zeros(40, dtype=torch.float64)
    angles[20:] = 1.0  # the first half is not turned at all
    keys = turned(angles, [(0, 1), (2, 3)])
    diagonal = torch.arange(4) * 5
    assert RotaryMaps.find(keys, z, keys(z[None])[0], diagonal) is None
    assert RotaryMaps.find(keys, z, keys(z[None])[0]) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_long_text(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny_llama(dtype=dtype)
    inputs = {"input_ids": models.tokens(model, 1, LONG + 9)}
    given: list[Any] = []
    find = RotaryMaps.find

    def spy(*args: Any) -> Any:
        given.append(args[3] if len(args) > 3 else None)
        return find(*args)

    monkeypatch.setattr(RotaryMaps, "find", spy)
    probed = attribute(model, 1, inputs, "target_token", boundaries=("attention", "layer"))
    assert given[0] is None
    assert len(given[1]) == 2 * 8, "of the whole text the entries are known"
    monkeypatch.setattr(RotaryMaps, "find", lambda *_: None)
    direct = attribute(model, 1, inputs, "target_token", boundaries=("attention", "layer"))
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    for name in ("attention", "layer"):
        expected = getattr(direct, name)
        scale = float(expected.abs().max())
        torch.testing.assert_close(getattr(probed, name), expected, rtol=0, atol=limit * scale)


@pytest.mark.parametrize("length", [LONG - 4, LONG + 9])
@pytest.mark.parametrize("entries", [[1], [1, 5]], ids=["one entry", "a pair"])
def test_entries_that_no_key_has(length: int, entries: list[int], monkeypatch: Any) -> None:
    """Of pruned weights: the maps have no inverse, and the contents are known all the same."""
    model = models.tiny_llama()
    for layer in model.layers:
        keys = layer.self_attn.k_proj
        rows = [k + e for k in range(0, keys.out_features, 8) for e in entries]
        keys.weight.data[rows] = 0.0
        if keys.bias is not None:
            keys.bias.data[rows] = 0.0
    inputs = {"input_ids": models.tokens(model, 1, length)}
    probed = attribute(model, 1, inputs, "target_token", boundaries=("attention",)).attention
    monkeypatch.setattr(RotaryMaps, "find", lambda *_: None)
    direct = attribute(model, 1, inputs, "target_token", boundaries=("attention",)).attention
    torch.testing.assert_close(probed, direct, rtol=0, atol=1e-9 * float(direct.abs().max()))


def test_places_that_do_not_act_by_such_maps_are_seen() -> None:
    def keys(x: torch.Tensor) -> torch.Tensor:
        """Place acts on the content, not on the key: no map of keys says how."""
        turn = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return torch.tanh(x * turn)[:, None, :, :4]

    z = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert RotaryMaps.find(keys, z, keys(z[None])[0]) is None
