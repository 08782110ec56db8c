"""Flows with a target, made of random numbers that obey their laws.

From the number down: edges are drawn, what goes out of a node is its relevance, and the edges into
it are drawn to add up to that, but for an error as a quadrature leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_lig import LayerFlow

TARGET = "logit ' are' less logit ' is'"


def target_flows(
    heads: Sequence[int] = (2, 3, 1),
    tokens: int = 5,
    *,
    mlp: bool | Sequence[bool] = True,
    error: float = 1e-4,
    change: float = 2.0,
    valid: Sequence[bool] | None = None,
    causal: bool = False,
    cross: bool = False,
    first: int = 0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[LayerFlow]:
    """One flow a layer, of one text.

    Args:
        heads: how many heads each layer has; 0: a block without attention.
        tokens: how many tokens there are, padding included.
        mlp: whether a layer's MLP is a node.
        error: relative size of what rows miss of their totals.
        change: what every cut adds up to.
        valid: False for padding.
        causal: no edges from later tokens.
        cross: edges from an encoder's tokens beside the others.
        first: index of the first layer.
        dtype: of the flows.
        seed: of the numbers.
    """
    random = torch.Generator().manual_seed(seed)
    keep = torch.tensor([True] * tokens if valid is None else valid)
    there = keep.double()
    nodes = [mlp] * len(heads) if isinstance(mlp, bool) else list(mlp)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def into(total: Tensor, edges: int) -> Tensor:
        """Edges ``(..., edges)`` that add up to their total, and miss it a little."""
        parts = draw(*total.shape, edges) * total.abs().clamp_min(0.01)[..., None] / edges
        parts = parts + ((total - parts.sum(-1)) / edges)[..., None]
        size = parts.abs().sum(-1, keepdim=True)
        return parts + error * size / edges * torch.sign(draw(*parts.shape))

    leaving = draw(tokens) * there
    leaving = leaving + (change - leaving.sum()) * there / there.sum()
    made: list[LayerFlow] = []
    elsewhere = 0.0
    for number in reversed(range(len(heads))):
        count, fields = heads[number], {}
        edges = into(leaving, count + 3) * there[:, None]
        past, residual, extra, from_mlp = edges.split([count, 1, 1, 1], -1)
        residual, extra, from_mlp = residual[:, 0], extra[:, 0], from_mlp[:, 0]
        if cross:
            fields["cross_sum"], fields["cross_token"] = extra, torch.zeros_like(extra)
            fields["cross_token"], residual = 0.25 * residual, 0.75 * residual
        else:
            residual = residual + extra
        by_head, entering = past, residual + fields.get("cross_token", 0.0)
        if nodes[number]:
            within = into(from_mlp, count + 1 + cross) * there[:, None]
            if cross:
                fields["feed_forward_cross"] = within[:, -1]
                fields["cross_sum"] = fields["cross_sum"] + within[:, -1]
            fields["feed_forward"] = from_mlp
            fields["feed_forward_heads"] = within[:, :count]
            fields["feed_forward_token"] = within[:, count]
            by_head, entering = past + within[:, :count], entering + within[:, count]
        else:
            residual, entering = residual + from_mlp, entering + from_mlp
        pairs = there[:, None] * there
        if causal:
            pairs = pairs.tril()
        mask = pairs.expand(count, tokens, tokens)
        parts = draw(count, tokens, tokens)
        total = by_head.T[..., None]
        weight = mask / mask.sum(-1, keepdim=True).clamp_min(1.0)
        parts = parts * total.abs() * weight
        parts = parts + (total - parts.sum(-1, keepdim=True)) * weight
        parts = parts * (1 + error * torch.sign(draw(count, tokens, tokens)))
        if count:
            fields |= {
                "attention": parts,
                "attention_total": by_head.T,
                "attention_value": 0.7 * parts + draw(count, tokens, tokens) * mask * 0.1,
            }
        entering = entering + parts.sum((0, 1))
        fields |= {"mlp": by_head, "residual": residual, "mlp_total": leaving, "entering": entering}
        came = float(fields["cross_sum"].sum()) if cross else 0.0
        fields_of_text = {"elsewhere": torch.tensor([elsewhere + came])} if cross else {}
        elsewhere += came
        made.append(
            LayerFlow(
                name=f"layers.{first + number}",
                index=first + number,
                targets=torch.arange(tokens),
                valid=keep[None],
                scalarization="target",
                baseline="counterfactual",
                target=TARGET,
                change=torch.tensor([change], dtype=torch.float64),
                scale=torch.tensor([abs(change)], dtype=torch.float64),
                tensors={name: value[None].to(dtype) for name, value in fields.items()}
                | fields_of_text,
            )
        )
        leaving = entering
    return made[::-1]
