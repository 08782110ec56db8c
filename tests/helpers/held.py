"""How many bytes of tensors a computation holds at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Held(TorchDispatchMode):
    """The most bytes of storages that operations made and that are there at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._there: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in before:  # a view, or in place
                    self._there[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        gone = [key for key, (there, _) in self._there.items() if there.expired()]
        for key in gone:
            del self._there[key]
        self.peak = max(self.peak, sum(size for _, size in self._there.values()))
        return out
