"""What an attribution of one Transformer layer returns, and how its pieces compose.

Every matrix is ``[target, source]``: rows are outputs, as in Captum's ``token_attr``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.cost import Cost
from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS, Declared, Field, aligned, check_shape, field_of
from captum_lig.flow.composition import DEFAULT_RULE, RULES, compose_heads
from captum_lig.flow.self_term import ESTIMATES, with_self_share, zero_share
from captum_lig.flow.tables import flow_frame
from captum_lig.flow.tokens import TokenIndex, find_token
from captum_lig.integrals.kinds import MLP_STARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MLP_STARTS", "RULES", "LayerFlow"]

FRAME = {"targets": ("target",), "valid": ("text", "source")}
"""Axes of the tensors that say which rows and columns there are."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LayerFlow(Declared):
    """How the tokens entering one layer moved the tokens leaving it.

    Its tensors are the fields declared in :mod:`captum_lig.flow.axes`, each an attribute:
    ``attention (B, H, T, S)``, ``mlp (B, T, H)``, ``residual (B, T)``, ``layer (B, T, S)``, their
    totals, and so on, over ``B`` texts, ``T`` targets, ``S`` sources (all tokens entering the
    layer) and ``H`` heads. A boundary that was not asked for is ``None``. Padded tokens are neither
    targets nor sources: their rows and columns, and the totals of their rows, are 0.

    Units: with the scalarizations ``l2`` and ``projection`` every number is a length in the space
    of the boundary's outputs, and a row adds up to its total ``||y(1) - y(0)||``. In flows with a
    ``target`` every number is in the units of the target, and signed.

    Args:
        name: dotted name of the block inside the model.
        index: position of the block among the model's attention blocks, in the order they ran.
        targets: ``(T,)`` positions of the targets (rows) among the sources (columns).
        valid: ``(B, S)`` False where the token is padding.
        scalarization: how a target's vector is made a number, ``"l2"`` or ``"projection"``; or
            ``"target"``, by the direction that a number of the model reads.
        baseline: what the path started from, in words.
        tolerance: completeness error that rows were refined to, or None for a plain rule.
        cost: what this layer cost.
        mlp_start: where the path of the mlp boundary starts: ``"attention"``, the attention output
            at the start of the same path; or ``"zero"``, with the residual stream held where it
            ends.
        cross_baseline: what the path of the encoder's states started from, in words; None without
            ``cross``.
        target: the number that the flow is of, in words; None for lengths.
        tokens: for each text what its sources are called; None if that is not known.
        tensors: fields by name.
        fields: the same as keywords, which go before ``tensors``; None for one that is not there.

    Raises:
        LigError: for a field that is not declared, a tensor that does not fit its axes, or a
            checked field without its total.
    """

    name: str
    index: int
    targets: Tensor
    valid: Tensor
    scalarization: str
    baseline: str
    tolerance: float | None
    cost: Cost | None
    mlp_start: str
    cross_baseline: str | None
    target: str | None
    tokens: tuple[tuple[str, ...], ...] | None
    tensors: dict[str, Tensor]

    def __init__(
        self,
        *,
        name: str,
        index: int,
        targets: Tensor,
        valid: Tensor,
        scalarization: str,
        baseline: str,
        tolerance: float | None = None,
        cost: Cost | None = None,
        mlp_start: str = "attention",
        cross_baseline: str | None = None,
        target: str | None = None,
        tokens: Sequence[Sequence[str]] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        **fields: Tensor | None,
    ) -> None:
        if mlp_start not in MLP_STARTS:
            names = " or ".join(map(repr, MLP_STARTS))
            raise LigError(f"mlp_start={brief(mlp_start)} is unknown: use {names}.")
        given = {**(tensors or {}), **fields}
        for one in given:
            field_of(one)
        kept = {one: t for one in FIELDS if (t := given.get(one)) is not None}
        values = {
            "name": name, "index": index, "targets": targets, "valid": valid,
            "scalarization": scalarization, "baseline": baseline, "tolerance": tolerance,
            "cost": cost, "mlp_start": mlp_start, "cross_baseline": cross_baseline,
            "target": target, "tensors": kept,
            "tokens": None if tokens is None else tuple(map(tuple, tokens)),
        }  # fmt: skip
        for one, value in values.items():
            object.__setattr__(self, one, value)
        self._check()

    def _check(self) -> None:
        check_shape("targets", self.targets.shape, FRAME["targets"], {})
        check_shape("valid", self.valid.shape, FRAME["valid"], {})
        texts, sources = self.valid.shape
        if self.tokens is not None and [len(one) for one in self.tokens] != [sources] * texts:
            raise LigError(
                f"tokens name {[len(one) for one in self.tokens]} sources, and there are {texts} "
                f"texts of {sources}: name each, special tokens and padding included."
            )
        sizes = {"text": texts, "source": sources, "target": len(self.targets)}
        for name, tensor in self.tensors.items():
            field = FIELDS[name]
            check_shape(name, tensor.shape, field.axes, sizes)
            own = dict(zip(field.axes, tensor.shape, strict=True))
            for needed in field.needs:
                if needed not in self.tensors:
                    raise LigError(
                        f"a flow with {name!r} needs {needed!r}, too, which its rows are held to."
                    )
                check_shape(needed, self.tensors[needed].shape, FIELDS[needed].axes, own)

    def need(self, name: str) -> Tensor:
        """A field that has to be there.

        Raises:
            LigError: if it is not; the message says which boundaries give it.
        """
        field = field_of(name)
        if name not in self.tensors and self.target is not None:
            why = "it is of flows without a target"
            if name.startswith("feed_forward"):
                why = (
                    "no MLP was found in the block: name it, layer=[captum_lig.Block(module, "
                    "attention=..., heads=..., feed_forward=...)]"
                )
            elif name.startswith("attention"):
                why = "the block has no attention, or 'attention' was left out of boundaries"
            elif name.startswith("cross") or name == "elsewhere":
                why = "the block reads no encoder"
            raise LigError(f"the flow of layer {self.index} ({self.name}) has no {name!r}: {why}.")
        if name not in self.tensors:
            asked = " and ".join(repr(one) for one in field.asked or (name,))
            raise LigError(
                f"this flow has no {name!r} boundary: name {asked} in boundaries=(...) when "
                "calling LayerFlowIG.attribute"
                + (", or compose by rule='conserve'." if name.startswith("chain") else ".")
            )
        return self.tensors[name]

    def select(self, text: int) -> LayerFlow:
        """The flow of one text of the batch, as a batch of one.

        Args:
            text: its position in the batch; negative ones count from the end.

        Raises:
            LigError: if there is no such text.
        """
        texts = len(self.valid)
        if isinstance(text, bool) or not isinstance(text, int) or not -texts <= text < texts:
            raise LigError(f"text {brief(text)} does not exist: this flow holds {texts} texts.")
        one = slice(text % texts, text % texts + 1)
        tensors = {name: tensor[one] for name, tensor in self.tensors.items()}
        tokens = None if self.tokens is None else self.tokens[one]
        return replace(self, valid=self.valid[one], tokens=tokens, tensors=tensors)

    def find(self, token: TokenIndex, text: int = 0) -> int:
        """The source that is a token, by what it says: ``flow.layer[0, :, flow.find("ice")]``.

        Raises:
            LigError: if there is none, if there are several (the message has their positions), or
                if the flow does not know its tokens.
        """
        if isinstance(token, str) and self.tokens is None:
            raise LigError(
                f"token={brief(token)}: the flow does not know its tokens. Give a position, or "
                "tokenizer= to LayerFlowIG.attribute."
            )
        names = self.select(text).tokens
        found: int = find_token(token, () if names is None else names[0])
        return found

    def with_self_term(self, estimate: str, zero: LayerFlow | None = None) -> LayerFlow:
        """Estimate what a target owes to itself, where a target-token path gives exactly 0.

        Args:
            estimate: ``"map_ratio"``, from the attention weights: signed maps by head; or
                ``"zero_ratio"``, from the self terms of the zero baseline: all signed maps from
                tokens to tokens. See :mod:`captum_lig.flow.self_term`.
            zero: for ``zero_ratio``, the flow of the same layer, inputs and settings with
                ``baselines="zero"``.

        Returns:
            A new flow, with the estimate in the name of its ``baseline``. Rows keep their sums.

        Raises:
            LigError: if the flow's baseline is not ``target_token``, for an unknown estimate, or
                if what it needs is missing or does not fit.
        """
        shares = _self_shares(self, estimate, zero)
        filled = {
            name: with_self_share(self.need(name), share, self.targets)
            for name, share in shares.items()
        }
        return replace(
            self, tensors={**self.tensors, **filled}, baseline=f"{self.baseline}+{estimate}"
        )

    def compose(self, rule: str = DEFAULT_RULE, by_head: bool = False) -> Tensor:
        """Compose the attention and mlp boundaries into one map z -> z'.

        Args:
            rule: ``"chain"`` (default): the attention boundary integrated with the cotangent that
                the mlp boundary hands down; ``"conserve"``: each head's share of a target is
                passed on to the sources in proportion to their attention attributions (after LRP,
                Bach et al. 2015); ``"product"``: the product of attributions of the LIG paper
                (Suzuki et al. 2026), which neither conserves nor sees the residual.
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
        heads, residual = compose_heads(self, rule)
        if by_head:
            return heads
        composed = heads.sum(1)
        if residual is not None:
            rows = torch.arange(len(self.targets), device=composed.device)
            composed[:, rows, self.targets] += residual
        return composed

    def agreement(self, rule: str = DEFAULT_RULE) -> Tensor:
        """Distance of the composed from the direct map, ``||direct - composed|| / ||direct||``.

        Returns:
            ``(B, T)``; 0 is perfect. NaN where the direct row is all zero (padding, or a target
            that its sources do not move).
        """
        direct = self.need("layer")
        distance = torch.linalg.vector_norm(direct - self.compose(rule), dim=-1)
        size = torch.linalg.vector_norm(direct, dim=-1)
        return torch.where(size > 0, distance / size, torch.nan)

    @property
    def checked(self) -> tuple[str, ...]:
        """The fields whose rows have a completeness error."""
        return tuple(name for name in self.tensors if FIELDS[name].checked)

    @property
    def delta(self) -> dict[str, Tensor]:
        """Signed completeness errors, sum of a row minus its total, of each checked field.

        ``attention (B, H, T)``, ``mlp (B, T)``, ``layer (B, T)``, and so on. For ``influence`` and
        ``attention_influence``: length of what the sum of a row's vectors misses of the change of
        the output.
        """
        return {name: self._gap(FIELDS[name]) for name in self.checked}

    def completeness_error(self, boundary: str = "layer") -> Tensor:
        """``|sum of attributions - total| / |total|`` of the rows of a checked field.

        Args:
            boundary: name of the field. Rows of ``chain`` should add up to ``chain_total``, and
                are measured against the target's ``mlp_total``.

        Returns:
            ``(B, T)``, or ``(B, H, T)`` by head. Rows whose total is 0 and whose sum is 0 are
            exact: 0. In flows with a target, relative to ``scale``.
        """
        field = field_of(boundary)
        if not field.checked or field.relative_to is None:
            names = ", ".join(name for name, one in FIELDS.items() if one.checked)
            raise LigError(f"rows of {boundary!r} have no completeness error: use one of {names}.")
        self.need(boundary)
        scale = FIELDS["scale" if "scale" in self.tensors else field.relative_to]
        gap = self._gap(field)
        size = aligned(self.need(scale.name), scale.axes, field.rows)
        return torch.where(gap != 0, gap.abs() / size.abs(), 0.0)

    def _gap(self, field: Field) -> Tensor:
        if field.missing is not None:
            return self.need(field.missing)
        assert field.total is not None
        found = self.need(field.name).sum(-1)
        for beside in (*field.beside, *(one for one in field.also if one in self.tensors)):
            found = found + self.need(beside)
        return found - self.need(field.total)

    @property
    def converged(self) -> dict[str, Tensor]:
        """Which rows are within ``tolerance``, of each checked field.

        Empty if the attribution was asked for with ``tolerance=None``.
        """
        if self.tolerance is None:
            return {}
        return {name: self.completeness_error(name) <= self.tolerance for name in self.checked}

    def plot(
        self,
        tokens: Sequence[str] | None = None,
        kind: str = "layer",
        text: int | None = None,
        **settings: Any,
    ) -> tuple[Figure, list[Axes]]:
        """Draw the layer; see :mod:`captum_lig.views.plots`.

        Args:
            tokens: what the sources are called, special tokens included; None: as the flow has it.
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

    def to_pandas(
        self,
        boundaries: Sequence[str] | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
    ) -> Any:
        """A row for each attribution, see :meth:`captum_lig.flow.flows.Flows.to_pandas`."""
        return flow_frame([self], boundaries, threshold, top_k)

    def described(self) -> str:
        """What it holds, in a few words."""
        texts, sources = self.valid.shape
        there = ", ".join(self.checked) or "no boundary"
        of = "" if self.target is None else f"; target {self.target}"
        return (
            f"{there}; {texts} text{'s' * (texts != 1)}, {len(self.targets)} targets, {sources} "
            f"sources; baseline {self.baseline}, {self.scalarization}{of}"
        )

    def __repr__(self) -> str:
        return f"LayerFlow(layer {self.index}: {self.described()})"

    def _repr_html_(self) -> str:
        """Facts and a picture of the first text, for notebooks."""
        from captum_lig.views.notebook import flows_html

        return flows_html([self])


