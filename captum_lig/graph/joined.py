"""What a flow graph holds, and what can be counted in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_lig.flow.tokens import TokenIndex, find_token
from captum_lig.graph.edges import Edges, edges_of
from captum_lig.graph.layer import Convergence, GraphLayer
from captum_lig.graph.tables import edge_frame

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["About", "JoinedLayers"]


@dataclass(frozen=True)
class About:
    """How the flows of a graph were made."""

    scalarization: str
    baseline: str
    target: str | None = None
    """The number that the flows are of, in words; None for lengths."""
    change: float | None = None
    """The target of the inputs less that of the baselines."""


class JoinedLayers:
    """The layers of one text, over the same tokens: the data of a graph.

    Args:
        layers: consecutive layers, in the order they run, all of one kind.
        tokens: what the tokens are called.
        positions: ``(N,)`` their positions in the text as the model got it.
        about: how the flows were made.
    """

    layers: Sequence[GraphLayer]
    tokens: list[str]
    positions: Tensor
    about: About

    @classmethod
    def of_layers(
        cls, layers: Sequence[GraphLayer], tokens: list[str], positions: Tensor, about: About
    ) -> Self:
        """A graph of layers that are there already, see the class."""
        graph = object.__new__(cls)
        graph.layers, graph.tokens, graph.positions = layers, tokens, positions
        graph.about = about
        return graph

    def _with(self, layers: Sequence[GraphLayer], tokens: list[str], positions: Tensor) -> Self:
        return self.of_layers(layers, tokens, positions, self.about)

    @property
    def scalarization(self) -> str:
        """How a vector was made a number: ``"l2"``, ``"projection"`` or ``"target"``."""
        return self.about.scalarization

    @property
    def baseline(self) -> str:
        """What the paths started from, in words."""
        return self.about.baseline

    @property
    def target(self) -> str | None:
        """The number of the model that the flows are of, in words; None for lengths."""
        return self.about.target

    @property
    def change(self) -> float | None:
        """The target of the inputs less that of the baselines; None for lengths."""
        return self.about.change

    @property
    def indices(self) -> tuple[int, ...]:
        """Indices of the layers, in the order they run."""
        return tuple(layer.index for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the graph's tensors."""
        held = [layer.tensors() for layer in self.layers] + [layer.errors for layer in self.layers]
        return sum(tensor.nbytes for tensors in held for tensor in tensors.values())

    def __repr__(self) -> str:
        summary = self.summary()
        rows, missed = sum(one.rows for one in summary), sum(one.missed for one in summary)
        edges = ", ".join(f"{count} {kind}" for kind, count in self.edge_counts.items())
        of = "" if self.target is None else f"target {self.target!r}, change {self.change:.4g}, "
        return (
            f"FlowGraph({of}layers {self.indices[0]} to {self.indices[-1]}, {len(self.tokens)} "
            f"tokens, edges: {edges}; {missed} of {rows} rows miss their total)"
        )

    def summary(self) -> list[Convergence]:
        """How far the rows of each layer and each checked field are off their totals.

        As they were integrated: the rows of the graph itself are completed to them.
        """
        return [one for layer in self.layers for one in layer.convergence()]

    @cached_property
    def edge_counts(self) -> dict[str, int]:
        """Number of edges by kind; an edge that carries nothing is none."""
        return {
            kind: sum(int(layer.there(kind).sum()) for layer in self.layers)
            for kind in self.layers[0].KINDS
        }

    def edges(self, kind: str) -> Edges:
        """The edges of one kind as columns.

        Kinds are ``"attention"`` (z -> u), ``"mlp"`` (u -> z') and ``"residual"`` (z -> z').
        In graphs with a target they are ``"attention"``, ``"feed_forward_heads"`` (u -> m, heads to
        MLP), ``"heads_past"`` (u -> z' past the MLP), ``"feed_forward_token"`` (z -> m),
        ``"feed_forward"`` (m -> z') and ``"residual"`` (z -> z', past heads and MLP).
        """
        return edges_of(self.layers, kind)

    def to_pandas(self) -> Any:
        """A table (``pandas.DataFrame``): a row for each edge that carries something.

        Columns are ``kind`` (see :meth:`edges`), ``layer``, ``head``, ``target_position`` and
        ``target``, ``source_position`` and ``source`` (positions in the graph; both are the token
        of the node but for ``attention``), ``value``, and ``share`` of the target node, as in
        :meth:`to_networkx`. Prune the graph for fewer rows. Nodes: see :meth:`Trace.to_pandas`.

        Raises:
            LigError: if pandas is not installed.
        """
        return edge_frame(self.layers, self.tokens)

    def find(self, token: TokenIndex) -> int:
        """The position in the graph of a token, by what it says; a position stays.

        Raises:
            LigError: if there is none, or if there are several: the message has their positions.
        """
        found: int = find_token(token, self.tokens)
        return found

    def head_shares(self) -> Tensor:
        """``(L, H)``: the share of each head in what reached the tokens leaving a layer.

        Absolute values of the mlp boundary, added up over the targets; in graphs with a target,
        what goes past the MLP and what goes through it. With
        :meth:`residual_share`, the shares of a whole graph's layer add up to 1; where the layer
        reads an encoder, to what did not come from the encoder's tokens. Of less of it, they
        stay what they are in the whole layer, and of an output that no edge reaches any more there
        is none. NaN in a layer that moved nothing.
        """
        return pad_sequence([layer.head_shares() for layer in self.layers], batch_first=True)

    def residual_share(self) -> Tensor:
        """``(L,)``: the share of the residual edges in what reached the tokens leaving a layer.

        In graphs with a target also what goes from the token through its MLP. See
        :meth:`head_shares`.
        """
        return torch.stack([layer.residual_share() for layer in self.layers])
