"""``SetToSetIG``: Integrated Gradients for maps from a set of tokens to a set of tokens."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from captum_lig._arguments import brief, index_list
from captum_lig._captum import (
    GradientAttribution,
    TargetType,
    format_additional_forward_args,
    format_output,
    format_tensor_into_tuples,
    log_usage,
    select_targets,
)
from captum_lig._restore import restoring
from captum_lig.errors import LigError, out_of_memory
from captum_lig.integrals.adaptive import integrate
from captum_lig.integrals.scalarization import (
    SCALARIZATIONS,
    Cotangent,
    Scalarization,
    Vector,
    check,
)
from captum_lig.integrals.set_inputs import checked_inputs, usable
from captum_lig.integrals.set_integral import SetBoundary, SetMap, sum_of
from captum_lig.integrals.settings import Settings
from captum_lig.model.attention_call import AttentionCall, handle_with
from captum_lig.model.few_bits import checked, differentiable
from captum_lig.model.sdpa import use_sdpa
from captum_lig.paths.baselines import read_baseline

__all__ = ["SetToSetIG"]

Tensors = tuple[Tensor, ...]
Inputs = Tensor | Tensors
Baselines = Any
"""None, a number, a tensor, a name, or a tuple of those: one for each input."""


class SetSettings(TypedDict, total=False):
    """The settings of :meth:`SetToSetIG.attribute`."""

    n_steps: int
    method: str
    internal_batch_size: int | None
    output_indices: Sequence[int] | Tensor | None
    per_feature: bool
    tolerance: float | None
    max_steps: int


class SetToSetIG(GradientAttribution):  # type: ignore[misc]
    r"""Integrated Gradients of every output token with respect to every input token at once.

    For a map from ``S`` vectors to ``T`` vectors, the vector output of target ``j`` along the
    straight path from the baseline to the input, ``y_j(a)``, is made a number that is 0 at the
    baseline, and Integrated Gradients (Sundararajan et al. 2017) is applied to it. A row of the
    result adds up to ``||y_j(1) - y_j(0)||`` (completeness). Maps to ``T`` numbers need no
    scalarization: their rows are Captum's ``IntegratedGradients`` for ``target=j``.

    One forward pass per path point serves all targets. With a baseline per target each target
    has its own path, and its own forward pass.

    Args:
        forward_func: ``(B, S, D) -> (B, T, E)``, ``(B, ...) -> (B, T)`` or ``(B, ...) -> (B,)``;
            several inputs are passed one after the other.
        multiply_by_inputs: as in Captum: multiply the averaged gradients by (input - baseline).
        scalarization: ``"l2"``, ``||y_j(a) - y_j(0)||`` (Suzuki et al. 2026), or
            ``"projection"``, the component of ``y_j(a) - y_j(0)`` along the whole change; or
            ``"vector"``, without loss: each source's attribution is a vector of the output's
            width, its norm the unsigned influence. It takes a pass for each source.

    Example::

        >>> ig = SetToSetIG(torch.nn.TransformerEncoderLayer(16, 2, batch_first=True).eval())
        >>> attr, delta = ig.attribute(torch.randn(1, 5, 16), return_convergence_delta=True)
        >>> attr.shape, delta.shape   # (example, target, source), (example, target)
        (torch.Size([1, 5, 5]), torch.Size([1, 5]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        multiply_by_inputs: bool = True,
        scalarization: str = "l2",
    ) -> None:
        if not callable(forward_func):
            raise LigError(f"forward_func is a {type(forward_func).__name__}: give a callable.")
        super().__init__(forward_func)
        self._multiply_by_inputs = multiply_by_inputs
        self.scalarization = check(scalarization, "vector")

    def __repr__(self) -> str:
        of = getattr(self.forward_func, "__name__", type(self.forward_func).__name__)
        return f"SetToSetIG({of}, {self.scalarization!r})"

    @typing.overload
    def attribute(
        self,
        inputs: Inputs,
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        return_convergence_delta: Literal[False] = False,
        **settings: Unpack[SetSettings],
    ) -> Inputs: ...

    @typing.overload
    def attribute(
        self,
        inputs: Inputs,
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        return_convergence_delta: Literal[True],
        **settings: Unpack[SetSettings],
    ) -> tuple[Inputs, Tensor]: ...

    @restoring
    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Inputs,
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        output_indices: Sequence[int] | Tensor | None = None,
        per_feature: bool = False,
        tolerance: float | None = None,
        max_steps: int = 1024,
    ) -> Any:
        r"""Attribute each output token to the input tokens.

        Args:
            inputs: a tensor ``(B, S, ...)`` or a tuple of them.
            baselines: as in Captum: None (zero), a number, a tensor that is the input's shape or
                has a first dimension of 1, or a tuple of those. A path per target:
                ``"target_token"`` (for target ``j`` every source starts as source ``j``) or a
                tensor with a target dimension, ``(B or 1, T, S, ...)``.
            target: as in Captum: choose one output; the target dimension is gone from the
                result. Of outputs that are numbers, the result has the shape of the inputs and
                equals Captum's ``IntegratedGradients``.
            additional_forward_args: as in Captum: further arguments of ``forward_func``. Tensors
                whose first dimension is the number of examples go along with their example.
            n_steps: number of quadrature nodes.
            method: Captum's names, or ``"gausslegendre_graded"`` (nodes gathered where the path
                starts).
            internal_batch_size: at most so many pairs of a path point and a target at once.
            return_convergence_delta: also return the completeness errors.
            output_indices: the targets to attribute, in this order; None for all.
            per_feature: keep the inputs' feature dimensions.
            tolerance: largest completeness error of a row, relative to the size of its total: rows
                that are not within it after ``n_steps`` nodes are refined, and those that do not
                make it are named in a warning. None: the plain rule.
            max_steps: most nodes for one row.

        Returns:
            ``(B, T, S)`` for each input, ``(B, T, S, ...)`` with ``per_feature``, or
            ``(B, T, S, E)`` with the scalarization ``"vector"``; and with
            ``return_convergence_delta`` the sums of attributions minus the totals, ``(B, T)``
            (``(B, T, E)`` for vectors).

        Raises:
            LigError: for anything that cannot be worked with; the message says what to do.
        """
        settings = Settings.checked(n_steps, method, tolerance, max_steps, internal_batch_size)
        # Nothing of the caller's grad mode reaches in: inference tensors have no gradients.
        with torch.inference_mode(False):
            problem, boundary = self._posed(
                inputs,
                baselines,
                target,
                additional_forward_args,
                output_indices,
                internal_batch_size,
            )
            vectors = isinstance(boundary.scalarization, Vector)
            if vectors and per_feature:
                raise LigError(
                    "per_feature=True with scalarization 'vector': a vector is not kept for each "
                    "feature, leave out one of them."
                )
            if vectors and tolerance is not None and not self._multiply_by_inputs:
                raise LigError(
                    f"tolerance={tolerance} with scalarization 'vector' and "
                    "multiply_by_inputs=False: such vectors have no known sum, leave out one."
                )
            found = boundary.checked(integrate([boundary], settings), tolerance)
            attributions = tuple(
                part.unflatten(0, (problem.examples, -1)) for part in found.values()
            )
        delta = _delta(attributions, boundary, problem)
        if not (per_feature or vectors or (problem.one and problem.scalars)):
            attributions = tuple(a.flatten(3).sum(-1) if a.dim() > 3 else a for a in attributions)
        if problem.one:
            attributions, delta = tuple(a[:, 0] for a in attributions), delta[:, 0]
        result = format_output(isinstance(inputs, tuple), attributions)
        return (result, delta) if return_convergence_delta else result

    @restoring
    def compute_convergence_delta(
        self,
        attributions: Inputs,
        start_point: Baselines,
        end_point: Inputs,
        target: TargetType = None,
        additional_forward_args: object = None,
        output_indices: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Sum of attributions minus total, for each target.

        Captum's sums over all outputs, and so hides errors of opposite sign.

        Args:
            attributions: what ``attribute`` returned, with or without ``per_feature``.
            start_point: the baselines it was called with.
            end_point: the inputs it was called with.
            target: the target it was called with.
            additional_forward_args: likewise.
            output_indices: likewise.

        Returns:
            ``(B, T)``, or ``(B,)`` with a ``target``.
        """
        with torch.inference_mode(False):
            problem, boundary = self._posed(
                end_point, start_point, target, additional_forward_args, output_indices
            )
        rows = format_tensor_into_tuples(attributions)
        if problem.one:
            rows = tuple(a.unsqueeze(1) for a in rows)
        delta = _delta(rows, boundary, problem)
        return delta[:, 0] if problem.one else delta

    def has_convergence_delta(self) -> bool:
        """True."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are multiplied by (input - baseline)."""
        return self._multiply_by_inputs

    def _posed(
        self,
        inputs: Inputs,
        baselines: Baselines,
        target: TargetType,
        additional_forward_args: object,
        output_indices: Sequence[int] | Tensor | None,
        internal_batch_size: int | None = None,
    ) -> tuple[_Outputs, SetBoundary]:
        """The outputs that are meant, and the boundary to them."""
        ends = checked_inputs(inputs)
        problem = _Outputs(self.forward_func, ends, target, additional_forward_args, output_indices)
        starts, per_target = _starts(baselines, ends, problem)
        size, multiply = internal_batch_size, self._multiply_by_inputs
        forwards = problem.forward, problem.forward_twice
        over = SetMap(*forwards, starts, ends, per_target, size, multiply)
        named: dict[str, type[Scalarization]] = {**SCALARIZATIONS, "vector": Vector}
        scalarization = Cotangent if problem.scalars else named[self.scalarization]
        with torch.no_grad():
            return problem, SetBoundary.of(over, scalarization)


class _Outputs:
    """The callable with its arguments, its outputs always ``(N, T, E)``."""

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        ends: Tensors,
        target: TargetType,
        additional_forward_args: object,
        output_indices: Sequence[int] | Tensor | None,
    ) -> None:
        self._function, self._target = differentiable(forward_func, ends[0].dtype), target
        args = format_additional_forward_args(additional_forward_args) or ()
        self._args = tuple(usable(a) if isinstance(a, Tensor) else a for a in args)
        self.examples = ends[0].shape[0]
        self._indices: Tensor | None = None
        self._check_target()
        # One example is enough to see what the outputs are.
        with torch.no_grad(), checked(forward_func, ends[0].dtype):
            first = torch.zeros(1, dtype=torch.long, device=ends[0].device)
            raw = self._raw(tuple(x[:1] for x in ends), first)
            y = self._choose(raw, first)
        if not (1 <= y.dim() <= 3 and raw.dim() <= 3) or (target is None and y.dim() == 0):
            raise LigError(
                f"forward_func gives outputs of shape {tuple(raw.shape)}"
                + ("" if target is None else f", {tuple(y.shape)} for target {target!r}")
                + ": it has to give (B, T, E), (B, T) or (B,)."
            )
        self.scalars = y.dim() == 1 or (y.dim() == 2 and raw.dim() == 2)
        """Whether outputs are numbers: no scalarization applies."""
        self.one = y.dim() == 1 or (y.dim() == 2 and raw.dim() == 3)
        """Whether there is one output only, without a target dimension."""
        count = 1 if self.one else y.shape[1]
        if output_indices is not None:
            if self.one:
                raise LigError(
                    "output_indices choose among several outputs: leave out target, or them."
                )
            self._indices = index_list(output_indices, count, y.device, "outputs")
            count = len(self._indices)
        self.positions = torch.arange(count) if self._indices is None else self._indices
        """``(T,)`` positions of the targets among the outputs."""

    def forward(self, inputs: Tensors, example: Tensor) -> Tensor:
        """Inputs ``(N, ...)`` of the examples ``(N,)`` to outputs ``(N, T, E)``."""
        y = self._choose(self._raw(inputs, example), example)
        if self.one:
            y = y.unsqueeze(1)
        if self.scalars:
            y = y.unsqueeze(-1)
        return y if self._indices is None else y[:, self._indices]

    def forward_twice(self, inputs: Tensors, example: Tensor) -> Tensor:
        """The same without fused attention kernels, which can be differentiated once only."""
        with use_sdpa(), handle_with(AttentionCall.eager):
            return self.forward(inputs, example)

    def _raw(self, inputs: Tensors, example: Tensor) -> Tensor:
        args = [
            a[example]
            if isinstance(a, Tensor) and a.dim() > 0 and a.shape[0] == self.examples
            else a
            for a in self._args
        ]
        # Clones: a function may work in place, and neither leaves nor the caller's tensors bear it.
        y = self._function(*(x.clone() for x in inputs), *args)
        if not isinstance(y, Tensor):
            raise LigError(
                f"forward_func returns a {type(y).__name__}: wrap it so that it returns a tensor."
            )
        if not y.is_floating_point():
            raise LigError(
                f"forward_func gives {y.dtype} outputs: gradients need floating point outputs."
            )
        if y.dim() == 0 or y.shape[0] != len(example):
            raise LigError(
                f"forward_func gives outputs of shape {tuple(y.shape)} for {len(example)} "
                "examples: the first dimension has to be the examples."
            )
        return y

    def _check_target(self) -> None:
        target, count = self._target, None
        if isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1):
            count = len(target)
        elif target is not None and not isinstance(target, (int, tuple, Tensor)):
            raise LigError(
                f"target {brief(target)} is a {type(target).__name__}, which chooses none of the "
                f"outputs: give a whole number, a tuple, or one of them for each example."
            )
        if count not in (None, self.examples):
            raise LigError(
                f"target {brief(target)} has {count} entries for {self.examples} examples: give "
                "one for each."
            )

    def _choose(self, y: Tensor, example: Tensor) -> Tensor:
        target = self._target
        if isinstance(target, list):
            target = [target[int(i)] for i in example]
        elif isinstance(target, Tensor) and target.numel() > 1:
            target = target.to(example.device)[example]
        try:
            chosen: Tensor = select_targets(y, target)
        except (AssertionError, IndexError, RuntimeError, TypeError) as error:
            if out_of_memory(error):
                raise
            raise LigError(
                f"target {brief(self._target)} does not choose one of forward_func's outputs of "
                f"shape {tuple(y.shape)}, examples first: give an index that there is."
            ) from error
        return chosen


