"""Putting back what was changed, wherever a call is interrupted.

``with`` alone does not: Ctrl-C may come after a change and before its ``with``, or while it is
being put back. So a change is noted before it is made, and at the end of the user's call what is
left of the notes is put back, twice: when the first time is interrupted there is the second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import wraps
from itertools import dropwhile
from traceback import walk_tb
from types import FrameType, GeneratorType, TracebackType
from typing import Any, TypeVar
from weakref import finalize

import torch
import torch.utils.checkpoint
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from typing_extensions import ParamSpec

__all__ = [
    "changing",
    "close_interrupted",
    "holding",
    "restoring",
    "restoring_context",
    "variable",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Undo = Callable[[], object]

_variables: list[ContextVar[Any]] = []


def variable(name: str, default: T) -> ContextVar[T]:
    """A variable of the context, that a call leaves as it was."""
    made = ContextVar(f"captum_lig_{name}", default=default)
    _variables.append(made)
    return made


_notes: ContextVar[list[Undo] | None] = variable("notes", None)
"""How to undo what the current call has changed and not put back yet."""


@contextlib.contextmanager
def holding(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Gives a variable another value.

    One that ends late, when the error that interrupted it is dropped, changes nothing: by then the
    value is another one.
    """
    before = variable.get()
    try:
        variable.set(value)
        yield
    finally:
        if variable.get() is value:
            variable.set(before)


class changing(AbstractContextManager[None]):
    """Calls ``undo`` at its end, and once more if that was interrupted.

    So ``undo`` may be called when there is nothing to undo, and may not mind. It leaves alone what
    others have changed in the meantime.
    """

    def __init__(self, undo: Undo) -> None:
        self._undo, self._notes = undo, _notes.get()

    def __enter__(self) -> None:
        if self._notes is not None:
            self._notes.append(self._undo)

    def __exit__(self, *_: object) -> None:
        self._undo()
        if self._notes is not None and self._undo in self._notes:
            self._notes.remove(self._undo)


class _Restored:
    """At the end puts back what is noted, our variables, and what torch has for each thread."""

    def __init__(self) -> None:
        self.notes: list[Undo] = []
        self._values = [(one, one.get()) for one in _variables]
        self._grad, self._modes = torch.is_grad_enabled(), _get_current_function_mode_stack()
        self._batched, self._saved = _in_batched_gradients(), _hooks_on_saved_tensors()

    def __enter__(self) -> None:
        _notes.set(self.notes)

    def __exit__(self, _: object, __: object, traceback: TracebackType | None) -> None:
        close_interrupted(traceback)
        for undo in reversed(self.notes):
            undo()
        if torch.is_grad_enabled() != self._grad:
            torch.set_grad_enabled(self._grad)
        if _get_current_function_mode_stack() != self._modes:
            while _get_current_function_mode_stack():
                _pop_mode()
            for mode in self._modes:
                _push_mode(mode)
        if traceback is not None and not self._batched:
            _leave_batched_gradients()
        while _hooks_on_saved_tensors() not in (self._saved, None):
            torch._C._autograd._pop_saved_tensors_default_hooks()
        for one, value in self._values:
            if one.get() is not value:
                one.set(value)


def _in_batched_gradients() -> bool:
    """Whether ``torch.autograd.grad(..., is_grads_batched=True)`` runs in this thread."""
    inside: bool = torch._C._dispatch_tls_is_dispatch_key_included("VmapMode")
    return inside


def _leave_batched_gradients() -> None:
    # Where an inference_mode was left since, the key of _in_batched_gradients is gone. The count is
    # not: it is had by counting only, and later calls go by it.
    while torch._C._vmapmode_increment_nesting() > 1:
        torch._C._vmapmode_decrement_nesting()
        torch._C._vmapmode_decrement_nesting()
    torch._C._vmapmode_decrement_nesting()


def _hooks_on_saved_tensors() -> object:
    """The last pair of those that are on in this thread; torch's checkpoints work by them.

    None, too, of a torch that does not say it (2.6).
    """
    last = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return last and last(False)


def close_interrupted(traceback: TracebackType | None) -> None:
    """End the generators of contexts that were interrupted as they were entered or left.

    Ours and torch's. They would end when the traceback is dropped, at any time, in the middle of
    something else.
    """
    every = [frame for frame, _ in walk_tb(traceback)]
    ours = dropwhile(lambda frame: _package(frame) != "captum_lig", every)
    for frame in reversed(list(ours)):  # what the user has opened is the user's
        file, values = frame.f_code.co_filename, list(frame.f_locals.values())
        if file == torch.utils.checkpoint.__file__:  # its context is a plain generator
            generators = values
        elif file == contextlib.__file__:  # an ExitStack's are under other names
            generators = [getattr(getattr(x, "__self__", x), "gen", None) for x in values]
        else:
            continue
        for generator in generators:
            if isinstance(generator, GeneratorType):
                with contextlib.suppress(RuntimeError):  # torch's, of counts that are put back next
                    generator.close()
        stack = frame.f_locals.get("self")
        if isinstance(stack, contextlib.ExitStack) and frame.f_code.co_name != "__init__":
            stack.close()


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def restoring(function: Callable[P, R]) -> Callable[P, R]:
    """A call after which nothing is changed, whatever ends it and wherever."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        restored = _Restored()
        with restored, restored:
            return function(*args, **kwargs)

    return call


class _RestoringContext(AbstractContextManager[R]):
    def __init__(self, manager: AbstractContextManager[R]) -> None:
        self._manager, self._restored = manager, _Restored()
        # Its end may be interrupted before the first line of it, or never come.
        self._dropped = finalize(self, _put_back, self._restored)
        self._dropped.atexit = False

    def __enter__(self) -> R:
        try:
            self._restored.__enter__()
            return self._manager.__enter__()
        except BaseException as error:
            self._restored.__exit__(None, None, error.__traceback__)
            raise

    def __exit__(self, *error: Any) -> bool | None:
        with self._restored, self._restored:
            # The manager hands the user's error on without raising it: nothing else would end them.
            close_interrupted(error[2])
            left = self._manager.__exit__(*error)
        self._dropped.detach()
        return left


def _put_back(restored: _Restored) -> None:
    if _notes.get() is restored.notes:  # and not in another's context
        restored.__exit__(None, None, None)


def restoring_context(
    function: Callable[P, Iterator[R]],
) -> Callable[P, AbstractContextManager[R]]:
    """A context that a user enters, after which nothing is changed."""
    make = contextlib.contextmanager(function)

    @wraps(function)
    def started(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[R]:
        return _RestoringContext(make(*args, **kwargs))

    return started
