"""How large the largest tensor of a computation is, and how many bytes it holds at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):  # one that is expanded holds no more than its storage
                held = x.untyped_storage().nbytes() // x.element_size()
                self.entries = max(self.entries, min(x.numel(), held))
        return out


class Held(TorchDispatchMode):
    """The most bytes of storages that operations made and that are there at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._there: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = {_key(x) for x in args if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if _key(x) not in before:  # neither a view, nor in place
                    self._there[_key(x)] = (StorageWeakRef(storage), storage.nbytes())
        gone = [key for key, (there, _) in self._there.items() if there.expired()]
        for key in gone:
            del self._there[key]
        self.peak = max(self.peak, sum(size for _, size in self._there.values()))
        return out


def _key(x: Tensor) -> int:
    """What tells its storage from others that are there."""
    return int(StorageWeakRef(x.untyped_storage()).cdata)
