"""Runs of a model in which nodes of its blocks are read, or given other values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_lig._arguments import index_list
from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, handle_with
from captum_lig.model.call import BlockCall, first_tensor, hidden_of, position_of_hidden
from captum_lig.model.feed_forward import at_feed_forward, find_feed_forward, with_first
from captum_lig.model.hooks import changed_call, own_call, replaced_call, tell
from captum_lig.model.inputs import ModelCall
from captum_lig.model.output_projection import replace_input
from captum_lig.model.sdpa import use_sdpa
from captum_lig.model.select import Finder, Layer, is_one
from captum_lig.model.user_block import Span

__all__ = ["Edits", "Layers", "Place", "Run", "Runner", "blocks_of", "runner"]

Place = Literal["entering", "heads", "feed_forward", "leaving"]
"""Where in a block: tokens ``(P, S, D)``, heads ``(P, S, H, e)``, MLP ``(P, S, D)``, tokens."""

Edits = Mapping[tuple[int, Place], Callable[[Tensor], Tensor]]
"""By the number of a block and the place: what there is to what is to be there."""


Layers = Layer | Sequence[Layer] | None
"""Indices of a model's layers, or blocks as ``layer`` of ``LayerFlowIG`` takes them."""


@dataclass(frozen=True)
class Run:
    """One run of a model on one text."""

    call: ModelCall
    output: Any
    values: dict[tuple[int, Place], Tensor] = field(default_factory=dict)
    """What was there, of one text: ``(1, S, ...)``, by the number of the block."""
    returned: dict[int, Any] = field(default_factory=dict)
    """What each block returned, in the order they ran."""

    def before(self, number: int) -> list[int]:
        """The blocks that ran before one."""
        ran = list(self.returned)
        return ran[: ran.index(number)]


