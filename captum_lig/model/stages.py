"""A block as the stages between its nodes.

Nodes, of one text: tokens entering ``z``, per-head attention outputs ``u``, the MLP's output
``m``, tokens leaving ``y``; of a decoder's block also the encoder's states ``e`` and the outputs of
the heads that attend to them, ``c``. Every stage is the block's own code with some nodes put in and
another one read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.model.attention_call import AttentionCall, handle_with
from captum_lig.model.call import BlockCall, FeedForward
from captum_lig.model.compare import deviations
from captum_lig.model.cross_attention import Cross
from captum_lig.model.feed_forward import at_feed_forward
from captum_lig.model.hooks import stoppable
from captum_lig.model.sdpa import use_sdpa
from captum_lig.model.split import SplitBlock, by_token, skipping

__all__ = ["AroundMlp", "Stages"]


class Stages:
    """The stages of one block; path points go where the batch dimension was.

    Args:
        call: the block, as :meth:`Finder.attached` gives it, in a run over one text.
        feed_forward: where its MLP gives its output, or None.
        cross: where it attends to an encoder's states, or None.
        meter: counts the work.
    """

    def __init__(
        self, call: BlockCall, feed_forward: FeedForward | None, cross: Cross | None, meter: Meter
    ) -> None:
        self.split = SplitBlock(call, 0, meter)
        self.has_heads = self.split.has_attention
        self.cross = cross
        # Without an attention that is reached, what the block adds may mix tokens.
        self.is_whole = not self.has_heads and self._mixes()
        self._feed_forward = None if self.is_whole else feed_forward
        self._singly = self.split.call.spread == "one by one"
        if self.has_heads:
            self.split.prepare()

    @property
    def has_feed_forward(self) -> bool:
        """Whether its MLP's output is a node."""
        return self._feed_forward is not None

    @property
    def states(self) -> Tensor | None:
        """``(S_enc, D)`` the encoder's states in this run, if it attends to them."""
        return None if self.cross is None else self.cross.states(self.split.call)[0].detach()

    def nodes(self, z: Tensor, e: Tensor | None = None) -> dict[str, Tensor]:
        """All nodes of a run on ``z (N, S, D)``, by name: ``u`` and ``c (N, S, H, width)``."""
        seen: dict[str, list[Tensor]] = {"m": [], "c": []}

        def keep(name: str) -> Callable[..., Tensor]:
            def note(own: Callable[[], Tensor], _: AttentionCall | None = None) -> Tensor:
                seen[name].append(own())
                return seen[name][-1]

            return note

        us, ys = [], []
        for part in self._parts(z=z, e=e):
            with self._with(part["z"], part.get("e"), keep("c"), keep("m")):
                if self.has_heads:
                    u, y = self.split.run(part["z"])
                else:
                    y = self.split.whole(part["z"])
                    u = y[:, :, None] if self.is_whole else y[:, :, None][:, :, :0]
            us.append(u)
            ys.append(y)
        found = {name: torch.cat(parts) for name, parts in seen.items() if parts}
        return {"u": torch.cat(us), "y": torch.cat(ys), **found}

    def attend(self, z: Tensor, fused: bool = False) -> Tensor:
        """``z -> u``: ``(N, S, D)`` to ``(N, S, H, width)``; see :meth:`RunBlock.attend`."""
        if self.split.call.site != "parts":
            return self.split.attend(z, fused)
        # Torch's fused attention has no derivative along a direction.
        with use_sdpa(), handle_with(lambda call: call.eager()):
            return self.split.attend(z)

    def feed_forward(
        self, z: Tensor, u: Tensor, c: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """``(z, u, c) -> m``: ``(N, S, D)``; ``positions (N, S)`` of the tokens, if others."""
        found: list[Tensor] = []
        for part in self._parts(z=z, u=u, c=c, positions=positions):
            with stoppable() as stop:

                def note(own: Callable[[], Tensor], stop: Callable[[], Any] = stop) -> Any:
                    found.append(own())
                    stop()

                with self._with(part["z"], None, put(part.get("c")), note):
                    self._after(part["u"], part["z"], part.get("positions"))
        return torch.cat(found)

    def output(
        self,
        z: Tensor,
        u: Tensor,
        m: Tensor | None = None,
        c: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """``(z, u, m, c) -> y``: ``(N, S, D)``; those that the block lacks are None."""
        if self.is_whole:
            return u[:, :, 0]
        found = []
        place = self._feed_forward
        skipped = {} if place is None or m is None else dict(place.serving)
        for part in self._parts(z=z, u=u, m=m, c=c, positions=positions):
            with (
                skipping(skipped),
                self._with(part["z"], None, put(part.get("c")), put(part.get("m"))),
            ):
                found.append(self._after(part["u"], part["z"], part.get("positions")))
        return torch.cat(found)

    def crossed(self, z: Tensor, u: Tensor, e: Tensor) -> Tensor:
        """``(z, u, e) -> c``: ``(N, S, H, width)``."""
        return torch.cat([call.eager() for call in self._cross_calls(z, u, e)])

    def cross_core(self, z: Tensor, u: Tensor, e: Tensor) -> QKV:
        """Queries, keys and values of the cross-attention."""
        found = [(call.query, call.key, call.value) for call in self._cross_calls(z, u, e)]
        q, k, v = (torch.cat(x) for x in zip(*found, strict=True))
        return q, k, v

    def cross_call(self) -> AttentionCall:
        """The cross-attention's call in this run."""
        states = self.states
        assert states is not None
        return self._cross_calls(self.split.z[None], self.split.own[None], states[None])[0]

    # --- running the block ---

    def _mixes(self) -> bool:
        """Whether tokens of a block without heads read other tokens."""
        split = self.split
        with torch.no_grad():
            valid = split.call.valid[0].nonzero().squeeze(-1)
            if len(valid) < 2:
                return False
            for moving in (valid[0], valid[-1]):  # a causal block shows it at the first alone
                z = split.z.clone()
                z[moving] = z[moving].roll(1, -1)
                changed = deviations(split.whole(z[None])[0], split.output) > 1e-5
                changed[moving] = False
                if bool(changed[valid].any()):
                    return True
        return False

    def _after(self, u: Tensor, z: Tensor, positions: Tensor | None = None) -> Tensor:
        if not self.has_heads:
            return self.split.whole(z)
        return self.split.after_attention(u, z, positions)

    def _parts(self, **nodes: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """All points together, or one by one if the block takes one sequence at a time."""
        there = {name: x for name, x in nodes.items() if x is not None}
        if not self._singly:
            yield there
            return
        for n in range(len(next(iter(there.values())))):
            yield {name: x[n : n + 1] for name, x in there.items()}

    @contextmanager
    def _with(
        self,
        z: Tensor,
        states: Tensor | None,
        at_cross: Callable[..., Tensor] | None,
        at_mlp: Callable[..., Tensor] | None,
    ) -> Iterator[None]:
        """What happens at the cross-attention and at the MLP's output in runs on ``z``."""
        with ExitStack() as stack:
            if (cross := self.cross) is not None:
                own = self.states
                assert own is not None
                given = own.expand(len(z), -1, -1) if states is None else states
                stack.enter_context(
                    self.split.crossing(cross.position, given, cross.turn, at_cross)
                )
            if self._feed_forward is not None and at_mlp is not None:
                stack.enter_context(at_feed_forward(self._feed_forward, at_mlp))
            yield

    def _cross_calls(self, z: Tensor, u: Tensor, e: Tensor) -> list[AttentionCall]:
        found: list[AttentionCall] = []
        for part in self._parts(z=z, u=u, e=e):
            with stoppable() as stop:

                def note(
                    _: Callable[[], Tensor],
                    call: AttentionCall | None,
                    stop: Callable[[], Any] = stop,
                ) -> Any:
                    assert call is not None
                    found.append(call)
                    stop()

                with self._with(part["z"], part["e"], note, None):
                    self._after(part["u"], part["z"])
        return found


class AroundMlp:
    """The stages around a block's MLP for tokens by themselves, ``(M, ...)``.

    Args:
        stages: of a block with heads and an MLP.
    """

    def __init__(self, stages: Stages) -> None:
        self._stages, self._packed = stages, stages.split.packed

    def feed_forward(self, u: Tensor, z: Tensor, positions: Tensor) -> Tensor:
        """``u (M, H, width)``, ``z (M, D)`` and positions ``(M,)`` to ``m (M, D)``."""

        def run(u: Tensor, z: Tensor, positions: Tensor) -> Tensor:
            return self._stages.feed_forward(z, u, positions=positions)

        return by_token(run, self._packed(len(u)), u, z, positions)

    def output(self, u: Tensor, z: Tensor, m: Tensor, positions: Tensor) -> Tensor:
        """The same with ``m (M, D)`` put in, to the tokens leaving ``(M, D)``."""

        def run(u: Tensor, z: Tensor, m: Tensor, positions: Tensor) -> Tensor:
            return self._stages.output(z, u, m, positions=positions)

        return by_token(run, self._packed(len(u)), u, z, m, positions)


def put(value: Tensor | None) -> Callable[..., Tensor] | None:
    """What lets a node have a given value; None lets it be."""
    return None if value is None else lambda *_: value
