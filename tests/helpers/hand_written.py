"""Models that are in no library, written as people write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 60


class Torch(nn.Module):
    """torch.nn.TransformerEncoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.encoder(x)}


class CausalSelfAttention(nn.Module):
    """As people write it: one matrix for q, k and v, and torch's function."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.c_attn(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*split, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(batch, length, width))
        return out


class HandBlock(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn = CausalSelfAttention(heads)
        self.mlp = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class HandGPT(nn.Module):
    """A GPT in a script of one's own, its blocks in an nn.Sequential."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, 32), nn.Embedding(64, 32)
        self.blocks = nn.Sequential(HandBlock(heads), HandBlock(heads))
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return {"logits": self.head(self.blocks(self.wte(input_ids) + self.wpe(places)))}


class TimmAttention(nn.Module):
    """The attention of timm's ViT: norms on queries and keys, torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.q_norm, self.k_norm = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(
            self.q_norm(q), self.k_norm(k), v, attn_mask=None, dropout_p=0.0
        )
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, count, width))
        return out


class TimmBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn = TimmAttention()
        self.mlp = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(32)), nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        return x + self.gamma2 * self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TimmViT(nn.Module):
    """Laid out as timm's VisionTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 32))
        self.blocks = nn.Sequential(TimmBlock(), TimmBlock())
        self.norm = nn.LayerNorm(32)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return {"features": self.norm(self.blocks(x))}
