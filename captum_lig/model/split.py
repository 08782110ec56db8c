"""Splitting a block at its attention core into ``pre`` and ``post``, by running its code.

``pre(z)`` calls the block and stops it where the attention function is reached; ``post(u, z)``
calls it again and hands it ``u`` there. No model code is rewritten, so the split block computes
what the model computes; :meth:`SplitBlock.check` validates it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.errors import LigError, out_of_memory
from captum_lig.model.attention_call import AttentionCall, allowed
from captum_lig.model.call import TAKE_WHOLE, BlockCall
from captum_lig.model.compare import deviation, deviations, nearly_equal
from captum_lig.model.hooks import hooked, hooks_said, replaced_call
from captum_lig.model.output_projection import LINEAR
from captum_lig.model.run_block import RunBlock, joined
from captum_lig.model.token_wise import FEW, TokenWise, shown_by, unseen

__all__ = ["SplitBlock", "by_token", "skipping"]

LONG = 64
"""Of a text of more tokens a few are enough to find out what a block's code does, where all that it
can do besides attending is to treat each token by itself."""
KEPT = 3
"""Tokens whose content's keys at all positions are kept."""


class SplitBlock(RunBlock):
    """One block, for one text of the run: path points go where the batch dimension was."""

    def __init__(self, call: BlockCall, text: int, meter: Meter) -> None:
        super().__init__(call, text, meter)
        self._text_call: AttentionCall | None = None
        self._keys: dict[int, Tensor] = {}

    @cached_property
    def visible(self) -> Tensor | None:
        """``(1 or H, T, S)`` False where the mask forbids a source, or None."""
        return None if self.mask is None else allowed(self.mask)

    @cached_property
    def tables(self) -> QKV:
        """Queries, keys and values of the zero vector and of the text's tokens, two of each."""
        points = torch.stack([torch.zeros_like(self.z), self.z])
        if self.some is not self and not any(x[0].any() for x in self.some.tables):
            points = points[1:]  # no biases, whatever the position
        calls = self._calls(points)
        self._text_call = calls[-1].of_last()
        q, k, v = joined([(call.query, call.key, call.value) for call in calls])
        if len(points) == 1:
            q, k, v = (torch.cat([torch.zeros_like(x), x]) for x in (q, k, v))
        return q, k, v

    def keys_of(self, row: int) -> Tensor:
        """``(Hkv, S, d)`` the key that the content of token ``row`` has at each position."""
        if row not in self._keys:
            if len(self._keys) == KEPT:
                self._keys.clear()
            self._keys[row] = self.keys(self.z[None, row, None].expand(1, *self.z.shape))[0]
        return self._keys[row]

    def keys(self, z: Tensor) -> Tensor:
        """The keys ``(N, Hkv, S, d)`` of ``z (N, S, D)``, without queries and values."""
        with skipping(self._beside_keys):
            return self.pre(z)[1]

    def attend_at(self, z: Tensor, rows: Tensor) -> Tensor:
        """``attend`` for the targets ``rows (R,)`` alone, ``(N, R, H, e)``."""
        if self.some.by_rows:
            return torch.cat([call.of_targets(rows).eager() for call in self._calls(z)])
        return self.attend(z, fused=True)[:, rows]

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
        return by_token(self.after_attention, self.packed(len(u)), u, z, positions)

    def after_attention(self, u: Tensor, z: Tensor, positions: Tensor | None = None) -> Tensor:
        """:meth:`with_u` without the projections that only serve the attention."""
        with skipping(self._skipped):
            return self.with_u(u, z, positions)

    def prepare(self) -> None:
        """Find out what :meth:`after_attention` can leave out, on the text as it is."""
        assert self._skipped is not None

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
        with torch.no_grad():
            return self._run_once()[:2]

    def _run_once(
        self, watch: TokenWise | None = None
    ) -> tuple[Tensor, dict[nn.Module, int], Tensor, AttentionCall | None]:
        """:attr:`_attended`, the block's output ``(1, S, D)``, and its call of attention."""
        outputs: list[Tensor] = []
        calls: list[AttentionCall | None] = []
        seen: dict[nn.Module, int] = {}

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not outputs and isinstance(output, Tensor):
                seen[module] = output.shape[-1]

        def keep(own: Callable[[], Tensor], call: AttentionCall | None) -> Tensor:
            with unseen():
                outputs.append(own())
            if watch is not None:
                watch.knows(outputs)
            calls.append(call)
            return outputs[0]

        linear, z = [m for m in self.call.module.modules() if isinstance(m, LINEAR)], self.z[None]
        if watch is not None:
            watch.knows([z])
        with hooked(linear, leave=note), self._fusing(True), self._watched(watch):
            output = self._run(z, keep)
        if not outputs:
            raise self._not_reached()
        return outputs[0][0], seen, output, calls[0]

    @cached_property
    def _skipped(self) -> dict[nn.Module, int]:
        """Projections that only serve the attention core, and their widths: ``post`` skips them.

        They are the linear maps that ran before the core, if none of what they give is used after
        it (a gate's is, say).
        """
        if self.some is not self:
            return self.some._skipped
        u, seen = self._attended
        try:
            with skipping(seen, torch.nan):
                without = self.with_u(u[None], self.z[None])[0]
        except ValueError:  # code that makes whole numbers of them, say
            return {}
        eps = torch.finfo(u.dtype).eps
        same = deviations(without, self.output, rounding=4 * eps).max() <= 64 * eps
        return seen if same else {}

    @cached_property
    def _beside_keys(self) -> dict[nn.Module, int]:
        """Projections without which the keys are the same bits, and their widths."""
        if self.some is not self:
            return self.some._beside_keys
        keys, found = self.pre(self.z[None])[1], dict[nn.Module, int]()
        for module, width in self._attended[1].items():
            with skipping(found | {module: width}, torch.nan):
                if torch.equal(self.pre(self.z[None])[1], keys):
                    found[module] = width
        return found

    # --- on some tokens ---

    @cached_property
    def some(self) -> SplitBlock:
        """The block on a few of the text's tokens, to find out what is true of its code.

        Itself where the text is short, where the block does not run on some of its tokens (because
        they are a grid, say), or where a few do not show what it does to all: its code does
        something that may depend on other tokens or on positions, or what it gets does.
        """
        if len(self.z) <= LONG or not self.opens or not self.has_attention or len(self.few) < FEW:
            return self
        valid = self.call.valid[0].nonzero().squeeze(-1)
        if not shown_by(self._beside(), len(self.z), valid, self.few):
            return self
        try:
            some = SplitBlock(self.call.of_tokens(self.few), 0, self.meter)
            module = self.call.module
            own = [*module.parameters(), *module.buffers()]
            tokens = filter(some.call.is_hidden, some.call.tensors())
            watch = TokenWise(tokens, some._beside(), own)
            with torch.no_grad():
                u, seen, output, attended = some._run_once(watch)
        except Exception as error:  # sizes that do not go together, as the block puts it
            if out_of_memory(error):
                raise
            return self
        if not watch.says(output) or attended is None or not some._masked_as(attended):
            return self
        if not bool(torch.isfinite(output).all()):
            return self
        some = SplitBlock(replace(some.call, output=output), 0, self.meter)
        some._attended = u, seen
        return some

    def _beside(self) -> list[Tensor]:
        """What the block gets beside its tokens."""
        return [x for x in self.call.tensors() if not self.call.is_hidden(x)]

    def _masked_as(self, attended: AttentionCall) -> bool:
        """Whether an attention call has the block's mask.

        A block may make its own, which on some of the tokens is another one.
        """
        own, there = self.mask, attended.mask
        if own is None or there is None:
            return own is there
        heads = max(len(own), there.shape[1])
        own, there = (x.expand(heads, -1, -1) for x in (own, there[0]))
        seen = allowed(own)
        return torch.equal(seen, allowed(there)) and torch.equal(own[seen], there[seen])

    @cached_property
    def few(self) -> Tensor:
        """Positions ``(n,)`` of a few of the text's tokens, none of them padding."""
        valid = self.call.valid[0].nonzero().squeeze(-1)
        at = torch.linspace(0, len(valid) - 1, min(FEW, len(valid)), device=valid.device)
        return valid[at.round().long()]

    @cached_property
    def by_rows(self) -> bool:
        """Whether its attention function can be called for some of its targets."""
        if not self.opens:
            return False
        rows = torch.arange(len(self.z), device=self.z.device).flip(0)[::3]
        try:
            found = self.attended_at(rows)
        except Exception as error:  # it counts on as many targets as sources
            if out_of_memory(error):
                raise
            return False
        return nearly_equal(found, self.own[rows], self.own)

    def attended_at(self, rows: Tensor) -> Tensor:
        """``(R, H, e)`` what its attention function gives for targets ``rows (R,)`` of the text."""
        assert self.tables is not None and self._text_call is not None
        with torch.no_grad():
            return self._text_call.of_targets(rows).eager()[-1]

    def own_at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The heads' outputs for targets ``rows (R,)`` of the text, and for some to compare with.

        ``(R, H, e)`` and ``(n, H, e)``, of all targets where the text is short.
        """
        if self.some is self or not self.some.by_rows:
            return self.own[rows], self.own
        found = self.attended_at(torch.cat([rows, self.few]))
        return found[: len(rows)], found[len(rows) :]

    def packed(self, count: int) -> int:
        """How long the sequences are that ``count`` tokens by themselves are packed into."""
        return count if count < len(self.z) and self._shortens else len(self.z)

    @cached_property
    def _shortens(self) -> bool:
        """Whether what follows the attention works on sequences shorter than the text."""
        if self.some is self or not self.some.by_rows:
            return False
        try:
            with torch.no_grad():
                u = self.attended_at(self.few)[None]
                found = self.after_attention(u, self.z[None, self.few], self.few[None])[0]
        except Exception as error:
            if out_of_memory(error):
                raise
            return False
        return nearly_equal(found, self.output[self.few], self.output)

    # --- validating it ---

    def attends(self, rows: Tensor, u: Tensor) -> bool:
        """Whether its attention gives ``u (R, H, e)`` for the tokens ``rows (R,)`` of the text."""
        return nearly_equal(u, *self.own_at(rows))

    def check(
        self, rows: Tensor, u: Tensor, output: Tensor | None = None, attends: bool | None = None
    ) -> None:
        """Check that the split block is the block: same attention output, same block output.

        Args:
            rows: ``(R,)`` the tokens compared (not padding).
            u: ``(R, H, e)`` what our attention arithmetic gives for them at the text itself.
            output: ``(R, D)`` what ``post`` makes of it, or None if ``post`` is not used.
            attends: what :meth:`attends` says of ``u``, if it was asked.

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
        if not (self.attends(rows, u) if attends is None else attends):
            gap = deviation(u, *self.own_at(rows))
            raise LigError(
                f"{self.call.describe()} does not use plain softmax attention (its output differs "
                f"by {gap:.1e} from softmax(q k^T * scale + mask) v). "
                f"{TAKE_WHOLE}{hooks_said(self.call.module)}"
            )
        if output is not None and not nearly_equal(output, own_output, self.output):
            raise self.not_by_token(deviation(output, own_output, self.output))

    def check_post(self, z: Tensor, rows: Tensor) -> Tensor | None:
        """Check that ``post`` is what follows the attention in the block, token by token.

        Of a long text a few tokens are compared, among themselves.

        Args:
            z: ``(S, D)`` a point of a path.
            rows: ``(R,)`` the tokens compared, there and at the text itself (not padding).

        Returns:
            ``(S, H, e)`` the outputs of the heads there; None of a long text.

        Raises:
            LigError: if it is not.
        """
        if self.some is not self:
            self.some.check_post(z[self.few], torch.arange(len(self.few), device=z.device))
            return None
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
            f"has to come as (B, S, ...). {TAKE_WHOLE}{hooks_said(self.call.module)}"
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


def skipping(modules: dict[nn.Module, int], value: float = 0.0) -> AbstractContextManager[None]:
    """Let modules ``(..., D) -> (..., width)`` give one value without work.

    NaN, to find out whether what they give is used: a gate that is closed at the text, and gives
    the same with zeros, is open elsewhere on the path.
    """

    def same(width: int) -> Any:
        return lambda x, *_, **__: x.new_full((*x.shape[:-1], width), value)

    return replaced_call({module: same(width) for module, width in modules.items()})
