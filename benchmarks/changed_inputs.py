"""What it costs a scalar that a part of what enters a module is that of another run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def entering(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Let `change` see what enters a module, and replace it if it returns something.

    It does so until the end of the `with` statement that this is used in.
    """

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        found = change(args[0] if args else kwargs["hidden_states"])
        if found is None:
            return None
        return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": found})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def entered(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """What enters each of the modules in one run."""
    found: list[Tensor] = []
    if not modules:
        run()
        return found
    with entering(modules[0], lambda z: found.append(z.clone())):
        rest = entered(modules[1:], run)
    return found + rest


def patched(
    run: Callable[[], float],
    modules: Sequence[nn.Module],
    parts: Sequence[Any],
    others: Sequence[Tensor],
) -> Tensor:
    """`(modules, parts)`: how much less a run gives if a part of what enters a module is another's.

    Args:
        run: gives the scalar.
        modules: one after the other.
        parts: each an index of what enters a module.
        others: what enters the modules in the other run.
    """
    lost = torch.zeros(len(modules), len(parts), dtype=torch.float64)
    whole = run()
    for m, (module, other) in enumerate(zip(modules, others, strict=True)):
        for p, part in enumerate(parts):

            def change(z: Tensor, other: Tensor = other, part: Any = part) -> Tensor:
                z = z.clone()
                z[part] = other[part]
                return z

            with entering(module, change):
                lost[m, p] = whole - run()
    return lost
