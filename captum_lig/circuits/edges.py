"""A pre-norm model with some of its direct edges alone: the others carry a counterfactual's values.

In a pre-norm model what a reader (a query, key or value of a head, an MLP, the number) gets is a
sum of what writers (the embedding, heads, MLPs) wrote. In a circuit each reader gets, at each
token,

    its input in the counterfactual run
    + sum over the kept edges into it of (what the writer writes in the circuit - in that run)

and the model's own norms, projections, attention and MLPs make of it what they make. Writers are
computed layer by layer. Nothing kept is the counterfactual run, all kept the text's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.circuits.curve import Circuits, Curve, circuits_at_once
from captum_lig.circuits.order import Order
from captum_lig.errors import LigError
from captum_lig.graph.direct_edges import DirectEdges, Reader, Writer
from captum_lig.metrics.circuits import SHARES
from captum_lig.model.compare import nearly_equal
from captum_lig.model.few_bits import rounding_of
from captum_lig.model.stages import Stages
from captum_lig.model.written import reads_heads, written_by_feed_forward, written_by_heads
from captum_lig.patching.edges import Streams
from captum_lig.patching.two_runs import TwoRuns

__all__ = ["EdgeCircuits"]

OverTokens = Literal["sum", "size"]
FLOATS_AT_ONCE = 2**25
"""Numbers that writers write in all circuits of one pass, by default."""


class _Layer:
    """The readers and writers of one block, in the counterfactual run.

    Args:
        stages: the block.
        z: ``(1, S, D)`` the tokens entering it there.
        u: ``(1, S, H, e)`` its heads' outputs there.
        m: ``(1, S, D)`` its MLP's, or None.
        positions: ``(N,)`` of the tokens without padding.
    """

    def __init__(
        self, stages: Stages, z: Tensor, u: Tensor, m: Tensor | None, positions: Tensor
    ) -> None:
        self.stages, self.z, self.u, self.m = stages, z, u, m
        self.heads, self.key_heads = u.shape[2], u.shape[2]
        self.opens = stages.split.opens
        if self.opens:
            made = stages.split.pre(z)
            self.opens = nearly_equal(stages.split.softmax(*made)[0, positions], u[0, positions])
        if self.opens:
            self.key_heads = made[1].shape[1]
        nodes = {"z": z[0], "u": u[0]} | ({} if m is None else {"m": m[0]})
        self.mlp_reads_heads = reads_heads(stages, nodes)

    @property
    def count(self) -> int:
        """How many readers its heads are."""
        return self.heads + 2 * self.key_heads if self.opens else self.heads

    def readers(self, layer: int) -> list[Reader]:
        """Of its heads, from queries to values; those of :meth:`LayerFlowIG.direct_edges`."""
        if not self.opens:
            return [Reader("head", layer, head) for head in range(self.heads)]
        counts = {"query": self.heads, "key": self.key_heads, "value": self.key_heads}
        return [
            Reader(kind, layer, head)  # type: ignore[arg-type]
            for kind, count in counts.items()
            for head in range(count)
        ]

    def attend(self, x: Tensor) -> Tensor:
        """Heads' outputs ``(C, S, H, e)``, each reader from its own tokens ``(C, R, S, D)``."""
        circuits, readers = x.shape[:2]
        flat, split = x.flatten(0, 1), self.stages.split
        if not self.opens:
            each = self.stages.attend(flat, fused=True).unflatten(0, (circuits, readers))
            heads = torch.arange(self.heads)
            picked: Tensor = each[:, heads, :, heads]  # (H, C, S, e)
            return picked.movedim(0, 2)
        found, first = [], 0
        for made in split.pre(flat):
            own = torch.arange(made.shape[1])  # (C * R, heads, S, d)
            found.append(made.unflatten(0, (circuits, readers))[:, first + own, own])
            first += len(own)
        return split.softmax(*found)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP's output ``(C, S, D)`` where it reads ``x (C, S, D)`` less what heads wrote."""
        return self.stages.feed_forward(x, self.u.expand(len(x), -1, -1, -1))


