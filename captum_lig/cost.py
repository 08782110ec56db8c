"""What an attribution cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PATHS", "Cost", "Meter"]

PATHS = ("closed_form", "run_block", "autograd")
"""How the attention is had along a path: from tables at its two ends; by running the block up to
its attention core at each point; or by running its attention, too, and autograd. The cheapest that
is what the block does along the path is taken."""


def _dearer(one: str, other: str) -> str:
    """Which of two ways costs more; an empty one is unknown."""
    return max(one, other, key=("", *PATHS).index)


@dataclass(frozen=True)
class Cost:
    """What one layer's attribution cost."""

    path_points: float
    """Path points evaluated for each target and boundary integral, on average over targets."""
    forward_equivalents: float
    """Forward and backward passes through the block's own code, in units of one forward pass over
    a text (a backward pass counts as one). The attention arithmetic between them is not in it."""
    seconds: float
    """Time on the wall."""
    path: str = ""
    """How the attention was had along the paths, one of :data:`PATHS`; of several texts the
    dearest. Empty in files of older versions."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.path_points + other.path_points,
            self.forward_equivalents + other.forward_equivalents,
            self.seconds + other.seconds,
            _dearer(self.path, other.path),
        )


@dataclass
class Meter:
    """Counts the work on one block."""

    pairs: int = 0
    """Pairs of a path point and a target evaluated."""
    passed: int = 0
    """Tokens that went forward or backward through the block's code."""
    path: str = ""
    """The dearest way so far in which the attention was had along a path, one of :data:`PATHS`."""

    def takes(self, path: str) -> None:
        """Note how the attention is had along a path."""
        self.path = _dearer(self.path, path)
