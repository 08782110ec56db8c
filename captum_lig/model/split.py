"""Splitting a block at its attention core into ``pre`` and ``post``, by running its code.

``pre(z)`` calls the block and stops it where the attention function is reached; ``post(u, z)``
calls it again and hands it ``u`` there. No model code is rewritten, so the split block computes
what the model computes; :meth:`SplitBlock.check` validates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, allowed, handle_with
from captum_lig.model.call import Attention, BlockCall
from captum_lig.model.compare import deviation, deviations, nearly_equal
from captum_lig.model.hooks import hooked, replaced_forward, stoppable
from captum_lig.model.output_projection import LINEAR, replace_input
from captum_lig.model.sdpa import use_sdpa

__all__ = ["SplitBlock", "by_token", "epsilons", "skipping"]

AtCore = Callable[[Callable[[], Tensor], AttentionCall | None], Tensor]
"""What to do at the core: given the block's output there, ``(N, T, H, e)`` when called, and
the attention call if there is one, return the output to go on with."""


@dataclass(frozen=True)
class Crossing:
    """What a block's cross-attention is run with, see :meth:`SplitBlock.crossing`."""

    position: int | str
    states: Tensor
    turn: int
    at_core: AtCore | None


class SplitBlock:
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
        self.visible = None if self.mask is None else allowed(self.mask)
        """``(1 or H, T, S)`` False where the mask forbids a source, or None."""
        self.epsilons = epsilons(self.call.module)
        """Values of eps of the norms inside the block."""
        self.around_mlp: Any = None
        """What comes before and after its MLP's output, if that is to be a node."""
        self._crossing: Crossing | None = None

    # --- the block in parts ---

    def pre(self, z: Tensor) -> QKV:
        """Queries, keys and values of ``z (N, S, D)``, as the attention function gets them."""
        seen: list[QKV] = []

        def note(_: Callable[[], Tensor], call: AttentionCall | None) -> None:
            assert call is not None
            seen.append((call.query, call.key, call.value))

        self._until(z, note)
        q, k, v = _joined(seen)
        return q, k, v

    @cached_property
    def tables(self) -> QKV:
        """Queries, keys and values of the zero vector and of the text's tokens, two of each."""
        return self.pre(torch.stack([torch.zeros_like(self.z), self.z]))

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

    def attend(self, z: Tensor) -> Tensor:
        """The outputs of the heads ``(N, S, H, e)`` for ``z (N, S, D)``."""
        if not self.has_attention:
            return self.whole(z).unsqueeze(2)
        if self._parts is not None:
            pre, core, _ = self._parts
            self.meter.passed += z.shape[0] * z.shape[1]
            made = pre(z)
            u: Tensor = core(*made) if isinstance(made, tuple) else core(made)
            return u
        seen: list[tuple[Tensor]] = []

        self._until(z, lambda own, _: seen.append((own(),)))
        (u,) = _joined(seen)
        return u

    def post(self, u: Tensor, z: Tensor, positions: Tensor) -> Tensor:
        """Everything after the attention core, token by token.

        Args:
            u: per-head attention outputs ``(M, H, e)``.
            z: the residual stream of the same tokens ``(M, D)``.
            positions: ``(M,)`` their positions in the text.

        Returns:
            ``(M, D)`` the tokens leaving the block.
        """
        if not self.has_attention:
            return u[:, 0]
        return by_token(self.after_attention, len(self.z), u, z, positions)

    def after_attention(self, u: Tensor, z: Tensor, positions: Tensor | None = None) -> Tensor:
        """:meth:`with_u` without the projections that only serve the attention."""
        with skipping(self._skipped):
            return self.with_u(u, z, positions)

    def prepare(self) -> None:
        """Find out what :meth:`after_attention` can leave out, on the text as it is."""
        assert self._skipped is not None

    def whole(self, z: Tensor) -> Tensor:
        """The block itself, ``(N, S, D)`` to ``(N, S, D)``."""
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
        output = torch.cat([self._run(part, keep) for part in parts])
        (u,) = _joined(seen)
        return u, output

    # --- running it ---

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
                return at_core(call.eager, call)
            # Later calls are others: the encoder's tokens seen from a decoder.
            if crossing is not None and turn == crossing.turn and crossing.at_core is not None:
                return crossing.at_core(call.eager, call)
            return call.eager()

        self.meter.passed += z.shape[0] * z.shape[1]
        with ExitStack() as stack:
            stack.enter_context(handle_with(dispatch))
            if self.call.site != "interface":
                stack.enter_context(use_sdpa())
            if attention is not None and attention.projection is not None:
                stack.enter_context(
                    replace_input(
                        attention.projection, attention.heads, lambda u: at_core(lambda: u, None)
                    )
                )
            instead = None if crossing is None else (crossing.position, crossing.states)
            return self.call.on(z, instead, positions)

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

    @property
    def own(self) -> Tensor:
        """``(S, H, e)`` the outputs of the heads for the text itself."""
        return self._attended[0]

    @cached_property
    def _attended(self) -> tuple[Tensor, dict[nn.Module, int]]:
        """The block's attention output for the text, and what ran before it.

        The output is ``(S, H, e)``; what ran are linear maps, with their widths.
        """
        if self._parts is not None:
            return self.attend(self.z[None])[0], {}
        outputs: list[Tensor] = []
        seen: dict[nn.Module, int] = {}

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not outputs and isinstance(output, Tensor):
                seen[module] = output.shape[-1]

        def keep(own: Callable[[], Tensor], _: AttentionCall | None) -> Tensor:
            outputs.append(own())
            return outputs[0]

        linear = [m for m in self.call.module.modules() if isinstance(m, LINEAR)]
        with hooked(linear, leave=note):
            self._run(self.z[None], keep)
        if not outputs:
            raise self._not_reached()
        return outputs[0][0], seen

    @cached_property
    def _skipped(self) -> dict[nn.Module, int]:
        """Projections that only serve the attention core, and their widths: ``post`` skips them.

        They are the linear maps that ran before the core, if the block gives the same without
        them (a gate, say, is needed after the core too).
        """
        u, seen = self._attended
        with skipping(seen):
            without = self.with_u(u[None], self.z[None])[0]
        eps = torch.finfo(u.dtype).eps
        same = deviations(without, self.output, rounding=4 * eps).max() <= 64 * eps
        return seen if same else {}

    # --- validating it ---

    def attends(self, rows: Tensor, u: Tensor) -> bool:
        """Whether its attention gives ``u (R, H, e)`` for the tokens ``rows (R,)`` of the text."""
        return nearly_equal(u, self.own[rows], self.own)

    def check(self, rows: Tensor, u: Tensor, output: Tensor | None = None) -> None:
        """Check that the split block is the block: same attention output, same block output.

        Args:
            rows: ``(R,)`` the tokens compared (not padding).
            u: ``(R, H, e)`` what our attention arithmetic gives for them at the text itself.
            output: ``(R, D)`` what ``post`` makes of it, or None if ``post`` is not used.

        Raises:
            LigError: if the attention is not the softmax of scaled dot products plus a mask, or
                if the block, fed ``u`` at its core, does not give what it gave in the model.
        """
        own_output = self.output[rows]
        if not self.has_attention:
            if not nearly_equal(u[:, 0], own_output, self.output):
                raise LigError(
                    f"{self.call.describe()} gives something else when it is called again (off by "
                    f"{deviation(u[:, 0], own_output, self.output):.1e})."
                )
            return
        if not self.attends(rows, u):
            gap = deviation(u, self.own[rows], self.own)
            raise LigError(
                f"{self.call.describe()} does not use plain softmax attention (its output differs "
                f"by {gap:.1e} from softmax(q k^T * scale + mask) v): ask "
                "for its layer boundary alone, with layer=[captum_lig.Block(module)] and "
                "boundaries=('layer',)."
            )
        if output is not None and not nearly_equal(output, own_output, self.output):
            raise self.not_by_token(deviation(output, own_output, self.output))

    def check_post(self, z: Tensor, rows: Tensor) -> Tensor:
        """Check that ``post`` is what follows the attention in the block, token by token.

        Args:
            z: ``(S, D)`` a point of a path.
            rows: ``(R,)`` the tokens compared, there and at the text itself (not padding).

        Returns:
            ``(S, H, e)`` the outputs of the heads there.

        Raises:
            LigError: if it is not.
        """
        u, output = (x[0] for x in self.run(z[None]))
        text = self.own, self.z, self.output
        both = [torch.cat([x[rows], y[rows]]) for x, y in zip((u, z, output), text, strict=True)]
        # One sequence of them, hardly a token where it was and none beside its neighbours.
        count, generator = len(both[0]), torch.Generator().manual_seed(0)
        order = (torch.randperm(max(len(z), count), generator=generator) % count)[: len(z)]
        some, points, expected, positions = (x[order.to(z.device)] for x in [*both, rows.repeat(2)])
        found = self.post(some, points, positions)
        if not nearly_equal(found, expected, self.output):
            raise self.not_by_token(deviation(found, expected, self.output))
        return u

    def not_by_token(self, deviation: float) -> LigError:
        """What to say if what follows the attention does not treat each token by itself."""
        return LigError(
            f"{self.call.describe()} cannot be split at its attention: fed its attention output "
            f"beside other tokens it gives something else (off by {deviation:.1e}). What follows "
            "the attention has to treat each token by itself, and what else it gets for each token "
            "has to come as (B, S, ...). Ask for its layer boundary alone, "
            "with layer=[captum_lig.Block(module)] and boundaries=('layer',)."
        )


