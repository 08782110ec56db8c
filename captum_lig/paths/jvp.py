"""Derivatives along a direction, of code that was not written for it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from captum_lig._restore import changing, close_interrupted
from captum_lig.errors import LigError, out_of_memory

__all__ = ["jvp", "jvp_of_many"]

Tensors = tuple[Tensor, ...]


def jvp(
    function: Callable[..., Any], at: Tensors, tangents: Tensors, forward_mode: bool = True
) -> tuple[Any, Any]:
    """``function(*at)`` and its derivative along ``tangents``, both as the function returns them.

    In forward mode; where a model has operations of its own that know no forward mode, by two
    backward passes, which give the same: ``J^T w`` is linear in ``w``, and the gradient of
    ``<J^T w, t>`` by ``w`` is ``J t``.

    Args:
        function: tensors to a tensor or a tuple of tensors.
        at: its arguments.
        tangents: a direction for each of them.
        forward_mode: False to go by two backward passes at once: what a caller's function raises
            cannot be told from an operation without forward mode.

    Raises:
        LigError: if the function can be differentiated in neither way.
    """
    if forward_mode:
        try:
            with _ForwardMode():
                value, rate = torch.func.jvp(function, at, tangents)[:2]
            return _detached(value), _detached(rate)
        except RuntimeError as error:  # NotImplementedError is one
            if out_of_memory(error):
                raise
    try:
        return _by_two_backward_passes(function, at, tangents)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise LigError(
            "this block cannot be differentiated along a direction, neither in forward mode nor by "
            "two backward passes. boundaries='influence' needs that, and so does "
            "scalarization='l2' with a method whose first node is the start of the path: leave "
            "'influence' out and use method='gausslegendre'. "
            f"PyTorch says: {str(error).splitlines()[0]}"
        ) from error


def jvp_of_many(function: Callable[..., Tensor], at: Tensors, tangents: Tensors) -> Tensor:
    """Derivatives of ``function`` at ``R`` rows along ``S`` tangents of each row.

    Args:
        function: arguments ``(R, ...)`` to ``(R, E)``, row by row.
        at: its arguments ``(R, ...)``.
        tangents: ``(R, S, ...)`` for each of them.

    Returns:
        ``(R, S, E)``.
    """
    count, many = tangents[0].shape[:2]
    # A block runs on whole sequences, of as many tokens as there are sources. Copies of the rows
    # fill them, and the tangents take turns on one forward pass, if the block's code takes that (a
    # mixture of experts does not).
    copies, turns = _shared_pass(count, many)

    def along(*directions: Tensor) -> Tensor:
        rate: Tensor = torch.func.jvp(function, points, directions)[1]
        return rate

    def by_turns(x: Tensor) -> Tensor:
        """``(R, S, ...)`` to ``(turns, R copies, ...)``."""
        spare = turns * copies - many
        if spare:
            x = torch.cat([x, x.new_zeros(count, spare, *x.shape[2:])], 1)
        turned: Tensor = x.unflatten(1, (turns, copies))
        return turned.transpose(0, 1).flatten(1, 2)

    if turns > 1:
        points = tuple(x.repeat_interleave(copies, 0) for x in at)
        try:
            with _ForwardMode():
                found: Tensor = torch.func.vmap(along)(*map(by_turns, tangents)).detach()
            by_row: Tensor = found.unflatten(1, (count, copies))
            return by_row.transpose(0, 1).flatten(1, 2)[:, :many]
        except RuntimeError as error:
            if out_of_memory(error):
                raise
    rates: Tensor = jvp(
        function,
        tuple(x.repeat_interleave(many, 0) for x in at),
        tuple(x.flatten(0, 1) for x in tangents),
    )[1]
    return rates.view(count, many, -1)


def _shared_pass(count: int, many: int) -> tuple[int, int]:
    """How many copies of ``R`` rows run at once, and how often, for ``S`` tangents of each row.

    The work is that of the sequences of ``S`` tokens that the copies fill, once forward and once
    for each turn.
    """

    def work(copies: int) -> int:
        return -(-count * copies // many) * (1 + -(-many // copies))

    copies = min(range(1, many + 1), key=work)
    return copies, -(-many // copies)


class _ForwardMode(changing):
    """Leaves torch's levels of forward mode as they were, wherever what is inside is interrupted.

    torch counts them for the whole process, in Python and in C++, and what comes between two of the
    counts makes all later derivatives of the process wrong or impossible.
    """

    def __init__(self) -> None:
        self._depth = torch._C._functorch.get_dynamic_layer_stack_depth()
        self._nesting, self._level = eager_transforms.JVP_NESTING, forward_ad._current_level
        self._outer = sys.exc_info()[1]
        self._ended = False
        super().__init__(self._put_back)

    def __exit__(self, *error: Any) -> None:
        raised = self._raised(error[1])
        self._ended = not raised
        for one in reversed(raised):
            close_interrupted(one.__traceback__)
        super().__exit__(*error)
        # An interrupt on the way into a level, or out of it, lets the way out of this one or of the
        # next fail, with an error in its place.
        if len(raised) > 1 and (interrupts := [e for e in raised if not isinstance(e, Exception)]):
            raise interrupts[0]

    def _raised(self, error: BaseException | None) -> list[BaseException]:
        """In here, the last first: an error, and what it took the place of."""
        found: list[BaseException] = []
        while error is not None and error is not self._outer:
            found.append(error)
            error = error.__context__
        return found

    def _put_back(self) -> None:
        if self._ended:
            return
        levels = torch._C._functorch
        while levels.get_dynamic_layer_stack_depth() > self._depth:
            kind = levels.peek_interpreter_stack().key().name  # "Jvp", "Vmap", "Grad"
            getattr(levels, f"_{kind.lower()}_decrement_nesting")()
        eager_transforms.JVP_NESTING = self._nesting
        with contextlib.suppress(RuntimeError):  # no level is left
            torch._C._exit_dual_level(level=self._level + 1)
        forward_ad._current_level = self._level


def _by_two_backward_passes(
    function: Callable[..., Any], at: Tensors, tangents: Tensors
) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        inputs = tuple(x.detach().clone().requires_grad_() for x in at)
        value = function(*inputs)
        outputs = value if isinstance(value, tuple) else (value,)
        seeds = tuple(
            torch.randn(y.shape, generator=generator).to(y).requires_grad_() for y in outputs
        )
        pulled = torch.autograd.grad(
            outputs, inputs, seeds, create_graph=True, materialize_grads=True
        )
        rates = torch.autograd.grad(pulled, seeds, tangents, materialize_grads=True)
    # A backward pass that cannot be differentiated breaks the graph, without a word at times. So
    # <w, J t> from the second has to be <J^T w, t> from the first.
    forth, back = _products(seeds, rates), _products(pulled, tangents)
    size = torch.linalg.vector_norm(torch.cat([forth, back]))
    near = max(1e-3, *(16 * torch.finfo(y.dtype).eps for y in outputs))
    if not bool((forth.sum() - back.sum()).abs() <= near * size):
        raise RuntimeError("an operation's backward pass cannot be differentiated.")
    return _detached(value), rates if isinstance(value, tuple) else rates[0]


def _products(x: Tensors, y: Tensors) -> Tensor:
    pairs = zip(x, y, strict=True)
    return torch.cat([(a.detach().double() * b.double()).flatten() for a, b in pairs])


def _detached(x: Any) -> Any:
    return tuple(part.detach() for part in x) if isinstance(x, tuple) else x.detach()
