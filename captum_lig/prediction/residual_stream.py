"""The ends of a model's blocks as layers that Captum can attribute to.

Captum's ``LayerIntegratedGradients`` attributes to the output of a module. What enters a block is
not always the output of one module (the first block's input), and blocks give tensors or tuples.
So the stream passes an identity where it enters and where it leaves each block; those are
Captum's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from captum_lig.errors import LigError
from captum_lig.model.call import BlockCall, position_of_hidden
from captum_lig.model.hooks import hooked

__all__ = ["ResidualStream"]


class ResidualStream:
    """Identities at the ends of a model's blocks.

    Args:
        blocks: the blocks, in the order they run; a module may come several times.
    """

    def __init__(self, blocks: Sequence[BlockCall]) -> None:
        self.blocks = list(blocks)
        self.entering = [nn.Identity() for _ in blocks]
        """Their outputs ``(B, S, D)`` are what enters each block."""
        self.leaving = [nn.Identity() for _ in blocks]
        """Their outputs ``(B, S, D)`` are what leaves each block."""
        self._entered = self._left = 0

    def through(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``forward``, with the stream led through the identities while it runs.

        Raises:
            LigError: when called, if the model runs other than once.
        """

        def run(*args: Any) -> Tensor:
            self._entered = self._left = 0
            modules = dict.fromkeys(block.module for block in self.blocks)
            with hooked(modules, enter=self._enter, leave=self._leave, inside=True):
                value = forward(*args)
            if self._left != len(self.blocks):
                raise _not_once()
            return value

        return run

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = self._entered
        if number >= len(self.blocks):
            raise _not_once()
        self._entered += 1
        argument, through = position_of_hidden(args, kwargs), self.entering[number]
        if isinstance(argument, str):
            return args, {**kwargs, argument: through(kwargs[argument])}
        return (through(args[0]), *args[1:]), kwargs

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        number = self._left
        self._left += 1
        return _led(output, self.leaving[number])


def _led(output: Any, through: nn.Module) -> Any:
    """A block's output with its hidden states led through a module, see ``first_tensor``."""
    if isinstance(output, Tensor):
        return through(output)
    if isinstance(output, Mapping):
        name = next(iter(output))
        return type(output)({**output, name: _led(output[name], through)})  # type: ignore[call-arg]
    return type(output)([_led(output[0], through), *output[1:]])


def _not_once() -> LigError:
    return LigError(
        "the target has to be read from one run of the model: what it needs of other texts, work "
        "out before, as cosine(other) does."
    )
