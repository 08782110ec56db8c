"""Cutting one block open: ``pre`` and ``post`` of its attention core, by running its own code.

``pre(z)`` calls the block and stops it where the attention function is reached; ``post(u, z)``
calls it again and hands it ``u`` there. No model code is rewritten, so what the cut computes is
what the model computes; :meth:`SplitBlock.check` makes sure of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall, allowed, handle_with
from captum_lig.model.call import Attention, BlockCall
from captum_lig.model.hooks import hooked, replaced_forward, stoppable
from captum_lig.model.output_projection import LINEAR, replace_input
from captum_lig.model.sdpa import use_sdpa

__all__ = ["SplitBlock", "deviation", "epsilons", "nearly_equal"]

AtCore = Callable[[Callable[[], Tensor], AttentionCall | None], Tensor]
"""What to do at the core: given the block's own output there, ``(N, T, H, e)`` when called, and
the attention call if there is one, return the output to go on with."""


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
        """Whether there is a cut. Without, the block counts as one head, whose output is its own:
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

    def post(self, u: Tensor, z: Tensor) -> Tensor:
        """Everything after the attention core, token by token.

        Args:
            u: per-head attention outputs ``(M, H, e)``.
            z: the residual stream of the same tokens ``(M, D)``.

        Returns:
            ``(M, D)`` the tokens leaving the block.
        """
        if not self.has_attention:
            return u[:, 0]
        # The block's other arguments fit sequences of the recorded length, so the tokens are
        # packed into such sequences; what follows the attention core does not look across them.
        length, width = self.z.shape
        count = u.shape[0]
        sequences = -(-count // length)
        spare = sequences * length - count
        if spare:
            u = torch.cat([u, u.new_zeros(spare, *u.shape[1:])])
            z = torch.cat([z, z.new_zeros(spare, width)])
        u = u.reshape(sequences, length, *u.shape[1:])
        with skipping(self._skipped):
            output = self.with_u(u, z.reshape(sequences, length, width))
        return output.reshape(-1, output.shape[-1])[:count]

    def whole(self, z: Tensor) -> Tensor:
        """The block itself, ``(N, S, D)`` to ``(N, S, D)``."""
        return self._run(z, lambda own, _: own())

    # --- running it ---

    def with_u(self, u: Tensor, z: Tensor) -> Tensor:
        """The block's output ``(N, S, D)`` with ``u (N, S, H, e)`` put at its core."""
        if self.call.spread == "one by one" and len(z) > 1:
            pairs = zip(u.split(1), z.split(1), strict=True)
            return torch.cat([self.with_u(one_u, one_z) for one_u, one_z in pairs])
        if self._parts is not None:
            self.meter.passed += z.shape[0] * z.shape[1]
            return self._parts[2](u, z)
        return self._run(z, lambda *_: u)

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
            "it cannot be cut there."
        )

    def _run(self, z: Tensor, at_core: AtCore) -> Tensor:
        """The block's output ``(N, S, D)``, with its first attention in other hands."""
        attention = self.call.attention
        reached = False

        def dispatch(call: AttentionCall) -> Tensor:
            nonlocal reached
            first, reached = not reached, True
            # Later calls are others: the encoder's tokens seen from a decoder.
            return at_core(call.eager, call) if first and self.opens else call.eager()

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
            return self.call.on(z)

    @cached_property
    def _attended(self) -> tuple[Tensor, dict[nn.Module, int]]:
        """The block's own attention output for the text, and what ran before it.

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
        same = deviation(without, self.output) <= (1e-9 if u.dtype == torch.float64 else 1e-5)
        return seen if same else {}

    # --- making sure of it ---

    def check(self, rows: Tensor, u: Tensor, with_post: bool = True) -> None:
        """Make sure that the cut is the block: same attention output, same block output.

        Args:
            rows: ``(R,)`` the tokens compared (not padding).
            u: ``(R, H, e)`` what our attention arithmetic gives for them at the text itself.
            with_post: whether ``post`` is going to be used, and so is to be compared, too.

        Raises:
            LigError: if the attention is not the softmax of scaled dot products plus a mask, or
                if the block, fed ``u`` at the cut, does not give what it gave in the model.
        """
        if not self.has_attention:
            if not nearly_equal(u[:, 0], self.output[rows]):
                raise LigError(
                    f"{self.call.describe()} gives something else when it is called again (off by "
                    f"{deviation(u[:, 0], self.output[rows]):.1e})."
                )
            return
        own = self._attended[0][rows]
        if not nearly_equal(u, own):
            raise LigError(
                f"{self.call.describe()} does not use plain softmax attention (its output differs "
                f"by {deviation(u, own):.1e} from softmax(q k^T * scale + mask) v): ask for its "
                "layer boundary alone, with layer=[captum_lig.Block(module)] and "
                "boundaries=('layer',)."
            )
        if not with_post:
            return
        # Reversed, so that a part after the attention that looks across tokens, or at a token's
        # place, shows here too.
        back = torch.arange(len(rows) - 1, -1, -1, device=rows.device)
        output = self.post(own[back], self.z[rows][back])[back]
        if not nearly_equal(output, self.output[rows]):
            raise LigError(
                f"{self.call.describe()} cannot be cut at its attention: fed its own attention "
                f"output it gives something else (off by {deviation(output, self.output[rows]):.1e}"
                "). What follows the attention has to treat each token by itself. Ask for its "
                "layer boundary alone, with layer=[captum_lig.Block(module)] and "
                "boundaries=('layer',)."
            )


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Tuples of tensors, joined along the batch."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def skipping(modules: dict[nn.Module, int]) -> AbstractContextManager[None]:
    """Let modules ``(..., D) -> (..., width)`` give zeros without work."""

    def zeros(width: int) -> Any:
        return lambda x, *_, **__: x.new_zeros(*x.shape[:-1], width)

    return replaced_forward({module: zeros(width) for module, width in modules.items()})


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry of ``b``."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def nearly_equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, up to what models round inside."""
    # Families round inside (a softmax or a norm in float32), whatever the dtype of the model.
    tolerance = 1e-5 if a.dtype == torch.float64 else 1e-3
    return deviation(a, b) <= tolerance


def epsilons(block: nn.Module) -> list[float]:
    """Values of eps of the norms inside a block."""
    names = ("eps", "variance_epsilon", "epsilon")
    values = [getattr(m, name, None) for m in block.modules() for name in names]
    return [value for value in values if isinstance(value, float)]
