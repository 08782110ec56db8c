"""Which blocks of a model are meant: every one, or some by module, name, number or description."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief, users_line
from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, handle_with
from captum_lig.model.call import Attention, BlockCall, FeedForward, Spread
from captum_lig.model.feed_forward import find_feed_forward
from captum_lig.model.few_bits import check_no_rounding
from captum_lig.model.find_blocks import elements, record_blocks
from captum_lig.model.hf_attention import NAME, use_interface
from captum_lig.model.hooks import attribution, uncompiled
from captum_lig.model.inputs import ModelCall
from captum_lig.model.left_padding import shifted_by_padding
from captum_lig.model.padding import with_padding
from captum_lig.model.texts import with_readings
from captum_lig.model.unchanged import MadeOf
from captum_lig.model.user_block import Block, record_user_block
from captum_lig.model.validate import compare_with_model, validate_block

__all__ = ["Finder", "Layer", "check_finite", "chosen", "is_one"]

Layer = nn.Module | str | int | Block

KINDS = (nn.Module, str, int, Block)


class Finder:
    """A model's blocks that are meant, found by running it, each validated once."""

    def __init__(self, model: nn.Module, layer: Layer | Sequence[Layer] | None = None) -> None:
        check_layer(layer)
        self.model, self.layer = model, layer
        self.left_out: list[str] = []
        """What the last run had beside the blocks that may be blocks too, if none were named."""
        self._said = self._said_padding = False
        self._fused = True
        self._made: MadeOf | None = None
        self._sure: set[nn.Module] = set()
        self._feed_forward: dict[tuple[Any, ...], FeedForward | None] = {}
        self._known: dict[tuple[Any, ...], tuple[Spread, tuple[int, ...], Attention | None]] = {}

    @contextmanager
    def blocks(self, call: ModelCall) -> Iterator[list[BlockCall]]:
        """The blocks with what they were called with, validated, to be attributed inside.

        Raises:
            LigError: if there are no such blocks, or one of them cannot be split.
        """
        with self.recorded(call) as calls:
            made = self._made
            if self.left_out and not self._said:
                self._said = True
                warnings.warn(
                    f"of {type(self.model).__name__}, {' And '.join(self.left_out)}",
                    stacklevel=users_line(),
                )
            yield [self.attached(block) for block in calls]
            assert made is not None
            made.check("while it was attributed")

    @contextmanager
    def recorded(self, call: ModelCall) -> Iterator[list[BlockCall]]:
        """The blocks with what they were called with, in the context that they can be called in.

        Raises:
            LigError: if there are no such blocks, or what they give is not finite or not what they
                give in the unmodified model.
        """
        # Nothing of the caller's grad mode reaches in: inference tensors have no gradients.
        with (
            attribution(),
            handle_with(AttentionCall.eager),
            uncompiled(),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            calls, recording = self._compared(call)
            attend = AttentionCall.fused if self._fused else AttentionCall.eager
            with recording(), handle_with(attend):
                yield calls

    def _compared(
        self, call: ModelCall
    ) -> tuple[list[BlockCall], Callable[[], AbstractContextManager[None]]]:
        """The blocks, held against the unmodified model, and the context to call them in."""
        self._forget_if_changed()
        calls, recording = self._record(call)
        for block in calls:
            if block.module not in self._sure:
                every = block.module.named_modules()
                check_no_rounding(every, block.describe(), block.hidden.dtype)
                self._sure.add(block.module)
        with recording():
            calls = with_padding(call, [with_readings(block) for block in calls], self._recorded)
            self._warn_of_padding(call, calls)
        try:
            for block in calls:
                check_finite(block)
            if any(_kind(block) not in self._known for block in calls):
                compare_with_model(calls, call.run_unmodified)
        except LigError:
            if not any(block.attention is not None and block.attention.plain for block in calls):
                raise
            # Some family's attention is more than softmax: its own function, then, however large.
            self._fused = False
            return self._compared(call)
        return calls, recording

    def feed_forward(self, block: BlockCall) -> FeedForward | None:
        """Where a block's MLP gives its output, found the first time that the block is seen."""
        if (kind := _kind(block)) not in self._feed_forward:
            found = find_feed_forward(block)
            self._feed_forward.update({kind: found, _kind(block, one_token=True): found})
        return self._feed_forward[kind]

    def with_feed_forward(self, block: BlockCall) -> BlockCall:
        """The block with where its MLP gives its output, if it is found."""
        return replace(block, feed_forward=self.feed_forward(block))

    def another(self, call: ModelCall) -> list[BlockCall]:
        """What the blocks are called with in another run, inside :meth:`blocks`."""
        return recorded(self.model, self.layer, call, self._fused)[0]

    def attached(self, block: BlockCall) -> BlockCall:
        """The recorded block with where to split it, validated the first time that it is seen.

        Raises:
            LigError: if it cannot be split.
        """
        if (known := self._known.get(_kind(block))) is not None:
            spread, per_token, found = known
            attention = block.attention or found
            return replace(block, spread=spread, per_token=per_token, attention=attention)
        sure = validate_block(block)
        # What was not found may be found on another text, and one token shows nothing of a mix.
        if (sure.attention is not None or block.described) and int(block.valid.sum(-1).max()) > 1:
            found = sure.attention if block.attention is None else None
            known = sure.spread, sure.per_token, found
            self._known.update({_kind(block): known, _kind(block, one_token=True): known})
        return sure

    def _warn_of_padding(self, call: ModelCall, calls: list[BlockCall]) -> None:
        """Warn of texts that are all padding, and of padding that a model counts."""
        for block in calls:
            empty = (~block.valid.any(-1)).nonzero().flatten().tolist()
            if empty:
                warnings.warn(
                    f"every token of text {empty[0]} is padding: the attention mask of "
                    f"{block.describe()} lets none of them be read, and all its rows are 0.",
                    stacklevel=users_line(),
                )
                break
        if self._said_padding:
            return
        left_out = self.left_out
        said = shifted_by_padding(call, calls, self._recorded)
        self.left_out = left_out
        if said is not None:
            self._said_padding = True
            warnings.warn(said, stacklevel=users_line())

    def _forget_if_changed(self) -> None:
        """What was found out of a model is true of it as long as it is what it was."""
        made = MadeOf(self.model)
        if made != self._made:
            self._known.clear()
            self._sure.clear()
            self._feed_forward.clear()
        self._made = made

    def _record(
        self, call: ModelCall
    ) -> tuple[list[BlockCall], Callable[[], AbstractContextManager[None]]]:
        """The blocks that are meant, and the context in which they were recorded."""

        def interface() -> AbstractContextManager[None]:
            return use_interface(self.model)

        try:
            with interface():
                calls = self._recorded(call)
        except KeyError as error:
            if error.args != (NAME,):
                raise
            # ModernBERT of older releases looks its function up in a table of its own.
            return self._recorded(call), nullcontext
        if all(block.site != "interface" for block in calls):
            # Some models call torch's function only as long as their config says so.
            left_out, alone = self.left_out, self._recorded(call)
            if any(block.site == "sdpa" for block in alone):
                return alone, nullcontext
            self.left_out = left_out
        return calls, interface

    def _recorded(self, call: ModelCall) -> list[BlockCall]:
        calls, self.left_out = recorded(self.model, self.layer, call, self._fused)
        return calls


def _kind(block: BlockCall, one_token: bool = False) -> tuple[Any, ...]:
    """The block, and what its arguments are like: what is true of one call is of others like it.

    ``one_token``: and of such calls with one token.
    """
    batch, length, _ = block.hidden.shape
    one_token = one_token or length == 1

    def kind(value: Any) -> Any:
        if isinstance(value, Tensor):
            # What is the same for all tokens does not tell whether it is one for each of them.
            by_token = value.shape[:2] in ((1, length), (batch, length))
            same: bool | None = None
            if not one_token:
                there = by_token and not block.is_hidden(value)
                same = there and torch.equal(value, _first(value))
            return value.dtype, value.dim(), value.dim() > 0 and len(value) == batch, same
        if isinstance(value, Mapping):
            return tuple((name, kind(item)) for name, item in value.items())
        return tuple(map(kind, value)) if isinstance(value, (tuple, list)) else type(value)

    mask = None if block.attention is None else block.attention.mask
    given = kind(block.args), kind(block.kwargs), kind(mask)
    return block.name, block.module, block.site, batch > 1, given


def _first(value: Tensor) -> Tensor:
    """What the first token got, for all of them."""
    return value[:, :1].expand_as(value)


def check_finite(call: BlockCall, of: str = "these inputs") -> None:
    """Refuse a block with activations that are not finite, padding aside.

    Raises:
        LigError: if there are some.
    """
    valid = call.valid
    for x, where in ((call.hidden, "entering"), (call.output, "leaving")):
        wrong = ~torch.isfinite(x).all(-1) & valid
        if bool(wrong.any()):
            text, token = wrong.nonzero()[0].tolist()
            in_text = f" of text {text}" if len(wrong) > 1 else ""
            kept = str(x.dtype).removeprefix("torch.")
            place = "before" if where == "entering" else "in"
            wider = "" if x.dtype == torch.float64 else ", or load the model in a wider dtype"
            raise LigError(
                f"{call.describe()} has activations that are not finite on {of}: {where} it, "
                f"token {token}{in_text} is the first of {int(wrong.sum())}, in {kept}. "
                f"Look at the inputs, and at the weights {place} this block{wider}."
            )


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
    model: nn.Module,
    layer: Layer | Sequence[Layer] | None,
    call: ModelCall,
    fused: bool = False,
) -> tuple[list[BlockCall], list[str]]:
    """The blocks that are meant, with what they are called with, from a run of the model.

    With them, if none were named, what ``record_blocks`` says of others.

    Raises:
        LigError: if there are no such blocks.
    """
    layers = [] if layer is None else [layer] if isinstance(layer, KINDS) else list(layer)
    if layer is not None and not layers:
        raise LigError("layer is an empty list: give None for every block, or name some.")
    named = _named(model, layers)
    calls: list[BlockCall] = []
    if layer is None or not all(isinstance(one, Block) for one in layers):
        calls, left_out = record_blocks(model, call.run, named, fused)
    if layer is None:
        return calls, left_out
    found: list[BlockCall] = []
    for one in layers:
        if isinstance(one, Block):
            own = record_user_block(model, one, *call.arguments())
            found.append(replace(own, index=len(found)))
        else:
            found.extend(chosen(calls, one))
    return found, []


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


def chosen(calls: list[BlockCall], layer: Layer) -> list[BlockCall]:
    """The blocks that a number, a name or a module means.

    Raises:
        LigError: if there are none.
    """
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
        around = next((c for c in calls if _inside(layer, c)), None)
        if around is not None:
            raise LigError(
                f"layer {name!r} is a part of the block {around.name!r}: name the block. A part is "
                "attributed by itself in maps without a target alone."
            )
        raise LigError(
            f"layer {name!r} is not a block, it does not map tokens (B, S, D) to tokens or is a "
            f"stack of blocks: {_blocks_there_are({c.name: c.module for c in calls})}."
        )
    return found


def _inside(layer: Layer, block: BlockCall) -> bool:
    """Whether a part of a block is named."""
    if isinstance(layer, str):
        return layer.startswith(f"{block.name}.")
    return isinstance(layer, nn.Module) and any(layer is part for part in block.module.modules())


def _blocks_there_are(blocks: Mapping[str, nn.Module]) -> str:
    names = list(blocks)
    if not names:
        return "no blocks were found in it"
    some = ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"
    return f"its blocks are {some}"
