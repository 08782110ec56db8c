"""Which blocks of a model are meant: every one, or some by module, name, number or description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from captum_lig.block import Block, BlockCall, elements, record_blocks, record_own
from captum_lig.checks import brief
from captum_lig.errors import LigError
from captum_lig.model_call import ModelCall

__all__ = ["Layer", "check_layer", "is_one", "recorded"]

Layer = nn.Module | str | int | Block

KINDS = (nn.Module, str, int, Block)


def check_layer(layer: Layer | Sequence[Layer] | None) -> None:
    """Refuse what cannot name a block.

    Raises:
        LigError: anything but a module, a name, a number, a ``Block``, a list of those, or None.
    """
    for one in layer if isinstance(layer, (list, tuple)) else [layer]:
        if one is not None and (isinstance(one, bool) or not isinstance(one, KINDS)):
            raise LigError(
                f"layer {brief(one)} is a {type(one).__name__}: give a module of the model, "
                "its dotted name, its number, or a captum_lig.Block, a list of those, or None "
                "for every block."
            )


def is_one(layer: Any) -> bool:
    """Whether a single block is named."""
    return isinstance(layer, KINDS)


def recorded(
    model: nn.Module, layer: Layer | Sequence[Layer] | None, call: ModelCall
) -> list[BlockCall]:
    """The blocks that are meant, with what they are called with, from a run of the model.

    Raises:
        LigError: if there are no such blocks.
    """
    layers = [] if layer is None else [layer] if isinstance(layer, KINDS) else list(layer)
    if layer is not None and not layers:
        raise LigError("layer is an empty list: give None for every block, or name some.")
    named = _named(model, layers)
    calls: list[BlockCall] = []
    if layer is None or not all(isinstance(one, Block) for one in layers):
        calls = record_blocks(model, call.run, named)
    if layer is None:
        return calls
    chosen: list[BlockCall] = []
    for one in layers:
        if isinstance(one, Block):
            own = record_own(model, one, call.args, call.kwargs)
            chosen.append(replace(own, index=len(chosen)))
        else:
            chosen.extend(_select(calls, one))
    return chosen


def _named(model: nn.Module, layers: Sequence[Layer]) -> dict[str, nn.Module]:
    """The modules that the caller named, by their dotted names."""
    found: dict[str, nn.Module] = {}
    names = {id(module): name for name, module in model.named_modules()}
    by_name = dict(model.named_modules())
    for layer in layers:
        if isinstance(layer, nn.Module):
            if id(layer) not in names:
                raise LigError(
                    f"layer {type(layer).__name__} is not a module of the model "
                    f"{type(model).__name__}: {_blocks_there_are(elements(model))}."
                )
            found[names[id(layer)]] = layer
        elif isinstance(layer, str):
            if layer not in by_name:
                raise LigError(
                    f"layer {layer!r} is not the name of a module of the model "
                    f"{type(model).__name__}: {_blocks_there_are(elements(model))}."
                )
            found[layer] = by_name[layer]
    return found


def _select(calls: list[BlockCall], layer: Layer) -> list[BlockCall]:
    if isinstance(layer, int):
        if not -len(calls) <= layer < len(calls):
            raise LigError(
                f"layer {layer} does not exist: the model has {len(calls)} blocks, "
                f"0 to {len(calls) - 1}."
            )
        return [calls[layer]]
    found = [c for c in calls if layer is c.module or layer == c.name]
    if not found:
        name = layer if isinstance(layer, str) else type(layer).__name__
        raise LigError(
            f"layer {name!r} is not a block, it does not map tokens (B, S, D) to tokens or is a "
            f"stack of blocks: {_blocks_there_are({c.name: c.module for c in calls})}."
        )
    return found


def _blocks_there_are(blocks: Mapping[str, nn.Module]) -> str:
    names = list(blocks)
    if not names:
        return "no blocks were found in it"
    some = ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"
    return f"its blocks are {some}"
