"""Inputs that a model of any family may run on, by the names of its forward's arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from benchmarks.survey_given import GIVEN_INPUTS
from tests.helpers.families import VOCABULARY, noise

IMAGE, PATCH, FRAMES = 16, 4, 2


class NotBuilt(Exception):
    """A family that no small model was made of, or that ran on no inputs, and why."""


def inputs_for(model: nn.Module) -> dict[str, Any]:
    """The richest inputs that the model runs on, of those tried.

    Raises:
        NotBuilt: if it runs on none.
    """
    errors: list[Exception] = []
    for inputs in _candidates(model):
        for _ in range(3):
            try:
                with torch.no_grad():
                    output = model(**inputs)
                if not _finite(output):
                    raise ValueError("its output is not finite")
                return inputs
            except Exception as error:
                errors.append(error)
                again = _with_placeholders(model, inputs, str(error))
                if again is None:
                    break
                inputs = again
    raise NotBuilt(f"runs on no inputs that were tried ({short(errors[0])})")


def _finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return bool(output.isfinite().all())
    if isinstance(output, dict):
        output = tuple(output.values())
    return all(map(_finite, output)) if isinstance(output, (tuple, list)) else True


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


PICTURES = ("pixel", "hidden_states", "grid", "spatial_shapes", "merge_sizes", "image_sizes")


def _candidates(model: nn.Module) -> Iterator[dict[str, Any]]:
    parameters = inspect.signature(model.forward).parameters
    names = set(parameters)
    required = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    main = getattr(model, "main_input_name", "input_ids")
    config: Any = model.config
    mains = [name for name in ([main] if isinstance(main, str) else main) if name in names]
    base = [*required, *mains] or ["input_ids"]
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False):
        base.append("decoder_input_ids")
    also = GIVEN_INPUTS.get(config.model_type, ())
    base = list(dict.fromkeys([*base, *also]))
    optional = [n for n in ("pixel_values", "input_features") if n in names and n not in base]
    texts = [n for n in ("input_ids",) if n in names and n not in base]
    for extra in ([*optional, *texts], optional, texts, []):
        asked = [*base, *extra]
        sees = any(part in name for name in asked for part in PICTURES)
        hears = any(part in name for name in asked for part in ("features", "values", "audio"))
        for picture in list(_pictures(config, names)) if sees else [{}]:
            for sound in list(_sounds(config, names)) if hears else [{}]:
                inputs: dict[str, Any] = dict(picture)
                for name in asked:
                    if name not in inputs:
                        inputs.update(_value(name, config, names, sound))
                yield inputs
        if not extra:
            return


def _value(name: str, config: Any, names: set[str], sound: dict[str, Any]) -> dict[str, Any]:
    """A value for an argument of the forward; none if it is not known what it takes."""
    ids = torch.tensor([[11, 35, 23, 8, 17, 29]])
    if name in ("input_features", "input_values", "audio_values", "audio_mel", "input_audio"):
        values = sound["values"]
        masks = {
            mask: torch.ones(values.shape[0], sound["frames"], dtype=torch.long)
            for mask in (f"{name}_mask", "audio_mel_mask", "feature_attention_mask")
            if mask in names
        }
        return {name: values, **masks}
    if name == "decoder_input_ids":
        return {name: torch.tensor([[1, 9, 23, 7]])}
    if name in ("input_ids", "prompt_ids"):
        return {name: ids % _first(_find(config, "vocab_size"), VOCABULARY)}
    if name.endswith("embeds"):
        return {name: noise(1, 6, _find(config, "hidden_size") or 32)}
    if name == "attention_mask":
        return {name: torch.ones_like(ids)}
    if name == "bbox":
        return {name: torch.arange(24).reshape(1, 6, 4) % 20}
    if name.endswith("_mask"):
        return {}
    if name == "visual_feats":
        return {name: noise(1, 4, _find(config, "visual_feat_dim"))}
    if name == "visual_pos":
        return {name: noise(1, 4, 4)}
    if name.endswith("ids"):
        return {name: torch.zeros_like(ids)}
    if name.startswith("past_values"):
        length = _find(config, "context_length") or 16
        return {name: noise(1, length, _find(config, "num_input_channels") or 1)}
    return {}


def _find(config: Any, name: str) -> Any:
    """A field of a configuration or of one inside it."""
    value = getattr(config, name, None)
    if value is not None:
        return value
    for inner in vars(config).values():
        if isinstance(inner, PreTrainedConfig):
            value = _find(inner, name)
            if value is not None:
                return value
    return None


def _pictures(config: Any, names: set[str]) -> Iterator[dict[str, Any]]:
    """Pictures as models take them: whole, as patches with their grid, as videos."""
    size = _first(_find(config, "image_size"), IMAGE)
    patch = _first(_find(config, "patch_size"), PATCH)
    times = _first(_find(config, "temporal_patch_size"), 1)
    channels = _first(_find(config, "num_channels") or _find(config, "in_channels"), 3)
    frames = _first(_find(config, "num_frames"), FRAMES)
    main = next(
        n for n in ("pixel_values", "hidden_states", "pixel_values_videos", "") if n in (*names, "")
    )
    grids = [n for n in ("image_grid_thw", "grid_thw") if n in names][:1]
    for grid in grids:
        also: dict[str, Any] = {grid: torch.tensor([[1, 4, 4]])}
        if "merge_sizes" in names:
            also["merge_sizes"] = torch.tensor([2])
        if "mm_token_type_ids" in names:
            also["mm_token_type_ids"] = torch.zeros(1, 6, dtype=torch.long)
        for deep in dict.fromkeys((times, 1)):
            yield {main: noise(16, channels * deep * patch * patch), **also}
        yield {main: noise(16, channels, patch, patch), **also}
        yield {main: noise(1, 16, channels, patch, patch), **also}
    if "spatial_shapes" in names:
        ones = torch.ones(1, 16, dtype=torch.long)
        masks: dict[str, Any] = {
            n: ones for n in ("pixel_attention_mask", "attention_mask") if n in names
        }
        if "input_ids" in names:
            masks.pop("attention_mask", None)  # that of the text
        flat = noise(1, 16, channels * patch * patch)
        yield {main: flat, **masks, "spatial_shapes": torch.tensor([[4, 4]])}
    places = [n for n in ("pixel_position_ids", "image_position_ids") if n in names]
    for place in places[:1]:
        grid4 = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1)
        flat = noise(1, 16, channels * patch * patch)
        yield {main: flat, place: grid4.reshape(1, 16, 2)}
    sizes = [n for n in names if n == "image_sizes" or n == "original_sizes"][:1]
    for name in sizes:
        own = {name: torch.tensor([[size, size]])}
        yield {main: noise(1, channels, size, size), **own}
        yield {main: noise(1, 5, channels, size, size), **own}
        yield {main: noise(1, 2, channels, size, size), **own}
    for side in dict.fromkeys((size, 32, 64)):
        yield {main: noise(1, channels, side, side)}
        yield {main: noise(1, frames, channels, side, side)}
        yield {main: noise(1, 1, frames, channels, side, side)}


def _first(value: Any, otherwise: int) -> int:
    while isinstance(value, (list, tuple)) and value:
        value = value[-1]
    return value if isinstance(value, int) else otherwise


def _sounds(config: Any, names: set[str]) -> Iterator[dict[str, Any]]:
    """Sounds as models take them: frames of mel bands, or samples."""
    bands = {
        size
        for name in (
            *("num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "input_dim"),
            *("feature_projection_input_dim", "input_feat_size", "model_in_dim", "spec_size"),
        )
        if isinstance(size := _find(config, name), int)
    } or {8}
    long = 2 * _first(_find(config, "max_source_positions"), 8)
    for frames in dict.fromkeys((16, long, 64)):
        for count in bands:
            for shape in ((1, count, frames), (1, frames, count)):
                yield {"values": noise(*shape), "frames": frames}
    for samples in (1600, 6000):
        yield {"values": noise(1, samples), "frames": samples}
        yield {"values": noise(1, 1, samples), "frames": samples}
    yield {"values": noise(1, 1, 64, max(bands)), "frames": 64}
    yield {"values": noise(1, 1, max(bands), max(bands)), "frames": 64}


def _with_placeholders(
    model: nn.Module, inputs: dict[str, Any], error: str
) -> dict[str, Any] | None:
    """As many placeholders in the text as the model says that it has features."""
    if "input_ids" not in inputs or not ("pixel_values" in inputs or "input_features" in inputs):
        return None
    found = re.search(r"tokens:? (\d+),? (?:and )?features:? (?:torch.Size\(\[)?(\d+)", error)
    which = "audio" if "udio" in error.split("tokens")[0] else "image"
    token = next(
        (
            value
            for name in (f"{which}_token_id", f"{which}_token_index", f"{which}_token")
            if isinstance(value := getattr(model.config, name, None), int)
        ),
        None,
    )
    if found is None or token is None or found[1] == found[2] or int(found[2]) > 64:
        return None
    text = torch.tensor([[11, 35, *[token] * int(found[2]), 23, 8]])
    changed = {**inputs, "input_ids": text}
    if "mm_token_type_ids" in inputs:
        changed["mm_token_type_ids"] = (text == token).long()
    return changed
