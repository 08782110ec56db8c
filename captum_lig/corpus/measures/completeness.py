"""Completeness: by how much rows miss their totals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from captum_lig.corpus.measures.base import Column, Measure, Rows, Tables
from captum_lig.corpus.seen import Seen
from captum_lig.flow.axes import FIELDS as DECLARED
from captum_lig.flow.layer_flow import LayerFlow

__all__ = ["Completeness"]

FIELDS = ("layer", "attention", "mlp", "chain")


class Completeness(Measure):
    """Completeness errors of rows, see :func:`captum_lig.metrics.flow_completeness`."""

    name = "completeness"
    about = "By how much the rows of each boundary miss their totals."
    boundaries = ("attention", "mlp", "layer")
    tables: ClassVar[Tables] = {
        "layers": tuple(
            column
            for name in FIELDS
            for column in (
                Column(f"{name}_error", "float", "of the total", f"Worst error of a {name} row."),
                Column(f"{name}_error_mean", "float", "of the total", "Mean error of these rows."),
                Column(f"{name}_unconverged", "int32", "rows", "How many are over the tolerance."),
            )
        )
    }

    def rows(self, seen: Seen) -> Mapping[str, Rows]:
        """See :meth:`Measure.rows`."""
        found: dict[str, list[Tensor]] = {}
        for flow in seen.flows:
            for name in FIELDS:
                for what, values in _errors(flow, name, seen.valid).items():
                    found.setdefault(what, []).append(values)
        return {"layers": {name: torch.stack(values, 1) for name, values in found.items()}}


def _errors(flow: LayerFlow, name: str, valid: Tensor) -> dict[str, Tensor]:
    errors = flow.completeness_error(name).double()
    if "head" in DECLARED[name].rows:
        valid = valid[:, None].expand_as(errors)  # (B, H, T)
    errors = torch.where(valid, errors, 0.0).flatten(1)
    tolerance = torch.inf if flow.tolerance is None else flow.tolerance
    return {
        f"{name}_error": errors.amax(1),
        f"{name}_error_mean": errors.sum(1) / valid.flatten(1).sum(1),
        f"{name}_unconverged": (~(errors <= tolerance)).sum(1),
    }
