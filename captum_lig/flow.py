"""What an attribution of one Transformer layer returns, and how its pieces compose.

Every matrix is ``[target, source]``: rows are outputs, as in Captum's ``token_attr``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_lig.checks import brief
from captum_lig.cost import Cost
from captum_lig.errors import LigError

__all__ = ["RULES", "LayerFlow"]


@dataclass(frozen=True)
class LayerFlow:
    """How the tokens entering one layer moved the tokens leaving it.

    Shapes: ``B`` texts, ``T`` targets, ``S`` sources (all tokens entering the layer), ``H`` heads.
    A boundary that was not asked for is ``None``. Padded tokens are neither targets nor sources:
    their rows and columns, and the totals of their rows, are 0.

    Units: with the scalarizations ``l2`` and ``projection`` every number is a length in the space
    of the boundary's outputs, and a row adds up to its total ``||y(1) - y(0)||``.
    """

    name: str
    """Dotted name of the block inside the model."""
    index: int
    """Position of the block among the model's attention blocks, in the order they ran."""
    targets: Tensor
    """``(T,)`` positions of the targets (rows) among the sources (columns)."""
    valid: Tensor
    """``(B, S)`` False where the token is padding."""
    scalarization: str
    baseline: str
    """What the path started from, in words."""

    attention: Tensor | None = None
    """``(B, H, T, S)`` z -> u: per-head attention outputs, before the output projection."""
    attention_total: Tensor | None = None
    """``(B, H, T)`` what a row of ``attention`` adds up to."""
    mlp: Tensor | None = None
    """``(B, T, H)`` u -> z': everything after the attention core, by head."""
    residual: Tensor | None = None
    """``(B, T)`` z -> z': what reaches a token past the attention heads, from itself."""
    layer: Tensor | None = None
    """``(B, T, S)`` z -> z' in one go."""
    layer_total: Tensor | None = None
    """``(B, T)`` what a row of ``layer``, or of ``mlp`` with ``residual``, adds up to."""
    chain: Tensor | None = None
    """``(B, H, T, S)`` z -> u with the cotangent that the mlp boundary hands down; its rows add
    up to ``mlp``. There when ``attention`` and ``mlp`` both were asked for."""
    influence: Tensor | None = None
    """``(B, T, S)`` z -> z': length of each source's vector, the integral of
    ``(dy_j / dz_i) (z_i - z0_i)``: how much, without a sign. There when asked for."""
    attention_influence: Tensor | None = None
    """``(B, H, T, S)`` z -> u: the same by head."""
    delta: dict[str, Tensor] = field(default_factory=dict)
    """Signed completeness error, sum of attributions minus total, by boundary:
    ``attention (B, H, T)``, ``mlp (B, T)``, ``layer (B, T)``. For ``influence (B, T)`` and
    ``attention_influence (B, H, T)``: length of what the sum of a row's vectors misses of the
    change of the output."""
    tolerance: float | None = None
    """Completeness error that rows were refined to, or None for a plain rule."""
    cost: Cost | None = None
    """What this layer cost."""

    def compose(self, rule: str = "conserve") -> Tensor:
        """Compose the attention and mlp boundaries into one map z -> z'.

        Args:
            rule: ``"conserve"`` (default): each head's share of a target is passed on to the
                sources in proportion to their attention attributions (after LRP, Bach et al.
                2015); ``"chain"``: the attention boundary integrated with the cotangent that
                the mlp boundary hands down; ``"product"``: the product of attributions of the
                LIG paper (Suzuki et al. 2026), which neither conserves nor sees the residual.

        Returns:
            ``(B, T, S)``. Rows of ``conserve`` and ``chain`` add up to ``layer_total``: what the
            quadrature left over (``delta``) is spread over the entries by their size.

        Raises:
            LigError: for an unknown rule, or if a boundary it needs was not attributed.
        """
        if rule not in RULES:
            raise LigError(
                f"composition rule {brief(rule)} is unknown: use one of {', '.join(RULES)}."
            )
        return _COMPOSITIONS[rule](self)

    def agreement(self, rule: str = "conserve") -> Tensor:
        """Distance of the composed from the direct map, ``||direct - composed|| / ||direct||``.

        Returns:
            ``(B, T)``; 0 is perfect. NaN where the direct row is all zero (padding, or a target
            that its sources do not move).
        """
        direct = _need(self, "layer")
        distance = torch.linalg.vector_norm(direct - self.compose(rule), dim=-1)
        size = torch.linalg.vector_norm(direct, dim=-1)
        return torch.where(size > 0, distance / size, torch.nan)

    def completeness_error(self, boundary: str = "layer") -> Tensor:
        """``|sum of attributions - total| / total`` of a boundary's rows.

        Args:
            boundary: ``"attention"``, ``"mlp"``, ``"layer"``, ``"influence"``,
                ``"attention_influence"``, or ``"chain"`` (whose rows should
                add up to ``mlp``, and are measured against the target's total).

        Returns:
            ``(B, T)``, or ``(B, H, T)`` by head for attention and chain. Rows whose total is 0
            and whose sum is 0 are exact: 0.
        """
        if boundary == "chain":
            gap = _need(self, "chain").sum(-1) - _need(self, "mlp").transpose(1, 2)
            return _relative(gap, _need(self, "layer_total").unsqueeze(1))
        if boundary not in self.delta:
            raise LigError(_missing(boundary))
        name = "attention_total" if boundary.startswith("attention") else "layer_total"
        return _relative(self.delta[boundary], _need(self, name))

    @property
    def converged(self) -> dict[str, Tensor]:
        """Which rows are within ``tolerance``, by boundary (with ``chain``, where it is there).

        Empty if the attribution was asked for with ``tolerance=None``.
        """
        if self.tolerance is None:
            return {}
        boundaries = [*self.delta, *(["chain"] if self.chain is not None else [])]
        return {name: self.completeness_error(name) <= self.tolerance for name in boundaries}