class Runner:
    """Runs a model, in the context of :func:`runner`.

    Args:
        blocks: all of its blocks that were found, for one text.
        chosen: the numbers of those whose nodes are meant; they are validated.
    """

    def __init__(self, blocks: list[BlockCall], chosen: list[int]) -> None:
        self.blocks, self.chosen = blocks, chosen
        self._numbers = {(block.module, block.turn): n for n, block in enumerate(blocks)}
        first = blocks[chosen[0]]
        self.positions = first.valid[0].nonzero().squeeze(-1)
        """``(N,)`` positions of the tokens that are not padding."""
        self.length = first.hidden.shape[1]
        self.layers = tuple(blocks[n].index for n in chosen)

    def record(self, call: ModelCall, further: Mapping[str, Any]) -> Run:
        """Run the model as it is.

        Args:
            call: the call of the model, on one text.
            further: further keyword arguments of the model.
        """
        run = Run(call, None)

        def keep(key: tuple[int, Place]) -> Callable[[Tensor], Tensor]:
            def note(x: Tensor) -> Tensor:
                run.values[key] = x.detach().clone()
                return x

            return note

        keys = [(n, place) for n in self.chosen for place in self.places(n)]
        edits: Edits = {key: keep(key) for key in keys}
        with call.explained():
            output = self.run(call, further, edits, returned=run.returned)
        return replace(run, output=output)

    def places(self, number: int) -> list[Place]:
        """What a block has."""
        block, found = self.blocks[number], ["entering", "leaving"]
        if block.attention is not None and block.site != "parts":
            found.append("heads")
        if block.feed_forward is not None:
            found.append("feed_forward")
        return found  # type: ignore[return-value]

    def run(
        self,
        call: ModelCall,
        further: Mapping[str, Any],
        edits: Edits,
        copies: int = 1,
        given: Mapping[int, Any] | None = None,
        returned: dict[int, Any] | None = None,
    ) -> Any:
        """The model's output, on copies of one text.

        Args:
            call: the call of the model, on one text.
            further: further keyword arguments of the model.
            edits: what to put where; each gets ``(copies, S, ...)``.
            copies: number of copies.
            given: what blocks return without running.
            returned: is filled with what blocks return, by their numbers.
        """
        turns: dict[nn.Module, int] = {}
        current: int | None = None
        attended = False

        def node(place: Place, own: Callable[[], Tensor]) -> Tensor:
            edit = None if current is None else edits.get((current, place))
            return own() if edit is None else edit(own())

        def dispatch(attention: AttentionCall) -> Tensor:
            nonlocal attended
            # A block's later attention calls are others: of an encoder's tokens.
            first, attended = not attended, True
            block = None if current is None else self.blocks[current]
            own = attention.eager
            if block is not None and block.attention is not None and block.attention.plain:
                own = attention.fused
            if first and block is not None and block.site in ("interface", "sdpa"):
                return node("heads", own)
            return own()

        def instead(own: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
            def call_of(*args: Any, **kwargs: Any) -> Any:
                nonlocal current, attended
                turn = turns.get(module, 0)
                turns[module] = turn + 1
                number = self._numbers.get((module, turn))
                if number is None:
                    return own(*args, **kwargs)
                edit = edits.get((number, "leaving"))

                def edited(output: Any) -> Any:
                    return with_first(output, edit(first_tensor(output))) if edit else output

                if given is not None and number in given:
                    output = edited(_copied(given[number], copies))
                    tell(module, args, kwargs, output)
                else:
                    outer, current, attended = (current, attended), number, False
                    args, kwargs = _with_hidden(args, kwargs, edits.get((number, "entering")))
                    call_it = own if edit is None else changed_call(module, own, edited)
                    output = call_it(*args, **kwargs)
                    current, attended = outer
                if returned is not None:
                    returned[number] = output
                return output

            return call_of

        modules = {block.module: own_call(block.module) for block in self.blocks}
        edited_blocks = [self.blocks[n] for n in sorted({n for n, _ in edits})]
        projections = {
            block.attention.projection: block.attention.heads
            for block in edited_blocks
            if block.attention is not None and block.attention.projection is not None
        }
        places = dict.fromkeys(
            block.feed_forward for block in edited_blocks if block.feed_forward is not None
        )
        args, kwargs = _repeated(call, copies)
        with ExitStack() as stack:
            stack.enter_context(use_sdpa())
            stack.enter_context(handle_with(dispatch))
            for projection, heads in projections.items():
                stack.enter_context(
                    replace_input(projection, heads, lambda u: node("heads", lambda: u))
                )
            for found in places:
                stack.enter_context(at_feed_forward(found, lambda own: node("feed_forward", own)))
            stack.enter_context(replaced_call({m: instead(own, m) for m, own in modules.items()}))
            return call.model(*args, **{**kwargs, **further})


def blocks_of(model: nn.Module, layers: Layers) -> tuple[Finder, list[int] | None]:
    """What finds a model's blocks, and the indices of those that are meant; None for all found.

    Of indices all blocks are found: those that run before a node need not run then.
    """
    given = [layers] if is_one(layers) else layers
    if given is None or all(isinstance(one, int) for one in given):  # type: ignore[union-attr]
        return Finder(model), None if given is None else list(given)  # type: ignore[arg-type]
    return Finder(model, layers), None


@contextmanager
def runner(call: ModelCall, finder: Finder, layers: Sequence[int] | None) -> Iterator[Runner]:
    """The context in which a model runs on one text, with its blocks.

    Args:
        call: the call of the model.
        finder: finds its blocks.
        layers: which of them, by their indices; None for all.

    Raises:
        LigError: if there are no such blocks, one cannot be split, or they are of several streams.
    """
    with finder.recorded(call) as found:
        blocks = sorted(found, key=lambda block: block.index)
        count, cpu = len(blocks), torch.device("cpu")
        chosen = (
            list(range(count))
            if layers is None
            else sorted(set(index_list(list(layers), count, cpu, "layers", "layers").tolist()))
        )
        for number in chosen:
            if isinstance(blocks[number].module, Span):
                raise LigError(
                    f"{blocks[number].describe()} spans several modules, and no one of them is the "
                    "block: its nodes cannot be given other values. Name modules that are blocks."
                )
            block = finder.attached(blocks[number])
            blocks[number] = replace(block, feed_forward=find_feed_forward(block))
        lengths = {n: blocks[n].hidden.shape[1:] for n in chosen}
        if len(set(lengths.values())) > 1:
            shapes = ", ".join(f"{blocks[n].name} {tuple(x)}" for n, x in lengths.items())
            raise LigError(
                f"the layers are of several streams (S, D): {shapes}. Give those of one, with "
                "layers=."
            )
        yield Runner(blocks, chosen)


def _repeated(call: ModelCall, copies: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call the model with, for copies of its one text."""
    args, kwargs = call.arguments()
    return (
        tuple(_copied(x, copies) for x in args),
        {name: _copied(x, copies) for name, x in kwargs.items()},
    )


def _copied(value: Any, copies: int) -> Any:
    """Copies of what is there for one text."""
    if isinstance(value, Tensor):
        single = value.dim() > 0 and len(value) == 1
        # New memory: a model may write into it.
        return value.expand(copies, *value.shape[1:]).clone() if single else value
    if isinstance(value, Mapping) and not isinstance(value, nn.Module):
        copied = {name: _copied(item, copies) for name, item in value.items()}
        return type(value)(copied) if isinstance(value, dict) else copied
    if isinstance(value, (tuple, list)):
        items = [_copied(item, copies) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], edit: Callable[[Tensor], Tensor] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with an edit of its tokens."""
    if edit is None:
        return args, kwargs
    position, hidden = position_of_hidden(args, kwargs), hidden_of(args, kwargs)
    assert hidden is not None
    if isinstance(position, str):
        return args, {**kwargs, position: edit(hidden)}
    return (edit(hidden), *args[1:]), kwargs
