"""Some rows of one block and one text: their path, its two ends, and what happens on the way.

Shapes: ``P`` path points, ``R`` rows (targets), ``S`` sources, ``H`` heads, ``d`` head width, ``D``
width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_lig._types import Post
from captum_lig.cost import Meter
from captum_lig.paths.base import AttentionPath, Points
from captum_lig.paths.jvp import jvp, jvp_of_many

__all__ = ["AroundMlp", "Rows"]


class AroundMlp(Protocol):
    """What comes before and after the MLP's output of a block, token by token."""

    def feed_forward(self, u: Tensor, z: Tensor, positions: Tensor) -> Tensor:
        """``u (M, H, d)``, ``z (M, D)``, positions ``(M,)`` to the MLP's output ``m (M, D)``."""

    def output(self, u: Tensor, z: Tensor, m: Tensor, positions: Tensor) -> Tensor:
        """The same and ``m (M, D)`` to the tokens leaving, ``(M, D)``."""


@dataclass(frozen=True)
class Rows:
    """Some rows of one block and one text: their path, and what it does at its two ends."""

    path: AttentionPath
    block_post: Post
    positions: Tensor
    """``(R,)`` positions of the targets in the text."""
    start: Tensor
    """``(R, D)`` where the residual stream of the targets starts."""
    step: Tensor
    """``(R, D)`` how far it goes."""
    u_start: Tensor
    """``(R, H, d)`` attention outputs where the path starts."""
    moved_start: Tensor
    """``(R, H, d)`` the same up to the constant of the row that the path leaves out."""
    u_step: Tensor
    """``(R, H, d)`` change of the attention outputs along the whole path."""
    y_start: Tensor
    """``(R, D)`` the block's outputs where the path starts; NaN if nothing needs them."""
    y_step: Tensor
    """``(R, D)`` their change along the whole path."""
    self_weight: Tensor | None
    """``(R, H)`` attention weight of the targets on themselves at the end of the path; None if it
    is hidden."""
    pairs_at_once: int
    """How many pairs of a path point and a row to evaluate at once."""
    meter: Meter
    has_heads: bool = True
    """False if the block's attention is not reached: then the block counts as one head."""
    around_mlp: AroundMlp | None = None
    """What comes before and after the MLP's output, if that is a node."""
    m_start: Tensor | None = None
    """``(R, D)`` the MLP's output where the path starts, if it is a node."""
    m_step: Tensor | None = None
    """``(R, D)`` its change along the whole path."""

    @classmethod
    def between(
        cls,
        path: AttentionPath,
        post: Post,
        positions: Tensor,
        start: Tensor,
        end: Tensor,
        unmoved: Tensor,
        pairs_at_once: int,
        meter: Meter,
        with_outputs: bool = True,
        has_heads: bool = True,
        around_mlp: AroundMlp | None = None,
    ) -> Rows:
        """Rows from the two ends of their path.

        Args:
            path: the path of the residual stream as the attention core sees it.
            post: what follows the attention core.
            positions: ``(R,)`` positions of the targets in the text.
            start: ``(R, D)`` where the residual stream of the targets starts.
            end: ``(R, D)`` the residual stream of the targets.
            unmoved: ``(R,)`` True for rows that nothing on the path can move.
            pairs_at_once: how many pairs of a path point and a row to evaluate at once.
            meter: counts the work.
            with_outputs: whether the block's outputs are needed, beyond the attention boundary.
            has_heads: whether the block's attention is reached.
            around_mlp: what comes before and after the MLP's output, if that is to be a node.
        """
        ends = path.at(torch.tensor([0.0, 1.0], dtype=torch.float64, device=end.device))
        u, weights = ends.u, ends.self_weights
        if with_outputs:
            both = torch.cat([start, end]), positions.repeat(2)
            y = post(u.flatten(0, 1), *both).view(2, len(end), -1)
        else:
            y = torch.full_like(torch.stack([start, end]), torch.nan)
        return cls(
            path=path,
            block_post=post,
            positions=positions,
            start=start,
            step=end - start,
            u_start=u[0],
            moved_start=ends.moved[0],
            u_step=_change(ends.moved, u, unmoved[:, None]),
            y_start=y[0],
            y_step=_change(y, y, unmoved),
            self_weight=None if weights is None else weights[1],
            pairs_at_once=pairs_at_once,
            meter=meter,
            has_heads=has_heads,
            around_mlp=around_mlp,
        ).with_feed_forward()

    def __len__(self) -> int:
        return len(self.start)

    def select(self, rows: Tensor) -> Rows:
        """Some of the rows: ``(R',)`` indices into them."""
        chosen: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, path=self.path.select(rows), **chosen)

    def from_zero(self) -> Rows:
        """The same rows as the mlp boundary sees them if ``u`` starts at zero.

        The residual stream is held where it ends. The path of the attention core is not theirs.
        """
        u = torch.stack([torch.zeros_like(self.u_start), self.u_start + self.u_step])
        end = self.start + self.step
        y = self.post(u.flatten(0, 1), torch.cat([end, end])).view(2, len(end), -1)
        return replace(
            self,
            start=end,
            step=torch.zeros_like(end),
            u_start=u[0],
            u_step=u[1],
            y_start=y[0],
            y_step=_change(y, y, (u[1] == 0).flatten(1).all(-1)),
        ).with_feed_forward()

    def with_feed_forward(self) -> Rows:
        """The same rows with the MLP's output at both ends of the path, if it is a node."""
        if self.around_mlp is None:
            return self
        u = torch.cat([self.u_start, self.u_start + self.u_step])
        z = torch.cat([self.start, self.start + self.step])
        m = self.around_mlp.feed_forward(u, z, self.positions.repeat(2)).detach()
        start, end = m.view(2, len(self), -1)
        return replace(self, m_start=start, m_step=end - start)

    def double(self) -> Rows:
        """The same rows with the attention core in float64; ``post`` stays as it is."""
        path = self.path.double()
        ends = path.at(torch.tensor([0.0, 1.0], dtype=torch.float64, device=self.step.device))
        return replace(
            self,
            path=path,
            u_start=ends.u[0],
            moved_start=ends.moved[0],
            u_step=_change(ends.moved, ends.u, self.attention_total == 0),
        )

    @property
    def attention_total(self) -> Tensor:
        """``(R, H)`` lengths of the heads' changes."""
        total: Tensor = torch.linalg.vector_norm(self.u_step, dim=-1)
        return total

    @property
    def layer_total(self) -> Tensor:
        """``(R,)`` lengths of the outputs' changes."""
        total: Tensor = torch.linalg.vector_norm(self.y_step, dim=-1)
        return total

    # --- evaluation along the path ---

    def point(self, a: float) -> Tensor:
        """A single path point, ``(1,)``."""
        return torch.tensor([a], dtype=torch.float64, device=self.step.device)

    def at(self, a: Tensor) -> Points:
        """The attention core at ``a (P,)``."""
        self.meter.pairs += len(a) * len(self)
        return self.path.at(a)

    def residual(self, a: Tensor) -> Tensor:
        """``(P, R, D)`` the residual stream of the targets at ``a (P,)``."""
        return self.start + a.to(self.step).view(-1, 1, 1) * self.step

    def post(self, u: Tensor, z: Tensor) -> Tensor:
        """``(M, D)`` the block's outputs for ``u (M, H, d)`` and ``z (M, D)``, rows last."""
        return self.block_post(u, z, self.positions.repeat(len(z) // len(self)))

    def outputs(self, u: Tensor, z: Tensor) -> Tensor:
        """``(P, R, D)`` the block's outputs for ``u (P, R, H, d)`` and ``z (P, R, D)``."""
        return self.post(u.flatten(0, 1), z.flatten(0, 1)).view(*u.shape[:2], -1)

    def gradients(
        self,
        a: Tensor,
        u: Tensor,
        cotangent: Callable[[Tensor], Tensor],
        departure: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Vector-Jacobian products of the block's outputs.

        Args:
            a: ``(P,)`` path points.
            u: ``(P, R, H, d)`` attention outputs there.
            cotangent: from the outputs' changes since the start ``(P, R, D)`` to the cotangents.
            departure: ``(R, H, d)`` derivative of ``u`` at the first point if that is where the
                path starts and the cotangent is of the direction in which the outputs leave it.

        Returns:
            ``(P, R, H, d)`` for ``u`` and ``(P, R, D)`` for the residual stream.
        """
        u, z = u.detach().requires_grad_(), self.residual(a).requires_grad_()
        with torch.enable_grad():
            y = self.outputs(u, z)
            change = y.detach() - self.y_start
            if departure is not None:
                start, direction = (u.detach()[:1], z.detach()[:1]), (departure, self.step)
                _, dy = jvp(self.outputs, start, tuple(x[None] for x in direction))
                change = torch.cat([dy, change[1:]])
            gu, gz = torch.autograd.grad(y, (u, z), cotangent(change), materialize_grads=True)
        self.meter.passed += len(a) * len(self)
        return gu, gz

    def pulled(
        self,
        function: Callable[..., Tensor],
        at: tuple[Tensor, ...],
        cotangent: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        """Vector-Jacobian products of a function of tokens by themselves.

        Args:
            function: tensors ``(M, ...)`` and positions ``(M,)`` to ``(M, D)``.
            at: its arguments at some points, ``(P, R, ...)``.
            cotangent: from the values there to their cotangents, ``(P, R, D)``.

        Returns:
            ``(P, R, ...)`` for each argument.
        """
        points = at[0].shape[:2]
        inputs = [x.detach().flatten(0, 1).requires_grad_() for x in at]
        with torch.enable_grad():
            y = function(*inputs, self.positions.repeat(points[0]))
        g = cotangent(y.detach().unflatten(0, points)).flatten(0, 1).to(y)
        found = torch.autograd.grad(y, inputs, g, materialize_grads=True)
        self.meter.passed += len(inputs[0])
        return tuple(x.unflatten(0, points) for x in found)

    def vectors(self, a: Tensor, u: Tensor, rates: Tensor, positions: Tensor) -> Tensor:
        """What each source contributes to the outputs per unit of the path at one point.

        Args:
            a: the point, a tensor without dimensions.
            u: ``(R, H, d)`` attention outputs there.
            rates: ``(R, S, H, d)`` what each source contributes to them.
            positions: ``(R,)`` positions of the rows among the sources.

        Returns:
            ``(R, S, D)``.
        """
        dtype, (count, sources) = self.y_start.dtype, rates.shape[:2]
        moves = (self.attention_total > 0)[:, None, :, None]
        residual = self.step.new_zeros(count, sources, self.step.shape[-1])
        residual[torch.arange(count, device=residual.device), positions] = self.step
        at = u.to(dtype), self.residual(a)[0].to(dtype)
        self.meter.passed += count * sources

        def post(u: Tensor, z: Tensor) -> Tensor:
            many = len(z) // count  # what is run for each of the sources stands side by side
            return self.block_post(u, z, self.positions.repeat_interleave(many))

        return jvp_of_many(post, at, ((rates * moves).to(dtype), residual.to(dtype)))


def _change(ends: Tensor, whole: Tensor, unmoved: Tensor) -> Tensor:
    """Change between ``ends (2, ..., d)``; exactly 0 if ``unmoved (...)`` or lost in rounding.

    ``ends`` may lack a constant that ``whole`` has: a change that an output of that size cannot
    show is none, however well it is known. (A head that looks at its target alone at both ends,
    and elsewhere between, would have a total of 1e-30 to share out among sources that matter.)
    """
    change = ends[1] - ends[0]
    size = torch.linalg.vector_norm(whole, dim=-1).amax(0)
    rounding = 2 * torch.finfo(ends.dtype).eps * size
    nothing = unmoved | (torch.linalg.vector_norm(change, dim=-1) <= rounding)
    return change.masked_fill(nothing[..., None], 0.0)
