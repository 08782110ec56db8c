"""What single nodes do to a number of the model, and mean vectors to put in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.shown import Short, html_list, html_table
from captum_lig.flow.tables import frame
from captum_lig.patching.nodes import Node, NodeValues, node_columns, node_values
from captum_lig.patching.runs import Place

__all__ = ["Effects", "Means"]

SHOWN = 10
"""Nodes that a notebook shows."""


@dataclass(frozen=True, repr=False)
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
    labels: tuple[str, ...] | None = None
    """The tokens without padding, if they are known."""

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

    def to_pandas(self) -> Any:
        """A table (``pandas.DataFrame``), a row for each node.

        Columns are ``kind``, ``layer``, ``head``, ``position``, ``token``, ``out``, and, if nodes
        were put into a baseline run, ``into`` and ``mean``.
        """
        columns = node_columns(self.nodes, self.labels)
        columns["out"] = self.taken_out.numpy(force=True)
        if self.put_in is not None:
            columns["into"] = self.put_in.numpy(force=True)
            columns["mean"] = (columns["out"] + columns["into"]) / 2
        return frame(columns)

    def __repr__(self) -> str:
        base = "" if self.baseline_value is None else f", of the baseline {self.baseline_value:.4g}"
        return f"Effects(of {len(self.nodes):,} nodes on {self.target}: {self.value:.4g}{base})"

    def _repr_html_(self) -> str:
        """The strongest nodes, for notebooks."""
        order = self.taken_out.abs().argsort(descending=True)[:SHOWN].tolist()
        both = self.put_in is not None
        rows = []
        for n in order:
            row = [self.nodes[n].describe(self.labels), f"{float(self.taken_out[n]):+.4g}"]
            rows.append([*row, f"{float(self.put_in[n]):+.4g}"] if self.put_in is not None else row)
        header = ("node", "out", "into") if both else ("node", "out")
        return html_list([repr(self)]) + html_table(header, rows)

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


@dataclass(frozen=True, repr=False)
class Means(Short):
    """Mean vectors of nodes, over the tokens of some texts; by layer and place."""

    values: dict[tuple[int, Place], Tensor]
    """``(D,)``, or ``(H, e)`` of heads; by the index of the layer."""
