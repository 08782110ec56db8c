"""Flows made of random numbers that fit together, with or without signs, or are given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captum_lig.flow.layer_flow import LayerFlow


def layer_flow(
    index: int = 0,
    tokens: int = 6,
    heads: int = 2,
    *,
    targets: Sequence[int] | None = None,
    valid: Sequence[bool] | None = None,
    baseline: str = "target_token",
    error: float = 1e-6,
    texts: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LayerFlow:
    """A flow whose rows miss their totals by ``error``, and whose self terms are 0 for
    ``target_token`` paths."""
    random = torch.Generator().manual_seed(seed + index)
    target = torch.arange(tokens) if targets is None else torch.tensor(targets)
    keep = torch.ones(texts, tokens, dtype=torch.bool)
    if valid is not None:
        keep[:] = torch.tensor(valid)
    rows = keep[:, target].to(dtype)  # (B, T)
    own = (target[:, None] == torch.arange(tokens)).to(dtype)
    mask = rows[:, :, None] * keep.to(dtype)[:, None]  # (B, T, S)
    if baseline == "target_token":
        mask = mask * (1 - own)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random, dtype=dtype) ** 4 + 0.01

    attention = numbers(texts, heads, len(target), tokens) * mask[:, None]
    mlp = numbers(texts, len(target), heads) * rows[..., None]
    residual = numbers(texts, len(target)) * rows * (0.0 if baseline == "target_token" else 1.0)
    attention_total = attention.sum(-1) / (1 + error)
    layer_total = (mlp.sum(-1) + residual) / (1 + error)
    size = attention.sum(-1, keepdim=True).clamp_min(1e-12)
    chain = attention / size * mlp.transpose(1, 2)[..., None]
    layer = chain.sum(1) + own * residual[..., None]
    layer = layer * (1 + 0.1 * (torch.rand(layer.shape, generator=random, dtype=dtype) - 0.5))
    layer[..., 0] *= -0.5  # some of it against the target
    sums = layer.sum(-1, keepdim=True)
    layer = torch.where(sums != 0, layer * ((1 + error) * layer_total[..., None] / sums), 0.0)
    return LayerFlow(
        name=f"encoder.layer.{index}",
        index=index,
        targets=target,
        valid=keep,
        scalarization="l2",
        baseline=baseline,
        attention=attention,
        attention_total=attention_total,
        mlp=mlp,
        residual=residual,
        layer=layer,
        layer_total=layer_total,
        mlp_total=layer_total,
        chain=chain,
        chain_total=mlp.transpose(1, 2),
        self_weight=numbers(texts, heads, len(target)) * rows[:, None],
    )


def with_influence(flow: LayerFlow, seed: int = 0) -> LayerFlow:
    """The flow with random lengths, none of them 0 where its direct map is not."""
    random = torch.Generator().manual_seed(500 + 10 * seed + flow.index)
    layer = flow.need("layer")
    lengths = 0.1 + torch.rand(layer.shape, generator=random, dtype=torch.float64)
    missing = 1e-5 * flow.need("layer_total")
    return replace(
        flow, influence=lengths.to(layer.dtype) * (layer != 0), influence_missing=missing
    )


def flows(layers: int = 3, tokens: int = 6, **settings: object) -> list[LayerFlow]:
    """One flow a layer."""
    return [layer_flow(index, tokens, **settings) for index in range(layers)]  # type: ignore[arg-type]


def signed_flow(
    index: int,
    tokens: int,
    heads: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    causal: bool = False,
) -> LayerFlow:
    """A flow with entries of both signs whose rows add up to their positive totals."""
    random = torch.Generator().manual_seed(1000 * seed + index)

    def rows(*shape: int) -> tuple[Tensor, Tensor]:
        parts = torch.randn(*shape, generator=random, dtype=torch.float64)
        if causal and shape[-1] == tokens:
            parts = parts.tril()
        total = 0.5 + torch.rand(shape[:-1], generator=random, dtype=torch.float64)
        parts[..., 0] += total - parts.sum(-1)
        return parts, total

    attention, attention_total = rows(1, heads, tokens, tokens)
    outputs, total = rows(1, tokens, heads + 1)
    mlp, residual = outputs[..., :-1], outputs[..., -1]
    chain, _ = rows(1, heads, tokens, tokens)
    chain[..., 0 if causal else 1] += mlp.transpose(1, 2) - chain.sum(-1)
    return LayerFlow(
        name=f"layers.{index}",
        index=index,
        targets=torch.arange(tokens),
        valid=torch.ones(1, tokens, dtype=torch.bool),
        scalarization="l2",
        baseline="zero",
        attention=attention.to(dtype),
        attention_total=attention_total.to(dtype),
        mlp=mlp.to(dtype),
        residual=residual.to(dtype),
        mlp_total=total.to(dtype),
        layer_total=total.to(dtype),
        chain=chain.to(dtype),
        chain_total=mlp.transpose(1, 2).to(dtype),
    )


def signed_flows(layers: int, tokens: int, heads: int, seed: int = 0) -> list[LayerFlow]:
    return [signed_flow(index, tokens, heads, seed=seed) for index in range(layers)]


def number(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_flow(targets: list[int], sources: int, **parts: Any) -> LayerFlow:
    """A flow of one text, of tensors without their batch dimension.

    As the integrals give it, the mlp boundary has the layer's total, and the chain's rows add up to
    the mlp boundary.
    """
    tensors: dict[str, Any] = {
        name: None if value is None else number(value)[None] for name, value in parts.items()
    }
    tensors.setdefault("mlp_total", tensors["layer_total"])
    if tensors.get("mlp") is not None:
        tensors.setdefault("chain_total", tensors["mlp"].transpose(1, 2))
    else:
        tensors["chain"] = None
    return LayerFlow(
        name="layer.0",
        index=0,
        targets=torch.tensor(targets),
        valid=torch.ones(1, sources, dtype=torch.bool),
        scalarization="l2",
        baseline="zero",
        **tensors,
    )


HOSTILE = ["$x_$", "\\frac{1}{2}", "[red]", "\x1b[31m", "a\nb", "😀", "中", "\u202e", "Ġhi", "_^{"]
HOSTILE += ["", "\u0301", "\ud800"]
"""Tokens that break a terminal, a table or a picture that trusts them."""

ATTACK = ["</script><script>hacked=1</script>", "<img src=x onerror=hacked=1>", "<!--", "]]>"]
ATTACK += ["\"'>`${hacked=1}`", "&lt;b&gt;", "\u05e9\u05dc\u05d5\u05dd", *HOSTILE]
"""Tokens that break a page that trusts them."""
