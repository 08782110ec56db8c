"""What a method costs: seconds, and passes of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from benchmarks.common import now


@dataclass
class Cost:
    """Of one method on one text; passes are of the blocks, for the whole text.

    They are counted by the multiplications of the blocks' linear layers, so that a run of some
    of the blocks, or of some of the tokens, counts as the part of a pass that it is.
    """

    seconds: float = 0.0
    forward: float = 0.0
    backward: float = 0.0


@contextmanager
def counted(blocks: list[nn.Module], tokens: int) -> Iterator[Cost]:
    """Count what is done in the body of the `with` statement."""
    cost = Cost()
    linears = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    whole = tokens * sum(m.in_features * m.out_features for m in linears)

    def hook(module: nn.Linear, args: tuple[Any, ...], output: Tensor) -> None:
        done = module.in_features * prod(output.shape) / whole

        def back(_: Tensor) -> None:
            cost.backward += done

        cost.forward += done
        if output.requires_grad:
            output.register_hook(back)

    with ExitStack() as stack:
        for linear in linears:
            stack.enter_context(linear.register_forward_hook(hook))
        began = now()
        yield cost
        cost.seconds = now() - began
