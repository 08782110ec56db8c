"""A block's attributions written from their definitions, with plain torch hooks and autograd alone.

What a block was called with is recorded by a forward hook on the unmodified model; the block is
then called again at points on the path. The attention output is what torch's
`scaled_dot_product_attention` or the family's `eager_attention_forward` returns, or else the
input of the first linear map of the block that other tokens reach.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.pytorch_utils import Conv1D

from tests.helpers.twins import Nodes, mean_gradients

DECADES = [10.0**e for e in range(-13, -1)]

RULES: dict[str, tuple[tuple[list[float], int], ...]] = {
    "zero": (
        ([0.0, *DECADES[7:], 0.1, 0.4, 1.0], 4),
        ([0.0, *DECADES, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0], 6),
        ([0.0, *DECADES, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0], 12),
        ([0.0, *DECADES, *(k / 16 for k in range(1, 17))], 20),
    ),
    "target_token": (
        ([0.0, 0.03, 0.2, 0.6, 1.0], 4),
        ([0.0, 1e-3, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0], 8),
        ([k / 32 for k in range(33)], 16),
    ),
}
"""Panels of the quadrature and the nodes in each, finer from one to the next. From zero, norms
change at every scale of the path, and norms of norms at smaller ones still."""

Row = tuple[Tensor, float]
"""Entries of a row of a map, and its total."""


class LiteralBlock:
    """One run of a block for one text: `z` (S, D), and the block as a function of it."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module = module
        self.args = tuple(_without_cache(value) for value in args)
        self.kwargs = {name: _without_cache(value) for name, value in kwargs.items()}
        place = self._place()
        self._given: Tensor = self.args[place] if isinstance(place, int) else self.kwargs[place]
        self.z: Tensor = self._given[0].detach()
        self.heads: int | None = None
        self.projection: nn.Module | None = None

    def _place(self) -> int | str:
        named: list[tuple[int | str, Any]] = [*enumerate(self.args)]
        named += sorted(self.kwargs.items(), key=lambda item: item[0] != "hidden_states")
        for place, value in named:
            if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
                return place
        raise ValueError("the block gets no tokens")

    def _is_tokens(self, value: Any) -> bool:
        """A block may get them more than once: as queries, keys and values."""
        return (
            isinstance(value, Tensor)
            and value.shape == self._given.shape
            and value.data_ptr() == self._given.data_ptr()
        )

    def __call__(self, z: Tensor) -> Tensor:
        """z (S, D) -> z' (S, D). With gradients: without, torch's own layers run fused."""
        asked = torch.is_grad_enabled()
        z = z if z.requires_grad else z.clone().requires_grad_(True)
        args = [z[None] if self._is_tokens(x) else x for x in self.args]
        kwargs = {name: z[None] if self._is_tokens(x) else x for name, x in self.kwargs.items()}
        with torch.enable_grad():
            out = _first(self.module(*args, **kwargs))[0]
        return out if asked else out.detach()

    def find_attention(self, heads: int) -> bool:
        """Whether the attention output can be captured, as so many heads."""
        self.heads = heads
        with torch.no_grad():
            try:
                return self.attend(self.z).shape[1] == heads
            except LookupError:
                self.projection = self._first_mixed()
                return self.projection is not None

    def attend(self, z: Tensor) -> Tensor:
        """z (S, D) -> u (S, H, d)."""
        seen: list[Tensor] = []

        def keep(u: Tensor) -> Tensor:
            seen.append(u)
            return u

        with self._attention(keep):
            self(z)
        if not seen:
            raise LookupError("no attention was called")
        return seen[0] if torch.is_grad_enabled() else seen[0].detach()

    def after(self, u: Tensor, z: Tensor) -> Tensor:
        """u (S, H, d), z (S, D) -> z' (S, D): the block, its attention output replaced."""
        with self._attention(lambda _: u):
            return self(z)

    @contextmanager
    def _attention(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Pass the first attention output of the block as (S, H, d) through `change`."""
        if self.projection is not None:

            def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                x = args[0]
                assert self.heads is not None
                u = change(x.reshape(len(self.z), self.heads, -1))
                return (u.reshape(x.shape), *args[1:])

            handle = self.projection.register_forward_pre_hook(hook)
            try:
                yield
            finally:
                handle.remove()
            return
        count = 0

        def changed(out: Any, heads_first: bool) -> Any:
            nonlocal count
            count += 1
            if count > 1:
                return out
            u = out[0] if isinstance(out, tuple) else out
            if heads_first:
                return change(u[0].transpose(0, 1)).transpose(0, 1)[None]
            new = change(u[0])[None]
            return (new, *out[1:]) if isinstance(out, tuple) else new

        sdpa = nn.functional.scaled_dot_product_attention
        patched: list[tuple[Any, str, Any]] = [
            (nn.functional, "scaled_dot_product_attention", sdpa)
        ]
        for module in {type(m).__module__ for m in self.module.modules()}:
            eager = getattr(sys.modules[module], "eager_attention_forward", None)
            if eager is not None:
                patched.append((sys.modules[module], "eager_attention_forward", eager))

        def wrapped(function: Any, heads_first: bool) -> Any:
            return lambda *args, **kwargs: changed(function(*args, **kwargs), heads_first)

        try:
            for where, name, function in patched:
                setattr(where, name, wrapped(function, function is sdpa))
            yield
        finally:
            for where, name, function in patched:
                setattr(where, name, function)

    def _first_mixed(self) -> nn.Module | None:
        """The first linear map whose input at a token depends on other tokens."""
        linear = [m for m in self.module.modules() if isinstance(m, (nn.Linear, Conv1D))]

        def inputs(z: Tensor) -> dict[nn.Module, Tensor]:
            seen: dict[nn.Module, Tensor] = {}
            handles = [
                m.register_forward_pre_hook(lambda m, args: _keep(seen, m, args)) for m in linear
            ]
            try:
                self(z)
            finally:
                for handle in handles:
                    handle.remove()
            return seen

        moved = self.z.clone()
        moved[::2] += torch.linspace(-1, 1, moved.shape[-1], dtype=moved.dtype)
        own, other = inputs(self.z), inputs(moved)
        for module, x in own.items():
            if x.dim() != 3 or x.shape[1] != len(self.z):
                continue
            if not torch.equal(x[:, 1::2], other[module][:, 1::2]):
                return module if x.shape[-1] % (self.heads or 1) == 0 else None
        return None


def _keep(seen: dict[nn.Module, Tensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    seen.setdefault(module, args[0])


def record(
    model: nn.Module, inputs: dict[str, Any], names: Sequence[str]
) -> dict[str, list[LiteralBlock]]:
    """The named modules with what they are called with, once for each time that they run."""
    found: dict[str, list[LiteralBlock]] = {name: [] for name in names}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[name].append(LiteralBlock(module, args, kwargs))

        return keep

    handles = [
        model.get_submodule(name).register_forward_pre_hook(keeper(name), with_kwargs=True)
        for name in found
    ]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layer_row(block: LiteralBlock, j: int, start: Tensor, rule: tuple[Nodes, Nodes]) -> Row:
    """z -> z': entries (S,) of target j."""
    return _row(lambda x: block(x)[j], start, block.z, rule)


def attention_row(
    block: LiteralBlock, h: int, j: int, start: Tensor, rule: tuple[Nodes, Nodes]
) -> Row:
    """z -> u: entries (S,) of target j and head h."""
    return _row(lambda x: block.attend(x)[j, h], start, block.z, rule)


def mlp_row(block: LiteralBlock, j: int, start: Tensor, rule: tuple[Nodes, Nodes]) -> Row:
    """u, z -> z': entries (H + 1,) of target j, of its heads and of its residual stream."""
    with torch.no_grad():
        u0, u1 = (block.attend(z).detach() for z in (start, block.z))
    ends = (u1, block.z)
    (by_u, by_z), total = mean_gradients(
        lambda u, z: block.after(u, z)[j], (u0, start), ends, "l2", *rule
    )
    heads = (by_u * (u1 - u0))[j].sum(-1)
    own = (by_z * (block.z - start))[j].sum()
    return torch.cat([heads, own[None]]), total


def _row(
    function: Callable[[Tensor], Tensor], start: Tensor, z: Tensor, rule: tuple[Nodes, Nodes]
) -> Row:
    (mean,), total = mean_gradients(function, (start,), (z,), "l2", *rule)
    return (mean * (z - start)).sum(-1), total


def start(block: LiteralBlock, baseline: str, j: int) -> Tensor:
    """Where the path of target j starts, (S, D)."""
    return torch.zeros_like(block.z) if baseline == "zero" else block.z[j].expand_as(block.z)


def _first(output: Any) -> Tensor:
    if isinstance(output, dict) or hasattr(output, "to_tuple"):
        output = next(iter(output.values()))
    while isinstance(output, (tuple, list)):
        output = output[0]
    assert isinstance(output, Tensor)
    return output


def _without_cache(value: Any) -> Any:
    return None if isinstance(value, Cache) else value
