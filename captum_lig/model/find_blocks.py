"""Finding a model's blocks by running it: what they are called with, and where they attend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, handle_with
from captum_lig.model.call import Attention, BlockCall, first_tensor, hidden_of, kept_apart
from captum_lig.model.hooks import hooked
from captum_lig.model.sdpa import use_sdpa

__all__ = ["elements", "record_blocks"]


@dataclass(eq=False)
class _Element:
    """A module in a list of the model, or one that the caller named."""

    name: str
    module: nn.Module
    container: nn.Module | None
    """The list; None if the caller named it."""


@dataclass(eq=False)
class _Run:
    """One run of an element."""

    element: _Element
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    depth: int
    """How many other elements of lists it ran in."""
    attention: list[Attention] = field(default_factory=list)
    inside: list[_Run] = field(default_factory=list)
    """What ran in it and attends."""
    output: Tensor | None = None
    version: int = 0
    """Of the tokens that it got: writing into them counts it up."""
    writes: bool = False

    @property
    def is_map_of_tokens(self) -> bool:
        z = hidden_of(self.args, self.kwargs)
        return z is not None and isinstance(self.output, Tensor) and self.output.shape == z.shape

    @property
    def is_stack(self) -> bool:
        """Whether it holds two modules of one class, in one list, that attend: its blocks."""
        seen: dict[Any, set[int]] = {}
        for run in self.inside:
            key = id(run.element.container), type(run.element.module)
            seen.setdefault(key, set()).add(id(run.element.module))
        return any(len(modules) > 1 for modules in seen.values())


def elements(model: nn.Module) -> dict[str, nn.Module]:
    """Elements of the model's lists (``nn.ModuleList``, ``nn.Sequential``), by dotted name."""
    return {element.name: element.module for element in _elements(model)}


