"""Cutting one block open: ``pre`` and ``post`` of its attention core, by running its own code.

``pre(z)`` calls the block and stops it where the attention function is reached; ``post(u, z)``
calls it again and hands it ``u`` there. No model code is rewritten, so what the cut computes is
what the model computes; :meth:`BlockCut.check` makes sure of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.pytorch_utils import Conv1D

from captum_lig.block.interface import AttentionCall, Handler, handle_with
from captum_lig.cost import Meter
from captum_lig.errors import LigError

__all__ = ["QKV", "BlockCall", "BlockCut"]

NOT_SOFTMAX = ("softcap", "s_aux")
"""Arguments of the attention function that make it another function: capped logits, sinks."""

QKV = tuple[Tensor, Tensor, Tensor]
"""Queries ``(N, H, T, d)``, keys and values ``(N, Hkv, S, d)``."""


class _Reached(Exception):
    """Raised by our attention function to stop a block once q, k and v are known."""


@dataclass(frozen=True)
class BlockCall:
    """What one block of a model was called with, and what it gave, in a run over ``B`` texts."""

    name: str
    index: int
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    """``(B, S, D)``"""
    attention: AttentionCall
    """The attention call inside."""

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the block, ``(B, S, D)``."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]  # type: ignore[no-any-return]

    def in_dtype(self, dtype: torch.dtype) -> BlockCall:
        """The same call of a copy of the block in another precision; the model is untouched.

        Its output is what the copy gives for the residual stream that the model had.
        """
        if self.hidden.dtype == dtype:
            return self

        def cast(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(cast(item) for item in value)
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floating else value

        names = {module: name for name, module in self.module.named_modules()}
        module = copy.deepcopy(self.module).to(dtype)
        own = module.get_submodule(names[self.attention.module])
        args, kwargs = cast(self.args), {name: cast(x) for name, x in self.kwargs.items()}
        return replace(
            self,
            module=module,
            args=args,
            kwargs=kwargs,
            output=first_tensor(module(*args, **kwargs)).detach(),
            attention=replace(
                self.attention, module=own, mask=_widened(self.attention.mask, dtype)
            ),
        )

    def describe(self) -> str:
        """Name and class, for messages."""
        return f"block {self.name!r} ({type(self.module).__name__})"


class BlockCut:
    """One block, for one text of the run: path points go where the batch dimension was."""

    def __init__(self, call: BlockCall, text: int, meter: Meter) -> None:
        self.call, self.meter = call, meter
        batch = call.hidden.shape[0]
        self.z = call.hidden[text].detach()
        """``(S, D)``"""
        self.output = call.output[text].detach()
        """``(S, D)``"""
        self.scaling = call.attention.scaling
        self.mask = _mask_of(call.attention.mask, text)
        """``(1 or H, T, S)`` to add to the logits, or None."""
        self._args, self._kwargs = _arguments_for(call, text, batch)
        self._shape: tuple[int, ...] = tuple(self.z.shape)

    @cached_property
    def heads(self) -> int:
        """Number of query heads."""
        return self.call.attention.query.shape[1]

    def pre(self, z: Tensor) -> QKV:
        """Queries, keys and values of ``z (N, S, D)``, as the attention function gets them."""
        seen: list[QKV] = []

        def stop(call: AttentionCall) -> Tensor:
            seen.append((call.query, call.key, call.value))
            raise _Reached

        try:
            self._run(z, stop)
        except _Reached:
            return seen[0]
        raise LigError(
            f"{self.call.describe()} did not reach its attention when called again: "
            "it cannot be cut there."
        )

    def post(self, u: Tensor, z: Tensor) -> Tensor:
        """Everything after the attention core, token by token.

        Args:
            u: per-head attention outputs ``(M, H, d)``.
            z: the residual stream of the same tokens ``(M, D)``.

        Returns:
            ``(M, D)`` the tokens leaving the block.
        """
        # The block's other arguments fit sequences of the recorded length, so the tokens are
        # packed into such sequences; what follows the attention core does not look across them.
        length, width = self._shape
        count = u.shape[0]
        sequences = -(-count // length)
        spare = sequences * length - count
        if spare:
            u = torch.cat([u, u.new_zeros(spare, *u.shape[1:])])
            z = torch.cat([z, z.new_zeros(spare, width)])
        u = u.reshape(sequences, length, *u.shape[1:])
        with skipping(self._skipped):
            output = self._run(z.reshape(sequences, length, width), lambda call: u)
        return output.reshape(-1, output.shape[-1])[:count]

    @cached_property
    def _attended(self) -> tuple[Tensor, dict[nn.Module, int]]:
        """The family's own attention output for the text, and what ran before it.

        The output is ``(S, H, d)``; what ran are linear maps, with their widths.
        """
        outputs: list[Tensor] = []
        seen: dict[nn.Module, int] = {}

        def note(module: nn.Module, args: Any, output: Any) -> None:
            if not outputs and isinstance(output, Tensor):
                seen[module] = output.shape[-1]

        def keep(call: AttentionCall) -> Tensor:
            outputs.append(call.eager())
            return outputs[0]

        linear = [m for m in self.call.module.modules() if isinstance(m, (nn.Linear, Conv1D))]
        handles = [module.register_forward_hook(note) for module in linear]
        try:
            self._run(self.z[None], keep)
        finally:
            for handle in handles:
                handle.remove()
        return outputs[0][0], seen

    @cached_property
    def _skipped(self) -> dict[nn.Module, int]:
        """Projections that only serve the attention core, and their widths: ``post`` skips them.

        They are the linear maps that ran before the core, if the block gives the same without
        them (a gate, say, is needed after the core too).
        """
        u, seen = self._attended
        with skipping(seen):
            without = self._run(self.z[None], lambda call: u[None])[0]
        same = _gap(without, self.output) <= (1e-9 if u.dtype == torch.float64 else 1e-5)
        return seen if same else {}

    def _run(self, z: Tensor, handler: Handler) -> Tensor:
        attention = self.call.attention.module

        def dispatch(call: AttentionCall) -> Tensor:
            return handler(call) if call.module is attention else call.eager()

        if self._args:
            args, kwargs = (z, *self._args[1:]), self._kwargs
        else:
            args, kwargs = (), {**self._kwargs, "hidden_states": z}
        self.meter.passed += z.shape[0] * z.shape[1]
        with handle_with(dispatch):
            return first_tensor(self.call.module(*args, **kwargs))

    def check(self, rows: Tensor, u: Tensor, with_post: bool = True) -> None:
        """Make sure that the cut is the block: same attention output, same block output.

        Args:
            rows: ``(R,)`` the tokens compared (not padding).
            u: ``(R, H, d)`` what our attention arithmetic gives for them at the text itself.
            with_post: whether ``post`` is going to be used, and so is to be compared, too.

        Raises:
            LigError: if the attention is not the softmax of scaled dot products plus a mask, or
                if the block, fed ``u`` at the cut, does not give what it gave in the model.
        """
        special = [name for name in NOT_SOFTMAX if self.call.attention.kwargs.get(name) is not None]
        if special:
            raise LigError(
                f"{self.call.describe()} does not use plain softmax attention (it is called with "
                f"{special[0]}): only softmax(q k^T * scale + mask) v is supported."
            )
        own = self._attended[0][rows]
        if not _close(u, own):
            raise LigError(
                f"{self.call.describe()} does not use plain softmax attention (its output differs "
                f"by {_gap(u, own):.1e}): only softmax(q k^T * scale + mask) v is supported."
            )
        if not with_post:
            return
        # Reversed, so that a part after the attention that looks across tokens, or at a token's
        # place, shows here too.
        back = torch.arange(len(rows) - 1, -1, -1, device=rows.device)
        output = self.post(own[back], self.z[rows][back])[back]
        if not _close(output, self.output[rows]):
            raise LigError(
                f"{self.call.describe()} cannot be cut at its attention: fed its own attention "
                f"output it gives something else (off by {_gap(output, self.output[rows]):.1e}). "
                "What follows the attention has to treat each token by itself."
            )


@contextmanager
def skipping(modules: dict[nn.Module, int]) -> Iterator[None]:
    """Let modules ``(..., D) -> (..., width)`` give zeros, that take no memory, without work."""

    def zeros(width: int) -> Any:
        return lambda x, *_, **__: x.new_zeros(()).expand(*x.shape[:-1], width)

    before = {module: vars(module).get("forward") for module in modules}
    try:
        for module, width in modules.items():
            module.forward = zeros(width)
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def first_tensor(output: Any) -> Tensor:
    """A block's hidden states: blocks return a tensor, or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _close(a: Tensor, b: Tensor) -> bool:
    # Families round inside (a softmax or a norm in float32), whatever the dtype of the model.
    tolerance = 1e-5 if a.dtype == torch.float64 else 1e-3
    return _gap(a, b) <= tolerance


def _widened(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask in another precision: what was forbidden in the old one is in the new one."""
    if mask is None or not mask.is_floating_point():
        return mask
    forbidden = mask <= torch.finfo(mask.dtype).min / 2
    return mask.to(dtype).masked_fill(forbidden, torch.finfo(torch.float32).min)


def _mask_of(mask: Tensor | None, text: int) -> Tensor | None:
    if mask is None:
        return None
    return mask[text if mask.shape[0] > 1 else 0]


def _arguments_for(
    call: BlockCall, text: int, batch: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The block's arguments for one text, without a key-value cache."""

    def one(value: Any) -> Any:
        if isinstance(value, Cache):
            return None  # a second call with a live cache would attend to stale keys
        if isinstance(value, tuple):
            return tuple(one(item) for item in value)
        if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] == batch > 1:
            return value[text : text + 1]
        return value

    kwargs = {name: one(value) for name, value in call.kwargs.items()}
    if "use_cache" in kwargs:
        kwargs["use_cache"] = False
    return tuple(one(value) for value in call.args), kwargs
