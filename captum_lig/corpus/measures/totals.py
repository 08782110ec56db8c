"""Totals: how far a layer moves its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables, mean_over_tokens
from captum_lig.corpus.seen import Seen

__all__ = ["Totals"]

FIELDS = {
    "layer_total": "of its output, from where the layer's path starts",
    "attention_total": "of a head's output, over heads, too",
    "mlp_total": "of its output, from where the path of the mlp boundary starts",
}


class Totals(Measure):
    """What the rows of each boundary add up to."""

    name = "totals"
    about = "What the rows of each boundary add up to."
    boundaries = ("attention", "mlp", "layer")
    tables: ClassVar[Tables] = {
        "layers": tuple(
            Column(name, "float", "length", f"Mean over the tokens: the change {what}.")
            for name, what in FIELDS.items()
        )
    }

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        return {
            "layers": {
                name: torch.stack(
                    [mean_over_tokens(flow.need(name), seen.valid) for flow in seen.flows], 1
                )
                for name in FIELDS
            }
        }
