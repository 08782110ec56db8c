"""Direct edges from what writes to the residual stream to what reads it, and what cutting one does.

In a pre-norm model the residual stream is a sum: the embedding, what heads add and what MLPs add.
So a reader can be given its input less what one writer changed, while all others get it whole, and
what the reader then gives runs on (path patching; Goldowsky-Dill et al. 2023, arXiv:2304.05969).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_lig._arguments import brief
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.flow.shown import html_list, html_table
from captum_lig.flow.tables import frame, integers
from captum_lig.graph.direct_edges import Edge, Reader, Writer
from captum_lig.model.compare import nearly_equal
from captum_lig.model.stages import Stages
from captum_lig.model.written import no_direct_edges, reads_heads, written
from captum_lig.patching.runs import Place, Run
from captum_lig.patching.two_runs import TwoRuns
from captum_lig.paths.memory import in_halves

__all__ = [
    "EdgeEffects",
    "Streams",
]

NAMES: dict[Place, str] = {"entering": "z", "heads": "u", "feed_forward": "m", "leaving": "y"}
"""Names of nodes in a block's stages."""


@dataclass(frozen=True, repr=False)
class EdgeEffects:
    """What direct edges do to a number ``F``, two ways, in its units and float64."""

    edges: tuple[Edge, ...]
    """``M`` of them."""
    out: Tensor
    """``(M,)`` ``F(input)`` less F of the input run in which the reader alone sees its input less
    what the writer changed."""
    into: Tensor
    """``(M,)`` F of the baseline run in which the reader alone sees its input and what the writer
    changed, less ``F(baseline)``."""
    value: float
    """``F(input)``"""
    baseline_value: float
    """``F(baseline)``"""
    target: str
    """What the number is, in words."""

    @property
    def mean(self) -> Tensor:
        """``(M,)`` the mean of both."""
        return (self.out + self.into) / 2

    def rows(self) -> list[dict[str, Any]]:
        """One an edge: plain numbers and names."""
        return [
            {f"writer_{name}": x for name, x in vars(edge.writer).items()}
            | {f"reader_{name}": x for name, x in vars(edge.reader).items()}
            | {"position": edge.position}
            | {name: float(getattr(self, name)[n]) for name in ("out", "into", "mean")}
            for n, edge in enumerate(self.edges)
        ]

    def to_pandas(self) -> Any:
        """A table (``pandas.DataFrame``), a row for each edge.

        Columns are ``writer`` and ``reader`` in short (``a12.h3``), ``position``, ``out``, ``into``
        and ``mean``.
        """
        positions = [-1 if edge.position is None else edge.position for edge in self.edges]
        columns = {
            "writer": [str(edge.writer) for edge in self.edges],
            "reader": [str(edge.reader) for edge in self.edges],
            "position": integers(positions),
        }
        numbers = {n: getattr(self, n).numpy(force=True) for n in ("out", "into", "mean")}
        return frame(columns | numbers)

    def __repr__(self) -> str:
        return (
            f"EdgeEffects(of {len(self.edges):,} edges on {self.target}: {self.value:.4g}, of the "
            f"baseline {self.baseline_value:.4g})"
        )

    def _repr_html_(self) -> str:
        """The strongest edges, for notebooks."""
        order = self.out.abs().argsort(descending=True)[:10].tolist()
        both = (self.out, self.into)
        rows = [(self.edges[n], *(f"{float(x[n]):+.4g}" for x in both)) for n in order]
        return html_list([repr(self)]) + html_table(("edge", "out", "into"), rows)


