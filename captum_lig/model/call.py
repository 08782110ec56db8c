"""What one block of a model was called with, and calling it again on something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache

from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, lowest
from captum_lig.model.few_bits import few_bit_layers, in_full
from captum_lig.model.token_axes import of_tokens

__all__ = [
    "TAKE_WHOLE",
    "Attention",
    "BlockCall",
    "FeedForward",
    "Site",
    "Spread",
    "first_tensor",
    "hidden_of",
    "kept_apart",
    "position_of_hidden",
]

Site = Literal["interface", "sdpa", "projection", "parts"]
"""Where a block is split: at transformers' attention interface, at torch's
``scaled_dot_product_attention``, at the input of its output projection, or by the caller."""

TAKE_WHOLE = (
    "Take it whole: put captum_lig.Block(module) into layer=[...], without a target with "
    "boundaries=('layer',)."
)
"""What to do with a block that cannot be split."""

Spread = Literal["shared", "repeated", "one by one"]
"""How a block's other arguments go with many sequences: as they are (they broadcast), repeated for
each, or not at all: the block runs on one sequence at a time."""


Reading = Literal["shared", "text", "heads"]
"""What the first axis of an argument counts: nothing of the batch (each text gets it as it is), the
texts, or the heads of the first text, of the second, and so on."""

PreCorePost = tuple[Callable[..., Any], Callable[..., Tensor], Callable[..., Tensor]]
"""A block in three functions: before the attention core, the core, and what follows it."""


@dataclass(frozen=True)
class Attention:
    """What the attention core of a block was, in a run over ``B`` texts."""

    heads: int
    sizes: tuple[int, int, int] | None = None
    """Number of sequences, of targets and of sources, if it is the core that is reached."""
    mask: Tensor | None = None
    """``(1 or B, 1 or H, T, S)`` added to the logits."""
    scaling: float = 1.0
    softcap: float | None = None
    sinks: Tensor | None = None
    """``(H,)``"""
    by_sdpa: bool = False
    projection: nn.Module | None = None
    """The module whose input is replaced, if it is not the attention core that is reached."""
    parts: PreCorePost | None = None
    """The caller's ``pre``, ``core`` and ``post``."""
    plain: bool = False
    """Whether the model gave what plain softmax attention gives when it was recorded."""

    @classmethod
    def of(cls, call: AttentionCall) -> Attention:
        """What stays the same when the block runs on other vectors."""
        return cls(
            call.query.shape[1],
            (call.query.shape[0], call.query.shape[2], call.key.shape[2]),
            call.mask,
            call.scaling,
            call.softcap,
            None if call.sinks is None else call.sinks.detach(),
            call.by_sdpa,
        )

    @property
    def site(self) -> Site:
        """Where it was reached."""
        if self.parts is not None:
            return "parts"
        if self.projection is not None:
            return "projection"
        return "sdpa" if self.by_sdpa else "interface"


