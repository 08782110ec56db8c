"""Relevance of every node and edge for a number, from the definition: slow, and without captum_lig.

Two runs of one text; then downwards from the number F, stage by stage: the multiplier of an
argument x of y = S(x, ...) is the mean of J_S(x(a))^T g_y, with all arguments on their straight
lines from one run to the other. One autograd call a node of the quadrature, and for edges one for
each head's output. Matrices are [target, source].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

NODES = 64
Number = Callable[[Tensor], Tensor]  # the model's output for a batch -> (B,)


class Block(Protocol):
    """A block's pieces, for one text. Without attention u is None, without an MLP m is None."""

    attends: bool
    has_mlp: bool

    def queries_keys_values(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...
    def feed_forward(self, z: Tensor, u: Tensor | None) -> Tensor: ...
    def output(self, z: Tensor, u: Tensor | None, m: Tensor | None) -> Tensor: ...


class Model(Protocol):
    """A model's pieces: one text's input -> z (S, D), and (1, S, D) -> the output, a batch of 1."""

    blocks: Any  # a list of Block

    def embed(self, inputs: Tensor) -> Tensor: ...
    def read(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Values:
    """What one run gives in a block: z ``(S, D)``, u ``(H, S, d)``, m and z' ``(S, D)``."""

    z: Tensor
    u: Tensor | None
    m: Tensor | None
    leaving: Tensor


@dataclass(frozen=True)
class Edges:
    """What goes into the heads' outputs: ``(H, T, S)`` each.

    ``total`` lets z_i move and all that hangs on it. In the other three one argument of the
    attention alone moves: the value v_i, the key k_i, or the query q_i (of the target i alone).
    """

    total: Tensor
    value: Tensor
    key: Tensor
    query: Tensor


@dataclass(frozen=True)
class Layer:
    """Relevances of one block's nodes and edges, in units of the number; multipliers ``g_*``.

    Heads are an axis of length 0 in a block that does not attend, and ``feed_forward*`` are zeros
    in a block without an MLP.
    """

    edges: Edges
    mlp: Tensor  # (T, H)
    feed_forward: Tensor  # (T,)
    feed_forward_heads: Tensor  # (T, H)
    feed_forward_token: Tensor  # (T,)
    residual: Tensor  # (T,)
    past: Tensor  # (T, H), edges u -> z' past the MLP
    mlp_total: Tensor  # (T,)
    entering: Tensor  # (S,)
    g_z: Tensor
    g_u: Tensor | None
    g_m: Tensor | None
    g_leaving: Tensor

    @property
    def attention(self) -> Tensor:
        return self.edges.total

    @property
    def fields(self) -> dict[str, Tensor]:
        """By their names in a flow, without the axis of texts; only what there is in the block."""
        found = {
            "attention": self.attention,
            "attention_value": self.edges.value,
            "attention_total": self.mlp.T,
            "mlp": self.mlp,
            "feed_forward": self.feed_forward,
            "feed_forward_heads": self.feed_forward_heads,
            "feed_forward_token": self.feed_forward_token,
            "residual": self.residual,
            "mlp_total": self.mlp_total,
            "entering": self.entering,
        }
        if self.g_m is None:
            found = {name: x for name, x in found.items() if not name.startswith("feed_forward")}
        return {name: x for name, x in found.items() if x.numel()}


@dataclass(frozen=True)
class Relevance:
    """``layers`` from the bottom up; ``change`` is F(input) - F(baseline)."""

    layers: list[Layer]
    change: Tensor


def relevance(
    model: Model,
    number: Number,
    text: Tensor,
    baseline: Tensor,
    nodes: int = NODES,
    whole: Iterable[int] = (),
) -> Relevance:
    """The graph of one text: ``text`` and ``baseline`` ``(S,)`` or ``(S, D)``.

    Layers in ``whole`` keep the stage (z, u) -> z' in one, as where no MLP is found.
    """
    whole = set(whole)
    cuts = [layer not in whole and block.has_mlp for layer, block in enumerate(model.blocks)]
    ends, starts = run(model, text, cuts), run(model, baseline, cuts)

    def top(z: Tensor) -> Tensor:
        return number(model.read(z[None]))[0]

    g = top_multiplier(top, starts[-1].leaving, ends[-1].leaving, nodes)
    layers = down(model.blocks, starts, ends, g, nodes)
    return Relevance(layers, top(ends[-1].leaving) - top(starts[-1].leaving))


def top_multiplier(
    top: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, nodes: int
) -> Tensor:
    """The mean gradient of a number of the last block's tokens, ``(S, D)``."""
    (g,) = multipliers(top, [start], [end], torch.ones((), dtype=torch.float64), nodes)
    assert g is not None
    return g


def down(
    blocks: Iterable[Block],
    starts: Sequence[Values],
    ends: Sequence[Values],
    g: Tensor,
    nodes: int,
) -> list[Layer]:
    """Blocks from the bottom up, given the multiplier of what leaves the last."""
    layers = []
    for block, start, end in reversed(list(zip(blocks, starts, ends, strict=True))):
        layers.append(_layer(block, start, end, g, nodes))
        g = layers[-1].g_z
    return layers[::-1]


def run(model: Model, text: Tensor, cuts: Sequence[bool]) -> list[Values]:
    """The values of every node of one text; ``cuts``: whether the MLP is a node of the block."""
    return run_blocks(model.blocks, model.embed(text), cuts)


def run_blocks(blocks: Iterable[Block], z: Tensor, cuts: Sequence[bool]) -> list[Values]:
    """The same, given what enters the first."""
    values = []
    for block, cut in zip(blocks, cuts, strict=True):
        u = block.attend(*block.queries_keys_values(z)) if block.attends else None
        m = block.feed_forward(z, u) if block.has_mlp else None
        leaving = block.output(z, u, m)
        values.append(Values(z, u, m if cut else None, leaving))
        z = leaving
    return values


def _layer(block: Block, start: Values, end: Values, g: Tensor, nodes: int) -> Layer:
    cut = start.m is not None

    def output(z: Tensor, u: Tensor | None, m: Tensor | None) -> Tensor:
        if block.has_mlp and not cut:
            m = block.feed_forward(z, u)
        return block.output(z, u, m)

    out_z, out_u, g_m = multipliers(
        output, [start.z, start.u, start.m], [end.z, end.u, end.m], g, nodes
    )
    assert out_z is not None
    if cut:
        assert g_m is not None
        ff_z, ff_u = multipliers(block.feed_forward, [start.z, start.u], [end.z, end.u], g_m, nodes)
    else:
        ff_z = ff_u = None
    g_u = _sum(out_u, ff_u)
    edges, attention_z = attention_edges(block, start.z, end.z, g_u, nodes)
    g_z = out_z + (0.0 if ff_z is None else ff_z) + attention_z
    return Layer(
        edges=edges,
        mlp=_heads(g_u, start, end),
        feed_forward=_tokens(g_m, start.m, end.m, start.z),
        feed_forward_heads=_heads(ff_u, start, end),
        feed_forward_token=_tokens(ff_z, start.z, end.z, start.z),
        residual=_tokens(out_z, start.z, end.z, start.z),
        past=_heads(out_u, start, end),
        mlp_total=_tokens(g, start.leaving, end.leaving, start.z),
        entering=_tokens(g_z, start.z, end.z, start.z),
        g_z=g_z,
        g_u=g_u,
        g_m=g_m,
        g_leaving=g,
    )


def multipliers(
    stage: Callable[..., Tensor],
    starts: Sequence[Tensor | None],
    ends: Sequence[Tensor | None],
    g: Tensor,
    nodes: int = NODES,
) -> list[Tensor | None]:
    """Of each argument, the integral of J(x(a))^T g along all straight lines together.

    An argument that is None is not there, and has none.
    """
    totals = [None if start is None else torch.zeros_like(start) for start in starts]
    for a, weight in gauss_legendre(nodes):
        at = [
            None if s is None or e is None else (s + a * (e - s)).detach().requires_grad_()
            for s, e in zip(starts, ends, strict=True)
        ]
        y = (g * stage(*at)).sum()
        given = [x for x in at if x is not None]
        found = iter(torch.autograd.grad(y, given, allow_unused=True))
        for x, total in zip(at, totals, strict=True):
            if x is not None and total is not None:
                gradient = next(found)
                total += 0.0 if gradient is None else weight * gradient
    return totals


def attention_edges(
    block: Any, start: Tensor, end: Tensor, g_u: Tensor | None, nodes: int
) -> tuple[Edges, Tensor]:
    """The edges z -> u, z from ``start`` to ``end (S, D)``, and their sum's multiplier of z."""
    g_z, length = torch.zeros_like(start), len(start)
    if g_u is None:
        return Edges(*(start.new_zeros(0, length, length) for _ in range(4))), g_z
    heads = len(g_u)
    total, value, key, query = (g_u.new_zeros(heads, length, length) for _ in range(4))
    change = end - start
    for a, weight in gauss_legendre(nodes):
        z = (start + a * change).detach().requires_grad_()
        q, k, v = block.queries_keys_values(z)
        u = block.attend(q, k, v)
        _, moves = jvp(block.queries_keys_values, z.detach(), change)  # of q, k, v along the line
        for h in range(heads):
            for j in range(length):
                of_z, of_q, of_k, of_v = gradients(g_u[h, j] @ u[h, j], z, q, k, v)
                total[h, j] += weight * (of_z * change).sum(-1)
                g_z += weight * of_z
                # (heads, S, d): what token i brings, in whichever head
                query[h, j] += weight * (of_q * moves[0]).sum((0, 2))
                key[h, j] += weight * (of_k * moves[1]).sum((0, 2))
                value[h, j] += weight * (of_v * moves[2]).sum((0, 2))
    return Edges(total, value, key, query), g_z


def gauss_legendre(nodes: int) -> list[tuple[float, float]]:
    """Nodes in [0, 1] and their weights."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    return [(float(x + 1) / 2, float(w) / 2) for x, w in zip(at, weights, strict=True)]


jvp: Any = torch.autograd.functional.jvp


def gradients(y: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, of, retain_graph=True)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first + second


def _heads(g: Tensor | None, start: Values, end: Values) -> Tensor:
    """<g, change> of each head's output: (T, H)."""
    if start.u is None or end.u is None:
        return start.z.new_zeros(len(start.z), 0)
    if g is None:
        return start.u.new_zeros(start.u.shape[:2]).T
    return (g * (end.u - start.u)).sum(-1).T


def _tokens(g: Tensor | None, start: Tensor | None, end: Tensor | None, like: Tensor) -> Tensor:
    """<g, change> of each token: (S,)."""
    if g is None or start is None or end is None:
        return like.new_zeros(len(like))
    return (g * (end - start)).sum(-1)
