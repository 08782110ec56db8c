"""The output projection of an attention whose queries, keys and values cannot be had.

It is the first linear map of the block whose input at a token depends on other tokens, and its
input is ``u``, the outputs of the heads side by side. Which channels are one head's is found out,
too: the maps before it make queries, and a channel of a query changes the channels of one head and
no others. So a linear map that comes after the attention has been mixed with anything else (a
residual stream, a norm over heads) is not taken for the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, handle_with
from captum_lig.model.call import Attention, BlockCall
from captum_lig.model.hooks import hooked, stoppable
from captum_lig.model.sdpa import use_sdpa

__all__ = ["LINEAR", "find_projection", "replace_input"]

LINEAR = (nn.Linear, Conv1D)

PROBES = 16
"""Channels of each linear map that are probed, at most."""


def replace_input(
    module: nn.Module, heads: int, handler: Callable[[Tensor], Tensor]
) -> AbstractContextManager[None]:
    """Hand the input of ``module`` as ``(N, S, H, d)`` to ``handler``, and take what it returns."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flat = args[0]
        if flat.shape[-1] % heads:
            raise LigError(
                f"heads={heads} do not divide the {flat.shape[-1]} channels that "
                f"{type(module).__name__} gets: give the number of heads of this attention."
            )
        u = handler(flat.reshape(*flat.shape[:-1], heads, -1))
        return (u.reshape(*u.shape[:-2], -1).contiguous(), *args[1:]), kwargs

    return hooked([module], enter=enter)


def find_projection(call: BlockCall) -> Attention | None:
    """The attention of a block, reached at its output projection, if it has one."""
    if call.hidden.shape[1] < 2:
        return None
    with torch.no_grad(), use_sdpa(), handle_with(AttentionCall.eager):
        return _Probe(call.for_text(0)).found()


class _Probe:
    """Runs a block for one text, and looks at what its linear maps get."""

    def __init__(self, call: BlockCall) -> None:
        self.call = call
        self.z = call.hidden.detach()
        self.linear = [m for m in call.module.modules() if isinstance(m, LINEAR)]

    def found(self) -> Attention | None:
        """The first linear map that gets other tokens, if it gets the outputs of heads."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.z.shape, generator=generator).to(self.z)
        moved = self.z.clone()
        # Every second token: wherever there is padding or a window, neighbours see each other.
        moved[:, ::2] += noise[:, ::2] * self.z.std()
        own, other = self._inputs(self.z), self._inputs(moved)
        before: list[nn.Module] = []
        for module, x in own.items():
            if x.shape[:2] != self.z.shape[:2]:
                continue
            if not torch.equal(x[:, 1::2], other[module][:, 1::2]):
                heads = self._heads(module, x.shape[-1], before)
                return None if heads is None else Attention(heads, projection=module)
            before.append(module)
        return None

    def _inputs(self, z: Tensor) -> dict[nn.Module, Tensor]:
        """Linear maps and their inputs, in the order they run first."""
        seen: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            if args and args[0].dim() == 3:
                seen.setdefault(module, args[0].detach())

        with hooked(self.linear, leave=note):
            self.call.on(z)
        return seen

    def _heads(self, projection: nn.Module, width: int, before: list[nn.Module]) -> int | None:
        """How many heads make up the ``width`` channels of the projection's input.

        A channel of a query changes all channels of its head and no others. If there seems to be
        one head only, some channel (a value's) has to change less than everything.
        """
        sizes: set[int] = set()
        within = False
        for module in before:
            for channels in self._reactions(projection, module):
                size = len(channels)
                run = size > 1 and int(channels[-1] - channels[0]) == size - 1
                within |= 0 < size < width
                if run and width % size == 0 and int(channels[0]) % size == 0:
                    sizes.add(size)
            if sizes and min(sizes) < width:
                break
        return width // min(sizes) if sizes and within else None

    def _reactions(self, projection: nn.Module, module: nn.Module) -> list[Tensor]:
        """For some channels of a map before the projection: the channels of ``u`` that change."""
        channels = torch.zeros(0, dtype=torch.long)
        before = 0

        def change(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            nonlocal channels
            count = output.shape[-1]
            channels = torch.linspace(0, count - 1, min(count, PROBES)).round().long()
            # By another amount at each token: softmax does not see a shift of all logits.
            steps = torch.linspace(-1, 1, output.shape[-2]).to(output)
            changed = output.clone()
            # The first sequence stays as it is, the others change in one channel each.
            for sequence, channel in enumerate(channels.tolist(), 1 - before):
                if 0 <= sequence < len(output):
                    own = changed[sequence, :, channel]
                    own += steps * (1 + own.abs().max())
            return changed

        seen: list[Tensor] = []

        at_once = 1 if self.call.spread == "one by one" else PROBES + 1
        for part in self.z.expand(PROBES + 1, -1, -1).split(at_once):
            with hooked([module], leave=change), _input_of(projection, seen):
                self.call.on(part)
            before += len(part)
        u = torch.cat(seen)
        changed = (u[1 : len(channels) + 1] != u[:1]).any(1)
        return [one.nonzero().squeeze(-1).cpu() for one in changed]


@contextmanager
def _input_of(module: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Stop once the module is called, and keep its input."""
    with stoppable() as stop:

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            seen.append(args[0].detach())
            stop()

        with hooked([module], enter=keep):
            yield
