"""The one form of a measure: columns that it declares, and their numbers for a batch of texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_lig.corpus.seen import Seen

__all__ = ["GRIDS", "KEYS", "Column", "Measure", "Rows", "Tables", "largest", "mean_over_tokens"]

Rows = Mapping[str, Tensor | Sequence[Any]]
"""Columns by name, see :meth:`Measure.rows`."""

GRIDS = ("texts", "layers")
"""Tables that measures add columns to; every other table is of one measure."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    type: str
    """As pyarrow calls it: ``"int64"``, ``"int32"``, ``"float"`` (32 bits), ``"string"``."""
    unit: str
    """Empty of what has none."""
    meaning: str


Tables = Mapping[str, tuple[Column, ...]]

NUMBER = Column("number", "int64", "", "The text: its position in the corpus, from 0.")
LAYER = Column("layer", "int32", "", "Index of the layer, in the order they run.")
KEYS = {"texts": (NUMBER,), "layers": (NUMBER, LAYER)}
"""What the rows of the grids are found by; rows of other tables begin with ``number``."""


class Measure(ABC):
    """Something that is measured of texts. A new one is a class in a file of its own."""

    name: ClassVar[str]
    """What ``--measures`` calls it."""
    about: ClassVar[str]
    """What it measures, one sentence."""
    boundaries: ClassVar[tuple[str, ...]] = ()
    """Of :meth:`LayerFlowIG.attribute`, which :attr:`Seen.flows` has to have; none: it reads no
    flows of lengths."""
    tables: ClassVar[Tables]
    """Its columns by table; those of :data:`KEYS` are there anyway."""

    @abstractmethod
    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """The columns of its tables, for all texts of a batch at once.

        Returns:
            By table, by column: of ``texts`` ``B`` values, of ``layers`` ``(B, L)`` of them. Of any
            other table as many as there are rows, and a column ``text``, which of the batch a row
            is of, in order. NaN and None are missing values.
        """


def mean_over_tokens(values: Tensor, valid: Tensor) -> Tensor:
    """``(B,)`` means of ``values (B, ..., T)`` over the tokens that are no padding, and the rest.

    Args:
        values: numbers of each token, 0 where it is padding.
        valid: ``(B, T)``
    """
    size = values[0, ..., 0].numel()
    return values.double().flatten(1).sum(1) / (valid.sum(-1) * size)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest of each text by size, zeros left out; ties in their order.

    Args:
        values: ``(B, ...)``
        count: how many of each.

    Returns:
        For each that was found, text by text: which text ``(R,)``, its rank ``(R,)`` from 0, and
        where it stands ``(R, N)``, ``N`` the dimensions of ``values`` but the first.
    """
    flat = values.flatten(1)
    size, order = flat.abs().sort(dim=1, descending=True, stable=True)
    text, rank = (size[:, :count] > 0).nonzero(as_tuple=True)
    return text, rank, torch.stack(torch.unravel_index(order[text, rank], values.shape[1:]), -1)
