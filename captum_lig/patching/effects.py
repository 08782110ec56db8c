"""What single nodes do to a number of the model, and mean vectors to put in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.patching.nodes import Node, NodeValues, node_values
from captum_lig.patching.runs import Place

__all__ = ["Effects", "Means"]


@dataclass(frozen=True)
class Effects:
    """What nodes of one text do to a number ``F``, two ways, in its units and float64."""

    nodes: tuple[Node, ...]
    """``M`` of them."""
    taken_out: Tensor
    """``(M,)`` ``F(input)`` less F of the input run with the node at its baseline value."""
    put_in: Tensor | None
    """``(M,)`` F of the baseline run with the node at its value of the input run, less
    ``F(baseline)``. None if nodes were put to means: there is no run that has them."""
    value: float
    """``F(input)``"""
    baseline_value: float | None
    """``F(baseline)``"""
    layers: tuple[int, ...]
    positions: Tensor
    """``(N,)`` positions of the tokens in the text as the model got it, padding left out."""
    target: str
    """What the number is, in words."""

    @property
    def out(self) -> NodeValues:
        """Effects of taking nodes out of the input run."""
        return self._shaped(self.taken_out)

    @property
    def into(self) -> NodeValues:
        """Effects of putting nodes into the baseline run.

        Raises:
            LigError: if nodes were put to means.
        """
        return self._shaped(self._put_in())

    @property
    def mean(self) -> NodeValues:
        """The mean of both.

        Raises:
            LigError: if nodes were put to means.
        """
        return self._shaped((self.taken_out + self._put_in()) / 2)

    def rows(self) -> list[dict[str, Any]]:
        """One a node: plain numbers and names."""
        found = []
        for number, node in enumerate(self.nodes):
            row = vars(node) | {"out": float(self.taken_out[number])}
            if self.put_in is not None:
                into = float(self.put_in[number])
                row |= {"into": into, "mean": (row["out"] + into) / 2}
            found.append(row)
        return found

    def _put_in(self) -> Tensor:
        if self.put_in is None:
            raise LigError(
                "nodes were put to means, so there is no baseline run that they could be put into: "
                "read out alone, or give baselines."
            )
        return self.put_in

    def _shaped(self, numbers: Tensor) -> NodeValues:
        each = dict(zip(self.nodes, numbers.tolist(), strict=True))
        return node_values(self.layers, len(self.positions), each)


@dataclass(frozen=True)
class Means:
    """Mean vectors of nodes, over the tokens of some texts; by layer and place."""

    values: dict[tuple[int, Place], Tensor]
    """``(D,)``, or ``(H, e)`` of heads; by the index of the layer."""
