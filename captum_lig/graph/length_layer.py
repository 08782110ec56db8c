"""A layer of lengths: how far tokens moved, shared out among what moved them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from captum_lig.errors import LigError
from captum_lig.flow.composition import complete, find_rule, share_of
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.graph.layer import GraphLayer, Places, Shares, part

__all__ = ["LengthLayer", "Weights"]


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


_SUM_BY_HEAD = part("head", "target", dtype=torch.float64, merge=None)
_SUM = part("target", dtype=torch.float64, merge=None)
_CHAIN = ("chain", "chain_sum", "chain_size")
_DIRECT = ("direct", "direct_total")
_INFLUENCE = ("influence", "influence_sum")


@dataclass(frozen=True, kw_only=True)
class LengthLayer(GraphLayer):
    """The edges of one layer of flows without a target, and the sums of them all at each node.

    A head's rows of ``attention`` add up to the length of its change.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("attention", "mlp", "residual")

    mlp: Tensor = field(metadata=part("target", "head"))
    """u -> z'."""
    residual: Tensor = field(metadata=part("target", mask="residual"))
    """z -> z'."""
    chain: Tensor | None = field(
        default=None, metadata=part("head", "target", "source", mask="attention", needs=_CHAIN)
    )
    """z -> u -> z' with the cotangent that the mlp boundary hands down."""
    attention_sum: Tensor = field(metadata=_SUM_BY_HEAD)
    attention_size: Tensor = field(metadata=_SUM_BY_HEAD)
    """Sum of absolute values."""
    mlp_sum: Tensor = field(metadata=_SUM)
    """Of ``mlp`` and ``residual``."""
    mlp_size: Tensor = field(metadata=_SUM)
    chain_sum: Tensor | None = field(default=None, metadata={**_SUM, "needs": _CHAIN})
    """Of ``chain`` and ``residual``: ``mlp_sum`` up to rounding, except if the mlp boundary starts
    at zero."""
    chain_size: Tensor | None = field(default=None, metadata={**_SUM, "needs": _CHAIN})
    stays: Tensor = field(metadata=part("target", dtype=torch.bool, merge="all", mask="residual"))
    """True for targets that nothing moved and that are in the graph with themselves: all of their
    relevance stays with the token."""
    direct: Tensor | None = field(default=None, metadata=part("target", "source", needs=_DIRECT))
    """z -> z' in one go, as the flow has it; no edge of the graph, only to compare."""
    direct_total: Tensor | None = field(
        default=None, metadata=part("target", dtype=torch.float64, needs=_DIRECT)
    )
    """What a row of ``direct`` should add up to."""
    influence: Tensor | None = field(
        default=None, metadata=part("target", "source", merge="drop", needs=_INFLUENCE)
    )
    """z -> z': the length of what each source brings, as the flow has it; no edge, either. Lengths
    of pieces are not those of words."""
    influence_sum: Tensor | None = field(
        default=None,
        metadata=part("target", dtype=torch.float64, merge="drop", needs=_INFLUENCE),
    )
    """Of a whole row of ``influence``: lengths add up to no total, so they are shares of this."""

    @classmethod
    def of(cls, flow: LayerFlow, text: int) -> LengthLayer:
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
        placed = Places(flow)

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
        if flow.influence is not None:
            lengths = placed(flow.influence[0].to(dtype), "target", "source")
            tensors |= {"influence": lengths, "influence_sum": lengths.double().sum(-1)}
        known = placed.known
        unmoved = (tensors["mlp"] == 0).all(-1) & (tensors["residual"] == 0)
        return cls(
            name=flow.name,
            index=flow.index,
            tolerance=flow.tolerance,
            known=known,
            stays=known & unmoved,
            errors=placed.errors(flow),
            **tensors,
            **cls.sums_of(tensors),
        )

    def share(self, kind: str) -> Tensor:
        """Signed, by the rule ``conserve``; see :class:`GraphLayer`."""
        if kind == "residual":
            return self.weights("conserve").residual
        edges, whole = {
            "attention": (self.attention, self.attention_sum[..., None]),
            "mlp": (self.mlp, self.mlp_sum[:, None]),
        }[kind]
        return share_of(edges.double(), whole)

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
                f"layer {self.index} has no 'chain' boundary, which the rule 'chain' needs: use "
                "rule='conserve', or make the graph of flows of LayerFlowIG."
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

    def links(self, above: Tensor, rule: str, absolute: bool) -> Tensor:
        """Shares of what the tokens leaving have, ``above (N,)``."""
        return self.shares(rule, absolute).matrix * above[:, None]

    def there(self, kind: str) -> Tensor:
        """Where edges carry something; an output of a head that no edge reaches is no node."""
        mask: Tensor = getattr(self, kind) != 0
        return mask & (self.attention != 0).any(-1).T if kind == "mlp" else mask

    def strong(self, rule: str, threshold: float | None, top_k: int | None) -> LengthLayer:
        """Edges that carry a share of at least ``threshold``, or the ``top_k`` into each target."""
        shares = self.shares(rule, False)
        heads, residual = shares.heads.abs(), shares.residual.abs()
        if threshold is not None:
            return self.where({"attention": heads >= threshold, "residual": residual >= threshold})
        assert top_k is not None
        flat = torch.cat([heads.transpose(0, 1).flatten(1), residual[:, None]], 1)
        order = flat.topk(min(top_k, flat.shape[1]), dim=1).indices
        kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
        by_head = kept[:, :-1].reshape(len(residual), *heads.shape[::2]).transpose(0, 1)
        return self.where({"attention": by_head, "residual": kept[:, -1]})

    def only_heads(self, kept: Tensor) -> LengthLayer:
        """Attention edges of ``kept (H,)``, and the residual edges."""
        mask = kept[:, None, None].expand_as(self.attention)
        return self.where({"attention": mask, "residual": torch.ones_like(self.stays)})

    def head_shares(self) -> Tensor:
        """Of ``mlp``; outputs whose edges are not in the graph have none."""
        there = (self.attention != 0).any(-1) | (self.attention_size == 0)
        return (self.mlp.double().abs().T * there).sum(-1) / self.mlp_size.sum()

    def residual_share(self) -> Tensor:
        """Of ``residual``."""
        return self.residual.double().abs().sum() / self.mlp_size.sum()

    @staticmethod
    def sums_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``<kind>_sum`` and ``<kind>_size`` of all edges into each kind of node, float64.

        ``attention`` edges go into the heads' outputs; those of ``mlp`` and, if it is there,
        ``chain`` into the tokens leaving the layer, together with the residual edges.
        """
        past = tensors["residual"].double()[:, None]
        into: dict[str, Any] = {"attention": tensors["attention"].double()}
        into["mlp"] = torch.cat([tensors["mlp"].double(), past], -1)
        if "chain" in tensors:
            chain = tensors["chain"].double().transpose(0, 1).flatten(1)
            into["chain"] = torch.cat([chain, past], -1)
        sums: dict[str, Tensor] = {}
        for kind, edges in into.items():
            sums |= {f"{kind}_sum": edges.sum(-1), f"{kind}_size": edges.abs().sum(-1)}
        return sums
