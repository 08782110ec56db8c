"""Finding a model's blocks by running it: a block is what reaches our attention function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig.block.cut import BlockCall, first_tensor
from captum_lig.block.interface import AttentionCall, handle_with
from captum_lig.errors import LigError

__all__ = ["record_blocks"]


@dataclass
class _Open:
    """A block that is running."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attention: list[AttentionCall] = field(default_factory=list)


def block_candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Elements of each outermost ``nn.ModuleList``, by dotted name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside:
            found.update({f"{name}.{key}": child for key, child in module.named_children()})
    return found


def record_blocks(
    model: nn.Module, run: Callable[[], Any], candidates: dict[str, nn.Module]
) -> list[BlockCall]:
    """Run the model once and keep what each block was called with and gave.

    Args:
        model: the model that ``run`` calls, under ``use_interface``.
        run: calls the model on the texts.
        candidates: modules that may be blocks, by name.

    Returns:
        One :class:`BlockCall` for each candidate that called attention, in the order they ran.
    """
    calls: list[BlockCall] = []
    running: list[_Open] = []
    names = {id(module): name for name, module in candidates.items()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(_Open(args, kwargs))

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        block = running.pop()
        if block.attention:
            calls.append(
                BlockCall(
                    name=names[id(module)],
                    index=len(calls),
                    module=module,
                    args=block.args,
                    kwargs=block.kwargs,
                    output=first_tensor(output).detach(),
                    attention=block.attention[0],
                )
            )

    def note(call: AttentionCall) -> Tensor:
        if running:
            running[-1].attention.append(call)
        return call.eager()

    handles = []
    try:
        for module in candidates.values():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        with torch.no_grad(), handle_with(note):
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        blocks = ", ".join(list(candidates)[:3]) or "none"
        raise LigError(
            f"the attention of {type(model).__name__} cannot be reached: none of its blocks "
            f"(looked at: {blocks}, ...) calls transformers' attention interface. "
            "Models of the BERT, GPT-2 and Llama kind in transformers >= 5 do."
        )
    return calls
