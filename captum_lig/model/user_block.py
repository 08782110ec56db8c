"""Blocks that the caller describes: for models whose blocks cannot be found or split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig.errors import LigError
from captum_lig.model.call import (
    Attention,
    BlockCall,
    PreCorePost,
    first_tensor,
    hidden_of,
    kept_apart,
)
from captum_lig.model.feed_forward import named_feed_forward
from captum_lig.model.hooks import hooked, stoppable
from captum_lig.model.sdpa import use_sdpa

__all__ = ["Block", "check_span", "record_user_block"]

Module = nn.Module | str


@dataclass(frozen=True)
class Block:
    """One block of a model, as its author knows it. An element of ``layer`` of ``LayerFlowIG``.

    Args:
        input: a module, or its dotted name: its first argument is ``z (B, S, D)``.
        output: the module that gives ``z' (B, S, D)``; None if it is ``input`` itself. If it is
            another one, all that ``z'`` is made of has to come through ``input``: a residual
            connection that starts before it would not be attributed, and is refused.
        attention: the module whose input is ``u``, the outputs of the heads side by side
            ``(B, S, H * d)``: the output projection. None: the block is left whole, there is
            only the layer boundary.
        heads: number of heads ``H``, needed with ``attention``.
        pre: ``z (N, S, D)`` to what ``core`` takes, a tensor or a tuple of them.
        core: what ``pre`` gives to ``u (N, S, H, d)``. The only part that mixes tokens.
        post: ``u (N, S, H, d)`` and ``z (N, S, D)`` to ``z' (N, S, D)``, token by token.
            ``pre``, ``core`` and ``post`` come together, instead of ``attention``.
        feed_forward: the module in the block whose output is what the MLP adds, or its dotted name
            in ``input`` or in the model. None: it is looked for. With a target only beside
            ``attention``, or ``pre``, ``core`` and ``post``.

    Raises:
        LigError: arguments that do not go together.

    Example::

        >>> from captum_lig import Block, LayerFlowIG
        >>> blocks = [
        ...     Block(layer, attention=layer.attention.output.dense, heads=12)
        ...     for layer in model.encoder.layer
        ... ]
        >>> flows = LayerFlowIG(model, layer=blocks).attribute(inputs, dtype=torch.float64)
    """

    input: Module
    output: Module | None = None
    attention: Module | None = None
    heads: int | None = None
    pre: Callable[[Tensor], Any] | None = None
    core: Callable[..., Tensor] | None = None
    post: Callable[[Tensor, Tensor], Tensor] | None = None
    feed_forward: Module | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output", "attention", "feed_forward"):
            value = getattr(self, name)
            if not isinstance(value, (nn.Module, str)) and (name == "input" or value is not None):
                raise LigError(
                    f"Block({name}={value!r}): give a module of the model or its dotted name."
                )
        parts = {name: getattr(self, name) for name in ("pre", "core", "post")}
        missing = [name for name, part in parts.items() if part is None]
        if 0 < len(missing) < 3:
            raise LigError(f"Block: {', '.join(missing)} missing; pre, core and post go together.")
        for name, part in parts.items():
            if part is not None and not callable(part):
                raise LigError(f"Block({name}={part!r}): give a function.")
        if not missing and self.attention is not None:
            raise LigError("Block: give attention, or pre, core and post, not both.")
        if self.attention is not None and (
            not isinstance(self.heads, int) or isinstance(self.heads, bool) or self.heads < 1
        ):
            raise LigError(
                f"Block(heads={self.heads!r}): with attention= give the number of its heads."
            )

    @property
    def parts(self) -> PreCorePost | None:
        """``pre``, ``core`` and ``post``, or None."""
        if self.pre is None or self.core is None or self.post is None:
            return None
        return self.pre, self.core, self.post


class Span(nn.Module):
    """The part of a model from the input of one module to the output of another, as a module.

    It runs the model up to there, with ``z`` put in at the input.
    """

    def __init__(self, model: nn.Module, start: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.model, self.start, self.end = model, start, end

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``z (N, S, D)`` and the arguments of the model to ``z' (N, S, D)``."""
        output, _ = self.run(lambda _: z, args, kwargs)
        return output

    def run(
        self, put: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The output, and what the input was before ``put`` replaced it."""
        seen: list[Tensor] = []
        output: list[Tensor] = []

        def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            z = hidden_of(given, named)
            if seen or z is None:
                return None
            seen.append(z)
            if given and given[0] is z:
                return (put(z), *given[1:]), named
            return given, {name: put(z) if x is z else x for name, x in named.items()}

        with stoppable() as stop:

            def leave(_: nn.Module, given: Any, named: Any, result: Any) -> None:
                if seen:
                    output.append(first_tensor(result))
                    stop()

            with hooked([self.start], enter=enter), hooked([self.end], leave=leave):
                self.model(*args, **kwargs)
        if not output:
            raise LigError(
                f"Block(input={type(self.start).__name__}, output={type(self.end).__name__}): "
                "the model did not run the input on tokens (B, S, D) and then the output."
            )
        return output[0], seen[0]


def record_user_block(
    model: nn.Module, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> BlockCall:
    """Run the model, under ``use_interface``, and keep what a block of the caller's got and gave.

    Raises:
        LigError: if a module is not the model's, does not run, or does not map tokens to tokens.
    """
    start, name = _resolved(model, block.input)
    name_of_input = name
    end, end_name = (start, name) if block.output is None else _resolved(model, block.output)
    module: nn.Module = start
    if end is not start:
        module, name = Span(model, start, end), f"{name} to {end_name}"
        with torch.no_grad(), use_sdpa():
            output, z = module.run(lambda z: z, args, kwargs)
        inputs: tuple[Any, ...] = (z, *args)
        named = kwargs
    else:
        output, inputs, named = _called(model, start, name, args, kwargs)
    family = type(model).__name__
    call = BlockCall(name, 0, module, inputs, named, output.detach(), None, family, described=True)
    if output.dim() != 3 or output.shape[:2] != call.hidden.shape[:2]:
        raise LigError(
            f"{call.describe()} maps {tuple(call.hidden.shape)} to {tuple(output.shape)}: a block "
            "maps tokens (B, S, D) to as many tokens."
        )
    if block.attention is not None:
        projection, _ = _resolved(model, block.attention)
        assert block.heads is not None
        call = replace(call, attention=Attention(block.heads, projection=projection))
    elif block.parts is not None:
        pre, core, _ = block.parts
        with torch.no_grad():
            made = pre(call.hidden[:1])
            u = core(*made) if isinstance(made, tuple) else core(made)
        if u.dim() != 4 or u.shape[:2] != call.hidden[:1].shape[:2]:
            raise LigError(
                f"{call.describe()}: core gives {tuple(u.shape)} for z "
                f"{tuple(call.hidden[:1].shape)}, give u (N, S, H, d)."
            )
        call = replace(call, attention=Attention(u.shape[2], parts=block.parts))
    if block.feed_forward is None:
        return call
    named_module = _within(model, name_of_input, block.feed_forward)
    return replace(call, feed_forward=named_feed_forward(call, named_module))


def check_span(call: BlockCall) -> None:
    """Check that what a span gives depends on the model's tokens through its input alone.

    The model runs on its tokens in another order, with the same residual stream put in.

    Raises:
        LigError: if tokens go past the input.
    """
    if not isinstance(call.module, Span):
        return

    def rolled(value: Any) -> Any:
        return value.roll(1, 1) if isinstance(value, Tensor) and value.dim() > 1 else value

    z, *args = call.args
    kwargs = call.kwargs
    if args:
        args[0] = rolled(args[0])
    elif kwargs:
        first = next(iter(kwargs))
        kwargs = {**kwargs, first: rolled(kwargs[first])}
    with torch.no_grad():
        other = call.module(z, *args, **kwargs)
    if bool((other - call.output).abs().max() > 1e-4 * call.output.abs().max()):
        raise LigError(
            f"{call.describe()}: the model's tokens also reach the output past the input, by a "
            "residual connection most likely. Name a module that all of it goes through, or give "
            "pre, core and post."
        )


def _resolved(model: nn.Module, module: Module) -> tuple[nn.Module, str]:
    names = {id(m): name for name, m in model.named_modules()}
    if isinstance(module, str):
        by_name = dict(model.named_modules())
        if module not in by_name:
            raise LigError(f"Block: {module!r} is not the name of a module of the model.")
        return by_name[module], module
    if id(module) not in names:
        raise LigError(f"Block: {type(module).__name__} is not a module of the model.")
    return module, names[id(module)]


def _within(model: nn.Module, block: str, module: Module) -> nn.Module:
    """A module of the model, by a name in the block, if it has such a one, or in the model."""
    inside = f"{block}.{module}"
    if isinstance(module, str) and block and inside in dict(model.named_modules()):
        return _resolved(model, inside)[0]
    return _resolved(model, module)[0]


def _called(
    model: nn.Module, module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """What a module gave and got, the first time it ran."""
    got: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    gave: list[Tensor] = []

    def enter(_: nn.Module, given: Any, named: Any) -> None:
        got.append(kept_apart(given, named))

    def leave(_: nn.Module, given: Any, named: Any, output: Any) -> None:
        gave.append(first_tensor(output))

    with hooked([module], enter=enter, leave=leave), torch.no_grad(), use_sdpa():
        model(*args, **kwargs)
    if not got:
        raise LigError(f"Block: {name!r} did not run on these inputs.")
    if hidden_of(*got[0]) is None:
        raise LigError(f"Block: {name!r} gets no tokens (B, S, D).")
    return gave[0], *got[0]
