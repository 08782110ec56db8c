"""The boundaries of one block, for one text: totals, and the integrals of their rates.

Knows the block only as ``post`` and the path only as an :class:`AttentionPath`. Shapes: ``P`` path
points, ``R`` rows (targets), ``S`` sources, ``H`` heads, ``d`` head width, ``D`` width of the
residual stream. Results have their rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_lig.attention_path import AttentionPath, PointSet
from captum_lig.cost import Meter
from captum_lig.scalarization import cotangent, unit, value

__all__ = [
    "AttentionBoundary",
    "Chain",
    "Influence",
    "LayerBoundary",
    "MlpBoundary",
    "Rows",
    "sweep_together",
]

Post = Callable[[Tensor, Tensor], Tensor]
"""``(M, H, d)`` attention outputs and ``(M, D)`` residual stream to ``(M, D)``."""

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Rows:
    """Some rows of one block and one text: their path, and what it does at its two ends."""

    path: AttentionPath
    post: Post
    start: Tensor
    """``(R, D)`` where the residual stream of the targets starts."""
    step: Tensor
    """``(R, D)`` how far it goes."""
    u_start: Tensor
    """``(R, H, d)``"""
    moved_start: Tensor
    """``(R, H, d)`` the same up to the constant of the row that the path leaves out."""
    u_step: Tensor
    """``(R, H, d)`` change of the attention outputs along the whole path."""
    y_start: Tensor
    """``(R, D)``"""
    y_step: Tensor
    """``(R, D)`` change of the block's outputs along the whole path."""
    scalarization: str
    pairs_at_once: int
    """How many pairs of a path point and a row to evaluate at once."""
    meter: Meter

    @classmethod
    def between(
        cls,
        path: AttentionPath,
        post: Post,
        start: Tensor,
        end: Tensor,
        still: Tensor,
        scalarization: str,
        pairs_at_once: int,
        meter: Meter,
        with_outputs: bool = True,
    ) -> Rows:
        """Rows from the two ends of their path.

        Args:
            path: the path of the residual stream as the attention core sees it.
            post: what follows the attention core.
            start: ``(R, D)`` where the residual stream of the targets starts.
            end: ``(R, D)`` the residual stream of the targets.
            still: ``(R,)`` rows that the path does not move at all.
            scalarization: ``"l2"`` or ``"projection"``.
            pairs_at_once: how many pairs of a path point and a row to evaluate at once.
            meter: counts the work.
            with_outputs: whether the block's outputs are needed, beyond the attention boundary.
        """
        ends = path.at(torch.tensor([0.0, 1.0], dtype=torch.float64, device=end.device))
        u = ends.u
        if with_outputs:
            y = post(u.flatten(0, 1), torch.cat([start, end])).view(2, len(end), -1)
        else:
            y = torch.full_like(torch.stack([start, end]), torch.nan)  # nobody may look at it
        return cls(
            path=path,
            post=post,
            start=start,
            step=end - start,
            u_start=u[0],
            moved_start=ends.moved[0],
            u_step=_change(ends.moved, still[:, None]),
            y_start=y[0],
            y_step=_change(y, still),
            scalarization=scalarization,
            pairs_at_once=pairs_at_once,
            meter=meter,
        )

    def __len__(self) -> int:
        return len(self.start)

    def select(self, rows: Tensor) -> Rows:
        """Some of the rows: ``(R',)`` indices into them."""
        tensors = ("start", "step", "u_start", "moved_start", "u_step", "y_start", "y_step")
        chosen: dict[str, Any] = {name: getattr(self, name)[rows] for name in tensors}
        return replace(self, path=self.path.select(rows), **chosen)

    def with_l2(self) -> Rows | None:
        """The same rows with the l2 scalarization, or None if they have it."""
        return None if self.scalarization == "l2" else replace(self, scalarization="l2")

    def double(self) -> Rows:
        """The same rows with the attention core in float64; ``post`` stays as it is."""
        path = self.path.double()
        ends = path.at(torch.tensor([0.0, 1.0], dtype=torch.float64, device=self.step.device))
        still = self.attention_total == 0
        return replace(
            self,
            path=path,
            step=self.step.double(),
            u_start=ends.u[0],
            moved_start=ends.moved[0],
            u_step=_change(ends.moved, still),
        )

    @property
    def attention_total(self) -> Tensor:
        """Shape ``(R, H)``."""
        total: Tensor = torch.linalg.vector_norm(self.u_step, dim=-1)
        return total

    @property
    def layer_total(self) -> Tensor:
        """Shape ``(R,)``."""
        total: Tensor = torch.linalg.vector_norm(self.y_step, dim=-1)
        return total

    @property
    def moved_heads(self) -> Tensor:
        """``(R, H, 1)`` 0 where a head's output does not change, else 1."""
        return (self.attention_total > 0).to(self.u_step)[..., None]

    @property
    def moved(self) -> Tensor:
        """``(R, 1)`` 0 where the block's output does not change, else 1."""
        return (self.layer_total > 0).to(self.y_step)[:, None]

    # --- evaluation along the path ---

    def batches(self, *along: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """``(P,)`` tensors in the rows' dtype and on their device, some points at a time."""
        points = max(1, self.pairs_at_once // max(1, len(self)))
        split = [x.to(self.step).split(points) for x in along]
        return zip(*split, strict=True)

    def at(self, a: Tensor) -> PointSet:
        """The attention core at ``a (P,)``."""
        self.meter.pairs += len(a) * len(self)
        return self.path.at(a)

    def residual(self, a: Tensor) -> Tensor:
        """``(P, R, D)`` the residual stream of the targets."""
        return self.start + a.view(-1, 1, 1) * self.step

    def outputs(self, u: Tensor, z: Tensor) -> Tensor:
        """``(P, R, D)`` the block's outputs for ``u (P, R, H, d)`` and ``z (P, R, D)``."""
        return self.post(u.flatten(0, 1), z.flatten(0, 1)).view(*u.shape[:2], -1)

    def gradients(self, a: Tensor, u: Tensor, departure: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients of ``A`` of the block's outputs.

        Args:
            a: ``(P,)`` path points.
            u: ``(P, R, H, d)`` attention outputs there.
            departure: ``(R, H, d)`` velocity of ``u`` at the first point if that is where the
                path starts, or None: there the l2 norm has no gradient, and its right limit is
                the direction in which the outputs depart.

        Returns:
            ``dA/du (P, R, H, d)`` and ``dA/dz (P, R, D)``.
        """
        u, z = u.detach().requires_grad_(), self.residual(a).requires_grad_()
        with torch.enable_grad():
            y = self.outputs(u, z)
            change = y.detach() - self.y_start
            if departure is not None:
                _, dy = torch.func.jvp(  # type: ignore[misc]
                    self.outputs,
                    (u.detach()[:1], z.detach()[:1]),
                    (departure[None], self.step[None]),
                )
                change = torch.cat([dy.detach(), change[1:]])
            g = cotangent(self.scalarization, change, unit(self.y_step)) * self.moved
            gu, gz = torch.autograd.grad(y, (u, z), g, materialize_grads=True)
        self.meter.passed += len(a) * len(self)
        return gu, gz

    def starts_at(self, alphas: Tensor) -> bool:
        """Whether the first node is where the path starts and the l2 norm needs its limit."""
        return self.scalarization == "l2" and float(alphas[0]) == 0.0


# --- boundaries: what the refinement integrates -------------------------------------------------
#
# Each has ``totals (R, K)``: what its ``K`` certified sums per row have to be, and ``scale``: what
# their errors are measured against. ``across`` is its l2 twin, with a factor: a projection (and
# the chain's fixed cotangent is one) does not see what happens across it. Where a path starts
# from zero, scale-invariant norms turn the outputs round before they grow; sources then trade
# contributions that cancel in the projected sum, and only the norm shows an unresolved start.


@dataclass(frozen=True)
class MlpBoundary:
    """``(u, z) -> z'`` on a straight line between the ends of the path."""

    rows: Rows

    def select(self, rows: Tensor) -> MlpBoundary:
        """Some of the rows."""
        return MlpBoundary(self.rows.select(rows))

    def precise(self) -> MlpBoundary:
        """Itself: the block's code runs in the model's precision."""
        return self

    def across(self) -> tuple[MlpBoundary, Tensor | float] | None:
        """The l2 twin, or None if this is l2."""
        l2 = self.rows.with_l2()
        return None if l2 is None else (MlpBoundary(l2), 1.0)

    @property
    def totals(self) -> Tensor:
        """Shape ``(R, 1)``."""
        return self.rows.layer_total[:, None]

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, 1)``."""
        return self.totals

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``mlp (R, H)``, ``residual (R,)``, ``gradient (R, H, d)``: the average of ``dA/du``."""
        rows, at_start = self.rows, self.rows.starts_at(alphas)
        gradient, residual = torch.zeros_like(rows.u_step), torch.zeros_like(rows.step[:, 0])
        for a, w in rows.batches(alphas, weights):
            rows.meter.pairs += len(a) * len(rows)
            u = rows.u_start + a.view(-1, 1, 1, 1) * rows.u_step
            gu, gz = rows.gradients(a, u, rows.u_step if at_start else None)
            at_start = False
            gradient += torch.einsum("p,prhd->rhd", w, gu)
            residual += torch.einsum("p,prd,rd->r", w, gz, rows.step)
        return {
            "mlp": (gradient * rows.u_step).sum(-1),
            "residual": residual,
            "gradient": gradient,
        }

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, 1)``."""
        return (parts["mlp"].sum(-1) + parts["residual"])[:, None]

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """What sums miss of a change, as ``totals``."""
        return (sums - change).abs()

    def values(self, a: float) -> Tensor:
        """``A`` at one path point, ``(R, 1)``."""
        rows = self.rows
        u = rows.u_start + a * rows.u_step
        y = rows.post(u, rows.start + a * rows.step)
        return value(rows.scalarization, y - rows.y_start, unit(rows.y_step))[:, None]


@dataclass(frozen=True)
class AttentionBoundary:
    """``z -> u``, each head by itself."""

    gives: ClassVar[tuple[str, ...]] = ("attention",)
    rows: Rows

    def select(self, rows: Tensor) -> AttentionBoundary:
        """Some of the rows."""
        return AttentionBoundary(self.rows.select(rows))

    def precise(self) -> AttentionBoundary:
        """In float64: a head can move far and come back, and its total be lost in rounding."""
        return AttentionBoundary(self.rows.double())

    def across(self) -> tuple[AttentionBoundary, Tensor | float] | None:
        """The l2 twin, or None if this is l2."""
        l2 = self.rows.with_l2()
        return None if l2 is None else (AttentionBoundary(l2), 1.0)

    @property
    def totals(self) -> Tensor:
        """Shape ``(R, H)``."""
        return self.rows.attention_total

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, H)``."""
        return self.totals

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``attention (R, H, S)``."""
        return sweep_together([self], alphas, weights)

    def rates(self, a: Tensor, w: Tensor, at: PointSet, first: bool) -> Parts:
        """The share of some nodes: ``attention (R, H, S)``."""
        rows = self.rows
        change = at.moved - rows.moved_start
        if first:
            change = torch.cat([at.velocity()[:1], change[1:]])
        g = cotangent(rows.scalarization, change, unit(rows.u_step)) * rows.moved_heads
        return {"attention": _rates(at, w, g)}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, H)``."""
        return parts["attention"].sum(-1)

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """What sums miss of a change, as ``totals``."""
        return (sums - change).abs()

    def values(self, a: float) -> Tensor:
        """``A`` at one path point, ``(R, H)``."""
        rows = self.rows
        change = rows.path.at(_one(a, rows)).moved[0] - rows.moved_start
        return value(rows.scalarization, change, unit(rows.u_step))


@dataclass(frozen=True)
class Chain:
    """``z -> u`` with the cotangent ``(R, H, d)`` that the mlp boundary hands down."""

    gives: ClassVar[tuple[str, ...]] = ("chain",)
    rows: Rows
    gradient: Tensor

    def select(self, rows: Tensor) -> Chain:
        """Some of the rows."""
        return Chain(self.rows.select(rows), self.gradient[rows])

    def precise(self) -> Chain:
        """In float64."""
        return Chain(self.rows.double(), self.gradient.double())

    def across(self) -> tuple[AttentionBoundary, Tensor | float] | None:
        """The l2 attention boundary, times the length of the cotangent ``(R, H)``."""
        rows = self.rows.with_l2() or self.rows
        return AttentionBoundary(rows), torch.linalg.vector_norm(self.gradient, dim=-1)

    @property
    def totals(self) -> Tensor:
        """Shape ``(R, H)``."""
        return (self.gradient * self.rows.u_step).sum(-1)

    @property
    def scale(self) -> Tensor:
        """``(R, 1)``: a head's share of a target can be 0, so the target's total counts."""
        return self.rows.layer_total[:, None]

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``chain (R, H, S)``."""
        return sweep_together([self], alphas, weights)

    def rates(self, a: Tensor, w: Tensor, at: PointSet, first: bool) -> Parts:
        """The share of some nodes: ``chain (R, H, S)``."""
        return {"chain": _rates(at, w, self.gradient.expand(len(a), -1, -1, -1))}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, H)``."""
        return parts["chain"].sum(-1)

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """What sums miss of a change, as ``totals``."""
        return (sums - change).abs()

    def values(self, a: float) -> Tensor:
        """``<gradient, u(a) - u(0)>`` at one path point, ``(R, H)``."""
        moved = self.rows.path.at(_one(a, self.rows)).moved[0] - self.rows.moved_start
        return (self.gradient * moved).sum(-1)


@dataclass(frozen=True)
class LayerBoundary:
    """``z -> z'`` in one go."""

    gives: ClassVar[tuple[str, ...]] = ("layer",)
    rows: Rows

    def select(self, rows: Tensor) -> LayerBoundary:
        """Some of the rows."""
        return LayerBoundary(self.rows.select(rows))

    def precise(self) -> LayerBoundary:
        """Itself: the block's code runs in the model's precision."""
        return self

    def across(self) -> tuple[LayerBoundary, Tensor | float] | None:
        """The l2 twin, or None if this is l2."""
        l2 = self.rows.with_l2()
        return None if l2 is None else (LayerBoundary(l2), 1.0)

    @property
    def totals(self) -> Tensor:
        """Shape ``(R, 1)``."""
        return self.rows.layer_total[:, None]

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, 1)``."""
        return self.totals

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``layer (R, S)``."""
        return sweep_together([self], alphas, weights)

    def rates(self, a: Tensor, w: Tensor, at: PointSet, first: bool) -> Parts:
        """The share of some nodes: ``layer (R, S)``."""
        rows = self.rows
        gu, gz = rows.gradients(a, at.u, at.velocity()[0] if first else None)
        rates = _rates(at, w, gu).sum(1)
        own = torch.einsum("p,prd,rd->r", w, gz, rows.step)
        rates[torch.arange(len(own), device=own.device), at.rows] += own
        return {"layer": rates}

    def sums(self, parts: Parts) -> Tensor:
        """Shape ``(R, 1)``."""
        return parts["layer"].sum(-1, keepdim=True)

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """What sums miss of a change, as ``totals``."""
        return (sums - change).abs()

    def values(self, a: float) -> Tensor:
        """``A`` at one path point, ``(R, 1)``."""
        rows = self.rows
        y = rows.post(rows.path.at(_one(a, rows)).u[0], rows.start + a * rows.step)
        return value(rows.scalarization, y - rows.y_start, unit(rows.y_step))[:, None]


