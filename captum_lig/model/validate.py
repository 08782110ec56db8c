"""Making sure, before anything is attributed, that a model's blocks are what they seem."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.attention_call import allowed
from captum_lig.model.call import BlockCall, Spread, first_tensor
from captum_lig.model.compare import deviation, deviations, nearly_equal, sizes
from captum_lig.model.hooks import hooked
from captum_lig.model.output_projection import find_projection
from captum_lig.model.padding import reads_own_tokens
from captum_lig.model.sdpa import use_sdpa
from captum_lig.model.split import SplitBlock
from captum_lig.model.user_block import Span, check_span

__all__ = ["compare_with_model", "validate_block"]


def compare_with_model(calls: list[BlockCall], run: Callable[[], Any]) -> None:
    """Make sure that the blocks gave what they give when nobody looks.

    They were recorded with our attention function and our masks in place of the model's own: a
    mask that gets lost on the way (and causality with it) shows here.

    Args:
        calls: the recorded blocks.
        run: calls the model, as it is, on the same texts.

    Raises:
        LigError: if a block gives something else.
    """
    outputs: dict[nn.Module, list[Tensor]] = {call.module: [] for call in calls}
    lengths = {call.module: call.hidden.shape[1] for call in calls}

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        outputs[module].append(_padded(first_tensor(output).detach(), lengths[module]))

    for call in calls:
        if isinstance(call.module, Span):
            outputs[call.module] = [call.module(call.hidden, *call.args[1:], **call.kwargs)]
    modules = [module for module in outputs if not isinstance(module, Span)]
    with hooked(modules, leave=keep), torch.no_grad():
        run()
    for call in calls:
        own = outputs[call.module][call.turn]
        kept = call.valid
        if not bool(torch.isfinite(own[kept]).all()):
            raise LigError(
                f"{call.describe()} has activations that are not finite when the model runs by "
                "itself on these inputs, at tokens that are no padding: load it with another "
                "dtype or attention implementation, or give texts one at a time, without padding."
            )
        half = own.dtype not in (torch.float32, torch.float64)
        difference = _difference(call.output[kept], own[kept])
        if not difference <= (5e-2 if half else 1e-4):
            raise LigError(
                f"{call.describe()} gives something else when it is watched (off by "
                f"{difference:.1e}): {_reason(call)}"
            )


def _difference(found: Tensor, expected: Tensor) -> float:
    """How far tokens ``(M, D)`` are from what they should be, as a root mean square.

    Of all of them together, and with every entry held against its own size.
    """
    gap, own = (found - expected).double(), expected.double()
    # An entry is rounded with what it is a sum of, and the largest part may be common to all.
    rounding = torch.finfo(expected.dtype).eps * own.abs().amax(-1, keepdim=True)
    relative = (gap.abs() - rounding).clamp_min(0) / sizes(own).clamp_min(1e-30)
    return max(float(gap.norm() / own.norm()), float(relative.square().mean().sqrt()))


def _reason(call: BlockCall) -> str:
    """Why a block may give something else when it is watched, and what to do."""
    if call.site == "interface" and any(
        x.dtype == torch.bool and x.dim() > 2 for x in call.tensors()
    ):
        return (
            "it gets a boolean mask, and an attention that adds its mask to the logits (the "
            "'eager' one) adds 0 and 1, and masks nothing. Give the mask as 0 and a large "
            "negative number, or load the model with attn_implementation='sdpa'."
        )
    return (
        "it is random, or keeps a state, or its attention or mask is not what it hands to "
        f"{_reached(call)}. Load the model with attn_implementation='eager' and see whether its "
        "outputs stay the same."
    )


def _padded(output: Tensor, length: int) -> Tensor:
    """A block's output ``(B, S, D)``, also where torch drops the padding in between."""
    if not output.is_nested:
        return output
    padded = output.to_padded_tensor(0.0)
    return functional.pad(padded, (0, 0, 0, length - padded.shape[1]))


