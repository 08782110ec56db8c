"""What a token's position does to its key: the linear maps of a rotary encoding, found by probing.

With a rotary encoding (any that is linear, the same for all heads and contents) a content ``x`` at
position ``i`` has the key ``k_i(x) = b_i + M_i kappa(x)``, ``kappa`` its key at position 0 less the
bias. The maps ``M_i`` follow from a few contents put at all positions, by least squares; with them
each target's content can be put at each position without running the block for every target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig.paths.memory import in_halves

__all__ = ["RotaryMaps", "probes_needed"]

Keys = Callable[[Tensor], Tensor]
"""``(N, S, D)`` to keys less their bias ``(N, Hkv, S, d)``."""

_AT_ONCE = 4096
"""Tokens that go through the block at once."""


def probes_needed(key_heads: int, width: int) -> int:
    """How many contents determine the maps: each gives an equation for every key head."""
    return -(-5 * width // (4 * key_heads)) + 2


@dataclass(frozen=True)
class RotaryMaps:
    """The maps of all positions, as the few entries that are not 0 (a rotation turns pairs)."""

    maps: Tensor
    """``(S, d, d)`` in float64."""
    entries: Tensor
    """``(E,)`` positions in a flattened map that are not 0 everywhere."""

    @classmethod
    def find(cls, keys: Keys, z: Tensor, key_heads: int, width: int) -> RotaryMaps | None:
        """Probe the block around ``z (S, D)``; None if positions do not act by such maps.

        Args:
            keys: the block's keys, less the bias of their positions.
            z: ``(S, D)`` a residual stream.
            key_heads: number of key heads.
            width: width of a key.
        """
        count, sources = probes_needed(key_heads, width), len(z)
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(sources, (2, count), generator=generator).to(z.device)
        share = torch.rand(count, 1, generator=generator).to(z)
        contents = share * z[chosen[0]] + (1 - share) * z[chosen[1]]
        noise = torch.randn(contents.shape, generator=generator).to(z)
        contents = contents + 0.5 * contents.std(-1, keepdim=True) * noise
        parts = contents.split(max(1, _AT_ONCE // sources))

        def at_all(some: Tensor) -> Tensor:
            return keys(some[:, None].expand(-1, sources, -1))

        probed = torch.cat([found for part in parts for found in in_halves(at_all, part)])
        at = probed.double().permute(2, 0, 1, 3).flatten(1, 2)  # (S, probes * Hkv, d)
        maps = (torch.linalg.pinv(at[0]) @ at).transpose(1, 2).contiguous()  # (S, d, d)
        size = maps.abs().amax(0).flatten()
        entries = (size > 1e-5 * size.max()).nonzero().squeeze(-1)
        found = cls(maps, entries)
        return found if found._holds(keys, z) else None

    def _holds(self, keys: Keys, z: Tensor) -> bool:
        """Whether the maps put the text's own contents where the block puts them."""
        shift = max(1, len(z) // 3)
        own, moved = keys(torch.stack([z, z.roll(shift, 0)]))
        kept = torch.zeros_like(self.maps).flatten(1)
        kept[:, self.entries] = self.maps.flatten(1)[:, self.entries]
        content = self.contents(own).roll(shift, 1)  # (Hkv, S, d)
        predicted = torch.einsum("sab,hsb->hsa", kept.view_as(self.maps), content)
        tolerance = 1e-6 if z.dtype == torch.float64 else 1e-4
        gap = (predicted - moved.double()).abs().max()
        return bool(gap <= tolerance * moved.abs().max())

    def contents(self, own: Tensor) -> Tensor:
        """``kappa`` ``(Hkv, S, d)`` from the keys of a text at its own positions."""
        solved: Tensor = torch.linalg.solve(self.maps, own.double().permute(1, 2, 0))
        return solved.permute(2, 0, 1)

    def logits(self, q: Tensor, content: Tensor) -> Tensor:
        """``q_j . M_i kappa_j`` for each target at each position.

        Args:
            q: ``(H, R, d)`` queries.
            content: ``(H, R, d)`` the targets' ``kappa``.

        Returns:
            ``(H, R, S)``.
        """
        width = q.shape[-1]
        pairs = q[..., self.entries // width] * content.to(q)[..., self.entries % width]
        return pairs @ self.maps.flatten(1)[:, self.entries].to(q).T
