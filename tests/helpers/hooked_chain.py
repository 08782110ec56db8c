"""Relevances of tokens from the definition, by plain hooks on a model of transformers.

The three stages of a block are runs of the block itself with hooks that put values in at the input
of its output projection (the heads' outputs, side by side) and at the output of its MLP. Nothing
here knows captum_lig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Number = Callable[[Any], Tensor]
Hook = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Sites:
    """Where a family has its nodes."""

    blocks: list[nn.Module]
    projection: str
    """Name inside a block of the module whose input are the heads' outputs."""
    mlp: str
    """Of the module whose output the block adds last."""


@dataclass
class Run:
    """A block in a run of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    z: Tensor
    u: Tensor
    m: Tensor
    y: Tensor


class HookedChain:
    """Of one text; ``panels`` of 8 Gauss-Legendre nodes for each stage."""

    def __init__(self, model: nn.Module, sites: Sites, panels: int = 2) -> None:
        self.model, self.sites = model, sites
        t, w = np.polynomial.legendre.leggauss(8)
        self.nodes = [
            ((k + (1 + float(x)) / 2) / panels, float(v) / 2 / panels)
            for k in range(panels)
            for x, v in zip(t, w, strict=True)
        ]

    def tokens(
        self, inputs: Mapping[str, Tensor], baseline: Mapping[str, Tensor], number: Number
    ) -> Tensor:
        """``(L + 1, S)`` relevances of the tokens that enter each block and leave the last."""
        ends, starts = self.run(inputs), self.run(baseline)
        last = self.sites.blocks[-1]

        def top(z: Tensor) -> Tensor:
            with put(last, z, "leave"):
                return number(self.called(inputs))

        (g,) = self.integral(top, [(starts[-1].y, ends[-1].y)], torch.ones(1).to(ends[-1].y))
        found = [self.relevance(g, starts[-1].y, ends[-1].y)]
        for block, start, end in zip(
            reversed(self.sites.blocks), reversed(starts), reversed(ends), strict=True
        ):
            g = self.down(block, start, end, g)
            found.append(self.relevance(g, start.z, end.z))
        return torch.stack(found[::-1])

    def called(self, inputs: Mapping[str, Tensor]) -> Any:
        """Without a cache: blocks would add to it each time they run."""
        caching = hasattr(self.model.config, "use_cache")
        return self.model(**inputs, **({"use_cache": False} if caching else {}))

    @staticmethod
    def relevance(g: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return (g.double() * (end - start).double()).sum(-1)[0]

    def down(self, block: nn.Module, start: Run, end: Run, g: Tensor) -> Tensor:
        """From the multiplier of what leaves a block to that of what enters it."""
        projection = block.get_submodule(self.sites.projection)
        mlp = block.get_submodule(self.sites.mlp)

        def call(z: Tensor) -> Tensor:
            args = (z, *end.args[1:]) if end.args else ()
            kwargs = end.kwargs if end.args else {**end.kwargs, "hidden_states": z}
            return first(block(*args, **kwargs))

        def output(z: Tensor, u: Tensor, m: Tensor) -> Tensor:
            with put(projection, u, "enter"), put(mlp, m, "leave"):
                return call(z)

        def feed_forward(z: Tensor, u: Tensor) -> Tensor:
            with put(projection, u, "enter"), seen(mlp, "leave") as found:
                call(z)
            return found[0]

        def attend(z: Tensor) -> Tensor:
            with seen(projection, "enter") as found:
                call(z)
            return found[0]

        z, u, m = ((getattr(start, x), getattr(end, x)) for x in "zum")
        past_z, past_u, of_m = self.integral(output, [z, u, m], g)
        by_z, by_u = self.integral(feed_forward, [z, u], of_m)
        (by_heads,) = self.integral(attend, [z], past_u + by_u)
        return past_z + by_z + by_heads

    def integral(
        self, function: Callable[..., Tensor], lines: list[tuple[Tensor, Tensor]], g: Tensor
    ) -> list[Tensor]:
        total = [torch.zeros_like(start) for start, _ in lines]
        for a, w in self.nodes:
            points = [(start + a * (end - start)).requires_grad_() for start, end in lines]
            y = function(*points)
            found = torch.autograd.grad(y, points, g, allow_unused=True)
            for part, x in zip(total, found, strict=True):
                part += 0 if x is None else w * x
        return total

    def run(self, inputs: Mapping[str, Tensor]) -> list[Run]:
        """Every block of one run."""
        runs: list[Run] = []
        handles = []
        for block in self.sites.blocks:
            nodes: dict[str, Tensor] = {}

            def enter(_: Any, args: Any, nodes: dict[str, Tensor] = nodes) -> None:
                nodes["u"] = args[0]

            def leave(_: Any, args: Any, out: Any, nodes: dict[str, Tensor] = nodes) -> None:
                nodes["m"] = first(out)

            def done(
                _: Any, args: Any, kwargs: Any, out: Any, nodes: dict[str, Tensor] = nodes
            ) -> None:
                z = args[0] if args else kwargs["hidden_states"]
                runs.append(Run(args, dict(kwargs), z, nodes["u"], nodes["m"], first(out)))

            handles += [
                block.get_submodule(self.sites.projection).register_forward_pre_hook(enter),
                block.get_submodule(self.sites.mlp).register_forward_hook(leave),
                block.register_forward_hook(done, with_kwargs=True),
            ]
        with torch.no_grad():
            self.called(inputs)
        for handle in handles:
            handle.remove()
        return runs


def first(output: Any) -> Tensor:
    value: Tensor = output if isinstance(output, Tensor) else output[0]
    return value


@contextmanager
def put(module: nn.Module, value: Tensor, where: str) -> Iterator[None]:
    """Let a module get, or give, a value."""

    def leave(_: Any, args: Any, output: Any) -> Any:
        return value if isinstance(output, Tensor) else (value, *output[1:])

    handle = (
        module.register_forward_pre_hook(lambda _, args: (value, *args[1:]))
        if where == "enter"
        else module.register_forward_hook(leave)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def seen(module: nn.Module, where: str) -> Iterator[list[Tensor]]:
    """What a module gets, or gives."""
    found: list[Tensor] = []
    handle = (
        module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        if where == "enter"
        else module.register_forward_hook(lambda _, args, output: found.append(first(output)))
    )
    try:
        yield found
    finally:
        handle.remove()
