"""A block as the stages between its nodes: heads, the MLP's output, the tokens leaving.

Every stage is the block's own code, with some nodes put in and another one read: what a node would
have been is not computed where that can be had without family code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_lig.cost import Meter
from captum_lig.model.call import BlockCall
from captum_lig.model.feed_forward import FeedForward, at_feed_forward
from captum_lig.model.hooks import stoppable
from captum_lig.model.split import SplitBlock, skipping

__all__ = ["Stages"]


class Stages:
    """The stages of one block for one text; path points go where the batch dimension was.

    Args:
        call: the block, as :meth:`Finder.attached` gives it, in a run over one text.
        feed_forward: where its MLP gives its output, or None.
        meter: counts the work.
    """

    def __init__(self, call: BlockCall, feed_forward: FeedForward | None, meter: Meter) -> None:
        self.split = SplitBlock(call, 0, meter)
        self.has_heads = self.split.has_attention
        self._feed_forward = feed_forward

    @property
    def has_feed_forward(self) -> bool:
        """Whether the MLP's output is a node."""
        return self._feed_forward is not None

    def nodes(self, z: Tensor) -> dict[str, Tensor]:
        """All nodes of a run on ``z (N, S, D)``: ``u (N, S, H, e)``, ``m`` and ``y (N, S, D)``."""
        if self._feed_forward is None:
            u, y = self.split.run(z)
            return {"u": u, "y": y}
        seen: list[Tensor] = []

        def keep(own: Callable[[], Tensor]) -> Tensor:
            seen.append(own())
            return seen[-1]

        with at_feed_forward(self._feed_forward, keep):
            u, y = self.split.run(z)
        return {"u": u, "m": torch.cat(seen), "y": y}

    def attend(self, z: Tensor) -> Tensor:
        """``z -> u``: ``(N, S, D)`` to ``(N, S, H, e)``."""
        return self.split.attend(z)

    def feed_forward(self, z: Tensor, u: Tensor) -> Tensor:
        """``(z, u) -> m``: ``(N, S, D)``."""
        assert self._feed_forward is not None
        singly = self.split.call.spread == "one by one"
        parts = zip(z.split(1), u.split(1), strict=True) if singly else [(z, u)]
        return torch.cat([self._until_feed_forward(self._feed_forward, *part) for part in parts])

    def _until_feed_forward(self, found: FeedForward, z: Tensor, u: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with stoppable() as stop:

            def note(own: Callable[[], Tensor]) -> Any:
                seen.append(own())
                stop()

            with at_feed_forward(found, note):
                self.split.after_attention(u, z)
        return seen[0]

    def output(self, z: Tensor, u: Tensor, m: Tensor | None = None) -> Tensor:
        """``(z, u, m) -> z'``, or ``(z, u) -> z'`` without an MLP node: ``(N, S, D)``."""
        if m is None:
            return self.split.after_attention(u, z)
        assert self._feed_forward is not None
        singly = self.split.call.spread == "one by one"
        parts = zip(z.split(1), u.split(1), m.split(1), strict=True) if singly else [(z, u, m)]
        outputs = []
        for z_part, u_part, m_part in parts:
            with at_feed_forward(self._feed_forward, lambda _, put=m_part: put):  # type: ignore[misc]
                outputs.append(self.split.after_attention(u_part, z_part))
        return torch.cat(outputs)
