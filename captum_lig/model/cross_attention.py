"""The cross-attention of a decoder's block: keys and values from an encoder's states.

It is the first attention call of the block whose values depend on an argument ``(B, S, D)`` other
than the block's own tokens, and that argument is the encoder's states. Both are found by running
the block on other states, so neither a name nor a family is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, allowed, handle_with, read_sources
from captum_lig.model.call import BlockCall, position_of_hidden
from captum_lig.model.compare import deviation, nearly_equal
from captum_lig.model.hooks import stoppable
from captum_lig.model.run_block import epsilons
from captum_lig.model.sdpa import use_sdpa

__all__ = ["Cross", "SplitCrossAttention", "find_cross", "without_cross"]


@dataclass(frozen=True)
class Cross:
    """Where a block attends to an encoder's states."""

    position: int | str
    """Position or name of the argument that the states are."""
    turn: int
    """Which of the block's attention calls it is, from 0."""

    def states(self, call: BlockCall) -> Tensor:
        """``(B, S, D)`` the states that a block got."""
        found = (
            call.args[self.position]
            if isinstance(self.position, int)
            else call.kwargs[self.position]
        )
        assert isinstance(found, Tensor)
        return found


def find_cross(call: BlockCall) -> Cross | None:
    """The cross-attention of a recorded block, or None if it has none.

    Raises:
        LigError: if its keys and values are not one for each of the encoder's tokens.
    """
    one = call.for_text(0)
    z = one.hidden.detach()
    own = _attention_calls(one, z)
    for position in _candidates(one):
        cross = Cross(position, 0)
        states = cross.states(one).detach()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(states.shape, generator=generator).to(states)
        moved = states.clone()
        # Every second token, so that what is another token's can be seen not to change.
        moved[:, ::2] += noise[:, ::2] * states.std(correction=0).clamp_min(1e-3)
        other = _attention_calls(one, z, (position, moved))
        for turn, (before, after) in enumerate(zip(own, other, strict=True)):
            if torch.equal(before.value, after.value):
                continue
            _check_by_token(call, before, after, states.shape[1])
            return Cross(position, turn)
    return None


def without_cross(call: BlockCall) -> LigError:
    """What to say of a block that has no cross-attention."""
    one = call.for_text(0)
    count = len(_attention_calls(one, one.hidden.detach()))
    seen = (
        "has no second attention call (at transformers' attention interface or torch's "
        f"scaled_dot_product_attention it makes {'one' if count else 'none'})"
        if count < 2
        else f"calls attention {count} times, but no keys and values depend on an argument "
        "(B, S, D) other than its own tokens"
    )
    return LigError(
        f"{call.describe()} {seen}: boundaries=('cross',) is for blocks that also attend to the "
        "states of an encoder. Name decoder blocks in layer=[...], give the model both texts, or "
        "leave 'cross' out."
    )


