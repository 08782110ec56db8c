"""An explanation put to the test: what a graph says of nodes, beside what patching them does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from captum_lig._arguments import brief, whole_number
from captum_lig._restore import restoring
from captum_lig.errors import LigError
from captum_lig.flow.compare_maps import compare_maps
from captum_lig.flow.shown import html_list, html_table
from captum_lig.flow.tables import frame
from captum_lig.graph.arguments import in_order
from captum_lig.graph.trace import Trace
from captum_lig.model.few_bits import rounding_of
from captum_lig.patching.nodes import (
    Kind,
    Node,
    NodeValues,
    checked_kinds,
    node_columns,
    node_values_of,
)
from captum_lig.patching.runs import Layers
from captum_lig.patching.two_runs import TwoRuns, two_runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Check", "CheckedNode", "Correlation", "check", "check_same_question"]

FEWEST = 3
"""Nodes that a correlation needs: two always lie on a line."""
AGREE = 0.5
"""Where the two effects correlate less, it is said."""


class Explanation(Protocol):
    """What :func:`check` needs of a graph: :class:`FlowGraph` of flows with a target is one."""

    def relevance(self) -> Trace:
        """A number for each node, in units of the target."""


@dataclass(frozen=True)
class CheckedNode:
    """A node: what the graph says of it, and what patching it does, in units of the target."""

    node: Node
    strongest: bool
    """Whether it is one of the strongest of its kind; else it was chosen at random."""
    attributed: float
    out: float
    """``F(input)`` less F with the node put back to its baseline value."""
    into: float
    """F of the baseline run with the node's value of the input put in, less ``F(baseline)``."""

    @property
    def mean(self) -> float:
        """The mean effect."""
        return (self.out + self.into) / 2


@dataclass(frozen=True)
class Correlation:
    """Pearson correlations over some of the nodes; NaN where there is none."""

    nodes: int
    mean: float
    """Of what is attributed with the mean effect."""
    out: float
    """With the effect of taking out."""
    into: float
    """With the effect of putting in."""
    agreement: float
    """Of the two effects with each other: where it is low, no one number can be both."""
    reason: str
    """Why one is NaN; empty if none is."""


@dataclass(frozen=True, repr=False)
class Check:
    """Nodes of a graph, patched. Printed, it is a table."""

    rows: tuple[CheckedNode, ...]
    """By kind, the strongest first, then those chosen at random."""
    labels: tuple[str, ...]
    """The tokens."""
    value: float
    """``F(input)``"""
    baseline_value: float
    """``F(baseline)``"""
    target: str
    """What the number is, in words."""

    def correlation(self, kind: Kind | None = None) -> Correlation:
        """Of the nodes of one kind, or of all."""
        rows = [row for row in self.rows if kind is None or row.node.kind == kind]
        columns = {
            name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
            for name in ("attributed", "mean", "out", "into")
        }
        reason = ""
        if len(rows) < FEWEST:
            reason = f"{len(rows)} nodes are too few"
        else:
            same = [name for name, x in columns.items() if bool((x == x[0]).all())]
            if same:
                reason = f"all have the same number in {', '.join(same)}"

        def pearson(one: str, other: str) -> float:
            if len(rows) < FEWEST:
                return math.nan
            return float(compare_maps(columns[one][None], columns[other][None]).pearson)

        mean, out, into = (pearson(name, "attributed") for name in ("mean", "out", "into"))
        return Correlation(len(rows), mean, out, into, pearson("out", "into"), reason)

    @property
    def kinds(self) -> list[Kind]:
        """Kinds that there are nodes of."""
        return list(dict.fromkeys(row.node.kind for row in self.rows))

    def says(self) -> list[str]:
        """What there is to read from it, in sentences."""
        found = [
            f"{self.target}: {self.value:.4g}, of the baseline {self.baseline_value:.4g}, "
            f"a change of {self.value - self.baseline_value:+.4g}."
        ]
        for kind in [*self.kinds, None] if len(self.kinds) > 1 else self.kinds:
            one, name = self.correlation(kind), kind or "all"
            if math.isnan(one.mean):
                found.append(f"{name}: no correlation, {one.reason}.")
                continue
            found.append(
                f"{name}: attributed and observed correlate at {one.mean:.2f} (out {one.out:.2f}, "
                f"into {one.into:.2f}), {one.nodes} nodes."
            )
            if one.agreement < AGREE:
                found.append(
                    f"{name}: the effects out and into disagree, they correlate at "
                    f"{one.agreement:.2f}. No one number for each node can be both."
                )
        return found

    def cells(self) -> list[list[str]]:
        """The table's rows."""
        numbers = ("attributed", "out", "into", "mean")
        return [
            [
                row.node.describe(self.labels),
                "strongest" if row.strongest else "random",
                *(f"{getattr(row, name):+.4g}" for name in numbers),
            ]
            for row in self.rows
        ]

    def __str__(self) -> str:
        """The table and what it says."""
        lines = [list(HEADER), *self.cells()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]

        def line(cells: list[str]) -> str:
            first, second, *numbers = zip(cells, widths, strict=True)
            left = [cell.ljust(width) for cell, width in (first, second)]
            return "  ".join(left + [cell.rjust(width) for cell, width in numbers])

        return "\n".join([*map(line, lines), "", *self.says()])

    def to_pandas(self) -> Any:
        """A table (``pandas.DataFrame``), a row for each node.

        Columns are ``kind``, ``layer``, ``head``, ``position``, ``token``, ``strongest`` (else it
        was chosen at random), ``attributed``, ``out``, ``into`` and ``mean``.
        """
        numbers = ("strongest", "attributed", "out", "into", "mean")
        return frame(
            node_columns([row.node for row in self.rows], self.labels)
            | {name: np.array([getattr(row, name) for row in self.rows]) for name in numbers}
        )

    def __repr__(self) -> str:
        return f"Check({len(self.rows)} nodes. {' '.join(self.says()[: len(self.kinds) + 1])})"

    def _repr_html_(self) -> str:
        return html_table(HEADER, self.cells()) + html_list(self.says())


