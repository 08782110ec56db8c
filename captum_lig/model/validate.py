"""Validating a model's blocks before anything is attributed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_lig._arguments import brief
from captum_lig.cost import Meter
from captum_lig.errors import LigError, out_of_memory
from captum_lig.model.attention_call import allowed
from captum_lig.model.call import TAKE_WHOLE, BlockCall, Spread, first_tensor
from captum_lig.model.compare import deviation, deviations, nearly_equal, sizes
from captum_lig.model.few_bits import rounds_to_half
from captum_lig.model.hooks import hooked, hooks_said
from captum_lig.model.output_projection import find_projection
from captum_lig.model.padding import reads_own_tokens
from captum_lig.model.sdpa import use_sdpa
from captum_lig.model.split import SplitBlock
from captum_lig.model.user_block import Span, check_span

__all__ = ["compare_with_model", "tokens_first", "validate_block"]


def compare_with_model(calls: list[BlockCall], run: Callable[[], Any]) -> None:
    """Check that the recorded blocks gave what they give in the unmodified model.

    They were recorded with our attention function and our masks in place of the model's: a
    mask that gets lost on the way (and causality with it) shows here.

    Args:
        calls: the recorded blocks.
        run: calls the model, as it is, on the same texts.

    Raises:
        LigError: if a block gives something else.
    """
    found: dict[tuple[nn.Module, int], tuple[bool, float]] = {}
    recorded = {(call.module, call.turn): call for call in calls}
    turns = {call.module: 0 for call in calls}

    def compare(module: nn.Module, output: Tensor) -> None:
        # As they leave: all of them together would be as much again as the record.
        turn = turns[module]
        turns[module] += 1
        if (call := recorded.get((module, turn))) is not None:
            own, kept = _padded(output.detach(), call.hidden.shape[1]), call.valid
            finite = bool(torch.isfinite(own[kept]).all())
            found[module, turn] = finite, _difference(call.output[kept], own[kept])

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        compare(module, first_tensor(output))

    with torch.no_grad():
        for call in calls:
            if isinstance(call.module, Span):
                compare(call.module, call.module(call.hidden, *call.args[1:], **call.kwargs))
        modules = [module for module in turns if not isinstance(module, Span)]
        with hooked(modules, leave=leave):
            run()
    for call in calls:
        if (call.module, call.turn) not in found:
            raise LigError(
                f"{call.describe()} ran while it was recorded, and not when the model ran again on "
                "the same inputs: it is left out at random (layerdrop), or by a state of the "
                "model. Switch that off."
            )
        finite, difference = found[call.module, call.turn]
        if not finite:
            raise LigError(
                f"{call.describe()} has activations that are not finite when the model runs by "
                "itself on these inputs, at tokens that are no padding: load it with another "
                "dtype or attention implementation, or give texts one at a time, without padding."
            )
        half = call.output.dtype not in (torch.float32, torch.float64)
        if not difference <= (5e-2 if half else 1e-4):
            if difference <= 5e-2 and rounds_to_half(call.module):
                continue  # as precise as in half precision
            raise LigError(
                f"{call.describe()} gives something else while it is recorded (off by "
                f"{difference:.1e}): {_reason(call)}"
            )


def _difference(found: Tensor, expected: Tensor) -> float:
    """How far tokens ``(M, D)`` are from what they should be, as a root mean square.

    Of all of them together, and with every entry relative to its size.
    """
    own = expected.to(torch.promote_types(expected.dtype, torch.float32))
    gap = found.to(own) - own
    # An entry is rounded with what it is a sum of, and the largest part may be common to all.
    rounding = torch.finfo(expected.dtype).eps * own.abs().amax(-1, keepdim=True)
    beyond, whole = (gap.abs() - rounding).clamp_min(0), float(gap.norm() / own.norm())
    if not bool(beyond.any()):  # sizes are medians, which take time; NaN is any
        return whole
    relative = beyond / sizes(own).clamp_min(1e-30)
    return max(whole, float(relative.square().mean().sqrt()))


def _reason(call: BlockCall) -> str:
    """Why a block may give something else while it is recorded, and what to do."""
    if call.site == "interface" and any(
        x.dtype == torch.bool and x.dim() > 2 for x in call.tensors()
    ):
        return (
            "it gets a boolean mask, and an attention that adds its mask to the logits (the "
            "'eager' one) adds 0 and 1, and masks nothing. Give the mask as 0 and a large "
            "negative number, or load the model with attn_implementation='sdpa'."
        )
    return (
        "it is random (dropout that does not ask for the mode?), keeps a state, or its attention "
        f"or mask is not what it hands to {_reached(call)}. Load the model with "
        "attn_implementation='eager' and see whether its "
        f"outputs stay the same.{hooks_said(call.module)}"
    )


def _padded(output: Tensor, length: int) -> Tensor:
    """A block's output ``(B, S, D)``, also where torch drops the padding in between."""
    if not output.is_nested:
        return output
    padded = output.to_padded_tensor(0.0)
    return functional.pad(padded, (0, 0, 0, length - padded.shape[1]))


