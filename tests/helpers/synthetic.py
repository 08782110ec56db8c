"""Flows made of random numbers that fit together, for the tests of what a person sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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


def flows(layers: int = 3, tokens: int = 6, **settings: object) -> list[LayerFlow]:
    """One flow a layer."""
    return [layer_flow(index, tokens, **settings) for index in range(layers)]  # type: ignore[arg-type]


HOSTILE = ["$x_$", "\\frac{1}{2}", "[red]", "\x1b[31m", "a\nb", "😀", "中", "\u202e", "Ġhi", "_^{"]
HOSTILE += ["", "\u0301", "\ud800"]
"""Tokens that break a terminal, a table or a picture that trusts them."""
