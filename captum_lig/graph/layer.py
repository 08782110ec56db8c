"""One layer of the graph: its edges as tensors, and what share of a target each route carries.

Shapes: ``N`` tokens of the text, ``H`` heads. Matrices are ``[target, source]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.axes import FIELDS
from captum_lig.flow.composition import complete, find_rule, share_of
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import TOLERANCE

__all__ = ["PARTS", "Certificate", "GraphLayer", "Part", "Shares", "Weights", "sums_of"]


class Weights(NamedTuple):
    """What a rule makes of a layer, all float64: shares are edges times weights."""

    edges: str
    """The edges that are weighted, a tensor of the layer."""
    heads: Tensor
    """``(H, N)`` weights of their rows."""
    residual: Tensor
    """``(N,)`` share that stays with the token."""
    size: Tensor
    """``(N,)`` what a target's shares are shares of."""


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
class Certificate:
    """How far the rows of one boundary of one layer are off their totals."""

    layer: int
    boundary: str
    rows: int
    missed: int
    """Rows that are further off than ``tolerance``."""
    worst: float
    """Largest relative completeness error."""
    tolerance: float


class Part(NamedTuple):
    """How a tensor of a layer behaves."""

    name: str
    axes: tuple[str, ...]
    """Of head, target and source; targets and sources are the tokens of the graph."""
    dtype: torch.dtype | None = None
    """None: that of the flow's attributions."""
    merge: str | None = "sum"
    """What merging tokens to words makes of it: the ``sum`` over the pieces, ``any`` or ``all`` of
    them; None: worked out anew from the edges."""
    mask: str | None = None
    """Which of ``where``'s masks it is subject to."""


def _part(*axes: str, **behaviour: Any) -> dict[str, Any]:
    """The declaration of a tensor, see :class:`Part`."""
    return {"axes": axes, **behaviour}


