"""A layer of relevances to a number: edges in its units, whose rows and columns add up exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_lig._arguments import brief
from captum_lig.errors import LigError
from captum_lig.flow.completeness import make_complete
from captum_lig.flow.composition import DEFAULT_RULE, share_of
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.graph.layer import GraphLayer, Places, Shares, part

__all__ = ["TargetLayer", "closed_layers", "target_layers"]


def _edge(*axes: str, kind: str, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    return part(*axes, dtype=torch.float64, mask=kind, needs=needs)


def _node(*axes: str, needs: tuple[str, ...] = (), merge: str | None = "sum") -> dict[str, Any]:
    return part(*axes, dtype=torch.float64, merge=merge, needs=needs)


_MLP = ("feed_forward", "feed_forward_heads", "feed_forward_token", "feed_forward_relevance",
        "feed_forward_size")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TargetLayer(GraphLayer):
    """The edges of one layer of flows with a target, and what is known of its nodes. All float64.

    Nodes are the tokens entering and leaving, the heads' outputs and, where it was found, the
    MLP's output at each token. ``attention`` is signed, in units of the target.
    """

    KINDS: ClassVar[tuple[str, ...]] = (
        "attention",
        "feed_forward_heads",
        "heads_past",
        "feed_forward_token",
        "feed_forward",
        "residual",
    )

    attention: Tensor = field(metadata=_edge("head", "target", "source", kind="attention"))
    """z -> u."""
    attention_value: Tensor | None = field(
        default=None, metadata=_edge("head", "target", "source", kind="attention")
    )
    """The part of ``attention`` that came through the values; the rest came through the pattern.
    None where a block hides them."""
    heads_past: Tensor = field(metadata=_edge("target", "head", kind="heads_past"))
    """u -> z' past the MLP."""
    feed_forward_heads: Tensor | None = field(
        default=None, metadata=_edge("target", "head", kind="feed_forward_heads", needs=_MLP)
    )
    """u -> m."""
    feed_forward_token: Tensor | None = field(
        default=None, metadata=_edge("target", kind="feed_forward_token", needs=_MLP)
    )
    """z -> m."""
    feed_forward: Tensor | None = field(
        default=None, metadata=_edge("target", kind="feed_forward", needs=_MLP)
    )
    """m -> z'."""
    residual: Tensor = field(metadata=_edge("target", kind="residual"))
    """z -> z', past heads and MLP."""
    outside: Tensor | None = field(default=None, metadata=_node("target"))
    """What comes to z' past the MLP from tokens that are not of this text, the encoder's: all that
    they bring, less ``feed_forward_outside``."""
    feed_forward_outside: Tensor | None = field(default=None, metadata=_node("target"))
    """What comes to the MLP through the cross-attention."""

    entering: Tensor = field(metadata=_node("source"))
    """Relevance of the tokens entering."""
    leaving: Tensor = field(metadata=_node("target"))
    """Relevance of the tokens leaving."""
    heads_relevance: Tensor = field(metadata=_node("head", "target"))
    """Relevance of the heads' outputs."""
    feed_forward_relevance: Tensor | None = field(
        default=None, metadata=_node("target", needs=_MLP)
    )
    """Relevance of the MLP's outputs."""

    heads_size: Tensor = field(metadata=_node("head", "target", merge=None))
    """Sum of the absolute values of the edges into a head's output."""
    feed_forward_size: Tensor | None = field(
        default=None, metadata=_node("target", merge=None, needs=_MLP)
    )
    """Of those into an MLP's output."""
    leaving_size: Tensor = field(metadata=_node("target", merge=None))
    """Of those into a token leaving."""

    @classmethod
    def of(cls, flow: LayerFlow, text: int, leaving: Tensor | None) -> TargetLayer:
        """The edges of one text's flow, without its padding, closed from above.

        The flow's rows add up to what the columns above say but for the errors of quadrature.
        These are spread over the entries of a row by their size, row after row downward: rows into
        the tokens leaving, rows into the MLPs, rows into the heads; what goes out of a node is then
        its relevance, and what the next row is completed to.

        Args:
            flow: a flow with a target.
            text: which text.
            leaving: ``(N,)`` relevance of the tokens leaving, as the layer above has it; None in
                the last layer, where it adds up to the target's change.

        Raises:
            LigError: if a field is missing, or a token was no target.
        """
        flow = flow.select(text)
        placed = Places(flow)
        if not bool(placed.known.all()):
            raise LigError(
                f"layer {flow.index} has {len(flow.targets)} targets for {len(placed.tokens)} "
                "tokens, and relevance goes on from every token: attribute the target without "
                "output_indices."
            )
        ends = placed(flow.need("mlp_total")[0].double(), "target")
        count = len(ends)
        if leaving is None:
            # Of an encoder-decoder a part of the change belongs to the other stream.
            whole = flow.need("change")[0].double()
            if flow.elsewhere is not None:
                whole = whole - flow.elsewhere[0].double()
            if flow.cross_sum is not None and flow.elsewhere is not None:
                whole = whole + placed(flow.cross_sum[0].double(), "target").sum()
            leaving = make_complete(ends, whole)

        def edges(name: str, *axes: str) -> Tensor:
            """A field as it was integrated; a boundary that the block lacks has no heads."""
            values: Tensor | None = flow.tensors.get(name)
            if values is None:
                empty = [0 if axis == "head" else count for axis in axes]
                return ends.new_zeros(empty)
            return placed(values[0].double(), *axes)

        if flow.mlp is not None and flow.mlp.shape[-1]:
            flow.need("attention")  # heads without edges into them join nothing
        heads = edges("mlp", "target", "head")
        into_mlp, own, residual = None, None, edges("residual", "target")
        if flow.feed_forward is not None:
            into_mlp = edges("feed_forward_heads", "target", "head")
            own = edges("feed_forward_token", "target")
        if flow.cross_token is not None:
            residual = residual + edges("cross_token", "target")
        rows = {
            "heads_past": heads if into_mlp is None else heads - into_mlp,
            "residual": residual[:, None],
        }
        if flow.feed_forward is not None:
            rows["feed_forward"] = edges("feed_forward", "target")[:, None]
        if flow.cross_sum is not None:
            came, to_mlp = edges("cross_sum", "target"), edges("feed_forward_cross", "target")
            rows["outside"] = (came - to_mlp)[:, None]
        tensors = _completed(rows, leaving)
        relevance = tensors["heads_past"]
        entering = tensors["residual"]
        if into_mlp is not None and own is not None:
            within = {"feed_forward_heads": into_mlp, "feed_forward_token": own[:, None]}
            if flow.feed_forward_cross is not None:
                within["feed_forward_outside"] = edges("feed_forward_cross", "target")[:, None]
            tensors |= _completed(within, tensors["feed_forward"])
            tensors["feed_forward_relevance"] = tensors["feed_forward"]
            relevance = relevance + tensors["feed_forward_heads"]
            entering = entering + tensors["feed_forward_token"]
        whole = edges("attention", "head", "target", "source")
        closed = make_complete(whole, relevance.T)
        tensors["attention"] = closed
        if flow.attention_value is not None:
            # Both parts of an edge grow with it.
            grown = torch.where(whole != 0, closed / whole, 1.0)
            tensors["attention_value"] = grown * edges(
                "attention_value", "head", "target", "source"
            )
        tensors |= {
            "leaving": leaving,
            "heads_relevance": relevance.T,
            "entering": entering + closed.sum((0, 1)),
        }
        # A zero is no edge; adding 0 takes the sign off those that have one.
        tensors = {name: (values + 0.0).contiguous() for name, values in tensors.items()}
        return cls(
            name=flow.name,
            index=flow.index,
            tolerance=flow.tolerance,
            known=placed.known,
            errors=placed.errors(flow),
            **tensors,
            **cls.sums_of(tensors),
        )

    def shares(self, rule: str = DEFAULT_RULE, absolute: bool = True) -> Shares:
        """Shares of the sum of sizes of the edges into a node: each between 0 and 1.

        Signed shares of a relevance near 0 would be many times the whole, so there are none;
        ``absolute`` makes no difference.

        Raises:
            LigError: for a rule: what a token hands on is not composed here.
        """
        if rule != DEFAULT_RULE:
            raise LigError(
                f"rule={brief(rule)}: the edges of flows with a target go from node to node as "
                "they are; rules compose the boundaries of flows without one: leave it out."
            )
        attention = self.share("attention")
        heads, residual = attention * self.share("heads_past").T[..., None], self.share("residual")
        if self.feed_forward is None:
            return Shares(heads, residual)
        mlp = self.share("feed_forward")
        through = self.share("feed_forward_heads").T * mlp
        return Shares(
            heads,
            residual,
            heads_through_mlp=attention * through[..., None],
            token_through_mlp=self.share("feed_forward_token") * mlp,
        )

    def links(self, above: Tensor, rule: str, absolute: bool) -> Tensor:
        """The edges themselves: all that leaves a token's heads and MLP belongs to the token."""
        return self.attention.sum(0) + torch.diag(self.past_heads())

    def past_heads(self) -> Tensor:
        """``(N,)`` what goes from a token to itself past all heads, through the MLP or not."""
        through = self.feed_forward_token
        return self.residual if through is None else self.residual + through

    def size_into(self, kind: str) -> Tensor:
        """Sum of the sizes of the edges into the nodes that edges of a kind lead to, to divide by.

        It has the axes of the edges, those that it does not run over with length 1.
        """
        if kind == "attention":
            return self.heads_size[..., None]
        into_mlp = kind in ("feed_forward_heads", "feed_forward_token")
        size = self._need("feed_forward_size") if into_mlp else self.leaving_size
        return size[:, None] if "head" in self.declared()[kind].axes else size

    def share(self, kind: str) -> Tensor:
        """Edges of a kind as shares of the sizes of all edges into their nodes."""
        return share_of(self._need(kind).abs(), self.size_into(kind))

    def along(self, head: int | None, source: int, target: int, through: bool) -> tuple[float, ...]:
        """The signed edges on the way from a source to a target, through the MLP or past it."""
        edges = []
        if head is not None:
            edges.append(self.attention[head, target, source])
            out = self._need("feed_forward_heads") if through else self.heads_past
            edges.append(out[target, head])
        else:
            edges.append((self._need("feed_forward_token") if through else self.residual)[target])
        if through:
            edges.append(self._need("feed_forward")[target])
        return tuple(map(float, edges))

    def lost(self) -> Tensor:
        """Relevance of the tokens leaving that no way through the graph carries to those entering.

        An edge into a head or an MLP that no edge leaves upward carries nothing.
        """
        goes_on, own = self.heads_past != 0, self.past_heads()
        if self.feed_forward is not None:
            mlp = self.feed_forward != 0
            goes_on = goes_on | ((self._need("feed_forward_heads") != 0) & mlp[:, None])
            own = self.residual + self._need("feed_forward_token") * mlp
        return self.leaving.sum() - (self.attention * goes_on.T[..., None]).sum() - own.sum()

    def there(self, kind: str) -> Tensor:
        """Where edges carry something; none of a kind that the layer does not have."""
        edges: Tensor | None = getattr(self, kind)
        return torch.zeros(0, dtype=torch.bool) if edges is None else edges != 0

    def strong(self, rule: str, threshold: float | None, top_k: int | None) -> TargetLayer:
        """Edges of at least ``threshold``, in units of the target, or ``top_k`` into each node."""
        self.shares(rule)  # refuses rules
        sizes = {name: held.abs() for name, held in self.tensors().items() if name in self.KINDS}
        if threshold is not None:
            return self.where({name: size >= threshold for name, size in sizes.items()})
        assert top_k is not None
        kept: dict[str, Tensor] = {}
        for names in (
            ("heads_past", "feed_forward", "residual"),
            ("feed_forward_heads", "feed_forward_token"),
            ("attention",),
        ):
            rows: dict[str, Tensor] = {name: sizes[name] for name in names if name in sizes}
            if rows:
                kept |= _strongest(rows, top_k)
        return self.where(kept)

    def only_heads(self, kept: Tensor) -> TargetLayer:
        """Edges into and out of the heads ``kept (H,)``, and those that go past all heads."""
        masks = {}
        for one, value in self.parts():
            if one.mask is not None and one.mask not in masks:
                mask = torch.ones_like(value, dtype=torch.bool)
                if "head" in one.axes:
                    mask &= kept[:, None, None] if one.axes[0] == "head" else kept
                masks[one.mask] = mask
        return self.where(masks)

    def head_shares(self) -> Tensor:
        """Of what goes to the tokens leaving, past the MLP and through it, in sizes."""
        by_head = self.shares().all_heads.sum(-1) * self.leaving_size
        return by_head.sum(-1) / self.leaving_size.sum()

    def residual_share(self) -> Tensor:
        """Of what stays with its token, past the MLP and through it, in sizes."""
        return (self.shares().stays * self.leaving_size).sum() / self.leaving_size.sum()

    def _need(self, name: str) -> Tensor:
        value: Tensor | None = getattr(self, name)
        assert value is not None
        return value

    @staticmethod
    def sums_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums of the absolute values of the edges into each node."""

        def size(*names: str) -> Tensor:
            sizes = (tensors[name].abs() for name in names if name in tensors)
            return torch.stack([one if one.dim() == 1 else one.sum(-1) for one in sizes]).sum(0)

        sums = {
            "heads_size": tensors["attention"].abs().sum(-1),
            "leaving_size": size("heads_past", "feed_forward", "residual", "outside"),
        }
        if "feed_forward" in tensors:
            sums["feed_forward_size"] = size(
                "feed_forward_heads", "feed_forward_token", "feed_forward_outside"
            )
        return sums


def closed_layers(flows: list[LayerFlow], text: int) -> list[TargetLayer]:
    """The layers of a text's flows, closed from the last one down."""
    layers: list[TargetLayer] = []
    for flow in reversed(flows):
        leaving = layers[-1].entering if layers else None
        layers.append(TargetLayer.of(flow, text, leaving))
    return layers[::-1]


