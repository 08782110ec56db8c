"""What is put on modules for a time: hooks, other calls, and stopping a run in the middle.

Modules, and with them all that is registered on them, are shared by all threads. So whatever is
put on them here acts on calls made from inside its own ``with`` alone, and lets every other call
pass: another thread's, and those of an attribution that a user's hook starts in the middle of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from threading import RLock
from typing import Any, NoReturn

from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch.nn.modules import module as of_all
from torch.utils._pytree import tree_map

from captum_lig._restore import changing, holding, variable

__all__ = [
    "attribution",
    "called_modules",
    "changed_call",
    "hooked",
    "hooks_said",
    "only_here",
    "own_call",
    "places_said",
    "replaced_call",
    "stoppable",
    "tell",
    "uncompiled",
    "users_hooks",
]

Enter = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Gets what a module is called with; may return other ``(args, kwargs)``."""

Leave = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
"""Gets that and the module's output; may return another output."""

_active: ContextVar[frozenset[object]] = variable("active", frozenset())
"""The ``with`` statements of :func:`only_here` that the current call is inside of."""

_lock = RLock()


@contextmanager
def attribution() -> Iterator[None]:
    """One attribution of the process at a time; inside, nothing of an outer one acts."""
    # On one line: no exception gets between the end of what is inside and the lock's release.
    with _lock, _among(frozenset()): yield  # fmt: skip # noqa: E701


@contextmanager
def only_here() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether it is called from inside this ``with``."""
    own = object()
    with _among(_active.get() | {own}):
        yield lambda: own in _active.get()


def _among(active: frozenset[object]) -> AbstractContextManager[None]:
    return holding(_active, active)


class _Hook:
    """A hook of ours."""

    def __init__(self, here: Callable[[], bool], hook: Callable[..., Any] | None) -> None:
        self._here, self._hook = here, hook

    def __call__(self, *given: Any) -> Any:
        # Another thread that is about to call a hook while it is removed calls it without
        # the keyword arguments, so these are not looked at before it is known who calls.
        return self._hook(*given) if self._hook is not None and self._here() else None


@contextmanager
def hooked(
    modules: Iterable[nn.Module],
    *,
    enter: Enter | None = None,
    leave: Leave | None = None,
    inside: bool = False,
) -> Iterator[None]:
    """Call ``enter`` before and ``leave`` after each call of the modules made inside.

    A module counts with the hooks that are on it: ``enter`` gets what it is called with, before
    they change it, and ``leave`` what they made of its output. With ``inside``, ``enter`` gets what
    they made of that: what its ``forward`` gets.
    """
    modules = list(modules)
    with only_here() as here:
        entering, leaving = _Hook(here, enter), _Hook(here, leave)

        def undo() -> None:
            # Not by their handles: one may have been put on and its handle not yet returned.
            for module in modules:
                _without(entering, module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
                _without(leaving, module._forward_hooks, module._forward_hooks_with_kwargs)

        with changing(undo):
            for module in modules:
                if enter is not None:
                    module.register_forward_pre_hook(entering, prepend=not inside, with_kwargs=True)
                if leave is not None:
                    module.register_forward_hook(leaving, with_kwargs=True)
            yield


def _without(hook: Callable[..., Any], hooks: dict[int, Any], flags: dict[int, bool]) -> None:
    for key in [key for key, one in list(hooks.items()) if one is hook]:
        hooks.pop(key, None)
    for key in flags.keys() - hooks.keys():
        flags.pop(key, None)


def users_hooks(module: nn.Module) -> list[tuple[str, Callable[..., Any]]]:
    """Forward hooks of the user's on a module and what it is made of, each with where it is.

    Those that transformers puts on to give hidden states and attentions change nothing.
    """
    return [
        (name, hook)
        for name, one in module.named_modules()
        for hook in (*one._forward_pre_hooks.values(), *one._forward_hooks.values())
        if not isinstance(hook, _Hook) and not _notes(hook)
    ]


def places_said(hooks: Iterable[tuple[str, Callable[..., Any]]]) -> str:
    """The first three modules that hooks are on, and how many more there are."""
    names = list(dict.fromkeys(repr(name) if name else "it" for name, _ in hooks))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def hooks_said(module: nn.Module) -> str:
    """What to add to a refusal of a module that hooks of the user's are on, or nothing."""
    found = users_hooks(module)
    if not found:
        return ""
    return (
        f" There are forward hooks on {places_said(found)}: if one is random, detaches, "
        "reads other tokens, puts something else in their place or treats positions in different "
        "ways, that is why. One that does the same at every position, as adding a vector, is "
        "attributed with the block."
    )