@dataclass(frozen=True)
class Influence:
    """The attention and layer boundaries without a scalarization: each source's vector."""

    rows: Rows

    def select(self, rows: Tensor) -> Influence:
        """Some of the rows."""
        return Influence(self.rows.select(rows))

    def precise(self) -> Influence:
        """With the attention core in float64."""
        return Influence(self.rows.double())

    def across(self) -> None:
        """Nothing: vectors see everything."""

    @property
    def totals(self) -> Tensor:
        """``(R, H * d + D)``: the changes of each head's output and of the block's."""
        return self._joined(self.rows.u_step, self.rows.y_step)

    @property
    def scale(self) -> Tensor:
        """Shape ``(R, H + 1)``."""
        return torch.cat([self.rows.attention_total, self.rows.layer_total[:, None]], -1)

    def miss(self, sums: Tensor, change: Tensor) -> Tensor:
        """Lengths ``(R, H + 1)`` of what is missing of each head's and of the block's change."""
        heads, width = self.rows.u_step.shape[1:]
        u, y = (sums - change).split([heads * width, self.rows.y_step.shape[-1]], -1)
        lengths: Tensor = torch.linalg.vector_norm(u.view(len(u), heads, width), dim=-1)
        return torch.cat([lengths, torch.linalg.vector_norm(y, dim=-1, keepdim=True)], -1)

    def sweep(self, alphas: Tensor, weights: Tensor) -> Parts:
        """``head_vectors (R, S, H, d)`` and ``vectors (R, S, D)``."""
        rows = self.rows
        dtype = rows.y_start.dtype
        parts: Parts = {}
        # One point at a time: a point is rows times sources vectors already.
        for a, w in zip(alphas.to(rows.step).split(1), weights.to(rows.step), strict=True):
            at = rows.at(a)
            heads = at.vectors()[0] * rows.moved_heads[:, None]
            count, sources = heads.shape[:2]
            residual = torch.zeros(
                count, sources, rows.step.shape[-1], dtype=dtype, device=heads.device
            )
            residual[torch.arange(count, device=heads.device), at.rows] = rows.step.to(dtype)
            u, z = at.u[0].to(dtype), rows.residual(a)[0].to(dtype)
            vectors = _push(rows.post, (u, z), (heads.to(dtype), residual))
            rows.meter.passed += count * sources
            vectors = vectors * rows.moved[:, None]
            for name, part in (("head_vectors", heads), ("vectors", vectors)):
                parts[name] = parts[name] + w * part if name in parts else w * part
        return parts

    def sums(self, parts: Parts) -> Tensor:
        """``(R, H * d + D)``, as ``totals``."""
        return self._joined(parts["head_vectors"].sum(1), parts["vectors"].sum(1))

    def values(self, a: float) -> Tensor:
        """Changes so far at one path point, as ``totals``."""
        rows, dtype = self.rows, self.rows.y_start.dtype
        at = rows.path.at(_one(a, rows))
        y = rows.post(at.u[0].to(dtype), rows.residual(_one(a, rows))[0].to(dtype))
        return self._joined(at.moved[0] - rows.moved_start, y - rows.y_start)

    def _joined(self, u: Tensor, y: Tensor) -> Tensor:
        return torch.cat([u.flatten(1), y.to(u.dtype)], -1)


