"""Keys with a norm of their own (Qwen 3, Gemma 3, OLMo 2) along the paths of target tokens.

There a content ``x`` at position ``i`` has the key ``k_i(x) = b_i + M_i n2(kappa(x))``: a norm
``n2``, over each head or all of them, of raw keys ``kappa`` that are linear in ``n(x)``. Along a
path the raw keys are a mixture of those at its ends, and so are the keys, with other weights:

    k_i(x(a)) = b_i + (w0 sigma(x0) (k_i(x0) - b_i) + w1 sigma(x1) (k_i(x1) - b_i)) / sigma(x(a))

with ``w0``, ``w1`` the weights of the raw keys' mixture, and ``sigma`` the scale of the raw keys in
``n2``. So all that is needed is the raw keys of the text, to know their products. What passes
through the block's modules is tried, and kept only if it reproduces the keys along a path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import QKV
from captum_lig.paths.norm import Mixture, Norm

__all__ = ["KeyWeights", "NormedKeys"]


class Inside(Protocol):
    """What is needed of a split block."""

    z: Tensor

    def pre(self, z: Tensor) -> QKV:
        """Queries, keys and values of ``z (N, S, D)``."""

    def inside(self, z: Tensor) -> list[Tensor]:
        """What its modules get on the way to the attention core, for ``z (1, S, D)``."""


@dataclass(frozen=True)
class KeyWeights:
    """From the weights of raw keys to those of keys, for each target and source."""

    norm: Norm
    start: Tensor
    """``(h, 1, R, 1)`` mean squares of the targets' raw keys; ``h`` is 1 or the key heads."""
    end: Tensor
    """``(h, 1, 1, S)`` mean squares of the sources' raw keys."""
    dot: Tensor
    """``(h, 1, R, S)`` mean products."""

    def select(self, rows: Tensor) -> KeyWeights:
        """Those of some of the rows."""
        return replace(self, start=self.start[:, :, rows], dot=self.dot[:, :, rows])

    def at(self, w: Mixture, heads: int) -> Mixture:
        """``(H or 1, P, R, S)`` from the weights ``(P, R, S)`` of the contents."""
        moments = (x.to(w.end.dtype) for x in (self.start, self.end, self.dot))
        found = self.norm.of(w, *moments)
        groups = heads // len(self.dot)
        return found if len(self.dot) == 1 else found.map(lambda x: _repeated(x, groups))


def _repeated(x: Tensor, groups: int) -> Tensor:
    """Each key head for the query heads that share it."""
    return x.repeat_interleave(groups, 0)


@dataclass(frozen=True)
class NormedKeys:
    """The raw keys of a text, and their norm."""

    norm: Norm
    raw: Tensor
    """``(h, S, m)`` in float64, centred: of each key head, or ``h = 1`` if normed together."""

    @classmethod
    def find(cls, block: Inside, norm: Norm, epsilons: Iterable[float]) -> NormedKeys | None:
        """Look for raw keys in the block; None if nothing there reproduces its keys.

        Args:
            block: the block.
            norm: the norm of the contents, that the values have.
            epsilons: values of eps that the keys' norm may have.
        """
        z, share = block.z, torch.tensor([0.35, 0.8], device=block.z.device)
        # From contents that no token of the text has: its own may be too much alike to tell.
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
        start = z.roll(1, 0) + 0.5 * z.std(-1, keepdim=True) * noise
        points = [torch.zeros_like(z), start, z, *((1 - a) * start + a * z for a in share.to(z))]
        bias, at_start, at_end, *between = block.pre(torch.stack(points))[1]
        c0, c1 = norm.center(start), norm.center(z)
        w = norm.mixture(*_moments(c0, c1), share).map(lambda x: x.unsqueeze(1))  # (2, 1, S)

        def gap(at_start_raw: Tensor, at_end_raw: Tensor, candidate: Norm) -> float:
            ends = candidate.center(at_start_raw), candidate.center(at_end_raw)
            keys = candidate.of(w, *_moments(*ends)).to(z.dtype)  # (2, h, S)
            from_start = keys.start.unsqueeze(-1) * (at_start - bias)
            predicted = bias + from_start + keys.end.unsqueeze(-1) * (at_end - bias)
            return float((predicted - torch.stack(between)).abs().max())

        candidates = [Norm(kind, eps) for eps in epsilons for kind in ("rms", "layer")]
        tried = [
            (gap(x, y, candidate), cls(candidate, candidate.center(y)))
            for pair in zip(block.inside(start[None]), block.inside(z[None]), strict=True)
            for x, y in zip(*(_layouts(part, *at_end.shape) for part in pair), strict=True)
            for candidate in candidates
        ]
        if not tried:
            return None
        least, best = min(tried, key=lambda pair: pair[0])
        largest = float(torch.stack([at_start, at_end]).abs().max())
        return best if least <= (1e-6 if z.dtype == torch.float64 else 2e-4) * largest else None

    def weights(self, rows: Tensor) -> KeyWeights:
        """Of the paths from the tokens ``rows (R,)``."""
        square = (self.raw * self.raw).mean(-1)[:, None]
        dot = self.raw[:, rows] @ self.raw.transpose(-1, -2) / self.raw.shape[-1]
        return KeyWeights(self.norm, square[..., rows, None], square[:, :, None], dot[:, None])


def _moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squares of ``x`` and of ``y``, and their mean products, over the last axis."""
    return (x * x).mean(-1), (y * y).mean(-1), (x * y).mean(-1)


def _layouts(x: Tensor, heads: int, sources: int, width: int) -> Iterator[Tensor]:
    """``x`` as keys ``(heads, S, width)``, or of all heads together ``(1, S, heads * width)``."""
    if x.shape == (1, sources, heads, width):
        yield x[0].transpose(0, 1)
    if x.shape == (1, heads, sources, width):
        yield x[0]
    if x.shape == (1, sources, heads * width):
        yield x