class _Call:
    """What a module is called through; ``before`` is what stood there, if anything."""

    def __init__(
        self, here: Callable[[], bool], module: nn.Module, other: Callable[..., Any]
    ) -> None:
        self._here, self._own, self._other = here, own_call(module), other
        self.before, self.ended = vars(module).get(_THROUGH), False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._other if self._here() else self._own)(*args, **kwargs)


_THROUGH = "_compiled_call_impl"
"""Where torch looks for what a call of a module goes through, its hooks among it, and where
``module.compile()`` puts its own."""


def own_call(module: nn.Module) -> Callable[..., Any]:
    """What a call of a module goes through now: its hooks and its ``forward``."""
    found: Callable[..., Any] = vars(module).get(_THROUGH) or module._call_impl
    return found


def tell(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    """Let a module's hooks see what takes the place of its output, and change a copy of it alone.

    They may note it: transformers does so for hidden states.
    """
    for key, hook in list(module._forward_hooks.items()):
        seen = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, output)
        hook(module, args, *_more(key in module._forward_hooks_with_kwargs, kwargs), seen)


def changed_call(
    module: nn.Module, own: Callable[..., Any], change: Callable[[Any], Any]
) -> Callable[..., Any]:
    """A module with the hooks on it, its output changed before hooks note it; ``own`` calls it."""
    if not module._forward_hooks:
        return lambda *args, **kwargs: change(own(*args, **kwargs))

    def call(*args: Any, **kwargs: Any) -> Any:
        given, named = args, kwargs
        for key, enter in list(module._forward_pre_hooks.items()):
            if key in module._forward_pre_hooks_with_kwargs:
                both = enter(module, given, named)
                given, named = (given, named) if both is None else both
            elif (found := enter(module, given)) is not None:
                given = found if isinstance(found, tuple) else (found,)
        output = module.forward(*given, **named)
        for key, leave in list(module._forward_hooks.items()):
            if not _notes(leave):
                more = _more(key in module._forward_hooks_with_kwargs, named)
                found = leave(module, given, *more, output)
                output = output if found is None else found
        output = change(output)
        tell(module, given, named, output)
        return output

    return call


def _more(wanted: bool, kwargs: Any) -> tuple[Any, ...]:
    return (kwargs,) if wanted else ()


def _notes(hook: Any) -> bool:
    """Whether transformers put a hook on, to note hidden states or attentions at each call."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


@contextmanager
def replaced_call(calls: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules do something else than their own in calls made inside.

    It takes the place of a module with the hooks on it: a vector that a user's hook adds is added
    where the module itself runs (:func:`own_call`), and not to what is given in its place.
    """
    with only_here() as here:
        ours = {module: _Call(here, module, other) for module, other in calls.items()}

        def undo() -> None:
            for module, one in ours.items():
                one.ended = True
                # What another library has wrapped meanwhile stays, and does nothing any more.
                while isinstance(top := vars(module).get(_THROUGH), _Call) and top.ended:
                    if top.before is None:
                        vars(module).pop(_THROUGH, None)
                    else:
                        setattr(module, _THROUGH, top.before)

        with changing(undo):
            for module, call in ours.items():
                setattr(module, _THROUGH, call)
            yield


@contextmanager
def called_modules() -> Iterator[Iterable[nn.Module]]:
    """Gives the modules that are called inside, whoever calls them."""
    found: dict[nn.Module, None] = {}
    with only_here() as here:

        def note(module: nn.Module, *_: Any) -> None:
            if here():
                found[module] = None

        def undo() -> None:
            _without(note, of_all._global_forward_pre_hooks, {})

        with changing(undo):
            of_all.register_module_forward_pre_hook(note)
            yield found


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
        self._here, self.before, self.ended = here, before, False

    def __getattr__(self, name: str) -> Any:
        return "force_eager" if name == "stance" and self._here() else getattr(self.before, name)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what was compiled as it was written: else our attention function would not be reached.

    ``torch.compiler.set_stance`` would do so for all threads.
    """
    dynamo: Any = eval_frame  # the stance is a name in it
    with only_here() as here:
        ours = _Stance(here, dynamo._stance)

        def undo() -> None:
            ours.ended = True
            while isinstance(top := dynamo._stance, _Stance) and top.ended:
                dynamo._stance = top.before

        with changing(undo):
            dynamo._stance = ours
            yield