@dataclass(frozen=True)
class FeedForward:
    """Where a block's MLP gives what it adds: one call of a module inside the block."""

    module: nn.Module
    turn: int
    """Which of that module's calls within one run of the block, from 0."""
    name: str
    """Its dotted name within the block."""
    block: nn.Module
    flat: bool = False
    """Whether it gives its tokens as ``(N * S, D)``."""
    beside: bool = False
    """Whether it returns something else beside them."""
    serving: tuple[tuple[nn.Module, int], ...] = ()
    """Linear maps in the block, and their widths, that do not matter once heads, tokens and this
    are given."""


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
    attention: Attention | None
    """Its self-attention, or None if it has none that can be reached."""
    family: str = ""
    """Name of the model's class, for messages."""
    turn: int = 0
    """How often the same module ran before."""
    described: bool = False
    """Whether the caller said where it is to be split, if at all."""
    spread: Spread = "shared"
    per_token: tuple[int, ...] = ()
    """Which of the :meth:`tensors` hold something for each token ``(B, S, ...)``, used after the
    attention."""
    readings: tuple[Reading, ...] = ()
    """What the first axes of the tensors among ``kwargs`` and ``args`` are, in this order; empty
    before that was found out."""
    padding: Tensor | None = None
    """``(B, S)`` True at padding; None before that was found out."""
    feed_forward: FeedForward | None = None
    """Its MLP, if it was looked for or the caller named it."""
    writes: bool = False
    """Whether it wrote into the residual stream that it got while it was recorded."""

    @property
    def valid(self) -> Tensor:
        """``(B, S)`` its tokens that are not padding."""
        if self.padding is None:
            return torch.ones(self.hidden.shape[:2], dtype=torch.bool, device=self.hidden.device)
        return ~self.padding

    @property
    def site(self) -> str:
        """Where it is split, or ``"whole"`` if it is not."""
        return "whole" if self.attention is None else self.attention.site

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the block, ``(B, S, D)``."""
        hidden = hidden_of(self.args, self.kwargs)
        assert hidden is not None
        return hidden

    def is_hidden(self, value: Any) -> bool:
        """Whether an argument is the residual stream: some blocks get it twice."""
        x = self.hidden
        return value is x or (
            isinstance(value, Tensor)
            and (value.shape, value.stride(), value.dtype) == (x.shape, x.stride(), x.dtype)
            and value.data_ptr() == x.data_ptr() != 0
        )

    def for_text(self, text: int) -> BlockCall:
        """The call for one text of the run, as if it had been alone; without a key-value cache."""
        batch = len(self.hidden)
        readings = iter(self.readings or tuple(r[0] for r in self.possible_readings()))

        def one(value: Any) -> Any:
            if isinstance(value, Cache):
                return None  # a second call with a live cache would attend to stale keys
            if isinstance(value, Tensor):
                reading = next(readings)
                if reading == "text":
                    return value[text : text + 1]
                if reading == "heads":
                    return value.tensor_split(batch)[text]
            return value

        kwargs = {name: _mapped(value, one) for name, value in self.kwargs.items()}
        args = tuple(_mapped(value, one) for value in self.args)
        for name in ("use_cache", "output_attentions"):
            if name in kwargs:
                kwargs[name] = False
        attention = self.attention
        if attention is not None and attention.mask is not None and len(attention.mask) > 1:
            attention = replace(attention, mask=attention.mask[text : text + 1])
        return replace(
            self,
            args=args,
            kwargs=kwargs,
            output=self.output[text : text + 1],
            attention=attention,
            readings=(),
            padding=None if self.padding is None else self.padding[text : text + 1],
        )

    def of_tokens(self, index: Tensor) -> BlockCall:
        """The call for one text on some of its tokens ``(n,)``; its output is still to be had.

        Raises:
            LigError: if sizes do not tell which axes of its arguments are tokens.
        """
        length = self.hidden.shape[1]

        def some(value: Any) -> Any:
            if self.is_hidden(value):
                return value[:, index]
            return of_tokens(value, length, index) if isinstance(value, Tensor) else value

        attention = self.attention
        if attention is not None:
            mask = attention.mask
            attention = replace(
                attention,
                mask=None if mask is None else of_tokens(mask, length, index),
                sizes=None if attention.sizes is None else (1, len(index), len(index)),
            )
        return replace(
            self,
            args=tuple(_mapped(value, some) for value in self.args),
            kwargs={name: _mapped(value, some) for name, value in self.kwargs.items()},
            output=self.output[:, index],
            attention=attention,
            padding=None if self.padding is None else self.padding[:, index],
        )

    def possible_readings(self) -> list[tuple[Reading, ...]]:
        """What the first axis of each tensor can be, by its size, the most likely first."""
        batch, length, _ = self.hidden.shape

        def readings(value: Tensor) -> tuple[Reading, ...]:
            size = len(value) if value.dim() else 0
            if self.is_hidden(value):
                return ("text",)
            if batch == 1 or size in (0, 1):
                return ("shared",)
            if size == batch:
                return ("text", "shared") if value.dim() > 1 else ("shared", "text")
            if value.dim() > 2 and size % batch == 0:
                return ("shared", "heads") if size == length else ("heads", "shared")
            return ("shared",)

        return [readings(value) for value in self.tensors()]

    def tensors(self) -> list[Tensor]:
        """The tensors among ``kwargs`` and ``args``, in this order."""
        found: list[Tensor] = []

        def note(value: Any) -> None:
            if isinstance(value, Tensor):
                found.append(value)

        _mapped([self.kwargs, self.args], note)
        return found

    def on(
        self,
        z: Tensor,
        instead: tuple[int | str, Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The block's output ``(N, S, D)`` for ``z (N, S, D)``, of a call for one text.

        ``instead`` is the position or name of another argument, and ``(N, ...)`` to put there; a
        block that takes one sequence at a time takes one of those. ``positions (N, S)`` are those
        of the tokens in the text, if they changed: arguments :attr:`per_token` go with them.
        Sequences may be shorter than the text: other arguments are those of its first tokens.
        """
        if self.spread == "one by one" and len(z) > 1:
            assert instead is None
            return torch.cat(
                [
                    self.on(one, positions=None if positions is None else positions[n : n + 1])
                    for n, one in enumerate(z.split(1))
                ]
            )
        moving = () if positions is None else self.per_token
        indices, length = count(), self.hidden.shape[1]
        shorter = z.shape[1] < length
        first = torch.arange(z.shape[1], device=z.device) if shorter else None
        z = z.contiguous()  # as in the model, whose code may say z.view()

        def spread(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if next(indices) in moving:
                return value[0][positions]
            if self.is_hidden(value):
                return z
            if first is not None:
                value = of_tokens(value, length, first)
            if self.spread != "repeated":
                return value
            if value.dim() >= 2 and value.shape[0] == 1:
                return value.expand(len(z), *value.shape[1:])
            # One for each head, texts first.
            return value.repeat(len(z), 1, 1) if value.dim() == 3 else value

        kwargs = {name: _mapped(value, spread) for name, value in self.kwargs.items()}
        args = tuple(_mapped(value, spread) for value in self.args)
        if instead is not None:
            position, value = instead
            if isinstance(position, int):
                args = (*args[:position], value, *args[position + 1 :])
            else:
                kwargs = {**kwargs, position: value}
        return first_tensor(self.module(*args, **kwargs))

    def in_dtype(self, dtype: torch.dtype) -> BlockCall:
        """The same call of a copy of the block in another precision; the model is untouched.

        Its output is what the copy gives for the residual stream that the model had. A block that
        was made in inference mode is copied anyway, its tensors take no part in gradients, and one
        with weights in few bits, as their kernels are made for going forward.
        """
        inference = any(p.is_inference() for p in self.module.parameters())
        few = any(few_bit_layers(self.module))
        if self.hidden.dtype == dtype and not (inference or few):
            return self
        if any(p.is_meta for p in self.module.parameters()):
            raise LigError(
                f"{self.describe()} is offloaded, so it cannot be copied in another precision: "
                f"load the model with dtype={dtype}, or without offloading."
            )

        def cast(value: Any) -> Any:
            if self.is_hidden(value):
                return hidden
            if isinstance(value, Tensor) and value.is_inference():
                value = value.clone()
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return _widened(value, dtype) if floating else value

        hidden = self.hidden.clone() if self.hidden.is_inference() else self.hidden
        hidden = hidden.to(dtype)
        names = {module: name for name, module in self.module.named_modules()}
        module = in_full(self.module, dtype, self.hidden.dtype)
        attention = self.attention
        if attention is not None:
            mask, sinks = attention.mask, attention.sinks
            inside = attention.projection
            attention = replace(
                attention,
                mask=None if mask is None else _widened(mask, dtype),
                sinks=None if sinks is None else sinks.to(dtype),
                projection=None if inside is None else module.get_submodule(names[inside]),
            )
        feed_forward = self.feed_forward
        if feed_forward is not None:
            feed_forward = replace(
                feed_forward,
                module=module.get_submodule(names[feed_forward.module]),
                block=module,
            )
        call = replace(
            self,
            module=module,
            args=tuple(_mapped(value, cast) for value in self.args),
            kwargs={name: _mapped(value, cast) for name, value in self.kwargs.items()},
            attention=attention,
            feed_forward=feed_forward,
        )
        texts = range(self.hidden.shape[0])
        outputs = [(one := call.for_text(text)).on(one.hidden) for text in texts]
        return replace(call, output=torch.cat(outputs).detach())

    def describe(self) -> str:
        """Name and class, for messages."""
        inside = f" of {self.family}" if self.family else ""
        return f"block {self.name!r} ({type(self.module).__name__}{inside})"


def kept_apart(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments in tuples, lists and mappings of their own: a block may put something into them.

    Models hand one mapping to all of their blocks, some of which keep their keys and values in it.
    """

    def same(value: Any) -> Any:
        return value

    return tuple(_mapped(x, same) for x in args), {k: _mapped(x, same) for k, x in kwargs.items()}


def first_tensor(output: Any) -> Tensor:
    """A block's hidden states: blocks return a tensor, or a tuple or record that starts with it."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output  # type: ignore[no-any-return]


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The residual stream ``(B, S, D)`` among a module's arguments, or None."""
    position = position_of_hidden(args, kwargs)
    if position is None:
        return None
    return args[position] if isinstance(position, int) else kwargs[position]  # type: ignore[no-any-return]


def position_of_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str | None:
    """Where it stands among them: a number, or a name."""

    def fits(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()

    if args and fits(args[0]):
        return 0
    if fits(kwargs.get("hidden_states")):
        return "hidden_states"
    return next((name for name, value in kwargs.items() if fits(value)), None)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """``value`` with its tensors (in tuples, lists and mappings) replaced."""
    if isinstance(value, Mapping) and not isinstance(value, nn.Module):
        return {name: _mapped(item, function) for name, item in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_mapped(item, function) for item in value)
    return function(value)


def _widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another precision: what a mask forbade in the old one it forbids in the new."""
    cast = x.to(dtype)
    if x.dim() < 4:
        return cast
    return cast.masked_fill(x <= torch.finfo(x.dtype).min / 2, lowest(dtype))
