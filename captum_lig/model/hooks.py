"""What is put on modules for a time: hooks, other forwards, and stopping a run in the middle.

Modules, and with them all that is registered on them, are shared by all threads. So whatever is
put on them here acts on calls made from inside its own ``with`` alone, and lets every other call
pass: another thread's, and those of an attribution that a user's hook starts in the middle of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any, NoReturn

from torch import nn
from torch._dynamo import eval_frame

__all__ = ["attribution", "hooked", "only_here", "replaced_forward", "stoppable", "uncompiled"]

Enter = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Gets what a module is called with; may return other ``(args, kwargs)``."""

Leave = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
"""Gets that and the module's output; may return another output."""

_active: ContextVar[frozenset[object]] = ContextVar("captum_lig_active", default=frozenset())
"""The ``with`` statements of :func:`only_here` that the current call is inside of."""

_lock = RLock()


@contextmanager
def attribution() -> Iterator[None]:
    """One attribution of the process at a time; inside, nothing of an outer one acts."""
    with _lock:
        before = _active.set(frozenset())
        try:
            yield
        finally:
            _active.reset(before)


@contextmanager
def only_here() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether it is called from inside this ``with``."""
    own = object()
    before = _active.set(_active.get() | {own})
    try:
        yield lambda: own in _active.get()
    finally:
        _active.reset(before)


@contextmanager
def hooked(
    modules: Iterable[nn.Module], *, enter: Enter | None = None, leave: Leave | None = None
) -> Iterator[None]:
    """Call ``enter`` before and ``leave`` after each call of the modules made inside."""
    handles = []
    with only_here() as here:

        def guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
            # Another thread that is about to call a hook while it is removed calls it without
            # the keyword arguments, so these are not looked at before it is known who calls.
            return lambda *given: hook(*given) if here() else None

        try:
            for module in modules:
                if enter is not None:
                    handle = module.register_forward_pre_hook(guarded(enter), with_kwargs=True)
                    handles.append(handle)
                if leave is not None:
                    handle = module.register_forward_hook(guarded(leave), with_kwargs=True)
                    handles.append(handle)
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def replaced_forward(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules do something else than their own ``forward`` in calls made inside."""
    before: dict[nn.Module, Any] = {module: vars(module).get("forward") for module in forwards}
    with only_here() as here:

        def guarded(own: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: (other if here() else own)(*args, **kwargs)

        try:
            for module, forward in forwards.items():
                module.forward = guarded(module.forward, forward)
            yield
        finally:
            for module, forward in before.items():
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = forward


class _Stop(Exception):
    """Raised to leave a ``with stoppable()``."""


@contextmanager
def stoppable() -> Iterator[Callable[[], NoReturn]]:
    """Gives a function that ends this ``with``, wherever it is called inside."""
    own = object()

    def stop() -> NoReturn:
        raise _Stop(own)

    try:
        yield stop
    except _Stop as stopped:
        if stopped.args[0] is not own:
            raise


class _Stance:
    """The stance of torch's compiler: ``force_eager`` to calls from here, to others what it was."""

    def __init__(self, here: Callable[[], bool], before: Any) -> None:
        self._here, self._before = here, before

    def __getattr__(self, name: str) -> Any:
        return "force_eager" if name == "stance" and self._here() else getattr(self._before, name)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what was compiled as it was written: else our attention function would not be reached.

    ``torch.compiler.set_stance`` would do so for all threads.
    """
    dynamo: Any = eval_frame  # the stance is a name in it
    before = dynamo._stance
    with only_here() as here:
        dynamo._stance = ours = _Stance(here, before)
        try:
            yield
        finally:
            if dynamo._stance is ours:
                dynamo._stance = before
