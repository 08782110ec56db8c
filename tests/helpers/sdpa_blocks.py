"""Blocks that call `torch.nn.functional.scaled_dot_product_attention` themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as by_name

WIDTH, HEADS, LENGTH = 32, 4, 5


class Attending(nn.Module):
    """A block whose attention is called as a test wants it."""

    def __init__(self, how: dict[str, Any], key_heads: int = HEADS, named: bool = True) -> None:
        super().__init__()
        self.how, self.key_heads, self.named = how, key_heads, named
        inner = key_heads * WIDTH // HEADS
        self.norm, self.query = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, inner), nn.Linear(WIDTH, inner)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor, heads: int) -> Tensor:
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        z = self.norm(x)
        attend = by_name if self.named else functional.scaled_dot_product_attention
        keys, values = split(self.key(z), self.key_heads), split(self.value(z), self.key_heads)
        u = attend(split(self.query(z), HEADS), keys, values, **self.how)
        return x + self.out(u.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Model(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x
