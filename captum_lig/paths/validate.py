"""Whether a path is what the block does there: the two compared at points between its ends.

A closed form reproduces the block at the ends of a path by construction, and may be another
function between them. So the block itself is run at a few points of the paths that are going to be
integrated. Our arithmetic has to give the outputs of its heads there; each token's query, key and
value may depend on no other token (what a source contributes is counted at its own key and value);
and what follows the attention has to treat each token by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig._types import QKV, Pre
from captum_lig.paths.base import AttentionPath
from captum_lig.paths.baselines import Start
from captum_lig.paths.memory import in_halves

__all__ = ["Observed", "Sample", "mixes_tokens", "observe"]

MOST_ROWS = 64
"""Rows of a shared path that are compared at each point, at most."""
AT_ONCE = 1024
"""Tokens that go through the block at once."""
OUTPUTS = {torch.float32: 1e-3, torch.float64: 1e-5}
"""Difference of a head's output, as part of its length, that is more than rounding."""
MIXED = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Change of a query, key or value, as part of the largest, that is more than rounding."""


@dataclass(frozen=True)
class Sample:
    """``N`` points of the paths of some rows."""

    alphas: Tensor
    """``(N,)`` in float64."""
    few: Tensor
    """``(F,)`` the rows that are compared: indices into the rows."""
    chosen: Tensor
    """``(N, K)`` those that are compared at each point: indices into ``few``."""
    rows: Tensor
    """``(F,)`` their positions among the sources."""
    z: Tensor
    """``(N, S, D)`` the residual stream there."""

    @classmethod
    def of(
        cls, start: Start, z: Tensor, rows: Tensor, epsilons: list[float], once: bool = False
    ) -> Sample:
        """Interior points of the paths of ``rows (R,)`` from ``start`` to ``z (S, D)``.

        All rows share the points of a shared path. Where each row has a path of its own three rows
        are taken, with a point each: in causal blocks the last rows see most. ``once``: no row at
        more than one point.
        """
        last = len(rows) - 1
        if start.shared is None:
            alphas, few = [0.5, 0.25, 0.85], torch.tensor([last, last // 2, last // 4])
            few, chosen = (x.to(z.device) for x in few.unique(return_inverse=True))
            chosen = chosen[:, None]
            if once:
                seen = chosen.flatten().tolist()
                first = [n for n, row in enumerate(seen) if row not in seen[:n]]
                alphas, chosen = [alphas[n] for n in first], chosen[first]
            begin = start.select(few).per_target
            begin = (z[rows[few]][:, None] if begin is None else begin)[chosen[:, 0]]
        else:
            # A norm changes fastest where the mean square is about its eps.
            size = float((z - start.shared).double().square().mean())
            small = (max(epsilons, default=0.0) / max(size, 1e-30)) ** 0.5
            alphas = [0.5] if once else [0.5, min(max(small, 1e-3), 0.25)]
            few = torch.linspace(0, last, min(last + 1, MOST_ROWS), device=z.device).round().long()
            chosen = torch.arange(len(few), device=z.device).expand(len(alphas), -1)
            begin = start.shared
        a = torch.tensor(alphas, dtype=torch.float64, device=z.device)
        points = begin + a.to(z).view(-1, 1, 1) * (z - begin)
        return cls(a, few, chosen, rows[few], points)


@dataclass(frozen=True)
class Observed:
    """The outputs of a block's heads at the points of a sample."""

    sample: Sample
    u: Tensor
    """``(N, K, H, d)`` of the rows that are compared there."""

    def agrees(self, path: AttentionPath) -> bool:
        """Whether the paths of the ``few`` rows are what the block does."""
        return self.deviation(path) <= OUTPUTS[self.u.dtype]

    def deviation(self, path: AttentionPath) -> float:
        """How far the paths of the ``few`` rows are from the block, as part of heads' outputs."""
        worst = []
        for n, own in enumerate(self.u):
            at = path.select(self.sample.chosen[n]).at(self.sample.alphas[n : n + 1])
            length = torch.linalg.vector_norm(own, dim=-1)  # (K, H)
            gap = torch.linalg.vector_norm(at.u[0] - own, dim=-1)
            # Heads count by their own size, unless they give next to nothing.
            size = length + 1e-2 * length.amax(-1, keepdim=True)
            worst.append((gap / size.clamp_min(1e-30)).max())
        # What is not a number is no agreement.
        return float(torch.stack(worst).nan_to_num(torch.inf).max())


def observe(
    attend_at: Callable[[Tensor, Tensor], Tensor], sample: Sample, first: Tensor | None = None
) -> Observed:
    """Run a block's attention at the points of a sample, but for the ``first (S, H, d)``.

    ``attend_at`` gives the outputs ``(N, R, H, d)`` of some rows.
    """
    known = [] if first is None else [first[None, sample.rows]]
    parts = sample.z[len(known) :].split(max(1, AT_ONCE // sample.z.shape[1]))
    seen = [u for z in parts for u in in_halves(lambda z: attend_at(z, sample.rows), z)]
    u = torch.cat([*known, *seen])
    point = torch.arange(len(u), device=u.device)[:, None]
    return Observed(sample, u[point, sample.chosen])


def mixes_tokens(pre: Pre, tables: QKV, text: Tensor, point: Tensor) -> bool:
    """Whether a token's query, key or value depends on other tokens than itself.

    Args:
        pre: the residual stream ``(N, S, D)`` to queries, keys and values.
        tables: what it gives for the text, last of some: ``(N, heads, S, d)``.
        text: ``(S, D)``
        point: ``(S, D)`` a point of a path, from where half the tokens are taken instead.
    """
    # Of another token: norms do not tell a token from a multiple of it.
    point = point.roll(1, 0)
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(len(text), generator=generator) < 0.5).to(text.device)
    for own, other in zip(tables, pre(torch.where(kept[:, None], text, point)[None]), strict=True):
        gap = (own[-1] - other[0])[:, kept].abs()
        if gap.numel() and not bool(gap.max() <= MIXED[gap.dtype] * own[-1, :, kept].abs().max()):
            return True
    return False
