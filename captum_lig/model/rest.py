"""Running a model with the outputs of some of its blocks put in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from captum_lig.errors import LigError
from captum_lig.model.call import BlockCall, hidden_of
from captum_lig.model.cross_attention import Cross
from captum_lig.model.hooks import hooked, own_call, replaced_call, stoppable, tell
from captum_lig.model.inputs import ModelCall

__all__ = ["Rest"]


class Rest:
    """What a model does beside and after some of its blocks, for one text.

    Args:
        call: the call of the model, of one text.
        blocks: the model's blocks in the order they run, a module that runs several times for each.
    """

    def __init__(self, call: ModelCall, blocks: Sequence[BlockCall]) -> None:
        self.call, self.blocks = call, list(blocks)
        self.takes_copies = True
        """Whether the model is run on several copies of the text at once."""
        self._raw: list[Any] = []
        self._modules = list(dict.fromkeys(block.module for block in blocks))

    def record(self, further: Mapping[str, Any] | None = None) -> Any:
        """Run the model as it is and return its output; keep the form of the blocks' outputs.

        Args:
            further: further keyword arguments of the model.
        """
        raw: list[Any] = []

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            raw.append(output)

        with hooked(self._modules, leave=keep):
            args, kwargs = self.call.arguments()
            output = self.call.model(*args, **{**kwargs, **(further or {})})
        if len(raw) != len(self.blocks):
            raise LigError(
                f"{type(self.call.model).__name__} ran {len(raw)} blocks, and {len(self.blocks)} "
                "when it was recorded: it runs other blocks each time."
            )
        self._raw = raw
        return output

    def run(
        self,
        outputs: Mapping[int, Tensor],
        further: Mapping[str, Any] | None = None,
        until: int | None = None,
    ) -> tuple[Any, ModelCall]:
        """The model's output with some blocks' outputs ``(P, S, D)`` put in, on ``P`` copies.

        Args:
            outputs: by the number of the block; those do not run.
            further: further keyword arguments of the model.
            until: number of a block: what it is called with, ``(args, kwargs)``, in place of the
                model's output, and no further.

        Returns:
            That, and the call that it came from.
        """
        copies = len(next(iter(outputs.values())))
        call = self.call.repeated(copies)
        counter = iter(range(len(self.blocks)))
        reached: list[Any] = []
        with stoppable() as stop:

            def instead(own: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
                def call_of(*args: Any, **kwargs: Any) -> Any:
                    number = next(counter, -1)
                    if number == until:
                        reached.append((args, kwargs))
                        stop()
                    if number in outputs:
                        output = _with_hidden(self._raw[number], outputs[number])
                        tell(module, args, kwargs, output)
                        return output
                    return own(*args, **kwargs)

                return call_of

            with replaced_call({m: instead(own_call(m), m) for m in self._modules}):
                args, kwargs = call.arguments()
                found = call.model(*args, **{**kwargs, **(further or {})})
        return (reached[0] if reached else found), call

    def entering(
        self, number: int, outputs: Mapping[int, Tensor], cross: Cross | None = None
    ) -> Tensor:
        """The tokens ``(P, S, D)`` that enter a block, with outputs of earlier ones put in.

        Or the encoder's states that it attends to at ``cross``.
        """
        (args, kwargs), _ = self.run(outputs, until=number)
        if cross is None:
            hidden = hidden_of(args, kwargs)
        else:
            at = cross.position
            hidden = args[at] if isinstance(at, int) else kwargs[at]
        assert hidden is not None
        return hidden


def _with_hidden(raw: Any, hidden: Tensor) -> Any:
    """A block's output with other hidden states, see ``first_tensor``."""
    if isinstance(raw, Tensor):
        return hidden
    if isinstance(raw, Mapping):
        name = next(iter(raw))
        return type(raw)({**raw, name: _with_hidden(raw[name], hidden)})  # type: ignore[call-arg]
    rest = [None if not isinstance(x, Tensor) else x for x in raw[1:]]
    return type(raw)([_with_hidden(raw[0], hidden), *rest])