def validate_block(call: BlockCall) -> BlockCall:
    """The recorded block with where to split it and how it takes many sequences, validated.

    Raises:
        LigError: if the block, called again, gives something else, sees sources that its mask
            forbids, or depends on other tokens otherwise than through the attention reached.
    """
    _check_axes(call)
    one = call.for_text(int(call.valid.sum(-1).argmax()))
    split = SplitBlock(one, 0, Meter())
    _check_sizes(call, split)
    check_span(one)
    # Of a long text a few tokens by themselves: what is looked for is true of the block's code.
    one = split.some.call
    one = one.in_dtype(one.hidden.dtype)  # in few bits: as it is attributed
    positions = one.valid[0].nonzero().squeeze(-1)
    z, own = one.hidden.detach(), one.output.detach()
    source = int(positions[len(positions) // 2])
    moved = z.clone()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(z.shape[-1], generator=generator).to(z)
    moved[0, source] += noise * z[0, source].std().clamp_min(1e-3)
    with torch.no_grad():
        given, again = _called_again(one)
        if not nearly_equal(again[0, positions], own[0, positions]):
            gap = deviation(again[0, positions], own[0, positions])
            raise LigError(
                f"{call.describe()} gives something else when it is called again with what it got "
                f"(off by {gap:.1e}): {_overwritten(call)}{hooks_said(call.module)}"
            )
        _check_gradients(one, given, again)
        other = _whole(one, moved)
        # Sequences far from each other: what one has in common with others beside it shows.
        far = [0.1 * z.roll(1, 1), 10 * z.flip(1)]
        alone = [_whole(one, x) for x in far]
        spread = _spread(one, torch.cat([z, moved, *far]), torch.cat([own, other, *alone]))
        call, one = replace(call, spread=spread), replace(one, spread=spread)
        changed = deviations(other[0], own[0]) > 1e-5
        if call.attention is not None:
            return replace(call, per_token=_check_reach(one, source, positions, changed))
        if not call.described and (found := find_projection(one)) is not None:
            with contextlib.suppress(LigError):  # what comes after it mixes tokens again: whole
                one = replace(one, attention=found)
                per_token = _check_reach(one, source, positions, changed)
                # It was found in what may be a copy.
                names = {module: name for name, module in one.module.named_modules()}
                assert found.projection is not None
                own_projection = call.module.get_submodule(names[found.projection])
                found = replace(found, projection=own_projection)
                return replace(call, attention=found, per_token=per_token)
    return call


def _overwritten(call: BlockCall) -> str:
    """Why a block may give something else when it is called again with what it got."""
    if call.writes:
        return (
            "it writes into the tokens that it gets. Let its forward say x = x + ... in place of "
            "x += ..."
        )
    return "it is random or keeps a state, and so has no attribution."


def _check_sizes(call: BlockCall, split: SplitBlock) -> None:
    """The attention works on the block's tokens, in the order (B, S, D); ``split`` is of a text."""
    batch, length, _ = call.hidden.shape
    sizes = None if call.attention is None else call.attention.sizes
    if sizes is None:
        return
    shape = tuple(call.hidden.shape)
    if sizes == (batch, length, length):
        if reads_own_tokens(split):
            return
        raise LigError(
            f"{call.describe()} reads other tokens than its own in its first attention, as many as "
            "its own are: an encoder's states, or the keys and values of an earlier block, most "
            "likely. It cannot be split there. "
            f"{TAKE_WHOLE}{hooks_said(call.module)}"
        )
    if sizes[1:] == (1, 1):
        raise LigError(
            f"{call.describe()} gets {shape}, and its attention {sizes[0]} sequences of one token: "
            "each token attends to itself alone (windows of one token), and nothing flows between "
            f"tokens. {TAKE_WHOLE}"
        )
    raise LigError(
        f"{call.describe()} gets {shape}, and its attention {sizes[0]} sequences with {sizes[1]} "
        f"targets and {sizes[2]} sources: windows, or tokens from elsewhere. It cannot be split "
        f"there. {TAKE_WHOLE}"
    )


def _check_axes(call: BlockCall) -> None:
    """What stands side by side on the first axis are texts, that do not reach each other."""
    shape = tuple(call.hidden.shape)
    if tokens_first(call):
        raise LigError(
            f"{call.describe()} gets tokens first, {shape} as (S, B, D): build it with "
            "batch_first=True if it can be, the weights are the same, and give (B, S, D). Else ask "
            "for the map of its states alone, with captum_lig.SetToSetIG(lambda z: "
            "block(z.transpose(0, 1)).transpose(0, 1)), of z (1, S, D)."
        )
    if shape[0] > 1 and _mixes(call, 0):
        raise LigError(
            f"{call.describe()} gets {shape}, and sequence 0 on the first axis reaches others: it "
            "works on pairs or groups of them. A block has to treat each text or picture by itself."
        )


def tokens_first(call: BlockCall) -> bool:
    """Whether the states are ``(S, B, D)``."""
    batch, length, _ = call.hidden.shape
    sizes = None if call.attention is None else call.attention.sizes
    if sizes == (length, batch, batch) and 1 < batch != length:
        return True
    return batch > 1 and _mixes(call, 0) and (length == 1 or not _mixes(call, 1))


def _mixes(call: BlockCall, axis: int) -> bool:
    """Whether what stands first on an axis of the states reaches the others on it."""
    moved = call.hidden.detach().clone()
    moved.select(axis, 0).copy_(moved.select(axis, 0).roll(1, -1))
    others = torch.arange(1, moved.shape[axis], device=moved.device)
    kept = call.valid.index_select(axis, others)
    try:
        with torch.no_grad(), use_sdpa():
            both = [call.on(z).index_select(axis, others) for z in (call.hidden.clone(), moved)]
        same, other = (x[kept] for x in both)
    except Exception as error:  # an unknown block may raise anything when called again
        if out_of_memory(error):
            raise
        return False
    # Experts round otherwise when other tokens come with one.
    if same.dtype not in (torch.float32, torch.float64):
        return _difference(other, same) > 5e-2
    return not nearly_equal(other, same)


def _called_again(one: BlockCall) -> tuple[Tensor, Tensor]:
    """What it got, and what it gives for that now, with the graph between them."""
    given = one.hidden.detach()
    if any(p.is_inference() for p in one.module.parameters()):
        return given, _whole(one, given)  # it is copied before it is attributed
    with torch.enable_grad():
        given = given.clone().requires_grad_()
        return given, _whole(one, 1 * given)  # code may write into what it gets, if it is no leaf


def _check_gradients(one: BlockCall, given: Tensor, output: Tensor) -> None:
    """Its output can be differentiated by what it gets."""
    if not given.requires_grad:
        return
    gradient: Tensor | None = None
    if output.requires_grad:  # by its weights, if not by what it gets
        ones = torch.ones_like(output)
        try:
            (gradient,) = torch.autograd.grad(output, given, ones, allow_unused=True)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise LigError(
                f"{one.describe()} cannot be differentiated: {brief(str(error))}. If it runs under "
                "torch.utils.checkpoint, call it without."
            ) from error
    if gradient is None:
        raise LigError(
            f"{one.describe()} has no gradients: its code runs under torch.no_grad(), or detaches "
            "what it gives. There is no path to integrate along; take that out of its forward."
            f"{hooks_said(one.module)}"
        )


def _whole(one: BlockCall, z: Tensor) -> Tensor:
    return SplitBlock(one, 0, Meter()).whole(z)


def _spread(one: BlockCall, z: Tensor, expected: Tensor) -> Spread:
    spreads: tuple[Spread, ...] = ("shared", "repeated")
    for spread in spreads:
        try:
            output = _whole(replace(one, spread=spread), z)
        except Exception as error:  # shapes that do not go together, as the block puts it
            if out_of_memory(error):
                raise
            continue
        if output.shape == expected.shape and nearly_equal(
            output.flatten(0, 1), expected.flatten(0, 1)
        ):
            return spread
    return "one by one"


def _check_reach(
    call: BlockCall, source: int, positions: Tensor, changed: Tensor
) -> tuple[int, ...]:
    """The targets that a change of one source changes ``(S,)``, against the mask and the split.

    Returns which arguments hold something for each token.
    """
    split = SplitBlock(call, 0, Meter())
    if split.mask is not None:
        forbidden = ~allowed(split.mask)[:, :, source].any(0)
        forbidden[source] = False  # it reaches itself past the attention
        seen = (forbidden & changed)[positions]
        if bool(seen.any()):
            raise LigError(
                f"{call.describe()}: target {int(positions[seen][0])} depends on source {source}, "
                f"although the mask that reached {_reached(call)} forbids it. Tokens "
                f"are mixed somewhere else too. {TAKE_WHOLE}{hooks_said(call.module)}"
            )
    u = split.attend(split.z[None])
    step = u.std().clamp_min(1e-3)
    through = (split.with_u(u + step, split.z[None])[0] - split.output).abs().amax(-1)
    elsewhere = changed & (through == 0)
    elsewhere[source] = False
    if bool(elsewhere[positions].any()):
        raise LigError(
            f"{call.describe()}: its output depends on other tokens, but not on what is put in at "
            f"{_reached(call)}. It cannot be split there. {TAKE_WHOLE}{hooks_said(call.module)}"
        )
    # Each token twice, so that no sequence is what it was: what follows must not mind.
    per_token = _per_token(split, u, positions)
    split = SplitBlock(replace(call, per_token=per_token), 0, Meter())
    tokens = u[0], split.z, torch.arange(len(split.z), device=u.device)
    twice = split.post(*(x.repeat_interleave(2, 0) for x in tokens))[::2]
    if not nearly_equal(twice[positions], split.output[positions]):
        raise split.not_by_token(deviation(twice[positions], split.output[positions]))
    return per_token


def _per_token(split: SplitBlock, u: Tensor, positions: Tensor) -> tuple[int, ...]:
    """Arguments that hold something for each token, used after the attention ``u (1, S, H, e)``.

    What two tokens get is exchanged: then these two give something else, and no others.
    """
    held: list[tuple[int, Tensor]] = []
    for index, x in enumerate(split.call.tensors()):
        if split.call.is_hidden(x) or x.shape[:2] != (1, len(split.z)):
            continue
        first = positions[0]
        others = [at for at in positions.tolist() if not torch.equal(x[0, at], x[0, first])]
        if others:
            held.append((index, torch.stack([first, first.new_tensor(others[0])])))

    def moved(indices: tuple[int, ...], at: Tensor, by: Tensor) -> Tensor:
        """The tokens that give something else if tokens ``at`` get what those ``by`` got."""
        order = torch.arange(len(split.z), device=u.device)
        order[at] = by
        exchanged = SplitBlock(replace(split.call, per_token=indices), 0, Meter())
        return deviations(exchanged.with_u(u, split.z[None], order[None])[0], split.output) > 1e-5

    def used(index: int, two: Tensor) -> bool:
        by_one = moved((index,), two, two.flip(0))
        elsewhere = by_one.clone()
        elsewhere[two] = False
        return bool(by_one[two].any()) and not bool(elsewhere[positions].any())

    # Mostly none is: positions and their rotations serve the attention alone.
    every = tuple(index for index, _ in held)
    if len(every) > 1 and not bool(moved(every, positions, positions.roll(1))[positions].any()):
        return ()
    return tuple(index for index, two in held if used(index, two))


def _reached(call: BlockCall) -> str:
    sites = {
        "parts": "core",
        "interface": "transformers' attention interface",
        "sdpa": "torch's scaled_dot_product_attention",
        "projection": "its output projection",
        "whole": "its output",
    }
    return sites[call.site]