class EdgeCircuits(Circuits):
    """Circuits of direct edges; in the context of :func:`captum_lig.circuits.of_edges`.

    Args:
        question: the two runs, of all layers.
        by_position: whether an edge is one at each token, or one at all tokens.
        at_once: how many circuits run in one pass; None: as there is room for.

    Raises:
        LigError: if the residual stream is not a sum.
    """

    def __init__(self, question: TwoRuns, by_position: bool, at_once: int | None = None) -> None:
        self.by_position = by_position
        self.positions = question.runner.positions
        streams = Streams(question)
        assert question.baseline is not None
        values = question.baseline.values
        self._layers: list[_Layer] = []
        writers, readers = [Writer("embedding")], list[Reader]()
        self._embedding = streams.change(writers[0])
        reads: list[int] = []
        """Of each reader, how many writers come before it."""
        for number, layer, stages in zip(
            question.runner.chosen, question.layers, streams.stages, strict=True
        ):
            here = _Layer(
                stages,
                values[number, "entering"],
                values[number, "heads"],
                values.get((number, "feed_forward")),
                self.positions,
            )
            self._layers.append(here)
            readers += (own := here.readers(layer))
            reads += [len(writers)] * len(own)
            below = len(writers)
            writers += [Writer("heads", layer, head) for head in range(here.heads)]
            if here.m is not None:
                readers.append(Reader("feed_forward", layer))
                reads.append(len(writers) if here.mlp_reads_heads else below)
                writers.append(Writer("feed_forward", layer))
        readers.append(Reader("output"))
        reads.append(len(writers))
        self.writers, self.readers = tuple(writers), tuple(readers)
        self.reads = torch.arange(len(writers))[:, None] < torch.tensor(reads)
        """``(W, R)`` whether the reader reads what the writer writes."""
        floats = len(writers) * self._embedding.numel()
        super().__init__(question, circuits_at_once(at_once, FLOATS_AT_ONCE // floats))

    @property
    def count(self) -> int:
        """How many edges ``M``: pairs of writer and reader, by writer, times tokens."""
        pairs = int(self.reads.sum())
        return pairs * len(self.positions) if self.by_position else pairs

    def flat(self, edges: Tensor) -> Tensor:
        """Numbers of edges ``(..., W, R)``, or ``(..., W, R, N)`` by position, as ``(..., M)``.

        Raises:
            LigError: for another shape.
        """
        shape = self.reads.shape + ((len(self.positions),) if self.by_position else ())
        if edges.shape[-len(shape) :] != shape:
            names = "(W, R, N)" if self.by_position else "(W, R)"
            raise LigError(
                f"edges have the shape {tuple(edges.shape)}: give {names} = {tuple(shape)}."
            )
        if not self.by_position:
            return edges[..., self.reads]
        return edges[..., self.reads, :].flatten(-2)

    def scores(self, edges: DirectEdges, over_tokens: OverTokens = "size") -> Tensor:
        """The values ``(M,)`` of direct edges of the same text.

        Args:
            edges: of this model and text. At each token those that they do not keep are 0.
            over_tokens: of an edge that is one at all tokens: ``"size"``, the root of the sum of
                its values' squares; or ``"sum"``, their sum, in which opposite ones cancel.

        Raises:
            LigError: for edges of another model, text or target, and sums where each token is
                needed.
        """
        if over_tokens not in ("sum", "size"):
            raise LigError(f"over_tokens={brief(over_tokens)}: give 'sum' or 'size'.")
        if edges.writers != self.writers or edges.readers != self.readers:
            raise LigError(
                f"the edges are of {len(edges.writers)} writers and {len(edges.readers)} readers, "
                f"and the model has {len(self.writers)} and {len(self.readers)}: give edges of "
                "this model, as LayerFlowIG.direct_edges makes them."
            )
        change = self.value - self.baseline_value
        ends = int(edges.position.max()) + 1 if len(edges) else 0
        rounding = rounding_of(self.question.input.call.model, exact=0.0)
        rounding *= max(abs(self.value), abs(self.baseline_value))
        gap = abs(edges.change - change)
        if ends > len(self.positions) or not gap <= 1e-3 * abs(change) + rounding:
            raise LigError(
                f"the edges are of {edges.target!r}, which changes by {edges.change:.6g}, and the "
                f"circuits of {self.question.target!r}, which changes by {change:.6g}: give both "
                "the same text, baseline and target."
            )
        if not self.by_position and over_tokens == "sum":
            return self.flat(edges.sums.cpu())
        if bool((edges.position < 0).any()):
            raise LigError("the edges are sums over positions: give them before summed().")
        values = torch.zeros(*self.reads.shape, len(self.positions), dtype=torch.float64)
        values[edges.writer.cpu(), edges.reader.cpu(), edges.position.cpu()] = edges.value.cpu()
        return self.flat(values if self.by_position else values.norm(dim=-1))

    def curve(
        self,
        scores: DirectEdges | Tensor,
        shares: Sequence[float] = SHARES,
        order: Order = "size",
        show_progress: bool = False,
    ) -> Curve:
        """Circuits that keep the best shares of the edges.

        Args:
            scores: of all edges: :class:`DirectEdges` (by their size over tokens; by their sum if
                the order is signed), what :meth:`scores` gives, or ``(W, R)``, by position
                ``(W, R, N)``; what is no edge is not looked at.
            shares: parts of all edges, from 0 to 1.
            order: ``"size"``, the largest absolute values first; or ``"signed"``.
            show_progress: show a bar over circuits.

        Raises:
            LigError: for scores, shares or an order that do not fit, and if the circuit of all
                edges does not give what the model gives, or that of none the counterfactual's, or
                both give the same.
        """
        if isinstance(scores, DirectEdges):
            scores = self.scores(scores, "size" if order == "size" else "sum")
        each = scores if scores.dim() == 1 else self.flat(scores)
        return self.curve_of(each, shares, order, show_progress)

    def _check_none(self, none: float) -> None:
        self._check("no edge", none, self.baseline_value)

    def _run(self, kept: Tensor) -> Tensor:
        question = self.question
        wrote = _Wrote(self._embedding[:, self.positions], len(self.writers), self.reads, kept)
        for here in self._layers:
            if here.heads:
                x = self._placed(here.z[:, None], wrote.read(here.count))
                step = here.attend(x) - here.u
                wrote.add(written_by_heads(here.stages, step)[:, :, self.positions])
            if here.m is not None:
                x = self._placed(here.z, wrote.read(1)[:, 0])
                step = here.feed_forward(x) - here.m
                wrote.add(written_by_feed_forward(here.stages, step)[:, None, self.positions])
        assert question.baseline is not None
        number = question.runner.chosen[-1]
        leaving = question.baseline.values[number, "leaving"]
        x = self._placed(leaving, wrote.read(1)[:, 0])
        return question.put(question.baseline, number, "leaving", lambda _: x, len(kept))

    def _placed(self, x: Tensor, step: Tensor) -> Tensor:
        """Tokens ``(1, ..., S, D)`` moved by ``step (C, ..., N, D)``; padding stays."""
        found = x.expand(len(step), *step.shape[1:-2], *x.shape[-2:]).clone()
        found[..., self.positions, :] += step
        return found


class _Wrote:
    """What writers wrote in circuits, less what they wrote in the counterfactual run.

    Args:
        embedding: ``(1, N, D)`` of the first one.
        count: number of writers ``W``.
        reads: ``(W, R)`` which reader reads which writer.
        kept: ``(C, M)`` the edges of the circuits, by writer and reader; or times ``N``.
    """

    def __init__(self, embedding: Tensor, count: int, reads: Tensor, kept: Tensor) -> None:
        circuits, length = len(kept), embedding.shape[1]
        by_position = kept.shape[1] > int(reads.sum())
        self._kept = torch.zeros(
            circuits, *reads.shape, length if by_position else 1, dtype=torch.bool
        )
        self._kept[:, reads] = kept.unflatten(1, (int(reads.sum()), -1))
        self._steps = embedding.new_zeros(circuits, count, *embedding.shape[1:])
        self._writers, self._readers = 0, 0
        self.add(embedding[:, None])

    def add(self, steps: Tensor) -> None:
        """Steps ``(C, W', N, D)`` of the next writers."""
        count = steps.shape[1]
        self._steps[:, self._writers : self._writers + count] = steps
        self._writers += count

    def read(self, count: int) -> Tensor:
        """What the next readers get ``(C, R', N, D)``."""
        first, self._readers = self._readers, self._readers + count
        steps = self._steps[:, : self._writers]
        kept = self._kept[:, : self._writers, first : self._readers].to(steps)
        if kept.shape[-1] > 1:
            return torch.einsum("cwrn,cwnd->crnd", kept, steps)
        return torch.einsum("cwr,cwnd->crnd", kept[..., 0], steps)
