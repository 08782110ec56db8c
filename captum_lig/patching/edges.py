"""Direct edges from what writes to the residual stream to what reads it, and what cutting one does.

In a pre-norm model the residual stream is a sum: the embedding, what heads add and what MLPs add.
So a reader can be given its input less what one writer changed, while all others get it whole, and
what the reader then gives runs on (path patching; Goldowsky-Dill et al. 2023, arXiv:2304.05969).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_lig._arguments import brief
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.model.attention_call import AttentionCall
from captum_lig.model.call import BlockCall
from captum_lig.model.compare import deviation, nearly_equal
from captum_lig.model.feed_forward import at_feed_forward
from captum_lig.model.split import SplitBlock
from captum_lig.patching.runs import Run
from captum_lig.patching.two_runs import TwoRuns

__all__ = ["Edge", "EdgeEffects", "Reader", "Streams", "Writer"]


@dataclass(frozen=True)
class Writer:
    """What adds to the residual stream: the embedding, a head or an MLP."""

    kind: Literal["embedding", "heads", "feed_forward"]
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Reader:
    """What reads the residual stream: a head's query, key or value, an MLP, or the output."""

    kind: Literal["query", "key", "value", "feed_forward", "output"]
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Edge:
    """From a writer to a reader, past everything between them."""

    writer: Writer
    reader: Reader
    position: int | None = None
    """Index of the token where it is written and read, without padding; None: all at once."""