_MAPS = _part("head", "target", "source", mask="heads")
_SUM_BY_HEAD = _part("head", "target", dtype=torch.float64, merge=None)
_SUM = _part("target", dtype=torch.float64, merge=None)


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """The edges of one layer, and the sums of the whole layer's edges at each node.

    An edge that is not in the graph (pruned, or of another part of the text) is 0; the sums stay
    what they were, so that the shares of the other edges do.
    """

    name: str
    index: int
    tolerance: float | None = None
    """Completeness error that rows were refined to."""
    attention: Tensor = field(metadata=_MAPS)
    """z -> u, signed; a head's rows add up to the length of its change."""
    mlp: Tensor = field(metadata=_part("target", "head"))
    """u -> z'."""
    residual: Tensor = field(metadata=_part("target", mask="residual"))
    """z -> z'."""
    chain: Tensor | None = field(default=None, metadata=_MAPS)
    """z -> u -> z' with the cotangent that the mlp boundary hands down."""
    attention_sum: Tensor = field(metadata=_SUM_BY_HEAD)
    attention_size: Tensor = field(metadata=_SUM_BY_HEAD)
    """Sum of absolute values."""
    mlp_sum: Tensor = field(metadata=_SUM)
    """Of ``mlp`` and ``residual``."""
    mlp_size: Tensor = field(metadata=_SUM)
    chain_sum: Tensor | None = field(default=None, metadata=_SUM)
    """Of ``chain`` and ``residual``: ``mlp_sum`` up to rounding, except if the mlp boundary starts
    at zero."""
    chain_size: Tensor | None = field(default=None, metadata=_SUM)
    known: Tensor = field(metadata=_part("target", dtype=torch.bool, merge="any"))
    """False for tokens that were no target of the attribution: they have no edges."""
    stays: Tensor = field(metadata=_part("target", dtype=torch.bool, merge="all", mask="residual"))
    """True for targets that nothing moved and that are in the graph with themselves: all of their
    relevance stays with the token."""
    direct: Tensor | None = field(default=None, metadata=_part("target", "source"))
    """z -> z' in one go, as the flow has it; no edge of the graph, only to compare."""
    direct_total: Tensor | None = field(default=None, metadata=_part("target", dtype=torch.float64))
    """What a row of ``direct`` should add up to."""
    errors: dict[str, Tensor] = field(default_factory=dict)
    """Completeness errors of each certified field of the flow, float64, ``(N,)`` or ``(H, N)``;
    see :meth:`LayerFlow.completeness_error`."""

    @classmethod
    def of(cls, flow: LayerFlow, text: int) -> GraphLayer:
        """The edges of one text's flow, without its padding.

        What the quadrature left over (within the flow's tolerance) is spread over the entries of
        its row by their size, so that rows add up to their totals.

        Raises:
            LigError: if a boundary is missing.
        """
        for boundary in ("attention", "mlp"):
            if boundary not in flow.tensors:
                raise LigError(
                    f"layer {flow.index} has no {boundary!r} boundary, and a graph is made of "
                    "'attention' and 'mlp': name both in boundaries=(...) when calling "
                    "LayerFlowIG.attribute."
                )
        flow = flow.select(text)
        dtype = flow.need("attention").dtype
        tokens = flow.valid[0].nonzero().squeeze(-1)
        kept = flow.valid[0, flow.targets].nonzero().squeeze(-1)
        rows = torch.searchsorted(tokens, flow.targets[kept])

        def placed(values: Tensor, *axes: str) -> Tensor:
            """Values of one text at the tokens of the graph; 0 for those that are no targets."""
            for dim, axis in enumerate(axes):
                if axis == "source":
                    values = values.index_select(dim, tokens)
                elif axis == "target":
                    shape = (*values.shape[:dim], len(tokens), *values.shape[dim + 1 :])
                    values = values.new_zeros(shape).index_copy_(
                        dim, rows, values.index_select(dim, kept)
                    )
            return values

        def edges(values: Tensor, *axes: str) -> Tensor:
            # A zero is no edge; adding 0 takes the sign off those that have one.
            return placed(values, *axes).to(dtype) + 0.0

        by_head = ("head", "target", "source")
        attention, mlp, residual = complete(flow, "attention", torch.float64)
        tensors = {
            "attention": edges(attention[0], *by_head),
            "mlp": edges(mlp[0].T, "target", "head"),
            "residual": edges(residual[0], "target"),
        }
        if flow.chain is not None:
            tensors["chain"] = edges(complete(flow, "chain", torch.float64).edges[0], *by_head)
        if flow.layer is not None:
            tensors["direct"] = placed(flow.layer[0].to(dtype), "target", "source")
            tensors["direct_total"] = placed(flow.need("layer_total")[0].double(), "target")
        known = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        known[rows] = True
        unmoved = (tensors["mlp"] == 0).all(-1) & (tensors["residual"] == 0)
        errors = {}
        for name in flow.certified:
            axes = FIELDS[name].rows[1:]
            found = placed(flow.completeness_error(name)[0].double(), *axes)
            errors[name] = found.movedim(axes.index("target"), -1)
        return cls(
            name=flow.name,
            index=flow.index,
            tolerance=flow.tolerance,
            known=known,
            stays=known & unmoved,
            errors=errors,
            **tensors,
            **sums_of(tensors),
        )

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.attention)

    def weights(self, rule: str, absolute: bool = False) -> Weights:
        """What a rule makes of the layer: the law of :mod:`captum_lig.flow.composition`.

        Shares are of the sum of a target's edges; with ``product``, which does not conserve, of the
        sum of their absolute values, without the residual.

        Args:
            rule: a composition rule.
            absolute: of absolute values of edges, and their sums.

        Raises:
            LigError: if the rule is unknown or needs a boundary that is not there.
        """
        law = find_rule(rule)
        if law.edges == "chain" and self.chain is None:
            raise LigError(
                f"layer {self.index} has no 'chain' boundary: use the rule 'conserve', or "
                "make the graph of flows of LayerFlowIG."
            )
        mlp, residual = self.mlp.double().T, self.residual.double()
        if absolute:
            mlp, residual = mlp.abs(), residual.abs()
        kind = "size" if absolute else "sum"
        weights = law.weights(mlp, getattr(self, f"attention_{kind}"))
        if law.residual:
            size = getattr(self, f"{'chain' if law.edges == 'chain' else 'mlp'}_{kind}")
        else:
            size = (self.attention_size * weights.abs()).sum(0)
            residual = torch.zeros_like(residual)
        stays = share_of(residual, size) + self.stays.double()
        return Weights(law.edges, share_of(weights, size), stays, size)

    def shares(self, rule: str, absolute: bool) -> Shares:
        """The share of each target that each route carries, see :meth:`weights`; errors too."""
        weights = self.weights(rule, absolute)
        edges: Tensor = getattr(self, weights.edges).double()
        heads = (edges.abs() if absolute else edges) * weights.heads[..., None]
        return Shares(heads, weights.residual)

    def head_shares(self) -> Tensor:
        """``(H,)`` float64: each head's part in the sizes of the layer's edges into its targets.

        Outputs whose edges are not in the graph have none.
        """
        there = (self.attention != 0).any(-1) | (self.attention_size == 0)
        return (self.mlp.double().abs().T * there).sum(-1) / self.mlp_size.sum()

    def residual_share(self) -> Tensor:
        """The residual edges' part in them."""
        return self.residual.double().abs().sum() / self.mlp_size.sum()

    def certificates(self) -> Iterator[Certificate]:
        """How far the rows of the targets are off, by boundary."""
        tolerance = TOLERANCE if self.tolerance is None else self.tolerance
        for name, errors in self.errors.items():
            found = errors[..., self.known].flatten()
            missed = int((~(found <= tolerance)).sum())
            worst = float(found.max()) if len(found) else 0.0
            yield Certificate(self.index, name, len(found), missed, worst, tolerance)

    def where(self, heads: Tensor, residual: Tensor) -> GraphLayer:
        """Only the edges where ``heads (H, N, N)`` and ``residual (N,)`` are True."""
        masks = {"heads": heads, "residual": residual}
        kept: dict[str, Any] = {
            part.name: torch.where(masks[part.mask], value, value.new_zeros(()))
            for part, value in self.parts()
            if part.mask is not None
        }
        return replace(self, **kept)

    def at(self, tokens: Tensor) -> GraphLayer:
        """Only the edges between some tokens ``(N',)``, which become the tokens of the layer."""
        chosen: dict[str, Any] = {}
        for part, value in self.parts():
            for dim, axis in enumerate(part.axes):
                if axis != "head":
                    value = value.index_select(dim, tokens)
            chosen[part.name] = value
        errors = {name: errors[..., tokens] for name, errors in self.errors.items()}
        return replace(self, **chosen, errors=errors)

    def parts(self) -> Iterator[tuple[Part, Tensor]]:
        """The tensors that are there, with their declarations."""
        for part in PARTS.values():
            value: Tensor | None = getattr(self, part.name)
            if value is not None:
                yield part, value

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, but the errors."""
        return {part.name: value for part, value in self.parts()}


PARTS = {one.name: Part(one.name, **one.metadata) for one in fields(GraphLayer) if one.metadata}
"""The tensors of a layer by name."""


def sums_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``<kind>_sum`` and ``<kind>_size`` of all edges into each kind of node, float64.

    ``attention`` edges go into the heads' outputs; those of ``mlp`` and, if it is there, ``chain``
    into the tokens leaving the layer, together with the residual edges.
    """
    past = tensors["residual"].double()[:, None]
    into = {"attention": tensors["attention"].double()}
    into["mlp"] = torch.cat([tensors["mlp"].double(), past], -1)
    if "chain" in tensors:
        chain = tensors["chain"].double().transpose(0, 1).flatten(1)
        into["chain"] = torch.cat([chain, past], -1)
    sums: dict[str, Tensor] = {}
    for kind, edges in into.items():
        sums |= {f"{kind}_sum": edges.sum(-1), f"{kind}_size": edges.abs().sum(-1)}
    return sums