HEADER = ("node", "chosen", "attributed", "out", "into", "mean")


@restoring
def check(
    graph: Explanation,
    model: nn.Module,
    inputs: Any,
    baselines: Any,
    target: Any,
    k: int = 10,
    kinds: str | Sequence[str] | None = None,
    additional_forward_args: object = None,
    *,
    seed: int = 0,
    by_position: bool = True,
    text: int | None = None,
    layers: Layers = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> Check:
    """Patch what a graph calls strongest, and as many nodes chosen at random.

    Nodes that are the same in both runs are left out: they have no effect, whatever a graph says.

    Args:
        graph: of flows with a target, of this model, these inputs, baselines and target.
        model: the model.
        inputs: as in :func:`effects`.
        baselines: as in :func:`effects`.
        target: as in :func:`effects`.
        k: how many nodes of each kind, and as many at random.
        kinds: ``"tokens"``, ``"heads"``, ``"attention"``, ``"feed_forward"``; None: tokens, heads
            and, if the graph has them, MLPs.
        additional_forward_args: as in :func:`effects`.
        seed: of the random choice.
        by_position: heads, attention and MLPs one token at a time; False: at all tokens at once,
            against the sum of what is attributed.
        text: as in :func:`effects`.
        layers: those of the graph, where its flows are of blocks of one's own; None: by its
            indices.
        tokenizer: as in :func:`effects`.
        internal_batch_size: as in :func:`effects`.
        show_progress: show a bar.

    Raises:
        LigError: as :func:`effects`, and for a graph of other tokens, or without such nodes.
    """
    whole_number("k", k, 1)
    trace = graph.relevance()
    attributed = node_values_of(trace)
    has_mlps = attributed.feed_forward is not None
    if kinds is None:
        kinds = ["tokens", "heads", "feed_forward"] if has_mlps else ["tokens", "heads"]
    chosen_kinds = checked_kinds(kinds)
    if "feed_forward" in chosen_kinds and not has_mlps:
        raise LigError("kinds hold 'feed_forward', and the graph has no MLPs: leave it out.")
    with two_runs(
        model,
        inputs,
        baselines,
        target,
        additional_forward_args,
        text=text,
        tokenizer=tokenizer,
        layers=trace.layers if layers is None else layers,
        internal_batch_size=internal_batch_size,
    ) as question:
        if question.layers != tuple(trace.layers):
            raise LigError(
                f"the graph is of the layers {brief(trace.layers)}, layers= are "
                f"{brief(question.layers)}: give those of the graph."
            )
        check_same_question(question, graph, trace)
        generator = torch.Generator().manual_seed(seed)
        chosen: dict[Node, bool] = {}
        for kind in chosen_kinds:
            best, rest = _strongest(question, kind, by_position, attributed, k)
            some = torch.randperm(len(rest), generator=generator)[:k].tolist()
            chosen |= dict.fromkeys(best, True) | dict.fromkeys((rest[n] for n in some), False)
        if not chosen:
            raise LigError(
                "no node of these kinds differs between the inputs and the baselines: there is "
                "nothing to patch. Give other baselines."
            )
        found = question.effects(list(chosen), show_progress=show_progress)
    assert found.put_in is not None
    assert found.baseline_value is not None
    effects = zip(found.taken_out.tolist(), found.put_in.tolist(), strict=True)
    rows = tuple(
        CheckedNode(node, strongest, attributed.of(node), *effect)
        for (node, strongest), effect in zip(chosen.items(), effects, strict=True)
    )
    return Check(rows, trace.labels, found.value, found.baseline_value, found.target)


def check_same_question(question: TwoRuns, graph: Explanation, trace: Trace) -> None:
    """Refuse a graph of another text, baseline or number, as far as its tokens and change show it.

    Raises:
        LigError: if it is one.
    """
    if question.count != len(trace.labels):
        raise LigError(
            f"the graph is of {len(trace.labels)} tokens ({brief(list(trace.labels))}), the "
            f"inputs of {question.count}: give the text that the graph was made of."
        )
    positions = getattr(graph, "positions", None)
    if positions is not None and not in_order(positions):
        raise LigError(
            f"the graph has its tokens in another order than the text, {positions.tolist()}: give "
            "the whole graph, or a part in the text's order."
        )
    change, other = getattr(graph, "change", None), question.baseline_value
    if change is None or other is None:
        return
    rounding = rounding_of(question.input.call.model, exact=1e-4)
    wanted, size = question.value - other, max(abs(question.value), abs(other))
    if not abs(change - wanted) <= 1e-3 * abs(wanted) + rounding * size:
        raise LigError(
            f"the graph is of {getattr(graph, 'target', None)!r}, which changes by {change:.6g}, "
            f"and what is run is {question.target!r}, which changes by {wanted:.6g}: give both the "
            "same text, baseline and target."
        )


def _strongest(
    question: TwoRuns, kind: Kind, by_position: bool, attributed: NodeValues, k: int
) -> tuple[list[Node], list[Node]]:
    """The nodes of one kind with the largest numbers, largest first, and the others."""
    nodes = [node for node in question.nodes([kind], by_position) if question.changes(node)]
    sizes = [abs(attributed.of(node)) for node in nodes]
    order = sorted(range(len(nodes)), key=lambda n: -sizes[n])
    return [nodes[n] for n in order[:k]], [nodes[n] for n in order[k:]]