class SplitCrossAttention:
    """The cross-attention of one block, for one text of the run.

    The block's own tokens, and so the queries, are held where they are in the model; path points
    of the encoder's states go where the batch dimension was.
    """

    def __init__(self, call: BlockCall, cross: Cross, text: int, meter: Meter) -> None:
        self.call, self.cross, self.meter = call.for_text(text), cross, meter
        self.z = self.call.hidden.detach()
        """``(1, T, D)``"""
        self.states = cross.states(self.call)[0].detach()
        """``(S, D)``"""
        own = next(self._reached(self.states[None]))
        self.query = own.query[0].detach()
        """``(H, T, d)``"""
        self.mask = None if own.mask is None else own.mask[0]
        """``(1 or H, T, S)`` to add to the logits, or None."""
        self.visible = None if self.mask is None else allowed(self.mask)
        """``(1 or H, T, S)`` False where the mask forbids a source, or None."""
        self.epsilons = epsilons(self.call.module)
        """Values of eps of the norms inside the block."""
        self.scaling, self.softcap = own.scaling, own.softcap
        self.sinks = None if own.sinks is None else own.sinks.detach()
        self.output = own.eager()[0].detach()
        """``(T, H, e)`` what the block itself makes of them."""

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return len(self.query)

    @property
    def seen(self) -> Tensor:
        """``(S,)`` encoder tokens that some target may see; the others are padding."""
        if self.mask is None:
            return torch.ones(len(self.states), dtype=torch.bool, device=self.states.device)
        return read_sources(self.mask[None])[0]

    def pre(self, states: Tensor) -> QKV:
        """Keys and values of ``states (N, S, D)``; the queries, held, have no width here."""
        found = [(call.key, call.value) for call in self._reached(states)]
        k, v = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*found, strict=True))
        return k[..., :0], k, v

    def attend(self, states: Tensor) -> Tensor:
        """The outputs of the heads ``(N, T, H, e)`` for ``states (N, S, D)``."""
        found = [call.eager() for call in self._reached(states)]
        return torch.cat(found) if len(found) > 1 else found[0]

    def check(self, rows: Tensor, u: Tensor) -> None:
        """Check that the block's cross-attention gives what our arithmetic gives.

        Args:
            rows: ``(R,)`` the targets compared (not padding).
            u: ``(R, H, e)`` our attention outputs at the encoder's states themselves.

        Raises:
            LigError: if they differ.
        """
        own = self.output[rows]
        if not nearly_equal(u, own, self.output):
            gap = deviation(u, own, self.output)
            raise LigError(
                f"{self.call.describe()} does not use plain softmax attention over the encoder's "
                f"states (its output differs by {gap:.1e} from softmax(q k^T * scale + mask) v): "
                "leave 'cross' out of boundaries."
            )

    def _reached(self, states: Tensor) -> Iterator[AttentionCall]:
        """The attention calls over ``states (N, S, D)``, together or, if it must be, one by one."""
        at_once = 1 if self.call.spread == "one by one" else len(states)
        for part in states.split(at_once):
            self.meter.passed += len(part) * self.z.shape[1]
            z, instead = self.z.expand(len(part), -1, -1), (self.cross.position, part)
            yield _attention_calls(self.call, z, instead, self.cross.turn)[-1]


def _attention_calls(
    call: BlockCall,
    z: Tensor,
    instead: tuple[int | str, Tensor] | None = None,
    last: int | None = None,
) -> list[AttentionCall]:
    """The attention calls of a block on ``z (N, T, D)``, all of them or up to one."""
    seen: list[AttentionCall] = []

    with stoppable() as stop:

        def note(attention: AttentionCall) -> Tensor:
            seen.append(attention)
            if len(seen) - 1 == last:
                stop()
            return attention.eager()

        with use_sdpa(), handle_with(note):
            call.on(z, instead)
    if last is not None and len(seen) <= last:
        raise LigError(
            f"{call.describe()} did not reach its cross-attention when called again: leave 'cross' "
            "out of boundaries."
        )
    return seen


def _candidates(call: BlockCall) -> list[int | str]:
    """Arguments ``(1, S, D)`` of a call for one text, other than its tokens."""
    own = position_of_hidden(call.args, call.kwargs)
    positions: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    return [
        position
        for position, value in positions
        if position != own
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() == 3
        and len(value) == 1
        and not call.is_hidden(value)
    ]


def _check_by_token(
    call: BlockCall, before: AttentionCall, after: AttentionCall, sources: int
) -> None:
    """Each encoder token has its key and value, that depend on no other."""
    for own, other in ((before.key, after.key), (before.value, after.value)):
        change = (other - own)[..., 1::2, :].abs().sum()
        if own.shape[-2] == sources and change <= 1e-5 * own.abs().sum():
            continue
        raise LigError(
            f"{call.describe()}: the {own.shape[-2]} keys and values of its cross-attention are "
            f"not those of the {sources} states (B, S, D) of the encoder, token by token: they "
            "cannot be told apart there, leave 'cross' out of boundaries."
        )