def _self_shares(flow: LayerFlow, estimate: str, zero: LayerFlow | None) -> dict[str, Tensor]:
    """What part of each row the target itself gets, by the name of the map."""
    if estimate not in ESTIMATES:
        raise LigError(f"self term {brief(estimate)} is unknown: use {' or '.join(ESTIMATES)}.")
    if flow.baseline != "target_token":
        raise LigError(
            f"this flow has the baseline {flow.baseline!r}: self terms are estimated for the "
            "baseline 'target_token', where they are 0."
        )
    maps = [
        name
        for name in flow.tensors
        if FIELDS[name].axes[-2:] == ("target", "source") and FIELDS[name].total is not None
    ]
    if estimate == "map_ratio":
        if flow.attention is not None and flow.self_weight is None:
            raise LigError(
                f"the attention weights of layer {flow.index} ({flow.name}) are hidden in the "
                "block's own code, and 'map_ratio' needs them: use 'zero_ratio'."
            )
        share = flow.need("self_weight")
        return {name: share for name in maps if "head" in FIELDS[name].axes}
    if zero is None:
        raise LigError("the self term 'zero_ratio' needs zero=, the flow with the zero baseline.")
    _same_but_baseline(flow, zero)
    if not maps:
        flow.need("attention")
    return {name: zero_share(zero.need(name), flow.targets) for name in maps}


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