def target_layers(layers: Sequence[GraphLayer]) -> list[TargetLayer]:
    """The layers of a graph with a target."""
    return [layer for layer in layers if isinstance(layer, TargetLayer)]


def _completed(rows: Mapping[str, Tensor], total: Tensor) -> dict[str, Tensor]:
    """Edges ``(N, n)`` by kind, completed together to ``total (N,)``; ``(N,)`` where n is 1."""
    closed = make_complete(torch.cat(list(rows.values()), -1), total)
    parts = closed.split([one.shape[-1] for one in rows.values()], -1)
    return {
        name: one if one.shape[-1] != 1 or "head" in name else one.squeeze(-1)
        for name, one in zip(rows, parts, strict=True)
    }


def _strongest(rows: Mapping[str, Tensor], top_k: int) -> dict[str, Tensor]:
    """Masks of the ``top_k`` largest of the edges into each node."""
    flat = torch.cat([one if one.dim() > 1 else one[:, None] for one in rows.values()], -1)
    order = flat.topk(min(top_k, flat.shape[-1]), dim=-1).indices
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, order, True)
    parts = kept.split([one.shape[-1] if one.dim() > 1 else 1 for one in rows.values()], -1)
    return {name: one.reshape(rows[name].shape) for name, one in zip(rows, parts, strict=True)}