Boundary = MlpBoundary | AttentionBoundary | Chain | LayerBoundary | Influence


def sweep_together(
    boundaries: list[AttentionBoundary | Chain | LayerBoundary], alphas: Tensor, weights: Tensor
) -> Parts:
    """Integrate boundaries that share their rows, evaluating the attention core once."""
    rows, sums = boundaries[0].rows, Parts()
    at_start = rows.starts_at(alphas)
    for a, w in rows.batches(alphas, weights):
        at = rows.at(a)
        for boundary in boundaries:
            for name, part in boundary.rates(a, w, at, at_start).items():
                sums[name] = sums[name] + part if name in sums else part
        at_start = False
    return sums


def _rates(at: PointSet, w: Tensor, g: Tensor) -> Tensor:
    """Weighted rates ``(R, H, S)`` for cotangents ``g (P, R, H, d)``."""
    return at.rates(g * w.view(-1, 1, 1, 1)).transpose(0, 1)


def _push(post: Post, at: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor]) -> Tensor:
    """Jacobian-vector products of ``post`` at ``R`` tokens, for ``S`` tangents each.

    Args:
        post: the map.
        at: ``(R, H, d)`` and ``(R, D)``.
        tangents: ``(R, S, H, d)`` and ``(R, S, D)``.

    Returns:
        ``(R, S, D)``.
    """
    count, sources = tangents[0].shape[:2]
    if count == sources:
        # The block runs on whole sequences: as many rows as tokens fill one, and the tangents
        # can share its forward pass.
        def push(du: Tensor, dz: Tensor) -> Tensor:
            moved: Tensor = torch.func.jvp(post, at, (du, dz))[1]
            return moved

        pushed: Tensor = torch.func.vmap(push, in_dims=1, out_dims=1)(*tangents)
        return pushed.detach()
    _, moved = torch.func.jvp(  # type: ignore[misc]
        post,
        tuple(x.repeat_interleave(sources, 0) for x in at),
        tuple(x.flatten(0, 1) for x in tangents),
    )
    return moved.detach().view(count, sources, -1)  # type: ignore[no-any-return]


def _change(ends: Tensor, still: Tensor) -> Tensor:
    """Change between ``ends (2, ..., d)``; exactly 0 if ``still (...)`` or lost in rounding."""
    change = ends[1] - ends[0]
    size = torch.linalg.vector_norm(ends, dim=-1).amax(0)
    rounding = 2 * torch.finfo(ends.dtype).eps * size
    nothing = still | (torch.linalg.vector_norm(change, dim=-1) <= rounding)
    return change.masked_fill(nothing[..., None], 0.0)


def _one(a: float, rows: Rows) -> Tensor:
    return torch.tensor([a], dtype=rows.step.dtype, device=rows.step.device)
