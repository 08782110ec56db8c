"""Whether a model is still what it was: its modules, their weights and their mode.

Writing through ``parameter.data`` is not seen: torch does not count it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from captum_lig.errors import LigError

__all__ = ["MadeOf"]

SIMPLE = (bool, int, float, str, type(None))


class MadeOf:
    """What a model is made of at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules())
        self._modes = {name: module.training for name, module in self._modules.items()}
        self._weights = {name: _state(p) for name, p in model.named_parameters()}
        # A dropout's probability, whether attention is causal.
        self._settings = [
            (key, value)
            for module in self._modules.values()
            for key, value in vars(module).items()
            if isinstance(value, SIMPLE)
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MadeOf):
            return NotImplemented
        return self.changed(other) is None and self._settings == other._settings

    __hash__ = None  # type: ignore[assignment]

    def changed(self, now: MadeOf) -> str | None:
        """What is another one now, in words; None if nothing is."""
        ours, theirs = self._modules, now._modules
        for name in {**ours, **theirs}:
            if ours.get(name) is not theirs.get(name):
                return f"its module {name!r} is another one"
            if self._modes[name] != now._modes[name]:
                mode = "training" if now._modes[name] else "evaluation"
                return f"its module {name!r} went into {mode} mode"
        for name in {**self._weights, **now._weights}:
            if self._weights.get(name) != now._weights.get(name):
                return f"its parameter {name!r} was written to, moved or replaced"
        return None

    def check(self, when: str) -> None:
        """Refuse to go on if the model is no longer this.

        Args:
            when: what was done meanwhile, for the message.

        Raises:
            LigError: if it was changed.
        """
        found = self.changed(MadeOf(self.model))
        if found is not None:
            raise LigError(
                f"the model was changed {when}: {found}. Numbers of two models would be mixed; "
                "leave the model alone meanwhile, and ask again."
            )


def _state(x: Tensor) -> tuple[Any, ...]:
    if x.is_meta:  # offloaded: it comes and goes with each run
        return x.dtype, x.shape
    version = 0 if x.is_inference() else x._version
    return id(x), x.dtype, x.device, x.data_ptr(), version
