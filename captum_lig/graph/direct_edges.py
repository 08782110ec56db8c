"""Direct edges from what writes to the residual stream to what reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from captum_lig._arguments import brief, index_list, whole_number
from captum_lig.errors import LigError
from captum_lig.flow.shown import html_list, html_table
from captum_lig.flow.tables import frame, integers, token_words, words
from captum_lig.flow.tokens import TokenIndex, find_token

__all__ = ["DirectEdges", "Edge", "Reader", "Strongest", "Writer"]


@dataclass(frozen=True)
class Writer:
    """What adds to the residual stream: the embedding, a head or an MLP."""

    kind: Literal["embedding", "heads", "feed_forward"]
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """``embedding``, ``a12.h3`` or ``m12``."""
        if self.kind == "embedding":
            return self.kind
        return f"m{self.layer}" if self.kind == "feed_forward" else f"a{self.layer}.h{self.head}"


@dataclass(frozen=True)
class Reader:
    """What reads the residual stream: a query, key or value, an MLP, or what is read of the output.

    ``head`` counts query heads for queries, and key heads for keys and values: where query heads
    share a key, it is one reader. ``"head"`` is all three of a head whose queries, keys and values
    cannot be had.
    """

    kind: Literal["query", "key", "value", "head", "feed_forward", "output"]
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """``a20.h1.q``, ``a20.h1``, ``m20`` or ``output``."""
        if self.kind in ("output", "feed_forward"):
            return self.kind if self.layer is None else f"m{self.layer}"
        part = "" if self.kind == "head" else f".{self.kind[0]}"
        return f"a{self.layer}.h{self.head}{part}"


@dataclass(frozen=True)
class Edge:
    """From a writer to a reader, past everything between them."""

    writer: Writer
    reader: Reader
    position: int | None = None
    """Index of the token where it is written and read, without padding; None: all at once."""

    def __str__(self) -> str:
        """``a12.h3 -> a20.h1.q at 5``."""
        where = "" if self.position is None else f" at {self.position}"
        return f"{self.writer} -> {self.reader}{where}"


@dataclass(frozen=True, eq=False)
class DirectEdges:
    """Direct edges of one text for a number ``F``, ``K`` of them kept, the strongest first.

    ``W`` writers and ``R`` readers, each from the bottom up. Values are in units of the number.
    Summed over all readers an edge's values are the relevance of its writer, over all writers that
    of its reader.
    """

    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    writer: Tensor
    """``(K,)`` which of the writers."""
    reader: Tensor
    """``(K,)`` which of the readers."""
    position: Tensor
    """``(K,)`` the token that was written to, and is read there, without padding: a key or value of
    token ``i`` reads there what all later tokens get of it. -1: all tokens at once."""
    value: Tensor
    """``(K,)`` float64."""
    sums: Tensor
    """``(W, R)`` float64, exact sums over all positions, kept or not; 0 where there is no edge."""
    reads: Tensor
    """``(W, R)`` whether the reader reads what the writer writes."""
    count: int
    """How many edges there are: pairs of writer and reader times tokens."""
    size: float
    """Sum of the sizes of all of them."""
    change: float
    """``F(input) - F(baseline)``"""
    target: str
    """What the number is, in words."""
    labels: tuple[str, ...] | None = None
    """The tokens, without padding."""
    token: int | None = None
    """The token that :meth:`at` chose them by."""

    @property
    def into_target(self) -> float:
        """Sum of all edges into the output: the change, up to quadrature."""
        ends = [n for n, reader in enumerate(self.readers) if reader.kind == "output"]
        return float(self.sums[:, ends].sum())

    @property
    def out_of_embedding(self) -> float:
        """Sum of all edges out of the embedding: the change, too."""
        begins = [n for n, writer in enumerate(self.writers) if writer.kind == "embedding"]
        return float(self.sums[begins].sum())

    def __len__(self) -> int:
        """How many are kept."""
        return len(self.value)

    def __iter__(self) -> Iterator[Edge]:
        """The edges that are kept, as :func:`captum_lig.patching.edge_effects` takes them."""
        for w, r, i in zip(
            self.writer.tolist(), self.reader.tolist(), self.position.tolist(), strict=True
        ):
            yield Edge(self.writers[w], self.readers[r], None if i < 0 else i)

    def into(self, reader: Reader) -> DirectEdges:
        """The edges into one reader.

        Raises:
            LigError: if there is no such reader.
        """
        if reader not in self.readers:
            raise LigError(f"there is no reader {brief(reader)}: see readers for those there are.")
        number = self.readers.index(reader)
        reads = torch.zeros_like(self.reads)
        reads[:, number] = self.reads[:, number]
        return replace(self._some(self.reader == number), reads=reads)

    def out_of(self, writer: Writer) -> DirectEdges:
        """The edges out of one writer.

        Raises:
            LigError: if there is no such writer.
        """
        if writer not in self.writers:
            raise LigError(f"there is no writer {brief(writer)}: see writers for those there are.")
        number = self.writers.index(writer)
        reads = torch.zeros_like(self.reads)
        reads[number] = self.reads[number]
        return replace(self._some(self.writer == number), reads=reads)

    def strongest(self, k: int) -> DirectEdges:
        """The ``k`` of largest size."""
        whole_number("k", k, 1)
        return self._some(torch.arange(len(self), device=self.value.device) < k)

    def summed(self) -> DirectEdges:
        """One edge for each pair of writer and reader: the exact sums over all positions.

        Of edges :meth:`into` a reader or :meth:`out_of` a writer, the pairs of that one.

        Raises:
            LigError: for edges :meth:`at` one token.
        """
        if self.token is not None:
            raise LigError(
                f"these are the edges at token {self.token}, and what is known are sums over all "
                "tokens: sum the edges that they were chosen from."
            )
        writer, reader = self.reads.nonzero(as_tuple=True)
        value = self.sums[writer, reader]
        order = value.abs().argsort(descending=True, stable=True)
        return replace(
            self,
            writer=writer[order],
            reader=reader[order],
            position=torch.full_like(order, -1),
            value=value[order],
            count=len(order),
            size=float(value.abs().sum()),
        )

    def words(self, k: int | None = None) -> list[str]:
        """The first ``k`` edges in words, such as ``a12.h3 -> a20.h1.q at ' France' (3)``."""
        return [self._words(edge) for edge in islice(self, k)]

    def rows(self) -> list[dict[str, Any]]:
        """One an edge, plain numbers and names."""
        return [
            {f"writer_{name}": x for name, x in vars(edge.writer).items()}
            | {f"reader_{name}": x for name, x in vars(edge.reader).items()}
            | {"position": edge.position, "words": self._words(edge), "value": value}
            for edge, value in zip(self, self.value.tolist(), strict=True)
        ]

    def to_pandas(self) -> Any:
        """A table (``pandas.DataFrame``), a row for each edge that is kept.

        Columns are ``writer`` and ``reader`` in short (``a12.h3``), their ``_kind``, ``_layer`` and
        ``_head``, ``position`` and ``token``, ``value``, and ``share`` of the change.
        """
        value = self.value.numpy(force=True)
        columns: dict[str, Any] = {}
        for name, ends, numbers in (
            ("writer", self.writers, self.writer),
            ("reader", self.readers, self.reader),
        ):
            codes = numbers.numpy(force=True)
            kinds = list(dict.fromkeys(end.kind for end in ends))
            of_kind = np.array([kinds.index(end.kind) for end in ends], dtype=np.int64)
            columns[name] = words(codes, [str(end) for end in ends])
            columns[f"{name}_kind"] = words(of_kind[codes], kinds)
            for part in ("layer", "head"):
                each = [getattr(end, part) for end in ends]
                known = np.array([-1 if x is None else x for x in each], dtype=np.int64)
                columns[f"{name}_{part}"] = integers(known[codes])
        position = self.position.numpy(force=True)
        columns["position"] = integers(position)
        columns["token"] = token_words(
            np.full_like(position, -1) if self.labels is None else position, self.labels or ()
        )
        columns["value"] = value
        columns["share"] = value / self.change if self.change else np.full_like(value, np.nan)
        return frame(columns)

    def __str__(self) -> str:
        """The ten strongest as a table."""
        share = float(self.value.abs().sum()) / self.size if self.size else 1.0
        head = (
            f"{self.target}: change {self.change:.4g}; into the target {self.into_target:.4g}, "
            f"out of the embedding {self.out_of_embedding:.4g}\n"
            f"{len(self):,} of {self.count:,} edges, {share:.1%} of their size"
        )
        values = self.value[:10].tolist()
        shown = [f"{x:+10.4f}  {w}" for x, w in zip(values, self.words(10), strict=False)]
        return "\n".join([head, *shown])

    def __repr__(self) -> str:
        return (
            f"DirectEdges({len(self):,} of {self.count:,} kept, from {len(self.writers)} writers "
            f"to {len(self.readers)} readers; {self.target}, change {self.change:.4g})"
        )

    def _repr_html_(self) -> str:
        """The ten strongest, for notebooks."""
        rows = zip(self.words(10), (f"{x:+.4g}" for x in self.value[:10].tolist()), strict=True)
        facts = str(self).split("\n")[:2]
        return html_list(facts) + html_table(("edge", "value"), list(rows))

    def at(self, token: TokenIndex) -> DirectEdges:
        """The edges that are written and read at one token.

        Args:
            token: its position, negative ones from the end if the tokens are known, or what it
                says.

        Raises:
            LigError: if there is no such token, or several.
        """
        if len(self) and bool((self.position < 0).all()):
            raise LigError("the edges are sums over positions: ask before summed().")
        position, device = find_token(token, self.labels or ()), self.position.device
        if self.labels is None:  # how many tokens there are is not known
            index = whole_number("token", position, 0)
        else:
            (index,) = index_list(position, len(self.labels), device, "tokens", "token").tolist()
        return replace(self._some(self.position == index), token=index)

    def _words(self, edge: Edge) -> str:
        if edge.position is None or self.labels is None:
            return str(edge)
        return f"{edge.writer} -> {edge.reader} at {self.labels[edge.position]!r} ({edge.position})"

    def _some(self, kept: Tensor) -> DirectEdges:
        chosen = {n: getattr(self, n)[kept] for n in ("writer", "reader", "position", "value")}
        return replace(self, **chosen)


class Strongest:
    """The strongest of many edges that come part by part.

    Args:
        keep: how many.
        writers: all of them.
        readers: all of them.
    """

    def __init__(self, keep: int, writers: Sequence[Writer], readers: Sequence[Reader]) -> None:
        self.keep, self.writers, self.readers = keep, tuple(writers), tuple(readers)
        self.sums = torch.zeros(len(writers), len(readers), dtype=torch.float64)
        self.reads = torch.zeros(len(writers), len(readers), dtype=torch.bool)
        self.count, self.size = 0, 0.0
        self._found = torch.zeros(3, 0, dtype=torch.long)
        self._values = torch.zeros(0, dtype=torch.float64)

    def add(self, first: int, values: Tensor) -> None:
        """Edges of the first ``W'`` writers into the ``R'`` readers from ``first`` on.

        Args:
            first: number of a reader.
            values: ``(W', R', N)``.
        """
        values = values.detach().double().cpu()
        count, width, length = values.shape
        self.sums[:count, first : first + width] = values.sum(-1)
        self.reads[:count, first : first + width] = True
        self.count += values.numel()
        sizes = values.abs().flatten()
        self.size += float(sizes.sum())
        best = sizes.topk(min(self.keep, len(sizes))).indices
        best = best[sizes[best] > 0]  # where nothing changed there is no edge to tell of
        where = torch.stack(
            [best // length // width, first + best // length % width, best % length]
        )
        found = torch.cat([self._found, where], 1)
        kept = torch.cat([self._values, values.flatten()[best]])
        order = kept.abs().argsort(descending=True, stable=True)[: self.keep]
        self._found, self._values = found[:, order], kept[order]

    def edges(self, change: float, target: str, labels: Sequence[str] | None) -> DirectEdges:
        """Those that came."""
        writer, reader, position = self._found
        return DirectEdges(
            writers=self.writers,
            readers=self.readers,
            writer=writer,
            reader=reader,
            position=position,
            value=self._values,
            sums=self.sums,
            reads=self.reads,
            count=self.count,
            size=self.size,
            change=change,
            target=target,
            labels=None if labels is None else tuple(labels),
        )
