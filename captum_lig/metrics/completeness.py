"""Whether rows add up, and whether two boundaries composed give the direct map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.metrics.statistics import OverTexts, mean_over

__all__ = [
    "Completeness",
    "CompletenessErrors",
    "ComposedAgainstDirect",
    "completeness",
    "composed_against_direct",
    "flow_completeness",
    "flow_composition",
]


@dataclass(frozen=True)
class Completeness:
    """Relative errors of rows."""

    worst: float
    mean: float
    rows: int


def completeness(parts: Tensor, total: Tensor, scale: Tensor | None = None) -> Completeness:
    """How far rows miss what they should add up to (Sundararajan et al. 2017, proposition 1).

    The error of a row is ``|sum of its parts - total| / |scale|``, 0 where the row misses nothing.

    Args:
        parts: ``(..., S)`` attributions.
        total: ``(...)`` what each row should add up to.
        scale: ``(...)`` what errors are relative to; None: the totals.

    Raises:
        LigError: if the shapes do not fit.
    """
    scale = total if scale is None else scale
    if not parts.shape[:-1] == total.shape == scale.shape:
        raise LigError(
            f"parts of shape {tuple(parts.shape)}, totals of {tuple(total.shape)} and scales of "
            f"{tuple(scale.shape)}: give (..., S) and twice (...)."
        )
    missed = (parts.double().sum(-1) - total.double()).abs()
    return _completeness(torch.where(missed != 0, missed / scale.double().abs(), 0.0))


def _completeness(errors: Tensor) -> Completeness:
    if not errors.numel():
        return Completeness(math.nan, math.nan, 0)
    return Completeness(float(errors.max()), float(errors.mean()), errors.numel())


def _largest(errors: Sequence[float]) -> float:
    """NaN if one is, which Python's max passes over."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def flow_completeness(flow: LayerFlow) -> dict[str, Completeness]:
    """The errors of all checked rows of a flow, padding left out, by field.

    See :meth:`LayerFlow.completeness_error`, which says what each is relative to.
    """
    found = {}
    for name in flow.checked:
        errors = flow.completeness_error(name)
        real = flow.valid[:, flow.targets]  # (B, T)
        if "head" in FIELDS[name].rows:
            real = real[:, None].expand_as(errors)
        found[name] = _completeness(errors.double()[real])
    return found


class CompletenessErrors(OverTexts):
    """Worst and mean completeness errors of the rows of flows, by field."""

    def update(self, flows: LayerFlow | Sequence[LayerFlow]) -> None:
        """Add the layers of one text."""
        layers = [flows] if isinstance(flows, LayerFlow) else list(flows)
        rows: dict[str, list[Completeness]] = {}
        for flow in layers:
            for name, one in flow_completeness(flow).items():
                rows.setdefault(name, []).append(one)
        numbers = {}
        for name, found in rows.items():
            found = [one for one in found if one.rows]
            if not found:
                continue
            numbers[f"{name} worst"] = _largest([one.worst for one in found])
            mean = sum(one.mean * one.rows for one in found)
            numbers[f"{name} mean"] = mean / sum(one.rows for one in found)
        self.add(numbers)

    def worst(self) -> dict[str, float]:
        """The worst error of all texts, by field."""
        names = {name for row in self.rows for name in row if name.endswith(" worst")}
        return {
            name.removesuffix(" worst"): _largest([row[name] for row in self.rows if name in row])
            for name in sorted(names)
        }


def composed_against_direct(direct: Tensor, composed: Tensor) -> Tensor:
    """How far a composed map is from the direct one, relative to the direct map's size.

    ``||direct - composed|| / ||direct||`` with the norm over all entries of the map
    (Frobenius): 0 is perfect, and a map of zeros has 1.

    Args:
        direct: ``(..., T, S)``
        composed: ``(..., T, S)``

    Returns:
        ``(...)``; NaN where the direct map is all 0.

    Raises:
        LigError: if the shapes differ.
    """
    if direct.shape != composed.shape or direct.dim() < 2:
        raise LigError(
            f"maps of shapes {tuple(direct.shape)} and {tuple(composed.shape)}: give twice "
            "(..., T, S)."
        )
    direct, composed = direct.double(), composed.double()
    gap, size = (torch.linalg.matrix_norm(x) for x in (direct - composed, direct))
    return torch.where(size > 0, gap / size, torch.nan)


def flow_composition(flow: LayerFlow, rule: str = DEFAULT_RULE) -> Tensor:
    """:func:`composed_against_direct` of the texts of a flow, ``(B,)``."""
    return composed_against_direct(flow.need("layer"), flow.compose(rule))


class ComposedAgainstDirect(OverTexts):
    """Distances of composed from direct maps, by layer and over all layers.

    Args:
        rule: of :meth:`LayerFlow.compose`.
        level: see :class:`OverTexts`.
        seed: see :class:`OverTexts`.
    """

    def __init__(self, rule: str = DEFAULT_RULE, level: float = 0.95, seed: int = 0) -> None:
        super().__init__(level, seed)
        self.rule = rule

    def update(self, flows: LayerFlow | Sequence[LayerFlow]) -> None:
        """Add the layers of one text."""
        layers = [flows] if isinstance(flows, LayerFlow) else list(flows)
        found = {f"layer {flow.index}": flow_composition(flow, self.rule) for flow in layers}
        if any(len(distances) != 1 for distances in found.values()):
            raise LigError("the flows hold several texts: update with one, flow.select(text).")
        everything = mean_over(torch.cat(list(found.values())))
        self.add({name: float(x) for name, x in found.items()} | {"all layers": float(everything)})