class Streams:
    """What writers change in the residual stream of two runs, and what readers make of it.

    Args:
        question: the two runs, of all layers.

    Raises:
        LigError: if the residual stream is not a sum.
    """

    def __init__(self, question: TwoRuns) -> None:
        self.question = question
        runs = question.runner
        assert question.baseline is not None
        self.input, self.baseline = question.input, question.baseline
        self._check_blocks_follow()
        self.stages = [
            Stages(runs.blocks[n], runs.blocks[n].feed_forward, None, Meter()) for n in runs.chosen
        ]
        self.splits = [stages.split for stages in self.stages]
        self._changes: dict[Writer, Tensor] = {}
        z = self.input.values[runs.chosen[0], "entering"]
        self._changes[Writer("embedding")] = z - self.baseline.values[runs.chosen[0], "entering"]
        for row in range(len(self.splits)):
            self._changes |= self._written(row)

    def change(self, writer: Writer) -> Tensor:
        """``(1, S, D)`` what a writer adds in the input run less what it adds in the baseline's.

        Raises:
            LigError: if there is no such writer.
        """
        if writer not in self._changes:
            raise LigError(f"there is no writer {brief(writer)} in this model.")
        return self._changes[writer]

    def effects(self, edges: Sequence[Edge], show_progress: bool) -> EdgeEffects:
        """The effects of edges.

        Raises:
            LigError: if there is no such edge.
        """
        question = self.question
        assert question.baseline_value is not None
        steps = [self._step(edge) for edge in edges]
        moved = [n for n, step in enumerate(steps) if bool((step != 0).any())]
        out, into = (torch.zeros(len(edges), dtype=torch.float64) for _ in range(2))

        def key(n: int) -> tuple[int, str, int]:
            reader = edges[n].reader
            head = -1 if reader.head is None else reader.head
            return self._row(reader), reader.kind, head

        order = sorted(moved, key=key)
        with tqdm(total=2 * len(moved), desc="edges", disable=not show_progress) as bar:

            def measure(where: Tensor) -> None:
                assert question.baseline_value is not None
                reader = edges[int(where[0])].reader
                step = torch.cat([steps[n] for n in where.tolist()])
                out[where] = question.value - self._cut(reader, self.input, -step)
                into[where] = self._cut(reader, self.baseline, step) - question.baseline_value
                bar.update(2 * len(where))

            for _, group in groupby(order, key=key):
                for batch in torch.tensor(list(group)).split(question.at_once):
                    in_halves(measure, batch)
        question.check_open()
        return EdgeEffects(
            tuple(edges), out, into, question.value, question.baseline_value, question.target
        )

    # --- what writers change ---

    def _nodes(self, row: int, run: Run) -> dict[str, Tensor]:
        """The nodes of a block in a run, of one text."""
        number = self.question.runner.chosen[row]
        return {
            NAMES[place]: run.values[number, place][0]
            for place in self.question.runner.places(number)
        }

    def _written(self, row: int) -> dict[Writer, Tensor]:
        """What the heads and the MLP of a block change in the stream leaving it.

        Raises:
            LigError: if what they change does not add up to what changed.
        """
        stages, layer = self.stages[row], self.question.layers[row]
        own, other = self._nodes(row, self.input), self._nodes(row, self.baseline)
        if "u" not in own:
            raise no_direct_edges(stages.split.call, "it has no heads that can be reached")
        parts = written(stages, own, other, stages.split.call.valid[0])
        found = {Writer("heads", layer, h): part[None] for h, part in enumerate(parts.heads)}
        if parts.feed_forward is not None:
            found[Writer("feed_forward", layer)] = parts.feed_forward[None]
        return found

    def _check_blocks_follow(self) -> None:
        """What leaves a block enters the next."""
        runs, values = self.question.runner, self.input.values
        for number, following in zip(runs.chosen, runs.chosen[1:], strict=False):
            left, entered = values[number, "leaving"], values[following, "entering"]
            if not nearly_equal(entered[0, runs.positions], left[0, runs.positions]):
                raise no_direct_edges(
                    runs.blocks[following], f"{runs.blocks[number].name!r} does not hand it its own"
                )

    # --- what readers make of it ---

    def _row(self, reader: Reader) -> int:
        if reader.kind == "output":
            return len(self.splits)
        if reader.layer not in self.question.layers:
            raise LigError(f"there is no reader {brief(reader)} in this model.")
        return self.question.layers.index(reader.layer)

    def _step(self, edge: Edge) -> Tensor:
        """``(1, S, D)`` what the writer changes where the edge is.

        Raises:
            LigError: if there is no such edge.
        """
        change, row, question = self.change(edge.writer), self._row(edge.reader), self.question
        below = -1 if edge.writer.layer is None else question.layers.index(edge.writer.layer)
        split = None if edge.reader.kind == "output" else self.splits[row]
        if split is not None and edge.reader.kind != "feed_forward":
            if edge.reader.kind != "head" and not split.opens:
                raise LigError(
                    f"{split.call.describe()} is reached at its output projection: queries, keys "
                    "and values cannot be had there, and are no readers."
                )
            count = self._heads_of(row, edge.reader)
            if edge.reader.head is None or not 0 <= edge.reader.head < count:
                raise LigError(
                    f"there is no reader {brief(edge.reader)}: give one of its {count} heads."
                )
        mlp = split is not None and edge.reader.kind == "feed_forward"
        if split is not None and mlp and split.call.feed_forward is None:
            raise LigError(f"{split.call.describe()} has no MLP that is found.")
        beside = below == row and mlp and edge.writer.kind == "heads"
        if beside:
            beside = reads_heads(self.stages[row], self._nodes(row, self.input))
        if not (below < row or beside):
            raise LigError(
                f"{brief(edge.reader)} does not read what {brief(edge.writer)} writes: it comes "
                "before it or beside it."
            )
        where = question.runner.positions
        if edge.position is not None:
            if not 0 <= edge.position < len(where):
                raise LigError(f"position {edge.position}: there are {len(where)} tokens.")
            where = where[edge.position : edge.position + 1]
        step = torch.zeros_like(change)
        step[:, where] = change[:, where]
        return step

    def _cut(self, reader: Reader, run: Run, step: Tensor) -> Tensor:
        """The number with a reader's input moved by each step ``(P, S, D)``, ``(P,)``."""
        row, count = self._row(reader), len(step)
        numbers = self.question.runner.chosen
        if reader.kind == "output":
            return self.question.put(run, numbers[-1], "leaving", lambda z: z + step, count)
        number = numbers[row]
        z, u = run.values[number, "entering"], run.values[number, "heads"]
        if reader.kind == "feed_forward":
            m = self.stages[row].feed_forward(z + step, u.expand(count, -1, -1, -1))
            return self.question.put(run, number, "feed_forward", lambda _: m, count)
        heads = self._heads_with(row, reader)
        with torch.no_grad():
            moved = self._attended(row, reader, z, step, run)[:, :, heads]

        def edit(own: Tensor) -> Tensor:
            changed = own.clone()
            changed[:, :, heads] = moved
            return changed

        return self.question.put(run, number, "heads", edit, count)

    def _heads_of(self, row: int, reader: Reader) -> int:
        """How many readers of a kind there are in a block."""
        if reader.kind in ("query", "head"):
            return self.splits[row].heads
        return int(self.splits[row].tables[1].shape[1])

    def _heads_with(self, row: int, reader: Reader) -> list[int]:
        """The heads whose query, key or value a reader is."""
        assert reader.head is not None
        shared = self.splits[row].heads // self._heads_of(row, reader)
        return list(range(reader.head * shared, (reader.head + 1) * shared))

    def _attended(self, row: int, reader: Reader, z: Tensor, step: Tensor, run: Run) -> Tensor:
        """Heads' outputs ``(P, S, H, e)`` with a reader's query, key or value of moved tokens."""
        split = self.splits[row]
        if reader.kind == "head":
            return split.attend(z + step, fused=True)

        def attended(parts: list[Tensor]) -> Tensor:
            return split.softmax(*(x.expand(len(step), -1, -1, -1) for x in parts))

        own = list(split.pre(z))
        number = self.question.runner.chosen[row]
        positions = self.question.runner.positions
        if not nearly_equal(attended(own)[0, positions], run.values[number, "heads"][0, positions]):
            raise LigError(
                f"{split.call.describe()} does not use plain softmax attention: its queries, keys "
                "and values are no readers."
            )
        which = ("query", "key", "value").index(reader.kind)
        moved = own[which].expand(len(step), -1, -1, -1).clone()
        moved[:, reader.head] = split.pre(z + step)[which][:, reader.head]
        return attended([moved if n == which else x for n, x in enumerate(own)])
