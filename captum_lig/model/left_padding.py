"""Texts that are padded at the left, in models that count positions from the padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captum_lig.errors import out_of_memory
from captum_lig.model.call import BlockCall
from captum_lig.model.inputs import Masked, ModelCall
from captum_lig.model.padding import differ

__all__ = ["shifted_by_padding"]


def shifted_by_padding(
    model: ModelCall, blocks: list[BlockCall], record: Callable[[ModelCall], list[BlockCall]]
) -> str | None:
    """What to warn of, if a text with padding before it is another one alone; else None.

    Models with absolute positions count the padding, unless they are given ``position_ids``.

    Args:
        model: the model's call.
        blocks: what was recorded.
        record: records the same blocks of another call.
    """
    if any("position_ids" in name for name, x in model.kwargs.items() if x is not None):
        return None
    for masked in model.masked:
        padded = masked.padding[:, 0]
        if not bool(padded.any()):
            continue
        text = int(padded.nonzero()[0])
        its = [n for n, block in enumerate(blocks) if block.valid.shape == masked.padding.shape]
        kept = (~masked.padding[text]).nonzero().squeeze(-1)
        if not its or not torch.equal(blocks[its[-1]].valid[text].nonzero().squeeze(-1), kept):
            continue
        try:
            alone = record(_alone(model, masked, text, kept))
        except Exception as error:  # other arguments that go with the tokens, in another form
            if out_of_memory(error):
                raise
            continue
        own = blocks[its[-1]].output[text : text + 1, kept]
        if own.shape == alone[its[-1]].output.shape and bool(
            differ(own, alone[its[-1]].output).any()
        ):
            return (
                f"text {text} has padding before it, and {type(model.model).__name__} gives "
                "something else for it than without: it counts positions from the padding. Give "
                "position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0), pad at the right, or "
                "give texts one at a time."
            )
    return None


def _alone(model: ModelCall, masked: Masked, text: int, kept: Tensor) -> ModelCall:
    """The call of one text without its padding."""
    shape = masked.padding.shape

    def one(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape[:2] == shape:
            return value[text : text + 1, kept.to(value.device)]
        return value

    kwargs = {name: one(value) for name, value in model.kwargs.items()}
    return replace(model, args=tuple(map(one, model.args)), kwargs=kwargs, masked=())
