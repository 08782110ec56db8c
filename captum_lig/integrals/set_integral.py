"""Integrals of a set-to-set map's gradients, for any callable, by autograd.

Shapes: ``B`` examples, ``T`` targets, ``E`` width of an output (1 for scalars), ``N`` path
points in flight. Inputs are tuples of tensors ``(B, ...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from captum_lig.errors import LigError
from captum_lig.integrals.scalarization import cotangent, unit

__all__ = ["SetIntegral"]

Tensors = tuple[Tensor, ...]
Forward = Callable[[Tensors, Tensor], Tensor]
"""Inputs ``(N, ...)`` and the examples they belong to ``(N,)``, to outputs ``(N, T, E)``."""

FLOATS_IN_FLIGHT = 2**25


@dataclass
class SetIntegral:
    """Path integrals from ``starts`` to ``ends``, row by row.

    Attributes:
        forward: the map.
        starts: start of each input, ``(B, ...)`` for a path shared by all targets.
        ends: the inputs ``(B, ...)``.
        per_target: True if ``starts`` is ``(B, T, ...)``, a path of its own for each target.
        scalarization: ``"l2"``, ``"projection"``, ``"vector"``, or ``"scalar"``: outputs are
            numbers already.
        internal_batch_size: most pairs of a path point and a target in flight, or None.
    """

    forward: Forward
    starts: Tensors
    ends: Tensors
    per_target: bool
    scalarization: str
    internal_batch_size: int | None

    def __post_init__(self) -> None:
        self._batched = True
        examples = self.ends[0].shape[0]
        index = torch.arange(examples, device=self.ends[0].device)
        self._y1 = self._apart(self.ends, index, None)
        self.targets = self._y1.shape[1]
        if self.per_target:
            pairs = torch.cartesian_prod(index, torch.arange(self.targets, device=index.device))
            example, target = pairs.view(-1, 2).T
            flat = tuple(x.flatten(0, 1) for x in self.starts)
            self._y0 = self._apart(flat, example, target).view_as(self._y1)
        else:
            self._y0 = self._apart(self.starts, index, None)
        for y in (self._y0, self._y1):
            if not bool(torch.isfinite(y).all()):
                raise LigError(
                    "forward_func gives outputs that are not finite (NaN or infinity) at the "
                    "inputs or at the baselines: look at it there."
                )
        change = self._y1 - self._y0
        scalar = self.scalarization == "scalar"
        self._direction = torch.ones_like(change) if scalar else unit(change)
        self.total = (
            change if self.scalarization == "vector" else (change * self._direction).sum(-1)
        )
        """``(B, T)``, or ``(B, T, E)`` for vectors: what each row's attributions add up to."""

    def attribute(self, alphas: Tensor, weights: Tensor, multiply: bool) -> Tensors:
        """Integrate.

        Args:
            alphas: ``(P,)`` nodes, ascending.
            weights: ``(P,)`` their weights, float64 like the nodes.
            multiply: multiply the averaged gradients by the inputs' change along the path.

        Returns:
            For each input ``(B, T, ...)``.
        """
        departure = None
        if self.scalarization == "l2" and bool(alphas[0] == 0):
            departure = self._departure()
        device = self.ends[0].device
        sweep = self._per_target if self.per_target else self._shared
        sums = sweep(alphas.to(device), weights.to(device), departure)
        if not multiply:
            return sums
        steps = self._steps()
        if not self.per_target:
            steps = tuple(step.unsqueeze(1) for step in steps)
        return tuple(s * step for s, step in zip(sums, steps, strict=True))

    def vectors(self, alphas: Tensor, weights: Tensor, multiply: bool) -> Tensors:
        """Integrate without a scalarization.

        One Jacobian-vector product for each path point and source, with all targets at once if
        they share their path.

        Args:
            alphas: ``(P,)`` nodes.
            weights: ``(P,)`` their weights.
            multiply: move each source by its change along the path; else by 1 in each feature.

        Returns:
            For each input ``(B, T, S, E)``.
        """
        device = self.ends[0].device
        alphas, weights = alphas.to(device), weights.to(device)
        own = self.targets if self.per_target else 1
        starts, steps = self.starts, self._steps()
        if self.per_target:
            starts, steps = (tuple(x.flatten(0, 1) for x in y) for y in (starts, steps))
        results = []
        for which, x in enumerate(self.ends):
            sources, paths = x.shape[1], len(starts[0])
            tail = self._y0.shape[2:] if self.per_target else self._y0.shape[1:]
            total = self._y0.new_zeros(paths, sources, *tail)
            node, rest = _pairs(len(alphas), paths * sources, device)
            path, source = rest // sources, rest % sources
            for part in torch.arange(len(node), device=device).split(self._points(self.targets)):
                at, p, s = node[part], path[part], source[part]
                inputs = tuple(
                    start[p] + _like(alphas[at], start) * step[p]
                    for start, step in zip(starts, steps, strict=True)
                )
                tangents = [torch.zeros_like(y) for y in inputs]
                row = torch.arange(len(part), device=device)
                moved = steps[which][p, s]
                tangents[which][row, s] = moved if multiply else torch.ones_like(moved)
                dy = self._push(inputs, tuple(tangents), p // own)
                if self.per_target:
                    dy = dy[row, p % own]
                total.index_put_((p, s), _like(weights[at], dy) * dy, accumulate=True)
            if self.per_target:
                results.append(total.unflatten(0, (-1, own)))
            else:
                results.append(total.transpose(1, 2))
        return tuple(results)

    def _push(self, inputs: Tensors, tangents: Tensors, example: Tensor) -> Tensor:
        """Jacobian-vector products ``(N, T, E)``.

        By reverse mode twice, which more operations support than forward mode; fused attention
        kernels support neither.
        """
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            pushed: Tensor = torch.autograd.functional.jvp(
                lambda *x: self.forward(x, example), inputs, tangents
            )[1]
        return pushed

    def _steps(self) -> Tensors:
        """Change of each input along the path."""
        ends = tuple(x.unsqueeze(1) for x in self.ends) if self.per_target else self.ends
        return tuple(end - start for end, start in zip(ends, self.starts, strict=True))

    def _apart(self, inputs: Tensors, example: Tensor, target: Tensor | None) -> Tensor:
        """Outputs of ``inputs (N, ...)``, ``(N, T, E)`` or, for one target each, ``(N, E)``."""
        with torch.no_grad():
            parts = []
            for part in torch.arange(len(example), device=example.device).split(self._points(1)):
                y = self.forward(tuple(x[part] for x in inputs), example[part])
                parts.append(y if target is None else y[torch.arange(len(part)), target[part]])
        return torch.cat(parts)

    def _points(self, targets: int) -> int:
        """How many path points to run at once, with so many targets each."""
        if self.internal_batch_size is not None:
            return max(1, self.internal_batch_size // targets)
        floats = max(1, sum(x[0].numel() for x in self.ends)) * targets
        return max(1, FLOATS_IN_FLIGHT // floats)

    def _cotangent(self, change: Tensor, direction: Tensor) -> Tensor:
        return cotangent(self.scalarization, change, direction)

    # --- one path for all targets ---

    def _shared(self, alphas: Tensor, weights: Tensor, departure: Tensor | None) -> Tensors:
        examples, device = self.ends[0].shape[0], self.ends[0].device
        node, example = _pairs(len(alphas), examples, device)
        sums = tuple(x.new_zeros(examples, self.targets, *x.shape[1:]) for x in self.ends)
        steps = self._steps()
        for part in torch.arange(len(node), device=device).split(self._points(self.targets)):
            at, ex = node[part], example[part]
            inputs = tuple(
                (start[ex] + _like(alphas[at], step) * step[ex]).requires_grad_()
                for start, step in zip(self.starts, steps, strict=True)
            )
            with torch.enable_grad():
                y = self.forward(inputs, ex)
                change = y.detach() - self._y0[ex]
                if departure is not None:
                    change = torch.where(_like(alphas[at] == 0, change), departure[ex], change)
                rows = (y * self._cotangent(change, self._direction[ex])).sum((0, -1))  # (T,)
            w = weights[at]
            for first, grads in self._row_gradients(rows, inputs, len(part)):
                for total, grad in zip(sums, grads, strict=True):
                    weighted = _like(w, grad[0]) * grad  # (targets, N, ...)
                    chunk = slice(first, first + len(grad))
                    total[:, chunk].index_add_(0, ex, weighted.transpose(0, 1))
        return sums

    def _row_gradients(
        self, rows: Tensor, inputs: Tensors, points: int
    ) -> list[tuple[int, Tensors]]:
        """Gradients ``(targets, N, ...)`` of each of ``rows (T,)``, some targets at a time."""
        count = len(rows)
        at_once = count
        if self.internal_batch_size is not None:
            at_once = max(1, min(count, self.internal_batch_size // points))
        found = []
        for first in range(0, count, at_once):
            chosen = torch.eye(count, dtype=rows.dtype, device=rows.device)[first : first + at_once]
            found.append((first, self._gradients(rows, inputs, chosen)))
        return found

    def _gradients(self, rows: Tensor, inputs: Tensors, chosen: Tensor) -> Tensors:
        """Vector-Jacobian products for each row of ``chosen (targets, T)``."""
        if self._batched and len(chosen) > 1:
            try:
                grads = torch.autograd.grad(
                    rows,
                    inputs,
                    chosen,
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=True,
                )
                return tuple(
                    x.new_zeros(len(chosen), *x.shape) if g is None else g
                    for g, x in zip(grads, inputs, strict=True)
                )
            except RuntimeError:
                self._batched = False  # an operation of the map has no batching rule: loop
        each = [
            torch.autograd.grad(rows, inputs, one, retain_graph=True, allow_unused=True)
            for one in chosen
        ]
        return tuple(
            torch.stack([torch.zeros_like(x) if g[i] is None else g[i] for g in each])
            for i, x in enumerate(inputs)
        )

    # --- a path for each target ---

    def _per_target(self, alphas: Tensor, weights: Tensor, departure: Tensor | None) -> Tensors:
        examples, device = self.ends[0].shape[0], self.ends[0].device
        node, pair = _pairs(len(alphas), examples * self.targets, device)
        example, target = pair // self.targets, pair % self.targets
        sums = tuple(torch.zeros_like(start) for start in self.starts)
        steps = self._steps()
        for part in torch.arange(len(node), device=device).split(self._points(1)):
            at, ex, tg = node[part], example[part], target[part]
            inputs = tuple(
                (start[ex, tg] + _like(alphas[at], start[0]) * step[ex, tg]).requires_grad_()
                for start, step in zip(self.starts, steps, strict=True)
            )
            with torch.enable_grad():
                y = self.forward(inputs, ex)[torch.arange(len(part), device=device), tg]
                change = y.detach() - self._y0[ex, tg]
                if departure is not None:
                    change = torch.where(_like(alphas[at] == 0, change), departure[ex, tg], change)
                a = (y * self._cotangent(change, self._direction[ex, tg])).sum()
                grads = torch.autograd.grad(a, inputs, allow_unused=True)
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total.index_put_((ex, tg), _like(weights[at], grad) * grad, accumulate=True)
        return sums

    def _departure(self) -> Tensor:
        """``y'(0)`` ``(B, T, E)``: the direction in which the outputs leave their start."""
        starts, steps = self.starts, self._steps()
        example, target = _pairs(self.ends[0].shape[0], self.targets, self.ends[0].device)
        if self.per_target:
            starts = tuple(start.flatten(0, 1) for start in starts)
            steps = tuple(step.flatten(0, 1) for step in steps)
        else:
            example = torch.arange(self.ends[0].shape[0], device=example.device)
        found = []
        everything = torch.arange(len(example), device=example.device)
        for part in everything.split(self._points(1 if self.per_target else self.targets)):
            ex = example[part]
            dy = self._push(tuple(x[part] for x in starts), tuple(x[part] for x in steps), ex)
            own = torch.arange(len(part), device=part.device)
            found.append(dy[own, target[part]] if self.per_target else dy)
        return torch.cat(found).view_as(self._y0)


def _pairs(first: int, second: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All pairs of two indices, the first one slowest."""
    flat = torch.arange(first * second, device=device)
    return flat // second, flat % second


def _like(x: Tensor, other: Tensor) -> Tensor:
    """``x (N,)`` with as many dimensions as ``other (N, ...)``, and its dtype if x is no bool."""
    x = x.view(-1, *[1] * (other.dim() - 1))
    return x if x.dtype == torch.bool else x.to(other.dtype)