@dataclass(frozen=True)
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
        self.splits = [SplitBlock(runs.blocks[n], 0, Meter()) for n in runs.chosen]
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
            for _, group in groupby(order, key=key):
                numbers = list(group)
                for first in range(0, len(numbers), question.at_once):
                    batch = numbers[first : first + question.at_once]
                    reader, where = edges[batch[0]].reader, torch.tensor(batch)
                    step = torch.cat([steps[n] for n in batch])
                    out[where] = question.value - self._cut(reader, self.input, -step)
                    into[where] = self._cut(reader, self.baseline, step) - question.baseline_value
                    bar.update(2 * len(batch))
        return EdgeEffects(
            tuple(edges), out, into, question.value, question.baseline_value, question.target
        )

    # --- what writers change ---

    def _written(self, row: int) -> dict[Writer, Tensor]:
        """What the heads and the MLP of a block change in the stream leaving it.

        Raises:
            LigError: if what they change does not add up to what changed.
        """
        split, number = self.splits[row], self.question.runner.chosen[row]
        layer = self.question.layers[row]
        places = self.question.runner.places(number)
        own, other = (
            {place: run.values[number, place] for place in places}
            for run in (self.input, self.baseline)
        )
        if "heads" not in places:
            raise self._not_a_sum(split.call, "it has no heads that can be reached")
        z, m = own["entering"], own.get("feed_forward")
        whole = self._after(row, z, own["heads"], m)
        found: dict[Writer, Tensor] = {}
        for head in range(split.heads):
            u = own["heads"].clone()
            u[:, :, head] = other["heads"][:, :, head]
            found[Writer("heads", layer, head)] = whole - self._after(row, z, u, m)
        if m is not None:
            without = self._after(row, z, own["heads"], other["feed_forward"])
            found[Writer("feed_forward", layer)] = whole - without
        passed = z - other["entering"]
        positions = self.question.runner.positions
        total = other["leaving"] + passed + torch.stack(list(found.values())).sum(0)
        left = own["leaving"][0, positions]
        if not nearly_equal(total[0, positions], left):
            raise self._not_a_sum(
                split.call,
                "what its heads, its MLP and the tokens entering change does not add up to what "
                f"changes in the tokens leaving (off by {deviation(total[0, positions], left):.1e})"
                ", there is a norm or a gate after them, most likely",
            )
        return found

    def _after(self, row: int, z: Tensor, u: Tensor, m: Tensor | None) -> Tensor:
        """The block's output ``(1, S, D)`` with tokens, heads and, if it has one, MLP put in."""
        split = self.splits[row]
        found = split.call.feed_forward
        if found is None or m is None:
            return split.with_u(u, z)
        with at_feed_forward(found, lambda _: m):
            return split.with_u(u, z)

    def _check_blocks_follow(self) -> None:
        """What leaves a block enters the next."""
        runs, values = self.question.runner, self.input.values
        for number, following in zip(runs.chosen, runs.chosen[1:], strict=False):
            left, entered = values[number, "leaving"], values[following, "entering"]
            if not nearly_equal(entered[0, runs.positions], left[0, runs.positions]):
                raise self._not_a_sum(
                    runs.blocks[following], f"{runs.blocks[number].name!r} does not hand it its own"
                )

    def _not_a_sum(self, call: BlockCall, why: str) -> LigError:
        return LigError(
            f"{call.describe()} has no direct edges through it: {why}. They are for models whose "
            "residual stream is the sum of what heads and MLPs write (pre-norm). Ask for the "
            "effects of nodes."
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
        written = -1 if edge.writer.layer is None else question.layers.index(edge.writer.layer)
        split = None if edge.reader.kind == "output" else self.splits[row]
        heads = edge.reader.kind in ("query", "key", "value")
        if split is not None and heads:
            if edge.reader.head is None or not 0 <= edge.reader.head < split.heads:
                raise LigError(f"there is no reader {brief(edge.reader)}: give one of its heads.")
            if not split.opens:
                raise LigError(
                    f"{split.call.describe()} is reached at its output projection: queries, keys "
                    "and values cannot be had there, and are no readers."
                )
        mlp = split is not None and edge.reader.kind == "feed_forward"
        if split is not None and mlp and split.call.feed_forward is None:
            raise LigError(f"{split.call.describe()} has no MLP that is found.")
        beside = written == row and mlp and edge.writer.kind == "heads"
        if not (written < row or (beside and self._reads_heads(row))):
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

    def _reads_heads(self, row: int) -> bool:
        """Whether the MLP of a block reads what its heads write; not in parallel blocks."""
        number = self.question.runner.chosen[row]
        own = self.input.values[number, "feed_forward"]
        u = self.input.values[number, "heads"]
        z = self.input.values[number, "entering"]
        moved = self._mlp(row, z, u + u.std().clamp_min(1e-3))
        return not nearly_equal(moved[0], own[0])

    def _mlp(self, row: int, z: Tensor, u: Tensor) -> Tensor:
        """What the MLP of a block gives ``(N, S, D)``."""
        split, seen = self.splits[row], list[Tensor]()
        assert split.call.feed_forward is not None

        def keep(own: Callable[[], Tensor]) -> Tensor:
            seen.append(own().clone())
            return seen[-1]

        with at_feed_forward(split.call.feed_forward, keep):
            split.with_u(u, z)
        return torch.cat(seen)

    def _cut(self, reader: Reader, run: Run, step: Tensor) -> Tensor:
        """The number with a reader's input moved by each step ``(P, S, D)``, ``(P,)``."""
        row, count = self._row(reader), len(step)
        numbers = self.question.runner.chosen
        if reader.kind == "output":
            return self.question.put(run, numbers[-1], "leaving", lambda z: z + step, count)
        number = numbers[row]
        z, u = run.values[number, "entering"], run.values[number, "heads"]
        if reader.kind == "feed_forward":
            m = self._mlp(row, z + step, u.expand(count, -1, -1, -1))
            return self.question.put(run, number, "feed_forward", lambda _: m, count)
        head = reader.head
        assert head is not None
        moved = self._attended(row, reader, z, step, run)[:, :, head]

        def edit(own: Tensor) -> Tensor:
            changed = own.clone()
            changed[:, :, head] = moved
            return changed

        return self.question.put(run, number, "heads", edit, count)

    def _attended(self, row: int, reader: Reader, z: Tensor, step: Tensor, run: Run) -> Tensor:
        """Heads' outputs ``(P, S, H, e)`` with one head's query, key or value of moved tokens."""
        split, head = self.splits[row], reader.head
        assert head is not None

        def each_head(x: Tensor) -> Tensor:
            return x.repeat_interleave(split.heads // x.shape[1], 1)

        def attended(parts: list[Tensor]) -> Tensor:
            query, key, value = parts
            mask = None if split.mask is None else split.mask[None]
            call = AttentionCall(query, key, value, mask, split.scaling, split.softcap, split.sinks)
            return call.softmax_attention()

        own = list(map(each_head, split.pre(z)))
        number = self.question.runner.chosen[row]
        positions = self.question.runner.positions
        if not nearly_equal(attended(own)[0, positions], run.values[number, "heads"][0, positions]):
            raise LigError(
                f"{split.call.describe()} does not use plain softmax attention: its queries, keys "
                "and values are no readers."
            )
        which = ("query", "key", "value").index(reader.kind)
        moved = own[which].expand(len(step), -1, -1, -1).clone()
        moved[:, head] = each_head(split.pre(z + step)[which])[:, head]
        return attended([moved if n == which else x for n, x in enumerate(own)])