def _elements(model: nn.Module) -> list[_Element]:
    return [
        _Element(f"{name}.{key}" if name else key, child, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        for key, child in module.named_children()
    ]


def record_blocks(
    model: nn.Module,
    run: Callable[[], Any],
    named: dict[str, nn.Module],
    fused: bool = False,
) -> tuple[list[BlockCall], list[str]]:
    """Run the model and keep what each block was called with and gave.

    Blocks are the outermost elements of the model's lists that attend; an element that holds two
    elements of one class that attend is a stack of blocks itself. Elements of the same list that
    do not attend are blocks too. If none attends, the longest list whose elements each take what
    the one before gives is the stack.

    Args:
        model: the model that ``run`` calls, under ``use_interface``.
        run: calls the model on the texts.
        named: modules that the caller named, blocks if they can be, by name.
        fused: whether to attend by torch's fused function where the weights are many.

    Returns:
        One :class:`BlockCall` for each run of a block, in the order they ran; and, a sentence
        each, lists that may be blocks too and were not taken.

    Raises:
        LigError: if there is no block.
    """
    candidates = _elements(model)
    while True:
        runs = _runs(model, run, candidates, named, fused)
        found = [r for r in runs if r.element.container is not None]
        stacks = {id(r.element.module) for r in found if r.depth == 0 and r.is_stack}
        if not stacks:
            break
        candidates = [element for element in candidates if id(element.module) not in stacks]
    blocks = _blocks(runs)
    if not blocks:
        lists = sorted({e.name.rpartition(".")[0] or "the model itself" for e in candidates})
        raise LigError(
            f"no blocks were found in {type(model).__name__}: none of its lists of modules "
            f"({', '.join(lists[:3]) or 'there are none'}) holds modules that map tokens (B, S, D) "
            "to tokens and calls attention (transformers' attention interface, or torch's "
            "scaled_dot_product_attention). Name its blocks in layer=[...], with a target each "
            "as captum_lig.Block(name)."
        )
    calls = [_call_of(model, index, block, blocks) for index, block in enumerate(blocks)]
    _check_tokens(calls)
    return calls, _left_out(runs, blocks)


def _runs(
    model: nn.Module,
    run: Callable[[], Any],
    candidates: list[_Element],
    named: dict[str, nn.Module],
    fused: bool,
) -> list[_Run]:
    """What ran, in the order it ended; what runs inside another element is not kept whole."""
    finished: list[_Run] = []
    running: list[_Run] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        depth = sum(outer.element.container is not None for outer in running)
        running.append(_Run(chosen[module], *kept_apart(args, kwargs), depth))
        running[-1].version = _version(hidden_of(args, kwargs))

    def inside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if hidden_of(running[-1].args, running[-1].kwargs) is None:
            # A hook of the user's makes tokens of what it gets: a tuple that another gave, say.
            running[-1].args, running[-1].kwargs = kept_apart(args, kwargs)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        done = running.pop()
        own = done.element.container is None
        if own or done.depth == 0:
            done.writes = _version(hidden_of(done.args, done.kwargs)) != done.version
            found = first_tensor(output)
            done.output = found.detach() if isinstance(found, Tensor) else None
            finished.append(done)
        elif done.attention:
            done.args, done.kwargs = (), {}  # memory
        if done.attention:
            for outer in running:
                outer.inside.append(done)

    def note(call: AttentionCall) -> Tensor:
        for open_run in running:
            open_run.attention.append(replace(Attention.of(call), plain=fused and call.is_large))
        return call.fused() if fused else call.eager()

    chosen = {module: _Element(name, module, None) for name, module in named.items()}
    for element in candidates:
        chosen.setdefault(element.module, element)
    with (
        hooked(chosen, enter=enter, leave=leave),
        hooked(chosen, enter=inside, inside=True),
        torch.no_grad(),
        use_sdpa(),
        handle_with(note),
    ):
        run()
    return finished


def _blocks(runs: list[_Run]) -> list[_Run]:
    own = [
        run
        for run in runs
        if run.element.container is None and run.is_map_of_tokens and not run.is_stack
    ]
    found = [run for run in runs if run.element.container is not None and run.is_map_of_tokens]
    attend = [run for run in found if run.attention]
    if not attend:
        stack = _longest_chain(found)
        return [run for run in runs if run in own or run in stack]

    def is_sibling(run: _Run) -> bool:
        container = run.element.container
        siblings = [a for a in attend if a.element.container is container]
        if isinstance(container, nn.Sequential):
            siblings = [a for a in siblings if type(a.element.module) is type(run.element.module)]
        return bool(siblings)

    return [run for run in runs if run in own or (run in found and is_sibling(run))]


def _left_out(runs: list[_Run], blocks: list[_Run]) -> list[str]:
    """What to say of stacks of one class that were not taken for blocks."""
    others = [run for run in runs if run.element.container is not None and run not in blocks]
    taken = sorted({run.element.name.rpartition(".")[0] for run in blocks})
    attend = any(run.attention for run in blocks)
    scripted = {
        run.element.name: f"{run.element.name!r} was traced or scripted by torch.jit, and is not "
        "attributed: its attention cannot be reached. Put the module there that it was made of."
        for run in others
        if any(isinstance(m, torch.jit.ScriptModule) for m in run.element.module.modules())
    }
    why = "they reach no attention" if attend else "no module of the model reaches attention"
    return list(scripted.values()) + [
        f"the {len(chain)} modules in {chain[0].element.name.rpartition('.')[0]!r} "
        f"({type(chain[0].element.module).__name__}) are not attributed beside those in "
        f"{', '.join(map(repr, taken))}, though they map tokens to tokens: {why} "
        "at transformers' interface or torch's scaled_dot_product_attention. Name them in "
        "layer=[...] to attribute them."
        for chain in _chains([run for run in others if run.is_map_of_tokens])
        if len(chain) > 1 and len({type(run.element.module) for run in chain}) == 1
    ]


def _longest_chain(runs: list[_Run]) -> list[_Run]:
    return max(_chains(runs), key=len, default=[])


def _chains(runs: list[_Run]) -> list[list[_Run]]:
    """The lists whose elements, one after another, take what the one before gave."""
    by_list: dict[int, list[_Run]] = {}
    for run in runs:
        by_list.setdefault(id(run.element.container), []).append(run)
    return [
        chain
        for chain in by_list.values()
        if all(_is_next(first, second) for first, second in pairwise(chain))
    ]


def _is_next(first: _Run, second: _Run) -> bool:
    z = hidden_of(second.args, second.kwargs)
    if z is None or first.output is None or first.output.shape != z.shape:
        return False
    # Padding may be NaN where a family masks whole rows.
    return torch.allclose(first.output, z, rtol=0.0, atol=0.0, equal_nan=True)


def _call_of(model: nn.Module, index: int, run: _Run, runs: list[_Run]) -> BlockCall:
    assert run.output is not None
    return BlockCall(
        name=run.element.name,
        index=index,
        module=run.element.module,
        args=run.args,
        kwargs=run.kwargs,
        output=run.output,
        attention=run.attention[0] if run.attention else None,
        family=type(model).__name__,
        turn=sum(before.element.module is run.element.module for before in runs[:index]),
        writes=run.writes,
    )


def _version(z: Tensor | None) -> int:
    """How often a tensor was written into, as far as torch counts."""
    return 0 if z is None or z.is_inference() else z._version


def _check_tokens(calls: list[BlockCall]) -> None:
    """What is taken for a block's tokens is not something else that looks like them.

    Raises:
        LigError: if the block before gave another of its arguments.
    """
    for before, call in pairwise(calls):
        alike = [
            x
            for x in (*call.args, *call.kwargs.values())
            if isinstance(x, Tensor) and x.shape == call.hidden.shape and not call.is_hidden(x)
        ]
        if not alike or before.output.shape != call.hidden.shape:
            continue
        if before.name.rpartition(".")[0] != call.name.rpartition(".")[0]:
            continue  # a decoder's first block gets what the encoder's last one gave
        if any(torch.equal(x, before.output) for x in alike) and not torch.equal(
            call.hidden, before.output
        ):
            raise LigError(
                f"{call.describe()} gets several tensors of shape {tuple(call.hidden.shape)}, and "
                "the first of them is not what the block before it gave: its tokens are not its "
                "first argument. Let its forward take its tokens first, or as hidden_states=."
            )