def _starts(baselines: Baselines, ends: Tensors, problem: _Outputs) -> tuple[Tensors, bool]:
    """Start of each input, and whether it is one per target."""
    if not isinstance(baselines, tuple):
        baselines = (baselines,) * (len(ends) if not isinstance(baselines, Tensor) else 1)
    if len(baselines) != len(ends):
        raise LigError(f"{len(baselines)} baselines for {len(ends)} inputs: give one for each.")
    found = [_start(b, x, problem) for b, x in zip(baselines, ends, strict=True)]
    per_target = any(own for _, own in found)
    count = len(problem.positions)
    return tuple(
        start.unsqueeze(1).expand(-1, count, *x.shape[1:]) if per_target and not own else start
        for (start, own), x in zip(found, ends, strict=True)
    ), per_target


def _start(baseline: Any, x: Tensor, problem: _Outputs) -> tuple[Tensor, bool]:
    """Start of one input, and whether it is one per target."""
    examples, rest, count = x.shape[0], tuple(x.shape[1:]), len(problem.positions)
    shared = [(n, *rest) for n in (examples, 1)]
    per_target = [(n, count, *rest) for n in (examples, 1)]
    baseline = usable(baseline) if isinstance(baseline, Tensor) else baseline
    value = read_baseline(baseline, x, shared, per_target)
    if isinstance(value, str):
        return _target_token_start(x, problem), True
    if value.dim() == x.dim():
        return value.expand_as(x), False
    return value.expand(examples, count, *rest), True


def _target_token_start(x: Tensor, problem: _Outputs) -> Tensor:
    positions = problem.positions.to(x.device)
    if problem.one or x.dim() < 2 or int(positions.max()) >= x.shape[1]:
        raise LigError(
            f"baseline 'target_token' needs a source for each target: an input of shape "
            f"{tuple(x.shape)} has none for "
            + (
                "the single output of a target: name it by output_indices=[...] instead."
                if problem.one
                else f"output {int(positions.max())}."
            )
        )
    return x[:, positions].unsqueeze(2).expand(-1, -1, *x.shape[1:])


def _delta(attributions: Tensors, boundary: SetBoundary, problem: _Outputs) -> Tensor:
    """Sums of attributions minus totals, ``(B, T)``, or ``(B, T, E)`` for vectors."""
    vectors = isinstance(boundary.scalarization, Vector)
    sums = [a.sum(2) if vectors else a[..., None].flatten(2).sum(-1) for a in attributions]
    total: Tensor = boundary.totals[:, 0].unflatten(0, (problem.examples, -1))
    return sum_of(sums) - total
