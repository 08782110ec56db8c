"""The boundary of any map from sets of tokens to sets of tokens, by autograd.

Its rows are pairs of an example and a target. Shapes: ``B`` examples, ``T`` targets, ``R`` rows,
``E`` width of an output (1 for numbers), ``P`` path points. Inputs are tuples of tensors
``(B, ...)``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor
from typing_extensions import Self

from captum_lig._arguments import users_line
from captum_lig._types import Parts
from captum_lig.errors import LigError, out_of_memory
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.scalarization import L2, Cotangent, Scalarization, Vector
from captum_lig.paths.jvp import jvp
from captum_lig.paths.memory import in_halves

__all__ = ["SetBoundary", "SetMap", "sum_of"]

Tensors = tuple[Tensor, ...]
Forward = Callable[[Tensors, Tensor], Tensor]
"""Inputs ``(N, ...)`` and the examples they belong to ``(N,)``, to outputs ``(N, T, E)``."""

FLOATS_IN_FLIGHT = 2**25


@dataclass(frozen=True)
class SetMap:
    """A map, and the paths of its inputs."""

    forward: Forward
    forward_twice: Forward
    """The same without fused attention kernels, which can be differentiated once only."""
    starts: Tensors
    """``(B, ...)`` of a path that all targets share, or ``(B, T, ...)`` of a path for each."""
    ends: Tensors
    """``(B, ...)``"""
    per_target: bool
    internal_batch_size: int | None = None
    """Most pairs of a path point and a target at once."""
    multiply: bool = True
    """Whether gradients are multiplied by the inputs' change along the path."""

    def ends_of(self, example: Tensor, target: Tensor) -> tuple[Tensors, Tensors]:
        """Starts and ends ``(N, ...)`` of the paths of some rows."""
        starts = [x[example, target] if self.per_target else x[example] for x in self.starts]
        return tuple(starts), tuple(x[example] for x in self.ends)

    def pairs_at_once(self, targets: int) -> int:
        """How many pairs of a path point and a row to evaluate at once, of so many targets.

        On a path that targets share, whole examples, or equal parts of the targets of one: what
        is differentiated is always all of some targets at all of some points.
        """
        floats = max(1, sum(x[0].numel() for x in self.ends))
        most = self.internal_batch_size or max(1, FLOATS_IN_FLIGHT // floats)
        if self.per_target:
            return most
        if most >= targets:
            return most - most % targets
        return max(part for part in range(1, most + 1) if targets % part == 0)


NAMED = 5
"""How many rows a message names."""


@dataclass(frozen=True)
class SetBoundary(Boundary):
    """Input tokens to the outputs of some pairs of an example and a target."""

    map: SetMap
    example: Tensor
    """``(R,)``"""
    target: Tensor
    """``(R,)``"""
    y_start: Tensor
    """``(R, 1, E)``"""
    y_step: Tensor
    """``(R, 1, E)``"""
    scalarization: Scalarization
    targets: int
    """How many targets an example has, ``T``."""
    batched: list[bool] = field(default_factory=lambda: [True])
    """Holds False once an operation of the map turned out to have no batching rule."""

    @classmethod
    def of(cls, over: SetMap, scalarization: type[Scalarization]) -> Self:
        """All pairs, examples first.

        Raises:
            LigError: if outputs are not finite at the ends of a path.
        """
        every = torch.arange(len(over.ends[0]), device=over.ends[0].device)
        whole: list[Tensor] = []
        for one in every.split(1):
            inputs = tuple(x[one].requires_grad_(len(whole) == 0) for x in over.ends)
            with torch.set_grad_enabled(len(whole) == 0):
                whole.append(over.forward(inputs, one))
        if not whole[0].requires_grad:
            raise LigError(
                "forward_func gives outputs without a gradient to its inputs: it must not detach "
                "them, nor run under torch.no_grad()."
            )
        targets = torch.arange(whole[0].shape[1], device=every.device)
        example, target = torch.cartesian_prod(every, targets).view(-1, 2).T
        y_end = torch.cat(whole).detach().flatten(0, 1)[:, None]
        empty = torch.zeros_like(y_end)
        made = cls(over, example, target, empty, empty, Cotangent(empty), len(targets))
        y_start = torch.cat([made.select(rows).outputs(0.0)[0] for rows in made.chunks()])
        for y in (y_start, y_end):
            if not bool(torch.isfinite(y).all()):
                raise LigError(
                    "forward_func gives outputs that are not finite (NaN or infinity) at the "
                    "inputs or at the baselines: look at it there."
                )
        made.check_repeats(y_start, y_end)
        step = y_end - y_start
        return replace(made, y_start=y_start, y_step=step, scalarization=scalarization.of(step))

    def check_repeats(self, y_start: Tensor, y_end: Tensor) -> None:
        """Check on some rows that outputs ``(R, 1, E)`` do not change with what is beside them.

        Both ends and the middle of the paths of some rows are evaluated together, and those of the
        first and the last of these paths by themselves. Raises LigError.
        """
        path = 1 if self.map.per_target else self.targets
        some = self.pairs_at_once // 3 // path * path
        rows, points = self.chunks()[0][: some or None], [0.0, 0.5, 1.0] if some else [1.0]
        together = dict(zip(points, self.select(rows).outputs(*points), strict=True))
        known = {0.0: y_start[rows], 1.0: y_end[rows]}
        pairs = [(y, known[a]) for a, y in together.items() if a in known]
        alone = [rows[:path], rows[-path:]] if len(rows) > path else [rows]
        for own in alone:  # the first rows of all: they are their indices
            for a in (0.0, 0.5, 1.0):
                beside = known.get(a, together.get(a))
                if beside is not None:
                    pairs.append((self.select(own).outputs(a)[0], beside[own]))
        found, expected = (torch.cat(y) for y in zip(*pairs, strict=True))
        bound = 5e-2 if y_end.dtype not in (torch.float32, torch.float64) else 1e-3
        # What is not finite between the ends is named with its rows, when they are there.
        there = torch.isfinite(expected)
        found, expected = found[there], expected[there]
        gap = (found - expected).abs().amax()
        if not gap <= bound * expected.abs().amax():
            raise LigError(
                f"forward_func gives something else when it is called again on the same inputs, "
                f"with others beside them (off by {float(gap):.1e}): it is random or keeps a state "
                "(call .eval() on its modules), or its examples reach each other, or points of a "
                "path that are evaluated together do (internal_batch_size=1 takes them one by one)."
            )

    def checked(self, results: Parts, tolerance: float | None) -> Parts:
        """The results, of which rows that are not within tolerance are named in a warning.

        Args:
            results: what :meth:`results` gives.
            tolerance: None: no row is checked.

        Raises:
            LigError: if they are not finite.
        """
        flat = [part.reshape(len(part), -1) for part in results.values()]
        for part in flat:
            wrong = (~torch.isfinite(part)).any(-1)
            if bool(wrong.any()):
                raise LigError(
                    f"the attributions of {self._name(wrong)} are not finite: forward_func or its "
                    "gradients are not, on the path between baseline and input, where there may "
                    "be a root or a norm of 0, or numbers too large for the precision. Give "
                    "another baseline, or float64 inputs."
                )
        if tolerance is None:
            return results
        if isinstance(self.scalarization, Vector) or not self.map.multiply:
            sums = self.sums(results)
        else:
            sums = sum_of([part.sum(-1) for part in flat])[:, None]
        gap = self.error(sums, self.totals)
        missed = ~(gap <= tolerance * self.scale).flatten(1).all(-1)
        if bool(missed.any()):
            warnings.warn(
                f"rows are not within tolerance={tolerance} (completeness error): "
                f"{self._name(missed)}. Raise max_steps, or choose another baseline.",
                stacklevel=users_line(),
            )
        return results

    def _name(self, rows: Tensor) -> str:
        """Some of the rows ``(R,)`` in words."""
        pairs = zip(self.example[rows].tolist(), self.target[rows].tolist(), strict=True)
        named = [f"target {target} of example {example}" for example, target in pairs]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        return ", ".join(named[:NAMED]) + more

    def chunks(self) -> tuple[Tensor, ...]:
        """Indices of rows, as many at a time as may be in flight."""
        every = torch.arange(len(self), device=self.example.device)
        found: tuple[Tensor, ...] = every.split(self.pairs_at_once)
        return found

    # --- the form of a boundary ---

    @property
    def step(self) -> Tensor:
        """Shape ``(R, 1, E)``."""
        return self.y_step

    @property
    def path(self) -> object:
        """No other boundary follows its path."""
        return self

    def at(self, a: Tensor) -> Tensor:
        """Nothing is known before the map runs."""
        return a

    def __len__(self) -> int:
        return len(self.example)

    def select(self, rows: Tensor) -> Self:
        """Some of the rows."""
        return replace(
            self,
            example=self.example[rows],
            target=self.target[rows],
            y_start=self.y_start[rows],
            y_step=self.y_step[rows],
            scalarization=self.scalarization.select(rows),
        )

    @property
    def pairs_at_once(self) -> int:
        """How many pairs of a path point and a row to evaluate at once."""
        return self.map.pairs_at_once(self.targets)

    def across(self) -> tuple[Boundary, float] | None:
        """The l2 boundary of outputs that are vectors."""
        if not isinstance(self.scalarization, Cotangent) or self.step.shape[-1] == 1:
            return None
        return replace(self, scalarization=L2.of(self.step)), 1.0

    def change(self, a: float) -> Tensor:
        """Shape ``(R, 1, E)``."""
        return self.outputs(a)[0] - self.y_start

    def outputs(self, *a: float) -> Tensor:
        """``(P, R, 1, E)`` outputs at path points, evaluated together."""

        def outputs(rows: Tensor) -> Tensor:
            own = self.select(rows)
            with torch.no_grad():
                inputs, example, which = own._points(torch.tensor(a, dtype=torch.float64))
                return own._of_rows(own.map.forward(inputs, example), which)[:, :, None]

        every = torch.arange(len(self), device=self.example.device)
        return torch.cat(in_halves(outputs, every), 1)

    def sums(self, parts: Parts) -> Tensor:
        """Over all inputs, ``(R, 1)``, or ``(R, 1, E)`` for vectors."""
        if isinstance(self.scalarization, Vector):
            return sum_of([part.sum(1) for part in parts.values()])[:, None]
        steps = self._steps()
        return sum_of(
            [
                (part * step).flatten(1).sum(-1)
                for part, step in zip(parts.values(), steps, strict=True)
            ]
        )[:, None]

    def results(self, parts: Parts) -> Parts:
        """For each input, by its number: ``(R, ...)``, or ``(R, S, E)`` for vectors."""
        if isinstance(self.scalarization, Vector) or not self.map.multiply:
            return parts
        return {
            name: part * step
            for (name, part), step in zip(parts.items(), self._steps(), strict=True)
        }

    def rates(self, at: Tensor, a: Tensor, w: Tensor, starts: bool) -> Parts:
        """For each input, by its number: averages of gradients, or vectors."""
        if isinstance(self.scalarization, Vector):
            return self._vectors(a, w)
        inputs, example, which = self._points(a)
        inputs = tuple(x.requires_grad_() for x in inputs)
        with torch.enable_grad():
            y = self._of_rows(self.map.forward(inputs, example), which)  # (P, R, E)
            change = y.detach()[:, :, None] - self.y_start
            if starts and self.scalarization.limit_at_start:
                change = torch.cat([self._departure()[None], change[1:]])
            a_of_rows = (y * self.scalarization.cotangent(change)[:, :, 0]).sum((0, -1))  # (R,)
            grads = self._gradients(a_of_rows, inputs)  # (groups, P * paths, ...)
        found: Parts = {}
        group = (
            self.target
            if self.map.per_target
            else torch.unique(self.target, return_inverse=True)[1]
        )
        for number, grad in enumerate(grads):
            split = grad.view(len(grad), len(a), -1, *grad.shape[2:])
            summed = torch.einsum("p,gp...->g...", w.to(grad), split)  # (groups, paths, ...)
            found[str(number)] = summed[0] if self.map.per_target else summed[group, which]
        return found

    # --- running the map ---

    def _steps(self) -> Tensors:
        """``(R, ...)`` change of each input along the path."""
        ends = self.map.ends_of(self.example, self.target)
        return tuple(end - start for start, end in zip(*ends, strict=True))

    def _paths(self) -> tuple[Tensor, Tensor, Tensor]:
        """Example and target ``(paths,)`` of each path, and which one each row has ``(R,)``."""
        if self.map.per_target:
            which = torch.arange(len(self), device=self.example.device)
            return self.example, self.target, which
        example, which = torch.unique(self.example, return_inverse=True)
        return example, torch.zeros_like(example), which

    def _points(self, a: Tensor) -> tuple[Tensors, Tensor, Tensor]:
        """Inputs ``(P * paths, ...)`` at ``a (P,)``, their examples, and each row's path."""
        example, target, which = self._paths()
        inputs = tuple(
            (start + _like(a, start)[:, None] * (end - start)).flatten(0, 1)
            for start, end in zip(*self.map.ends_of(example, target), strict=True)
        )
        return inputs, example.repeat(len(a)), which

    def _of_rows(self, y: Tensor, which: Tensor) -> Tensor:
        """Outputs ``(P * paths, T, E)`` of all targets to those of the rows, ``(P, R, E)``."""
        paths = len(self) if self.map.per_target else int(which.max()) + 1
        return y.view(-1, paths, *y.shape[1:])[:, which, self.target]

    def _departure(self) -> Tensor:
        """``y'(0)`` ``(R, 1, E)``: the direction in which the outputs leave their start."""
        example, target, which = self._paths()
        starts, ends = self.map.ends_of(example, target)
        steps = tuple(end - start for start, end in zip(starts, ends, strict=True))
        return self._of_rows(self._jvp(starts, steps, example), which)[0][:, None]

    def _jvp(self, inputs: Tensors, tangents: Tensors, example: Tensor) -> Tensor:
        """Jacobian-vector products ``(N, T, E)``; fused attention kernels have none."""
        try:
            rates: Tensor = jvp(
                lambda *x: self.map.forward_twice(x, example), inputs, tangents, forward_mode=False
            )[1]
        except LigError as error:
            raise error.__cause__ or error from None  # what the map itself said
        return rates

    def _gradients(self, a_of_rows: Tensor, inputs: Tensors) -> Tensors:
        """Gradients ``(groups, N, ...)`` of the rows, those of one target together.

        Rows of one target do not share a path, so one backward pass serves all of them; if each
        row has a path of its own, one serves all rows.
        """
        if self.map.per_target:
            grads = torch.autograd.grad(a_of_rows.sum(), inputs, materialize_grads=True)
            return tuple(grad[None] for grad in grads)
        targets, group = torch.unique(self.target, return_inverse=True)
        chosen = torch.eye(len(targets), dtype=a_of_rows.dtype, device=group.device)[:, group]
        if self.batched[0] and len(targets) > 1:
            try:
                found = torch.autograd.grad(
                    a_of_rows,
                    inputs,
                    chosen,
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=True,
                )
                return tuple(
                    x.new_zeros(len(chosen), *x.shape) if grad is None else grad
                    for grad, x in zip(found, inputs, strict=True)
                )
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self.batched[0] = False
        each = [
            torch.autograd.grad(a_of_rows, inputs, one, retain_graph=True, materialize_grads=True)
            for one in chosen
        ]
        return tuple(torch.stack(grads) for grads in zip(*each, strict=True))

    def _vectors(self, a: Tensor, w: Tensor) -> Parts:
        """For each input ``(R, S, E)``: one Jacobian-vector product for each path and source."""
        example, target, which = self._paths()
        starts, ends = self.map.ends_of(example, target)
        steps = tuple(end - start for start, end in zip(starts, ends, strict=True))
        found: Parts = {}
        for number, step in enumerate(steps):
            sources = step.shape[1]
            total = self.y_step.new_zeros(len(self), sources, self.y_step.shape[-1])
            for one, weight in zip(a, w.to(total), strict=True):
                points = tuple(
                    x + one.to(x) * along for x, along in zip(starts, steps, strict=True)
                )
                for source in range(sources):
                    tangents = [torch.zeros_like(x) for x in points]
                    moved = step[:, source]
                    tangents[number][:, source] = (
                        moved if self.map.multiply else torch.ones_like(moved)
                    )
                    rate = self._jvp(points, tuple(tangents), example)
                    total[:, source] += weight * self._of_rows(rate, which)[0]
            found[str(number)] = total
        return found


def sum_of(tensors: list[Tensor]) -> Tensor:
    """Their sum; of several dtypes the widest wins."""
    return reduce(torch.add, tensors)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """``x (N,)`` in the dtype of ``other (M, ...)``, with as many dimensions."""
    return x.to(other).view(-1, *[1] * (other.dim() - 1))
