"""Consistency: the composed map of each rule beside the direct one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables
from captum_lig.corpus.seen import Seen
from captum_lig.flow.composition import RULES
from captum_lig.metrics.completeness import composed_against_direct

__all__ = ["Consistency"]


class Consistency(Measure):
    """Distances of composed from direct maps, over the map and row by row."""

    name = "consistency"
    about = "How far the composed map of each rule is from the direct one."
    boundaries = ("attention", "mlp", "layer")
    tables: ClassVar[Tables] = {
        "layers": tuple(
            column
            for rule in RULES
            for column in (
                Column(f"{rule}_distance", "float", "of the direct map's size",
                       f"Distance of the map composed by {rule}; 0 is perfect, a map of zeros has "
                       "1."),
                Column(f"{rule}_row_distance", "float", "of the direct row's size",
                       "The same row by row, the mean over the rows that are not all 0."),
            )
        )
    }  # fmt: skip

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        found: dict[str, list[Tensor]] = {}
        for layer, flow in enumerate(seen.flows):
            direct = flow.need("layer").double()
            size = torch.linalg.vector_norm(direct, dim=-1)
            counted = (size > 0) & seen.valid
            for rule in RULES:
                composed = seen.compose(layer, rule).double()
                gap = torch.linalg.vector_norm(direct - composed, dim=-1)
                by_row = torch.where(counted, gap / size, 0.0).sum(-1) / counted.sum(-1)
                found.setdefault(f"{rule}_distance", []).append(
                    composed_against_direct(direct, composed)
                )
                found.setdefault(f"{rule}_row_distance", []).append(by_row)
        return {"layers": {name: torch.stack(values, 1) for name, values in found.items()}}
