"""What an attribution of one Transformer layer returns, and how its pieces compose.

Every matrix is ``[target, source]``: rows are outputs, as in Captum's ``token_attr``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.cost import Cost
from captum_lig.errors import LigError
from captum_lig.flow.completeness import make_complete
from captum_lig.flow.self_term import ESTIMATES, with_self_share, zero_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MLP_STARTS", "RULES", "LayerFlow"]

MLP_STARTS = ("attention", "zero")


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
    """How a target's vector is made a number, ``"l2"`` or ``"projection"``."""
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
    """``(B, T)`` what a row of ``layer`` adds up to."""
    mlp_total: Tensor | None = None
    """``(B, T)`` what a row of ``mlp`` with ``residual`` adds up to: ``layer_total``, except if the
    mlp boundary starts at zero (``mlp_start``)."""
    chain: Tensor | None = None
    """``(B, H, T, S)`` z -> u with the cotangent that the mlp boundary hands down. There when
    ``attention`` and ``mlp`` both were asked for."""
    chain_total: Tensor | None = None
    """``(B, H, T)`` what a row of ``chain`` adds up to, ``<gbar, u(1) - u(0)>``: ``mlp``, except if
    the mlp boundary starts at zero."""
    self_weight: Tensor | None = None
    """``(B, H, T)`` attention weight of each target on itself. There with ``attention``, except if
    weights are hidden in the block's own code."""
    influence: Tensor | None = None
    """``(B, T, S)`` z -> z': length of each source's vector, the integral of
    ``(dy_j / dz_i) (z_i - z0_i)``: how much, without a sign. There when asked for."""
    attention_influence: Tensor | None = None
    """``(B, H, T, S)`` z -> u: the same by head."""
    cross: Tensor | None = None
    """``(B, H, T, S_enc)`` e -> u_cross: the encoder's tokens to the heads of the cross-attention,
    with the queries held where they are. There when asked for, in blocks that have it."""
    cross_total: Tensor | None = None
    """``(B, H, T)`` what a row of ``cross`` adds up to."""
    delta: dict[str, Tensor] = field(default_factory=dict)
    """Signed completeness error, sum of attributions minus total, by boundary:
    ``attention (B, H, T)``, ``mlp (B, T)``, ``layer (B, T)``, ``cross (B, H, T)``. For
    ``influence (B, T)`` and ``attention_influence (B, H, T)``: length of what the sum of a row's
    vectors misses of the change of the output."""
    tolerance: float | None = None
    """Completeness error that rows were refined to, or None for a plain rule."""
    cost: Cost | None = None
    """What this layer cost."""
    mlp_start: str = "attention"
    """Where the path of the mlp boundary starts: ``"attention"``, the attention output at the start
    of the same path; or ``"zero"``, with the residual stream held where it ends."""
    cross_baseline: str | None = None
    """What the path of the encoder's states started from, in words; None without ``cross``."""

    def __post_init__(self) -> None:
        if self.mlp is not None and self.mlp_start == "attention":
            if self.mlp_total is None:
                object.__setattr__(self, "mlp_total", self.layer_total)
            if self.chain is not None and self.chain_total is None:
                object.__setattr__(self, "chain_total", self.mlp.transpose(1, 2))

    def select(self, text: int) -> LayerFlow:
        """The flow of one text of the batch, as a batch of one.

        Args:
            text: its place in the batch; negative ones count from the end.

        Raises:
            LigError: if there is no such text.
        """
        texts = len(self.valid)
        if isinstance(text, bool) or not isinstance(text, int) or not -texts <= text < texts:
            raise LigError(f"text {brief(text)} does not exist: this flow holds {texts} texts.")
        one = slice(text % texts, text % texts + 1)
        batched: dict[str, Any] = {
            name: value[one]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "targets"
        }
        delta = {name: value[one] for name, value in self.delta.items()}
        return replace(self, **batched, delta=delta)

    def with_self_term(self, estimate: str, zero: LayerFlow | None = None) -> LayerFlow:
        """Estimate what a target owes to itself, where a target-token path gives exactly 0.

        Args:
            estimate: ``"map_ratio"``, from the attention weights: the attention boundary and the
                chain; or ``"zero_ratio"``, from the self terms of the zero baseline: the attention
                and layer boundaries and the chain. See :mod:`captum_lig.flow.self_term`.
            zero: for ``zero_ratio``, the flow of the same layer, inputs and settings with
                ``baselines="zero"``.

        Returns:
            A new flow, with the estimate in the name of its ``baseline``. Rows keep their sums.

        Raises:
            LigError: if the flow's baseline is not ``target_token``, for an unknown estimate, or
                if what it needs is missing or does not fit.
        """
        shares = _self_shares(self, estimate, zero)
        parts: dict[str, Any] = {
            name: with_self_share(_need(self, name), share, self.targets)
            for name, share in shares.items()
        }
        delta = dict(self.delta)
        for name in parts.keys() & delta.keys():
            delta[name] = parts[name].sum(-1) - _need(self, f"{name}_total")
        return replace(self, **parts, delta=delta, baseline=f"{self.baseline}+{estimate}")

    def compose(self, rule: str = "conserve", by_head: bool = False) -> Tensor:
        """Compose the attention and mlp boundaries into one map z -> z'.

        Args:
            rule: ``"conserve"`` (default): each head's share of a target is passed on to the
                sources in proportion to their attention attributions (after LRP, Bach et al.
                2015); ``"chain"``: the attention boundary integrated with the cotangent that
                the mlp boundary hands down; ``"product"``: the product of attributions of the
                LIG paper (Suzuki et al. 2026), which neither conserves nor sees the residual.
            by_head: keep the heads apart, and leave the residual stream out.

        Returns:
            ``(B, T, S)``, or by head ``(B, H, T, S)``. Rows of ``conserve`` and ``chain`` add up
            to ``layer_total``: what the quadrature left over (``delta``) is spread over the
            entries by their size. If the mlp boundary starts at zero, rows of ``conserve`` add up
            to ``mlp_total``, less what it gives to heads that do not move on the layer's path,
            and those of ``chain`` to the sum of ``chain_total``.

        Raises:
            LigError: for an unknown rule, or if a boundary it needs was not attributed.
        """
        if rule not in RULES:
            raise LigError(
                f"composition rule {brief(rule)} is unknown: use one of {', '.join(RULES)}."
            )
        heads, residual = _COMPOSITIONS[rule](self)
        if by_head:
            return heads
        composed = heads.sum(1)
        if residual is not None:
            rows = torch.arange(len(self.targets), device=composed.device)
            composed[:, rows, self.targets] += residual
        return composed

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
                ``"attention_influence"``, ``"cross"``, or ``"chain"`` (whose rows should
                add up to ``chain_total``, and are measured against the target's ``mlp_total``).

        Returns:
            ``(B, T)``, or ``(B, H, T)`` by head for attention, cross and chain. Rows whose total is
            0 and whose sum is 0 are exact: 0.
        """
        if boundary == "chain":
            gap = _need(self, "chain").sum(-1) - _need(self, "chain_total")
            return _relative(gap, _need(self, "mlp_total").unsqueeze(1))
        if boundary not in self.delta:
            raise LigError(_missing(boundary))
        own = f"{boundary}_total" if boundary in ("mlp", "cross") else "layer_total"
        name = "attention_total" if boundary.startswith("attention") else own
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

    def plot(
        self, tokens: Sequence[str], kind: str = "layer", text: int | None = None, **settings: Any
    ) -> tuple[Figure, list[Axes]]:
        """Draw the layer; see :mod:`captum_lig.views.plots`.

        Args:
            tokens: what the sources are called, special tokens included.
            kind: ``"layer"``, one map z -> z' (``rule=None``: the direct one); ``"heads"``, one map
                a head; ``"compared"``, the composed map beside the direct one.
            text: which text of the batch, if it holds several.
            settings: further arguments of ``plot_layers``, ``plot_heads`` or ``plot_compared``,
                such as ``rule``, ``title`` and ``show``.

        Raises:
            LigError: for another kind, tokens that do not fit, or a missing boundary.
        """
        from captum_lig.views import plots as visualization

        flow = self if text is None else self.select(text)
        if kind == "heads":
            return visualization.plot_heads(flow, tokens, **settings)
        if kind == "compared":
            return visualization.plot_compared(flow, tokens, **settings)
        if kind == "layer":
            return visualization.plot_layers([flow], tokens, **settings)
        raise LigError(f"kind={brief(kind)} is unknown: use layer, heads or compared.")

    def __repr__(self) -> str:
        texts, sources = self.valid.shape
        names = ("attention", "mlp", "layer", "influence", "cross")
        there = ", ".join(name for name in names if getattr(self, name) is not None)
        return (
            f"LayerFlow(layer {self.index}: {there}; {texts} text{'s' * (texts != 1)}, "
            f"{len(self.targets)} targets, {sources} sources; baseline {self.baseline}, "
            f"{self.scalarization})"
        )

    def _repr_html_(self) -> str:
        """Facts and a picture of the first text, for notebooks."""
        from captum_lig.views.notebook import flow_html

        return flow_html(self)


def _relative(gap: Tensor, total: Tensor) -> Tensor:
    return torch.where(gap != 0, gap.abs() / total, 0.0)


def _missing(name: str) -> str:
    name = {"self_weight": "attention"}.get(name, name)
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


def _self_shares(flow: LayerFlow, estimate: str, zero: LayerFlow | None) -> dict[str, Tensor]:
    """What part of each row the target itself gets, by the name of the map."""
    if estimate not in ESTIMATES:
        raise LigError(f"self term {brief(estimate)} is unknown: use {' or '.join(ESTIMATES)}.")
    if flow.baseline != "target_token":
        raise LigError(
            f"this flow has the baseline {flow.baseline!r}: self terms are estimated for the "
            "baseline 'target_token', where they are 0."
        )
    if estimate == "map_ratio":
        if flow.attention is not None and flow.self_weight is None:
            raise LigError(
                f"the attention weights of layer {flow.index} ({flow.name}) are hidden in the "
                "block's own code, and 'map_ratio' needs them: use 'zero_ratio'."
            )
        share = _need(flow, "self_weight")
        return {name: share for name in ("attention", "chain") if getattr(flow, name) is not None}
    if zero is None:
        raise LigError("the self term 'zero_ratio' needs zero=, the flow with the zero baseline.")
    _same_but_baseline(flow, zero)
    names = [name for name in ("attention", "chain", "layer") if getattr(flow, name) is not None]
    if not names:
        raise LigError(_missing("attention"))
    return {name: zero_share(_need(zero, name), flow.targets) for name in names}


def _same_but_baseline(flow: LayerFlow, zero: LayerFlow) -> None:
    if zero.baseline not in ("zero", "0", "0.0"):
        raise LigError(f"zero= has the baseline {zero.baseline!r}: give the flow with 'zero'.")
    for name in ("name", "index", "scalarization", "mlp_start"):
        ours, theirs = getattr(flow, name), getattr(zero, name)
        if ours != theirs:
            raise LigError(f"zero= has {name} {theirs!r}, and this flow {ours!r}: they must agree.")
    same = torch.equal(flow.targets, zero.targets) and torch.equal(flow.valid, zero.valid)
    if not same:
        raise LigError(
            f"zero= has {len(zero.targets)} targets among tokens {tuple(zero.valid.shape)}, and "
            f"this flow {len(flow.targets)} among {tuple(flow.valid.shape)}: give the flow of the "
            "same texts and output_indices."
        )


def _boundary_shares(flow: LayerFlow) -> tuple[Tensor, Tensor]:
    """``mlp (B, T, H)`` and ``residual (B, T)``, closed so that they add up to the total."""
    mlp, residual = _need(flow, "mlp"), _need(flow, "residual")
    closed = make_complete(torch.cat([mlp, residual.unsqueeze(-1)], -1), _need(flow, "mlp_total"))
    return closed[..., :-1], closed[..., -1]


# What comes through the heads (B, H, T, S), and past them (B, T) if the rule sees it.
_Routes = tuple[Tensor, Tensor | None]


def _product(flow: LayerFlow) -> _Routes:
    passed_on = _need(flow, "mlp").transpose(1, 2).unsqueeze(-1)
    return _need(flow, "attention") * passed_on, None


def _conserve(flow: LayerFlow) -> _Routes:
    mlp, residual = _boundary_shares(flow)
    total = _need(flow, "attention_total")
    closed = make_complete(_need(flow, "attention"), total)
    share = torch.where(total > 0, 1 / total, 0.0) * mlp.transpose(1, 2)
    return closed * share.unsqueeze(-1), residual


def _chain(flow: LayerFlow) -> _Routes:
    mlp, residual = _boundary_shares(flow)
    # Started at zero, the mlp boundary's attributions are of another change than the chain's.
    follows = flow.mlp_start == "attention"
    total = mlp.transpose(1, 2) if follows else _need(flow, "chain_total")
    return make_complete(_need(flow, "chain"), total), residual


_COMPOSITIONS: dict[str, Callable[[LayerFlow], _Routes]] = {
    "conserve": _conserve,
    "chain": _chain,
    "product": _product,
}
RULES = tuple(_COMPOSITIONS)
