"""What a token's position does to its key: the linear maps of a rotary encoding, found by probing.

With a rotary encoding (any that is linear, the same for all heads and contents) a content ``x`` at
position ``i`` has the key ``k_i(x) = b_i + M_i kappa(x)``, ``kappa`` its key at position 0 less the
bias. The maps ``M_i`` follow from a few contents put at all positions, by least squares; with them
each target's content can be put at each position without running the block for every target.

A rotation turns pairs, so most entries of the maps are 0. Which ones are not is known from a few
positions of a long text, and then fewer contents determine them at all positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig.paths.memory import in_halves

__all__ = ["RotaryMaps", "contents_of", "probes_needed"]

Keys = Callable[[Tensor], Tensor]
"""``(N, S, D)`` to keys less their bias ``(N, Hkv, S, d)``."""

_AT_ONCE = 4096
"""Tokens that go through the block at once."""
_SOLVED_AT_ONCE = 512
"""Maps that are inverted at once."""


def probes_needed(key_heads: int, width: int) -> int:
    """How many contents determine the maps: each gives an equation for every key head."""
    return -(-5 * width // (4 * key_heads)) + 2


@dataclass(frozen=True)
class RotaryMaps:
    """The maps of all positions, as their entries that are not 0."""

    values: Tensor
    """``(S, E)`` in float64."""
    entries: Tensor
    """``(E,)`` positions in a flattened map that are not 0 everywhere."""
    contents: Tensor
    """``(Hkv, S, d)`` in float64: ``kappa`` of the text's own tokens."""

    @classmethod
    def find(
        cls, keys: Keys, z: Tensor, own: Tensor, entries: Tensor | None = None
    ) -> RotaryMaps | None:
        """Probe the block around ``z (S, D)``; None if positions do not act by such maps.

        Args:
            keys: the block's keys, less the bias of their positions.
            z: ``(S, D)`` a residual stream.
            own: ``(Hkv, S, d)`` its keys.
            entries: ``(E,)`` positions in a flattened map outside of which all are 0, if known.
        """
        key_heads, sources, width = own.shape
        columns = _columns(entries, width).to(z.device)  # (d or 1, C)
        count = probes_needed(key_heads, columns.shape[1])
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
        at = probed.double().permute(2, 3, 0, 1).flatten(2)  # (S, d, probes * Hkv)
        contents_at = torch.cat([at[0], at.new_zeros(1, at.shape[-1])])[columns]
        inverse = torch.linalg.pinv(contents_at).expand(width, -1, -1)  # (d, probes * Hkv, C)
        values = torch.einsum("sdn,dnc->sdc", at, inverse).flatten(1)
        size = values.abs().amax(0)
        kept = (size > 1e-5 * size.max()).nonzero().squeeze(-1)
        places = torch.arange(width, device=z.device)[:, None] * width + columns
        values, entries = values[:, kept], places.flatten()[kept]
        found = cls(values, entries, contents_of(values, entries, own))
        return found if found._holds(keys, z) else None

    def _holds(self, keys: Keys, z: Tensor) -> bool:
        """Whether the maps put the text's own contents where the block puts them."""
        shift = max(1, len(z) // 3)
        moved = keys(z.roll(shift, 0)[None])[0].double()
        content = self.contents.roll(shift, 1)
        row, column = self._places()
        predicted = torch.zeros_like(moved).index_add_(2, row, self.values * content[..., column])
        tolerance = 1e-6 if z.dtype == torch.float64 else 1e-4
        gap = (predicted - moved).abs().max()
        return bool(gap <= tolerance * moved.abs().max())

    def _places(self) -> tuple[Tensor, Tensor]:
        """``(E,)`` the rows and the columns of the entries."""
        width = self.contents.shape[-1]
        return self.entries // width, self.entries % width

    def logits(self, q: Tensor, content: Tensor) -> Tensor:
        """``q_j . M_i kappa_j`` for each target at each position.

        Args:
            q: ``(H, R, d)`` queries.
            content: ``(H, R, d)`` the targets' ``kappa``.

        Returns:
            ``(H, R, S)``.
        """
        row, column = self._places()
        return (q[..., row] * content.to(q)[..., column]) @ self.values.to(q).T


def contents_of(values: Tensor, entries: Tensor, own: Tensor) -> Tensor:
    """``kappa`` of a text's tokens from their keys at their own positions.

    Args:
        values: ``(S, E)`` entries of the positions' maps, in float64.
        entries: ``(E,)`` which entries of a flattened map they are; all others are 0.
        own: ``(Hkv, S, d)`` the keys, less their bias.

    Returns:
        ``(Hkv, S, d)`` in float64.
    """
    _, sources, width = own.shape
    place = torch.full((width**2,), len(entries), device=own.device)
    place[entries] = torch.arange(len(entries), device=own.device)
    padded = torch.cat([values, values.new_zeros(sources, 1)], 1)
    contents = torch.empty(own.shape, dtype=values.dtype, device=own.device)
    for group in _mixed_together(entries, width):
        blocks = place[group[:, :, None] * width + group[:, None]]  # (G, g, g)
        for some in torch.arange(sources, device=own.device).split(_SOLVED_AT_ONCE):
            maps = padded[some][:, blocks]  # (N, G, g, g)
            at = own[:, some][..., group].double().permute(1, 2, 3, 0)
            solved, singular = torch.linalg.solve_ex(maps, at)
            if bool(singular.any()):  # an entry that is 0 in every key, of pruned weights say
                solved = torch.linalg.pinv(maps) @ at
            contents[:, some[:, None], group.flatten()] = solved.flatten(1, 2).permute(2, 0, 1)
    return contents


def _mixed_together(entries: Tensor, width: int) -> list[Tensor]:
    """``(G, g)`` features that the maps mix with each other and with no others, by size ``g``.

    A rotation turns pairs: then they are ``d / 2`` groups of two, solved in a fraction of the time.
    """
    reached = torch.eye(width, device=entries.device)
    reached[entries // width, entries % width] = 1
    reached = reached.maximum(reached.T)
    while True:
        further = ((reached @ reached) > 0).to(reached)
        if torch.equal(further, reached):
            break
        reached = further
    groups = torch.unique(reached, dim=0)
    sizes = groups.sum(1).long()
    return [
        groups[sizes == size].nonzero()[:, 1].view(-1, size) for size in sizes.unique().tolist()
    ]


def _columns(entries: Tensor | None, width: int) -> Tensor:
    """``(d, C)`` the columns of entries in each row, filled up with ``width``.

    ``(1, d)`` if every entry is possible.
    """
    if entries is None:
        return torch.arange(width)[None]
    rows: list[list[int]] = [[] for _ in range(width)]
    for entry in entries.tolist():
        rows[entry // width].append(entry % width)
    most = max(map(len, rows))
    return torch.tensor([row + [width] * (most - len(row)) for row in rows]).view(width, most)
