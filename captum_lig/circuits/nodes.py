"""A model with some of its heads and MLPs alone: the others give what they gave in another run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.circuits.curve import Circuits, Curve, circuits_at_once
from captum_lig.circuits.order import Order
from captum_lig.errors import LigError
from captum_lig.metrics.circuits import SHARES
from captum_lig.patching.check import Explanation, check_same_question
from captum_lig.patching.nodes import Kind, Node, node_values_of
from captum_lig.patching.runs import Place
from captum_lig.patching.two_runs import TOKENS_AT_ONCE, TwoRuns

__all__ = ["NodeCircuits"]

KINDS: tuple[Kind, ...] = ("heads", "feed_forward")


class NodeCircuits(Circuits):
    """Circuits of heads and MLPs; in the context of :func:`captum_lig.circuits.of_nodes`.

    The model runs on the text. Nodes that are not kept give what they gave in the counterfactual
    run; those that are kept give what they make of what reaches them. The embeddings are the
    text's.

    Args:
        question: the two runs.
        by_position: whether a head or MLP is a node at each token, or one at all tokens.
        at_once: how many circuits run in one pass; None: as there is room for.
    """

    def __init__(self, question: TwoRuns, by_position: bool, at_once: int | None = None) -> None:
        super().__init__(
            question, circuits_at_once(at_once, TOKENS_AT_ONCE // question.runner.length)
        )
        self.nodes: tuple[Node, ...] = tuple(question.nodes(KINDS, by_position))
        """``M`` of them."""
        if not self.nodes:
            raise LigError("the model has no heads or MLPs that are found: there is no circuit.")

    @property
    def count(self) -> int:
        """How many nodes ``M``."""
        return len(self.nodes)

    def scores(self, graph: Explanation) -> Tensor:
        """What a graph with a target, of the same text, says of the nodes ``(M,)``.

        Raises:
            LigError: for a graph of another text, baseline or target, or without some layers.
        """
        trace = graph.relevance()
        check_same_question(self.question, graph, trace)
        if not set(self.question.layers) <= set(trace.layers):
            raise LigError(
                f"the graph is of the layers {brief(trace.layers)}, the circuits of "
                f"{brief(self.question.layers)}: give a graph of all of these, or fewer layers=."
            )
        values = node_values_of(trace)
        return torch.tensor([values.of(node) for node in self.nodes], dtype=torch.float64)

    def curve(
        self,
        scores: Explanation | Tensor,
        shares: Sequence[float] = SHARES,
        order: Order = "size",
        show_progress: bool = False,
    ) -> Curve:
        """Circuits that keep the best shares of the nodes.

        Args:
            scores: a graph of flows with a target, or a number for each of ``nodes (M,)``.
            shares: parts of all nodes, from 0 to 1.
            order: ``"size"``, the largest absolute values first; or ``"signed"``.
            show_progress: show a bar over circuits.

        Raises:
            LigError: for scores, shares or an order that do not fit, and if the circuit of all
                nodes does not give what the model gives, or the same as that of none.
        """
        each = scores if isinstance(scores, Tensor) else self.scores(scores)
        return self.curve_of(each, shares, order, show_progress)

    def _check_none(self, none: float) -> None:
        # The embeddings are the text's, so what reads them directly need not be as it was.
        pass

    def _run(self, kept: Tensor) -> Tensor:
        question = self.question
        assert question.baseline is not None
        groups: dict[tuple[int, Place], list[int]] = defaultdict(list)
        for n, node in enumerate(self.nodes):
            groups[question.place(node)].append(n)
        edits: dict[tuple[int, Place], Callable[[Tensor], Tensor]] = {}
        where = question.runner.positions
        for key, numbers in groups.items():
            other = question.baseline.values[key]
            out = torch.zeros(len(kept), *other.shape[1:-1], dtype=torch.bool)
            for n in numbers:
                node = self.nodes[n]
                assert not isinstance(node.position, str)  # those of the runs have numbers
                at = where if node.position is None else where[node.position, None]
                of_node = out[..., node.head] if node.kind == "heads" else out
                of_node[:, at.cpu()] = ~kept[:, n, None]
            edits[key] = _exchanged(out[..., None].to(other.device), other)
        call = question.input.call
        output = question.runner.run(call, question.further, edits, len(kept))
        return question.read(output, call).cpu().double()


def _exchanged(where: Tensor, other: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda own: torch.where(where, other.to(own), own)
