"""The boundaries around a block's MLP, if its output is a node: past it, and into it.

``(u, z, m) -> z'`` goes along the straight line of all three; what it hands down to the MLP's
output ``m`` is the cotangent of ``(u, z) -> m``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._types import Parts
from captum_lig.integrals.boundaries import GRADIENT, MlpBoundary
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.rows import AroundMlp
from captum_lig.integrals.scalarization import Cotangent
from captum_lig.paths.jvp import jvp

__all__ = ["INTO", "PAST", "FeedForwardBoundary", "PastMlpBoundary"]

INTO, PAST = "_into_feed_forward", "_past_feed_forward"
"""What the boundary past the MLP hands to the one into it: the cotangent of its output ``(R, D)``,
and the gradient for the heads ``(R, H, d)``."""


def _around(boundary: MlpBoundary) -> tuple[AroundMlp, Tensor, Tensor]:
    rows = boundary.rows
    assert rows.around_mlp is not None
    assert rows.m_start is not None
    assert rows.m_step is not None
    return rows.around_mlp, rows.m_start, rows.m_step


@dataclass(frozen=True)
class PastMlpBoundary(MlpBoundary):
    """``(u, z, m) -> z'``."""

    def change(self, a: float) -> Tensor:
        """Shape ``(R, 1, D)``."""
        rows, (around, m, m_step) = self.rows, _around(self)
        u, z = rows.u_start + a * rows.u_step, rows.start + a * rows.step
        return (around.output(u, z, m + a * m_step, rows.positions) - rows.y_start)[:, None]

    def rates(self, at: Tensor, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """Averages of the gradients for ``u`` and ``m``, and ``residual (R,)``."""
        rows, (around, m_start, m_step) = self.rows, _around(self)

        def output(u: Tensor, z: Tensor, m: Tensor, positions: Tensor) -> Tensor:
            return around.output(u, z, m, positions)

        def at_rows(u: Tensor, z: Tensor, m: Tensor) -> Tensor:
            return around.output(u, z, m, rows.positions)

        def cotangent(y: Tensor) -> Tensor:
            change = y - rows.y_start
            if starts and self.scalarization.limit_at_start:
                places = (rows.u_start, rows.start, m_start)
                steps = (rows.u_step, rows.step, m_step)
                leaving = jvp(at_rows, places, steps)[1]
                change = torch.cat([leaving[None], change[1:]])
            return self.scalarization.cotangent(change.unsqueeze(2)).squeeze(2)

        m = m_start + a.to(m_step).view(-1, 1, 1) * m_step
        gu, gz, gm = rows.pulled(output, (at, rows.residual(a), m), cotangent)
        w = w.to(rows.y_start)
        return {
            PAST: torch.einsum("p,prhd->rhd", w, gu),
            INTO: torch.einsum("p,prd->rd", w, gm),
            "residual": torch.einsum("p,prd,rd->r", w, gz.to(w), rows.step.to(w)),
        }

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, 1)``."""
        through = (parts[INTO] * _around(self)[2]).sum(-1)
        past = (parts[PAST] * self.rows.u_step).flatten(1).sum(-1)
        return (past + through + parts["residual"])[:, None]

    def results(self, parts: Parts) -> Parts:
        """``residual`` and ``feed_forward (R,)``, the total, and what is handed on."""
        return {
            "residual": parts["residual"],
            "feed_forward": (parts[INTO] * _around(self)[2]).sum(-1),
            "mlp_total": self.totals[:, 0],
            PAST: parts[PAST],
            INTO: parts[INTO],
        }


@dataclass(frozen=True)
class FeedForwardBoundary(MlpBoundary):
    """``(u, z) -> m`` with the cotangent that the boundary past the MLP hands down."""

    past: Tensor | None = None
    """``(R, H, d)`` the gradient for the heads past the MLP."""
    relative_to: Tensor | None = None
    """``(R, 1)`` what errors are measured against."""

    @property
    def step(self) -> Tensor:
        """Shape ``(R, 1, D)``."""
        return _around(self)[2][:, None]

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, 1)``."""
        assert self.relative_to is not None
        return self.relative_to

    def across(self) -> tuple[Boundary, Tensor | float] | None:
        """None."""
        return None

    def select(self, rows: Tensor) -> FeedForwardBoundary:
        """Some of the rows."""
        assert self.past is not None
        assert self.relative_to is not None
        return FeedForwardBoundary(
            self.name,
            self.rows.select(rows),
            self.scalarization.select(rows),
            self.past[rows],
            self.relative_to[rows],
        )

    def change(self, a: float) -> Tensor:
        """Shape ``(R, 1, D)``."""
        rows, (around, m_start, _) = self.rows, _around(self)
        u, z = rows.u_start + a * rows.u_step, rows.start + a * rows.step
        return (around.feed_forward(u, z, rows.positions) - m_start)[:, None]

    def rates(self, at: Tensor, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """The average of the gradient for ``u``, and what comes from the token itself ``(R,)``."""
        rows, around = self.rows, _around(self)[0]
        assert isinstance(self.scalarization, Cotangent)
        g = self.scalarization.g[:, 0]

        def feed_forward(u: Tensor, z: Tensor, positions: Tensor) -> Tensor:
            return around.feed_forward(u, z, positions)

        gu, gz = rows.pulled(feed_forward, (at, rows.residual(a)), lambda y: g.expand_as(y))
        w = w.to(rows.y_start)
        return {
            "gradient": torch.einsum("p,prhd->rhd", w, gu),
            "residual": torch.einsum("p,prd,rd->r", w, gz.to(w), rows.step.to(w)),
        }

    def results(self, parts: Parts) -> Parts:
        """``mlp`` and ``feed_forward_heads (R, H)``, ``feed_forward_token (R,)``, the gradient."""
        assert self.past is not None
        gradient = parts["gradient"] + self.past
        return {
            "mlp": (gradient * self.rows.u_step).sum(-1),
            "feed_forward_heads": (parts["gradient"] * self.rows.u_step).sum(-1),
            "feed_forward_token": parts["residual"],
            GRADIENT: gradient,
        }
