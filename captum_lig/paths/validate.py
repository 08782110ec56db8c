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

from captum_lig._compare import deviation, tolerance
from captum_lig._types import Post, Pre
from captum_lig.paths.base import AttentionPath
from captum_lig.paths.baselines import Start

__all__ = ["Observed", "Run", "Sample", "mixes_tokens", "observe"]

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The residual stream ``(N, S, D)`` to the heads' outputs ``(N, S, H, d)`` and the block's."""

MOST_ROWS = 64
"""Rows of a shared path that are compared at each point, at most."""
AT_ONCE = 1024
"""Tokens that go through the block at once."""
MIXED = {torch.float32: 1e-5, torch.float64: 1e-6}
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
    def of(cls, start: Start, z: Tensor, rows: Tensor, epsilons: list[float]) -> Sample:
        """Interior points of the paths of ``rows (R,)`` from ``start`` to ``z (S, D)``.

        All rows share the points of a shared path. Where each row has a path of its own three rows
        are taken, with a point each: in causal blocks the last rows see most.
        """
        last = len(rows) - 1
        if start.shared is None:
            alphas, few = [0.85, 0.25, 0.6], torch.tensor([last // 4, last // 2, last])
            few, chosen = (x.to(z.device) for x in few.unique(return_inverse=True))
            chosen = chosen[:, None]
            begin = start.select(few).per_target
            begin = (z[rows[few]][:, None] if begin is None else begin)[chosen[:, 0]]
        else:
            # A norm changes fastest where the mean square is about its eps.
            size = float((z - start.shared).double().square().mean())
            small = (max(epsilons, default=0.0) / max(size, 1e-30)) ** 0.5
            alphas = [min(max(small, 1e-3), 0.3), 0.7]
            few = torch.linspace(0, last, min(last + 1, MOST_ROWS), device=z.device).round().long()
            chosen = torch.arange(len(few), device=z.device).expand(len(alphas), -1)
            begin = start.shared
        a = torch.tensor(alphas, dtype=torch.float64, device=z.device)
        points = begin + a.to(z).view(-1, 1, 1) * (z - begin)
        return cls(a, few, chosen, rows[few], points)


@dataclass(frozen=True)
class Observed:
    """What a block does at the points of a sample, for the rows that are compared there."""

    sample: Sample
    u: Tensor
    """``(N, K, H, d)`` outputs of the heads."""
    output: Tensor
    """``(N, K, D)`` the block's outputs."""

    def agrees(self, path: AttentionPath) -> bool:
        """Whether the paths of the ``few`` rows are what the block does."""
        return self.deviation(path) <= tolerance(self.u.dtype)

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

    def deviation_after(self, post: Post, text: Tensor) -> float:
        """How far ``post``, that gets the tokens in another order, is from the block's outputs.

        Args:
            post: what follows the attention core.
            text: ``(S, D)`` the block's outputs for the text itself.
        """
        count, length = self.u.shape[0] * self.u.shape[1], self.sample.z.shape[1]
        # One sequence of them, none where it was: if there are few, each at several positions.
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(max(length, count), generator=generator)[:length] % count
        order = order.to(text.device)
        u, z, output = (x.flatten(0, 1)[order] for x in (self.u, self._tokens, self.output))
        return deviation(post(u, z), output, text)

    @property
    def _tokens(self) -> Tensor:
        """``(N, K, D)`` the residual stream of the rows."""
        return _of_rows(self.sample, self.sample.z)


def _of_rows(sample: Sample, x: Tensor) -> Tensor:
    """``(N, S, ...)`` to ``(N, K, ...)``, the rows that are compared at each point."""
    point = torch.arange(len(x), device=x.device)[:, None]
    return x[point, sample.rows[sample.chosen]]


def observe(run: Run, sample: Sample) -> Observed:
    """Run a block at the points of a sample."""
    at_once = max(1, AT_ONCE // sample.z.shape[1])
    u, output = zip(*(run(z) for z in sample.z.split(at_once)), strict=True)
    return Observed(sample, *(_of_rows(sample, torch.cat(x)) for x in (u, output)))


def mixes_tokens(pre: Pre, z: Tensor) -> bool:
    """Whether a token's query, key or value depends on other tokens than itself.

    Args:
        pre: the residual stream ``(N, S, D)`` to queries, keys and values.
        z: ``(2, S, D)`` two residual streams, of which half the tokens are exchanged.
    """
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(z.shape[1], generator=generator) < 0.5).to(z.device)
    exchanged = torch.where(kept[:, None], z[0], z[1])
    for own, other in (x.unbind() for x in pre(torch.stack([z[0], exchanged]))):
        gap, size = (own - other)[:, kept].abs(), own[:, kept].abs()
        if gap.numel() and not bool(gap.max() <= MIXED[gap.dtype] * size.max()):
            return True
    return False
