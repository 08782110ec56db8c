"""Running one block of one text from inside: up to its attention core, past it, or through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, handle_with
from captum_lig.model.call import Attention, BlockCall
from captum_lig.model.hooks import hooked, stoppable
from captum_lig.model.output_projection import replace_input
from captum_lig.model.sdpa import use_sdpa
from captum_lig.model.token_wise import TokenWise

__all__ = ["AtCore", "RunBlock", "epsilons", "joined"]

AtCore = Callable[[Callable[[], Tensor], AttentionCall | None], Tensor]
"""What to do at the core: given the block's output there, ``(N, T, H, e)`` when called, and
the attention call if there is one, return the output to go on with."""


@dataclass(frozen=True)
class Crossing:
    """What a block's cross-attention is run with, see :meth:`RunBlock.crossing`."""

    position: int | str
    states: Tensor
    turn: int
    at_core: AtCore | None


class RunBlock:
    """One block, for one text of the run: path points go where the batch dimension was."""

    def __init__(self, call: BlockCall, text: int, meter: Meter) -> None:
        self.call, self.meter = call.for_text(text), meter
        self.z = self.call.hidden[0].detach()
        """``(S, D)``"""
        self.output = self.call.output[0].detach()
        """``(S, D)``"""
        attention = self.call.attention
        self._parts = None if attention is None else attention.parts
        self.has_attention = attention is not None
        """Whether it is split. If not, the block counts as one head, whose output is the block's:
        ``attend`` is the whole block and ``post`` hands its output on."""
        self.opens = attention is not None and attention.site in ("interface", "sdpa")
        """Whether queries, keys and values can be had."""
        core = attention or Attention(1)
        self.heads, self.scaling = core.heads, core.scaling
        self.softcap, self.sinks = core.softcap, core.sinks
        self.mask = None if core.mask is None else core.mask[0]
        """``(1 or H, T, S)`` to add to the logits, or None."""
        self.epsilons = epsilons(self.call.module)
        """Values of eps of the norms inside the block."""
        self.around_mlp: Any = None
        """What comes before and after its MLP's output, if that is to be a node."""
        self._crossing: Crossing | None = None
        self.plain = core.plain
        """Whether its weights are many, and its attention plain: torch's function can take its
        place."""
        self._fused = False
        self._watch: TokenWise | None = None

    def pre(self, z: Tensor) -> QKV:
        """Queries, keys and values of ``z (N, S, D)``, as the attention function gets them."""
        q, k, v = joined([(call.query, call.key, call.value) for call in self._calls(z)])
        return q, k, v

    def _calls(self, z: Tensor) -> list[AttentionCall]:
        """The block's attention calls on ``z (N, S, D)``, the texts together or one by one."""
        seen: list[AttentionCall] = []

        def note(_: Callable[[], Tensor], call: AttentionCall | None) -> None:
            assert call is not None
            seen.append(call)

        self._until(z, note)
        return seen

    def inside(self, z: Tensor) -> list[Tensor]:
        """What the modules inside the block get, up to the attention core, for ``z (N, S, D)``."""
        seen: dict[int, Tensor] = {}

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    seen.setdefault(value.data_ptr(), value.detach())
                    return

        with hooked(self.call.module.modules(), enter=note):
            self.pre(z)
        return list(seen.values())

    def attend(self, z: Tensor, fused: bool = False) -> Tensor:
        """The outputs of the heads ``(N, S, H, e)`` for ``z (N, S, D)``.

        ``fused`` is for where no derivative along a direction is taken: torch's function has none.
        """
        if not self.has_attention:
            return self.whole(z).unsqueeze(2)
        if self._parts is not None:
            pre, core, _ = self._parts
            self.meter.passed += z.shape[0] * z.shape[1]
            made = pre(z)
            u: Tensor = core(*made) if isinstance(made, tuple) else core(made)
            return u
        seen: list[tuple[Tensor]] = []
        with self._fusing(fused):
            self._until(z, lambda own, _: seen.append((own(),)))
        (u,) = joined(seen)
        return u

    def softmax(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Heads' outputs ``(N, S, H, e)`` of plain softmax attention, by the block's mask.

        By torch's function where the weights are many: it has no derivative along a direction.
        """
        mask = None if self.mask is None else self.mask[None]
        call = AttentionCall(query, key, value, mask, self.scaling, self.softcap, self.sinks)
        return call.fused()

    def whole(self, z: Tensor) -> Tensor:
        """The block itself, ``(N, S, D)`` to ``(N, S, D)``."""
        with self._fusing(not torch.is_grad_enabled()):
            return self._run(z, lambda own, _: own())

    def run(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Heads' outputs ``(N, S, H, e)`` and the block's ``(N, S, D)``, of one run on ``z``."""
        if not self.has_attention:
            output = self.whole(z)
            return output.unsqueeze(2), output
        if self._parts is not None:
            return self.attend(z), self.whole(z)
        seen: list[tuple[Tensor]] = []

        def keep(own: Callable[[], Tensor], _: AttentionCall | None) -> Tensor:
            seen.append((own(),))
            return seen[-1][0]

        parts = z.split(1) if self.call.spread == "one by one" else (z,)
        with self._fusing(not torch.is_grad_enabled()):
            output = torch.cat([self._run(part, keep) for part in parts])
        (u,) = joined(seen)
        return u, output

    def with_u(self, u: Tensor, z: Tensor, positions: Tensor | None = None) -> Tensor:
        """The block's output ``(N, S, D)`` with ``u (N, S, H, e)`` put at its core.

        ``positions (N, S)`` are those of the tokens in the text, if they are others.
        """
        if positions is None:
            positions = torch.arange(z.shape[1], device=z.device).expand(z.shape[:2])
        if self.call.spread == "one by one" and len(z) > 1:
            parts = zip(u.split(1), z.split(1), positions.split(1), strict=True)
            return torch.cat([self.with_u(*part) for part in parts])
        if self._parts is not None:
            self.meter.passed += z.shape[0] * z.shape[1]
            return self._parts[2](u, z)
        return self._run(z, lambda *_: u, positions)

    def _until(
        self, z: Tensor, note: Callable[[Callable[[], Tensor], AttentionCall | None], None]
    ) -> None:
        """Run the block on all of ``z``, up to its core, that ``note`` gets as ``AtCore`` does."""
        parts = z.split(1) if self.call.spread == "one by one" else (z,)
        for part in parts:
            with stoppable() as stop:

                def at_core(
                    own: Callable[[], Tensor],
                    call: AttentionCall | None,
                    stop: Callable[[], NoReturn] = stop,
                ) -> Tensor:
                    note(own, call)
                    stop()

                self._run(part, at_core)
                raise self._not_reached()

    def _not_reached(self) -> LigError:
        return LigError(
            f"{self.call.describe()} did not reach its attention when called again: "
            "it cannot be split there."
        )

    def _run(self, z: Tensor, at_core: AtCore, positions: Tensor | None = None) -> Tensor:
        """The block's output ``(N, S, D)``, with what ``at_core`` gives at its first attention."""
        attention = self.call.attention
        turns, crossing = count(), self._crossing

        def dispatch(call: AttentionCall) -> Tensor:
            turn = next(turns)
            if turn == 0 and self.opens:
                return at_core(call.fused if self._fused else call.eager, call)
            # Later calls are others: the encoder's tokens seen from a decoder.
            if crossing is not None and turn == crossing.turn and crossing.at_core is not None:
                return crossing.at_core(call.eager, call)
            return call.eager()

        self.meter.passed += z.shape[0] * z.shape[1]
        with ExitStack() as stack:
            stack.enter_context(handle_with(dispatch))
            if self.call.site != "interface":
                stack.enter_context(use_sdpa())
            if self._watch is not None:
                stack.enter_context(self._watch)
            if attention is not None and attention.projection is not None:
                stack.enter_context(
                    replace_input(
                        attention.projection, attention.heads, lambda u: at_core(lambda: u, None)
                    )
                )
            instead = None if crossing is None else (crossing.position, crossing.states)
            return self.call.on(z, instead, positions)

    @contextmanager
    def _fusing(self, fused: bool) -> Iterator[None]:
        """Let torch's fused function attend in the runs made inside, if it is as the block's."""
        before, self._fused = self._fused, fused and self.plain
        try:
            yield
        finally:
            self._fused = before

    @contextmanager
    def _watched(self, watch: TokenWise | None) -> Iterator[None]:
        """Let calls of torch be seen in the runs made inside."""
        before, self._watch = self._watch, watch
        try:
            yield
        finally:
            self._watch = before

    @contextmanager
    def crossing(
        self, position: int | str, states: Tensor, turn: int, at_core: AtCore | None = None
    ) -> Iterator[None]:
        """Let the block attend to other states of an encoder, in the runs made inside.

        Args:
            position: position or name of the argument that they are.
            states: ``(N, S_enc, D)``.
            turn: which of the block's attention calls is the cross-attention.
            at_core: what to do there.
        """
        self._crossing = Crossing(position, states, turn, at_core)
        try:
            yield
        finally:
            self._crossing = None


def joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Tuples of tensors, joined along the batch."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def epsilons(block: nn.Module) -> list[float]:
    """Values of eps of the norms inside a block."""
    names = ("eps", "variance_epsilon", "epsilon")
    values = [getattr(m, name, None) for m in block.modules() for name in names]
    return [value for value in values if isinstance(value, float)]
