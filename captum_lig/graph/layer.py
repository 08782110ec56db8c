"""One layer of the graph: its edges as tensors, and what share of a target each route carries.

Shapes: ``N`` tokens of the text, ``H`` heads. Matrices are ``[target, source]``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.completeness import make_complete
from captum_lig.flow.layer_flow import RULES, LayerFlow

__all__ = ["GraphLayer", "Shares", "check_rule", "share_of"]


@dataclass(frozen=True)
class Shares:
    """What share of each target its routes carry through one layer.

    ``heads[h, j, i]`` goes from source ``i`` through head ``h`` to target ``j``, ``residual[j]``
    stays with the token. In a whole graph a target's shares add up to 1, with the rules that
    conserve.
    """

    heads: Tensor
    """``(H, N, N)``, float64."""
    residual: Tensor
    """``(N,)``, float64."""

    @property
    def matrix(self) -> Tensor:
        """``(N, N)`` all routes from a source to a target together."""
        return self.heads.sum(0) + torch.diag(self.residual)

    def cpu(self) -> Shares:
        """The same on the CPU."""
        return Shares(self.heads.cpu(), self.residual.cpu())


@dataclass(frozen=True)
class GraphLayer:
    """The edges of one layer, and the sums of the whole layer's edges at each node.

    An edge that is not in the graph (pruned, or of another part of the text) is 0; the sums stay
    what they were, so that the shares of the other edges do.
    """

    name: str
    index: int
    attention: Tensor
    """``(H, N, N)`` z -> u, signed; a head's rows add up to the length of its change."""
    mlp: Tensor
    """``(N, H)`` u -> z'."""
    residual: Tensor
    """``(N,)`` z -> z'."""
    chain: Tensor | None
    """``(H, N, N)`` z -> u -> z' with the cotangent that the mlp boundary hands down."""
    attention_sum: Tensor
    """``(H, N)`` float64."""
    attention_size: Tensor
    """``(H, N)`` float64, sum of absolute values."""
    mlp_sum: Tensor
    """``(N,)`` float64, of ``mlp`` and ``residual``."""
    mlp_size: Tensor
    """``(N,)`` float64."""
    chain_sum: Tensor | None
    """``(N,)`` float64, of ``chain`` and ``residual``: ``mlp_sum`` up to rounding, except if the
    mlp boundary starts at zero."""
    chain_size: Tensor | None
    """``(N,)`` float64, of ``chain`` and ``residual``."""
    known: Tensor
    """``(N,)`` False for tokens that were no target of the attribution: they have no edges."""
    stays: Tensor
    """``(N,)`` True for targets that nothing moved and that are in the graph with themselves:
    all of their relevance stays with the token."""
    direct: Tensor | None = None
    """``(N, N)`` z -> z' in one go, as the flow has it; no edge of the graph, only to compare."""
    direct_total: Tensor | None = None
    """``(N,)`` float64, what a row of ``direct`` should add up to."""
    attention_error: Tensor | None = None
    """``(H, N)`` float64, completeness error of the rows, see
    :meth:`LayerFlow.completeness_error`; so the next three."""
    mlp_error: Tensor | None = None
    """``(N,)`` float64."""
    chain_error: Tensor | None = None
    """``(H, N)`` float64."""
    direct_error: Tensor | None = None
    """``(N,)`` float64."""
    tolerance: float | None = None
    """Completeness error that rows were refined to."""

    @classmethod
    def of(cls, flow: LayerFlow, text: int) -> GraphLayer:
        """The edges of one text's flow, without its padding.

        What the quadrature left over (within the flow's tolerance) is spread over the entries of
        its row by their size, so that rows add up to their totals.

        Raises:
            LigError: if a boundary is missing.
        """
        for boundary in ("attention", "mlp"):
            if getattr(flow, boundary) is None:
                raise LigError(
                    f"layer {flow.index} has no {boundary!r} boundary, and a graph is made of "
                    "'attention' and 'mlp': name both in boundaries=(...) when calling "
                    "LayerFlowIG.attribute."
                )
        tokens = flow.valid[text].nonzero().squeeze(-1)
        kept = flow.valid[text, flow.targets]
        place = torch.full_like(flow.valid[text], -1, dtype=torch.long)
        place[tokens] = torch.arange(len(tokens), device=tokens.device)
        rows = place[flow.targets[kept]]

        def part(name: str) -> Tensor:
            return getattr(flow, name)[text].double()  # type: ignore[no-any-return]

        def square(matrix: Tensor) -> Tensor:
            """Rows of the targets ``(H, T, S)`` put at their tokens ``(H, N, N)``."""
            whole = matrix.new_zeros(len(matrix), len(tokens), len(tokens))
            return whole.index_copy_(1, rows, matrix[:, kept][..., tokens])

        def at_tokens(values: Tensor) -> Tensor:
            whole = values.new_zeros(len(tokens), *values.shape[1:])
            return whole.index_copy_(0, rows, values[kept])

        outputs = torch.cat([part("mlp"), part("residual")[:, None]], -1)
        outputs = make_complete(outputs, part("mlp_total"))
        mlp, residual = at_tokens(outputs[:, :-1]), at_tokens(outputs[:, -1])
        attention = square(make_complete(part("attention"), part("attention_total")))
        chain = chain_sum = chain_size = None
        if flow.chain is not None:
            target = part("chain_total")
            if flow.mlp_start == "attention":  # there the two boundaries meet
                target = outputs[:, :-1].T
            chain = square(make_complete(part("chain"), target))
        dtype = flow.attention.dtype  # type: ignore[union-attr]
        # A zero is no edge; adding 0 takes the sign off those that have one.
        attention, mlp, residual = (t.to(dtype) + 0.0 for t in (attention, mlp, residual))
        if chain is not None:
            chain = chain.to(dtype) + 0.0
            chain_sum = chain.double().sum((0, 2)) + residual.double()
            chain_size = chain.double().abs().sum((0, 2)) + residual.double().abs()
        known = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        known[rows] = True
        direct = direct_total = None
        if flow.layer is not None:
            direct = square(part("layer")[None])[0].to(dtype)
            direct_total = at_tokens(part("layer_total"))

        def error(boundary: str) -> Tensor | None:
            if boundary not in flow.delta and (boundary != "chain" or flow.chain is None):
                return None
            errors = flow.completeness_error(boundary)[text].double()
            return at_tokens(errors) if errors.dim() == 1 else at_tokens(errors.T).T

        ends = torch.cat([mlp, residual[:, None]], -1).double()
        return cls(
            name=flow.name,
            index=flow.index,
            attention=attention,
            mlp=mlp,
            residual=residual,
            chain=chain,
            attention_sum=attention.double().sum(-1),
            attention_size=attention.double().abs().sum(-1),
            mlp_sum=ends.sum(-1),
            mlp_size=ends.abs().sum(-1),
            chain_sum=chain_sum,
            chain_size=chain_size,
            known=known,
            stays=known & (ends == 0).all(-1),
            direct=direct,
            direct_total=direct_total,
            attention_error=error("attention"),
            mlp_error=error("mlp"),
            chain_error=error("chain"),
            direct_error=error("layer"),
            tolerance=flow.tolerance,
        )

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.attention)

    def shares(self, rule: str, absolute: bool) -> Shares:
        """The share of each target that each route carries.

        Args:
            rule: ``conserve``: ``(c / U) (m / N)``, with the sums ``U`` of an attention row and
                ``N`` of a target; ``chain``: the chain's entry by its sum; ``product`` (the LIG
                paper): ``c m`` by the sum of its absolute values, without the residual.
            absolute: take absolute values of edges, and their sums in place of ``U`` and ``N``.

        Raises:
            LigError: if the rule is unknown or needs a boundary that is not there.
        """
        check_rule(rule)
        stays = self.stays.double()
        residual = self.residual.double()
        if rule == "product":
            heads = self.attention.double() * self.mlp.double().T[..., None]
            size = (self.attention_size * self.mlp.double().T.abs()).sum(0)
            heads = heads.abs() if absolute else heads
            return Shares(share_of(heads, size[:, None]), stays)
        if rule == "chain":
            if self.chain is None or self.chain_sum is None or self.chain_size is None:
                raise LigError(
                    f"layer {self.index} has no 'chain' boundary: use the rule 'conserve', or "
                    "make the graph of flows of LayerFlowIG."
                )
            heads, sums = self.chain.double(), self.chain_sum
            if absolute:
                heads, residual, sums = heads.abs(), residual.abs(), self.chain_size
            return Shares(share_of(heads, sums[:, None]), share_of(residual, sums) + stays)
        heads, mlp = self.attention.double(), self.mlp.double()
        inner, outer = self.attention_sum, self.mlp_sum
        if absolute:
            heads, mlp, residual = heads.abs(), mlp.abs(), residual.abs()
            inner, outer = self.attention_size, self.mlp_size
        passed_on = share_of(mlp, outer[:, None]).T
        return Shares(
            share_of(heads, inner[..., None]) * passed_on[..., None],
            share_of(residual, outer) + stays,
        )

    def head_shares(self) -> Tensor:
        """``(H,)`` float64: each head's part in the sizes of the layer's edges into its targets.

        Outputs whose edges are not in the graph have none.
        """
        there = (self.attention != 0).any(-1) | (self.attention_size == 0)
        return (self.mlp.double().abs().T * there).sum(-1) / self.mlp_size.sum()

    def residual_share(self) -> Tensor:
        """The residual edges' part in them."""
        return self.residual.double().abs().sum() / self.mlp_size.sum()

    def where(self, heads: Tensor, residual: Tensor) -> GraphLayer:
        """Only the edges where ``heads (H, N, N)`` and ``residual (N,)`` are True."""
        return replace(
            self,
            attention=torch.where(heads, self.attention, 0.0),
            chain=None if self.chain is None else torch.where(heads, self.chain, 0.0),
            residual=torch.where(residual, self.residual, 0.0),
            stays=self.stays & residual,
        )

    def at(self, tokens: Tensor) -> GraphLayer:
        """Only the edges between some tokens ``(N',)``, which become the tokens of the layer."""

        def of(values: Tensor | None) -> Any:
            return None if values is None else values[tokens]

        def by_head(values: Tensor | None) -> Any:
            return None if values is None else values[:, tokens]

        def square(values: Tensor | None) -> Any:
            return None if values is None else values[..., tokens, :][..., tokens]

        return replace(
            self,
            attention=square(self.attention),
            chain=square(self.chain),
            attention_sum=by_head(self.attention_sum),
            attention_size=by_head(self.attention_size),
            mlp=of(self.mlp),
            residual=of(self.residual),
            mlp_sum=of(self.mlp_sum),
            mlp_size=of(self.mlp_size),
            chain_sum=of(self.chain_sum),
            chain_size=of(self.chain_size),
            known=of(self.known),
            stays=of(self.stays),
            direct=square(self.direct),
            direct_total=of(self.direct_total),
            attention_error=by_head(self.attention_error),
            mlp_error=of(self.mlp_error),
            chain_error=by_head(self.chain_error),
            direct_error=of(self.direct_error),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def check_rule(rule: str) -> str:
    """The rule.

    Raises:
        LigError: if it is unknown.
    """
    if rule not in RULES:
        raise LigError(f"composition rule {brief(rule)} is unknown: use one of {', '.join(RULES)}.")
    return rule


def share_of(parts: Tensor, sums: Tensor) -> Tensor:
    """``parts / sums``, and 0 where there is nothing to share out."""
    return torch.where(sums != 0, parts / sums, 0.0)