def validate_block(call: BlockCall) -> BlockCall:
    """The recorded block with where to cut it and how it takes many sequences, made sure of.

    Raises:
        LigError: if the block, called again, gives something else, sees sources that its mask
            forbids, or depends on other tokens otherwise than through the attention reached.
    """
    _check_sizes(call)
    one = call.for_text(0)
    check_span(one)
    places = one.valid[0].nonzero().squeeze(-1)
    z, own = one.hidden.detach(), one.output.detach()
    source = int(places[len(places) // 2])
    moved = z.clone()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(z.shape[-1], generator=generator).to(z)
    moved[0, source] += noise * z[0, source].std().clamp_min(1e-3)
    with torch.no_grad():
        again = _whole(one, z)
        if not nearly_equal(again[0, places], own[0, places]):
            raise LigError(
                f"{call.describe()} gives something else when it is called again with what it got "
                f"(off by {deviation(again[0, places], own[0, places]):.1e}): it is random or "
                "keeps a state, and so has no attribution."
            )
        other = _whole(one, moved)
        call = replace(call, spread=_spread(one, torch.cat([z, moved]), torch.cat([own, other])))
        changed = deviations(other[0], own[0]) > 1e-5
        if call.attention is not None:
            _check_reach(call, source, places, changed)
        elif not call.described and (found := find_projection(call)) is not None:
            projected = replace(call, attention=found)
            with contextlib.suppress(LigError):  # what comes after it mixes tokens again: whole
                _check_reach(projected, source, places, changed)
                return projected
    return call


def _check_sizes(call: BlockCall) -> None:
    """The attention works on the block's own tokens, in the order (B, S, D)."""
    batch, length, _ = call.hidden.shape
    sizes = None if call.attention is None else call.attention.sizes
    if sizes is None:
        return
    shape = tuple(call.hidden.shape)
    if sizes == (length, batch, batch) and batch > 1 and (batch != length or _mixes_texts(call)):
        raise LigError(
            f"{call.describe()} gets tokens first, {shape} as (S, B, D): build it with "
            "batch_first=True, the weights are the same, and give (B, S, D)."
        )
    if sizes == (batch, length, length):
        if reads_own_tokens(call):
            return
        raise LigError(
            f"{call.describe()} reads other tokens than its own in its first attention, as many as "
            "its own are: an encoder's states, most likely. It cannot be cut there; ask for its "
            "layer boundary alone, with layer=[captum_lig.Block(module)] and "
            "boundaries=('layer',)."
        )
    if sizes[1:] == (1, 1):
        raise LigError(
            f"{call.describe()} gets {shape}, and its attention {sizes[0]} sequences of one token: "
            "each token attends to itself alone (windows of one token), and nothing flows between "
            "tokens. Ask for its layer boundary alone, with layer=[captum_lig.Block(module)] and "
            "boundaries=('layer',); if these are texts of one token, tokens first, give (B, S, D)."
        )
    raise LigError(
        f"{call.describe()} gets {shape}, and its attention {sizes[0]} sequences with {sizes[1]} "
        f"targets and {sizes[2]} sources: windows, or tokens from elsewhere. It cannot be cut "
        "there; ask for its layer boundary alone, with layer=[captum_lig.Block(module)] and "
        "boundaries=('layer',)."
    )


def _mixes_texts(call: BlockCall) -> bool:
    """Whether what stands first on the first axis reaches the others on it: tokens, not texts."""
    moved = call.hidden.detach().clone()
    moved[0] = moved[0].roll(1, -1)
    with torch.no_grad(), use_sdpa(), contextlib.suppress(Exception):
        return not nearly_equal(call.on(moved)[1:], call.output[1:])
    return False


def _whole(one: BlockCall, z: Tensor) -> Tensor:
    return SplitBlock(one, 0, Meter()).whole(z)


def _spread(one: BlockCall, z: Tensor, expected: Tensor) -> Spread:
    spreads: tuple[Spread, ...] = ("shared", "repeated")
    for spread in spreads:
        try:
            output = _whole(replace(one, spread=spread), z)
        except Exception:  # shapes that do not go together, in the block's own words
            continue
        if output.shape == expected.shape and nearly_equal(
            output.flatten(0, 1), expected.flatten(0, 1)
        ):
            return spread
    return "one by one"


def _check_reach(call: BlockCall, source: int, places: Tensor, changed: Tensor) -> None:
    """The targets that a change of one source changes ``(S,)``, against the mask and the cut."""
    cut = SplitBlock(call, 0, Meter())
    if cut.mask is not None:
        forbidden = ~allowed(cut.mask)[:, :, source].any(0)
        forbidden[source] = False  # it reaches itself past the attention
        seen = (forbidden & changed)[places]
        if bool(seen.any()):
            raise LigError(
                f"{call.describe()}: target {int(places[seen][0])} depends on source {source}, "
                f"although the mask that reached {_reached(call)} forbids it. Tokens "
                "are mixed somewhere else too: ask for its layer boundary alone, with "
                "layer=[captum_lig.Block(module)] and boundaries=('layer',)."
            )
    u = cut.attend(cut.z[None])
    step = u.std().clamp_min(1e-3)
    through = (cut.with_u(u + step, cut.z[None])[0] - cut.output).abs().amax(-1)
    elsewhere = changed & (through == 0)
    elsewhere[source] = False
    if bool(elsewhere[places].any()):
        raise LigError(
            f"{call.describe()}: its output depends on other tokens, but not on what is put in at "
            f"{_reached(call)}. It cannot be cut there: ask for its layer boundary alone, with "
            "layer=[captum_lig.Block(module)] and boundaries=('layer',)."
        )
    # Each token twice, so that no sequence is what it was: what follows must not mind.
    twice = cut.post(u[0].repeat_interleave(2, 0), cut.z.repeat_interleave(2, 0))[::2]
    if not nearly_equal(twice[places], cut.output[places]):
        raise cut.not_by_token(deviation(twice[places], cut.output[places]))


def _reached(call: BlockCall) -> str:
    sites = {
        "parts": "core",
        "interface": "transformers' attention interface",
        "sdpa": "torch's scaled_dot_product_attention",
        "projection": "its output projection",
        "whole": "its output",
    }
    return sites[call.site]
