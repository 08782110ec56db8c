"""What an attribution cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost", "Meter"]


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

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.path_points + other.path_points,
            self.forward_equivalents + other.forward_equivalents,
            self.seconds + other.seconds,
        )


@dataclass
class Meter:
    """Counts the work on one block."""

    pairs: int = 0
    """Pairs of a path point and a target evaluated."""
    passed: int = 0
    """Tokens that went forward or backward through the block's code."""
