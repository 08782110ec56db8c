"""Composing the attention and mlp boundaries into one map z -> z'.

Every rule is edges times row weights, plus what the residual stream brings::

    heads[h, j, i] = weights[h, j] * edges[h, j, i]

=========  ===========  ==============================  ========  ================================
rule       edges        weights                         residual  source
=========  ===========  ==============================  ========  ================================
conserve   attention    mlp[j, h] / attention_total     yes       after LRP, Bach et al. 2015
chain      chain        1                               yes       the cotangent is in the edges
product    attention    mlp[j, h]                       no        Suzuki et al. 2026
=========  ===========  ==============================  ========  ================================

Rules with the residual conserve: their edges are completed to their totals first. ``product`` takes
them as integrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.completeness import make_complete

__all__ = [
    "DEFAULT_RULE",
    "RULES",
    "Boundaries",
    "Completed",
    "Rule",
    "complete",
    "compose_heads",
    "find_rule",
    "share_of",
]


@dataclass(frozen=True)
class Rule:
    """How edges are weighted."""

    name: str
    edges: str
    """Field of the edges, ``(..., H, T, S)``."""
    by_mlp: bool
    """Rows are multiplied by what the mlp boundary gives their head."""
    by_total: bool
    """Rows are divided by what they add up to."""
    residual: bool
    """Edges are completed to their totals, and the residual stream counts."""

    def weights(self, mlp: Tensor, total: Tensor | None) -> Tensor:
        """Weights ``(..., H, T)`` of rows, of ``mlp (..., H, T)`` and the rows' totals.

        A row whose total is 0 has the weight 0.
        """
        weights = mlp if self.by_mlp else torch.ones_like(mlp)
        if not self.by_total:
            return weights
        assert total is not None
        return weights * share_of(torch.ones_like(total), total)


RULES = {
    rule.name: rule
    for rule in (
        Rule("conserve", "attention", by_mlp=True, by_total=True, residual=True),
        Rule("chain", "chain", by_mlp=False, by_total=False, residual=True),
        Rule("product", "attention", by_mlp=True, by_total=False, residual=False),
    )
}

DEFAULT_RULE = "chain"
"""Nearest to the direct map and to what interventions do, see ``docs/consistency.md``."""


def find_rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        LigError: if there is none.
    """
    if not isinstance(name, str) or name not in RULES:
        raise LigError(f"composition rule {brief(name)} is unknown: use one of {', '.join(RULES)}.")
    return RULES[name]


def share_of(parts: Tensor, sums: Tensor) -> Tensor:
    """``parts / sums``, and 0 where there is nothing to share out."""
    return torch.where(sums != 0, parts / sums, 0.0)


class Boundaries(Protocol):
    """What is composed: a :class:`~captum_lig.LayerFlow`."""

    @property
    def mlp_start(self) -> str:
        """Where the path of the mlp boundary starts."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The fields that are there."""

    def need(self, name: str) -> Tensor:
        """A field, or a LigError if it is not there."""


class Completed(NamedTuple):
    """Boundaries with what the quadrature left over spread over their rows by size."""

    edges: Tensor
    """``(B, H, T, S)``."""
    mlp: Tensor
    """``(B, H, T)``."""
    residual: Tensor
    """``(B, T)``."""


def complete(flow: Boundaries, edges: str, dtype: torch.dtype | None = None) -> Completed:
    """The rows of ``edges``, ``mlp`` and ``residual``, completed to their totals.

    Args:
        flow: the flow.
        edges: name of a field with heads, ``attention`` or ``chain``.
        dtype: dtype to work in; None for the flow's own.

    Raises:
        LigError: if a boundary is missing.
    """
    part, mlp, residual, total, row_total = (
        flow.need(name).to(dtype or flow.need(name).dtype)
        for name in (edges, "mlp", "residual", "mlp_total", f"{edges}_total")
    )
    past = flow.tensors.get("feed_forward_token")
    if past is not None:  # where the MLP is a node, the token reaches it past the heads, too
        residual = residual + past.to(residual.dtype)
    ends = make_complete(torch.cat([mlp, residual.unsqueeze(-1)], -1), total)
    mlp, residual = ends[..., :-1].transpose(1, 2), ends[..., -1]
    # From zero, the mlp boundary's attributions are of another change than the chain's.
    if edges == "chain" and flow.mlp_start == "attention":
        row_total = mlp
    return Completed(make_complete(part, row_total), mlp, residual)


def compose_heads(flow: Boundaries, name: str) -> tuple[Tensor, Tensor | None]:
    """What comes through the heads ``(B, H, T, S)``, and past them ``(B, T)`` if that counts.

    Raises:
        LigError: for an unknown rule, or if a boundary it needs is missing.
    """
    rule = find_rule(name)
    residual: Tensor | None = None
    if rule.residual:
        edges, mlp, residual = complete(flow, rule.edges)
    else:
        edges, mlp = flow.need(rule.edges), flow.need("mlp").transpose(1, 2)
    total = flow.need(f"{rule.edges}_total") if rule.by_total else None
    return edges * rule.weights(mlp, total).unsqueeze(-1), residual