def by_token(function: Callable[..., Tensor], length: int, *given: Tensor) -> Tensor:
    """A function of sequences, run on tokens ``(M, ...)`` by themselves: ``(M, D)``.

    A block's other arguments fit sequences of the recorded length, so the tokens are packed into
    such sequences; what follows the attention core does not look across them.
    """
    count = len(given[0])
    sequences = -(-count // length)
    spare = sequences * length - count

    def packed(x: Tensor) -> Tensor:
        if spare:
            x = torch.cat([x, x.new_zeros(spare, *x.shape[1:])])
        return x.reshape(sequences, length, *x.shape[1:])

    output = function(*map(packed, given))
    return output.reshape(-1, output.shape[-1])[:count]


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Tuples of tensors, joined along the batch."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def skipping(modules: dict[nn.Module, int]) -> AbstractContextManager[None]:
    """Let modules ``(..., D) -> (..., width)`` give zeros without work."""

    def zeros(width: int) -> Any:
        return lambda x, *_, **__: x.new_zeros(*x.shape[:-1], width)

    return replaced_forward({module: zeros(width) for module, width in modules.items()})


def epsilons(block: nn.Module) -> list[float]:
    """Values of eps of the norms inside a block."""
    names = ("eps", "variance_epsilon", "epsilon")
    values = [getattr(m, name, None) for m in block.modules() for name in names]
    return [value for value in values if isinstance(value, float)]
