"""A block of the chain whose heads are read apart: each query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from captum_lig._types import Parts
from captum_lig.attribution.block import ChainBlock
from captum_lig.graph.direct_edges import Reader
from captum_lig.integrals.stage import Ends, ReaderStage, multipliers
from captum_lig.model.compare import nearly_equal

__all__ = ["ReaderBlock"]

KINDS = ("query", "key", "value")


class ReaderBlock(ChainBlock):
    """A block of the chain; what its heads hand down to the tokens is told apart by reader.

    A query, key or value of a head reads the tokens through what makes it (a norm, a linear map).
    Its multiplier is the block's own backward pass from a cotangent of that one alone; the
    cotangents of queries, keys and values come from the softmax's formula. Where it is another
    attention, or queries, keys and values cannot be had, a head is one reader.
    """

    @property
    def heads(self) -> int:
        """How many."""
        return self.nodes["u"].end.shape[1]

    @cached_property
    def opens(self) -> bool:
        """Whether queries, keys and values can be had, and are read by plain softmax attention."""
        if not self.heads or not self.stages.split.opens:
            return False
        u = self.nodes["u"]
        with torch.no_grad():
            split, ends = self.stages.split, torch.stack([self.z.start, self.z.end])
            found = split.softmax(*split.pre(ends))
        return all(
            nearly_equal(ours[self.valid], theirs[self.valid])
            for ours, theirs in zip(found, (u.start, u.end), strict=True)
        )

    @cached_property
    def key_heads(self) -> int:
        """How many keys there are; heads that share one are a group."""
        if not self.opens:
            return self.heads
        with torch.no_grad():
            return int(self.stages.split.pre(self.z.end[None])[1].shape[1])

    def readers(self, layer: int) -> list[Reader]:
        """The heads' readers, in the order of their multipliers."""
        if not self.opens:
            return [Reader("head", layer, head) for head in range(self.heads)]
        counts = self.heads, self.key_heads, self.key_heads
        return [
            Reader(kind, layer, head)  # type: ignore[arg-type]
            for kind, count in zip(KINDS, counts, strict=True)
            for head in range(count)
        ]

    def _heads(self, g: Tensor, relative_to: Tensor) -> Parts:
        """``z -> u``: the multiplier of the tokens, and of each reader."""
        u = self.nodes["u"]
        groups = torch.arange(self.key_heads, device=g.device)
        of_query = groups.repeat_interleave(self.heads // self.key_heads)
        count = len(self.valid)
        held = 0 if self.stages.split.plain else 6
        floats = 30 * self.z.end.numel() + held * self.heads * count * count
        stage = ReaderStage(
            function=lambda z: self._grouped(self.stages.attend(z, fused=True)),
            arguments={"z": self.z},
            output=Ends(*(self._grouped(x[None])[0] for x in (u.start, u.end))),
            g=self._grouped(g[None])[0],
            relative_to=relative_to,
            points_at_once=self._points(floats),
            meter=self.meter,
            readers=lambda z, g: self._read(z, g.movedim(1, 2).flatten(2, 3)),
            groups=torch.cat([of_query, groups, groups]) if self.opens else of_query,
        )
        return multipliers(stage, self.settings, self.budget, "attention")

    def _grouped(self, u: Tensor) -> Tensor:
        """``(P, T, H, e)`` to ``(P, G, T, H / G, e)``."""
        grouped: Tensor = u.unflatten(2, (self.key_heads, -1))
        return grouped.movedim(2, 1)

    def _read(self, z: Tensor, g: Tensor) -> Tensor:
        """What each reader hands down ``(R, S, D)``, for cotangents ``g (P, T, H, e)``."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            if not self.opens:
                u = self.stages.attend(z, fused=True)
                return self._from_each([u.movedim(2, 1)], [g.movedim(2, 1)], z)
            made = self.stages.split.pre(z)
            apart = tuple(x.detach().requires_grad_() for x in made)
            cotangents = torch.autograd.grad(self.stages.split.softmax(*apart), apart, g)
        return self._from_each(made, cotangents, z)

    def _from_each(self, made: Sequence[Tensor], g: Sequence[Tensor], z: Tensor) -> Tensor:
        """One backward pass for each head of what was made of ``z``, ``(P, heads, ...)``."""
        found = []
        for x, own in zip(made, g, strict=True):
            for head in range(x.shape[1]):
                only = torch.zeros_like(own)
                only[:, head] = own[:, head]
                (rate,) = torch.autograd.grad(x, z, only, retain_graph=True, materialize_grads=True)
                found.append(rate.sum(0))
                self.meter.passed += z.shape[0] * z.shape[1]
        return torch.stack(found)