def _relative(gap: Tensor, total: Tensor) -> Tensor:
    return torch.where(gap != 0, gap.abs() / total, 0.0)


def _missing(name: str) -> str:
    if name == "chain":
        return (
            "this flow has no 'chain' boundary: it is made when both 'attention' and 'mlp' are "
            "named in boundaries=(...) when calling LayerFlowIG.attribute."
        )
    return (
        f"this flow has no {name!r} boundary: name it in boundaries=(...) "
        "when calling LayerFlowIG.attribute."
    )


def _need(flow: LayerFlow, name: str) -> Tensor:
    value: Tensor | None = getattr(flow, name)
    if value is None:
        raise LigError(_missing(name.removesuffix("_total")))
    return value


def _close(parts: Tensor, total: Tensor) -> Tensor:
    """Spread what is missing to ``total (...)`` over ``parts (..., n)``, by their size."""
    size = parts.abs().sum(-1, keepdim=True)
    missing = (total - parts.sum(-1)).unsqueeze(-1)
    return parts + torch.where(size > 0, parts.abs() / size, 0.0) * missing


def _boundary_shares(flow: LayerFlow) -> tuple[Tensor, Tensor]:
    """``mlp (B, T, H)`` and ``residual (B, T)``, closed so that they add up to the total."""
    mlp, residual = _need(flow, "mlp"), _need(flow, "residual")
    closed = _close(torch.cat([mlp, residual.unsqueeze(-1)], -1), _need(flow, "layer_total"))
    return closed[..., :-1], closed[..., -1]


def _add_residual(flow: LayerFlow, composed: Tensor, residual: Tensor) -> Tensor:
    rows = torch.arange(len(flow.targets), device=composed.device)
    composed = composed.clone()
    composed[:, rows, flow.targets] += residual
    return composed


def _product(flow: LayerFlow) -> Tensor:
    return torch.einsum("bhts,bth->bts", _need(flow, "attention"), _need(flow, "mlp"))


def _conserve(flow: LayerFlow) -> Tensor:
    mlp, residual = _boundary_shares(flow)
    total = _need(flow, "attention_total")
    closed = _close(_need(flow, "attention"), total)
    share = torch.where(total > 0, 1 / total, 0.0) * mlp.transpose(1, 2)
    return _add_residual(flow, torch.einsum("bhts,bht->bts", closed, share), residual)


def _chain(flow: LayerFlow) -> Tensor:
    mlp, residual = _boundary_shares(flow)
    closed = _close(_need(flow, "chain"), mlp.transpose(1, 2))
    return _add_residual(flow, closed.sum(1), residual)


_COMPOSITIONS: dict[str, Callable[[LayerFlow], Tensor]] = {
    "conserve": _conserve,
    "chain": _chain,
    "product": _product,
}
RULES = tuple(_COMPOSITIONS)
