"""Small models written out by hand, with their pieces as functions of one text.

``forward`` is what a user's model looks like: batches, and torch's scaled_dot_product_attention.
The pieces are the same arithmetic for one text, ``z (S, D)``, with the softmax written out:
``queries_keys_values``, ``attend``, ``feed_forward`` and ``output`` of a block, ``embed`` and
``read`` of the model. ``tests/helpers/relevance_twin.py`` works on the pieces alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, HEAD_WIDTH, LENGTH = 16, 4, 3, 4
WORDS, CLASSES, LAYERS = 11, 3, 3


@dataclass(frozen=True)
class Recipe:
    """What the blocks of a model are made of."""

    norm: str = "before"  # each branch; or "after" the residual, "around" each branch, "none"
    parallel: bool = False  # the MLP reads z
    mlp: str = "gelu"  # or "swiglu", "soft experts", "top expert", "linear", "none"
    rms: bool = False
    key_heads: int = HEADS
    causal: bool = False
    gate: bool = False  # of the heads' outputs, made of z
    attends: tuple[bool, ...] = (True,) * LAYERS
    vectors: bool = False  # the input is vectors instead of tokens' numbers
    classes: bool = False  # the model gives (B, classes) instead of (B, S, words)


RECIPES = {
    "sequential": Recipe(),
    "parallel": Recipe(parallel=True, causal=True),
    "post-norm": Recipe(norm="after"),
    "post-norm classifier": Recipe(norm="after", classes=True),
    "llama": Recipe(mlp="swiglu", rms=True, key_heads=2, causal=True),
    "gemma 2": Recipe(norm="around", mlp="swiglu", rms=True, key_heads=1, causal=True),
    "soft experts": Recipe(mlp="soft experts", rms=True, causal=True),
    "top expert": Recipe(mlp="top expert", vectors=True, classes=True),
    "no MLP": Recipe(mlp="none", causal=True),
    "gate": Recipe(gate=True, mlp="swiglu", causal=True),
    "gate, parallel": Recipe(gate=True, parallel=True, rms=True),
    "vision": Recipe(vectors=True, classes=True),
    "between": Recipe(attends=(True, False, True)),
}


class Model(nn.Module):
    """Numbers of tokens ``(B, S)`` or vectors ``(B, S, D)`` to ``(B, S, words)`` or classes."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block(recipe, attends) for attends in recipe.attends)
        self.norm = normalization(recipe)
        self.unembed = nn.Linear(WIDTH, CLASSES if recipe.classes else WORDS)

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``attention_mask (B, S)``: 0 for padding, which no token reads."""
        z, mask = self.embed(inputs), None
        if attention_mask is not None:
            mask = attention_mask.bool()[:, None, None, :]
            if self.recipe.causal:
                mask = mask & torch.ones(z.shape[1], z.shape[1]).tril().bool()
        for block in self.blocks:
            z = block(z, mask)
        return self.read(z)

    def embed(self, inputs: Tensor) -> Tensor:
        """``(..., S)`` or ``(..., S, D)`` to ``(..., S, D)``."""
        z = inputs if self.recipe.vectors else self.words(inputs)
        return cast(Tensor, z + self.positions[: z.shape[-2]])

    def read(self, z: Tensor) -> Tensor:
        """The tokens that leave the last block, ``(B, S, D)``, to the model's output."""
        z = self.norm(z)
        return cast(Tensor, self.unembed(z.mean(-2).tanh() if self.recipe.classes else z))


class Block(nn.Module):
    """``(B, S, D)`` to ``(B, S, D)``."""

    def __init__(self, recipe: Recipe, attends: bool) -> None:
        super().__init__()
        self.recipe, self.attends, self.has_mlp = recipe, attends, recipe.mlp != "none"
        before, after = (recipe.norm in (place, "around") for place in ("before", "after"))
        if attends:
            self.norm1 = normalization(recipe) if before else nn.Identity()
            self.query = nn.Linear(WIDTH, HEADS * HEAD_WIDTH)
            self.key = nn.Linear(WIDTH, recipe.key_heads * HEAD_WIDTH)
            self.value = nn.Linear(WIDTH, recipe.key_heads * HEAD_WIDTH)
            if recipe.gate:
                self.gate = nn.Linear(WIDTH, HEADS * HEAD_WIDTH)
            self.out = nn.Linear(HEADS * HEAD_WIDTH, WIDTH)
            self.norm1_after = normalization(recipe) if after else nn.Identity()
        if self.has_mlp:
            self.norm2 = normalization(recipe) if before else nn.Identity()
            self.mlp = MLPS[recipe.mlp]()
            self.norm2_after = normalization(recipe) if after else nn.Identity()

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        r = z
        if self.attends:
            x, groups = self.norm1(z), self.recipe.key_heads
            u = functional.scaled_dot_product_attention(
                split_heads(self.query(x)),
                split_heads(self.key(x)),
                split_heads(self.value(x)),
                attn_mask=mask,
                is_causal=self.recipe.causal and mask is None,
                enable_gqa=groups != HEADS,
            )
            joined = u.transpose(1, 2).flatten(2)
            if self.recipe.gate:
                joined = joined * torch.sigmoid(self.gate(z))
            added = self.out(joined)
            if self.recipe.norm == "after":
                r = self.norm1_after(z + added)
            else:
                r = z + self.norm1_after(added)
        if not self.has_mlp:
            return r
        m = self.mlp(self.norm2(z if self.recipe.parallel else r))
        if self.recipe.norm == "after":
            return cast(Tensor, self.norm2_after(r + m))
        return cast(Tensor, r + self.norm2_after(m))

    # ---- the pieces, for one text ------------------------------------------------------------

    def queries_keys_values(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(S, D)`` to q ``(H, S, d)``, k and v ``(key heads, S, d)``."""
        x = self.norm1(z)
        q, k, v = (
            torch.stack(side(x).split(HEAD_WIDTH, -1))
            for side in (self.query, self.key, self.value)
        )
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The heads' outputs u ``(H, S, d)``."""
        return attention(q, k, v, self.recipe.causal)

    def _after_attention(self, z: Tensor, u: Tensor | None) -> Tensor:
        if u is None:
            return z
        joined = torch.cat(list(u), -1)
        if self.recipe.gate:
            joined = torch.sigmoid(self.gate(z)) * joined
        if self.recipe.norm == "after":
            return cast(Tensor, self.norm1_after(self.out(joined) + z))
        return cast(Tensor, self.norm1_after(self.out(joined)) + z)

    def feed_forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """What the block adds after its attention: m ``(S, D)``; u is None where none attends."""
        x = z if self.recipe.parallel else self._after_attention(z, u)
        m = self.mlp(self.norm2(x))
        return cast(Tensor, m if self.recipe.norm == "after" else self.norm2_after(m))

    def output(self, z: Tensor, u: Tensor | None, m: Tensor | None) -> Tensor:
        """The tokens that leave, ``(S, D)``; m is None where there is no MLP."""
        r = self._after_attention(z, u)
        if m is None:
            return r
        return cast(Tensor, self.norm2_after(r + m) if self.recipe.norm == "after" else r + m)


def split_heads(x: Tensor) -> Tensor:
    """``(B, S, H * d)`` to ``(B, H, S, d)``."""
    return x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention, head after head: ``(H, T, d)``, ``(key heads, S, d)`` to ``(H, T, d)``."""
    shared = len(q) // len(k)
    heads = []
    for h in range(len(q)):
        logits = q[h] @ k[h // shared].T / q.shape[-1] ** 0.5
        if causal:
            logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
        heads.append(logits.softmax(-1) @ v[h // shared])
    return torch.stack(heads)


def normalization(recipe: Recipe) -> nn.Module:
    if recipe.norm == "none":
        return nn.Identity()
    return nn.RMSNorm(WIDTH, eps=1e-6) if recipe.rms else nn.LayerNorm(WIDTH)


class Gelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(functional.gelu(self.up(x))))


class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(functional.silu(self.gate(x)) * self.up(x)))


class Experts(nn.Module):
    """Three experts weighted by a router; ``top``: the first alone, times its weight."""

    def __init__(self, top: bool = False) -> None:
        super().__init__()
        self.top, self.router = top, nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(Gelu() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.top:
            weights = weights * (weights == weights.amax(-1, keepdim=True))
        results = torch.stack([expert(x) for expert in self.experts], -1)
        return (results * weights.unsqueeze(-2)).sum(-1)


class TopExpert(Experts):
    def __init__(self) -> None:
        super().__init__(top=True)


class LinearMlp(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)


MLPS: dict[str, type[nn.Module]] = {
    "gelu": Gelu,
    "swiglu": SwiGlu,
    "soft experts": Experts,
    "top expert": TopExpert,
    "linear": LinearMlp,
}


# ---- made at random --------------------------------------------------------------------------


def randomize(model: nn.Module, seed: int) -> None:
    """Weights that keep sizes near 1, attention that is not flat, biases and norms not at rest."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.3 * normal(parameter) + float(name.endswith("weight")))
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * normal(parameter))
            elif ".query." in name or ".key." in name:
                parameter.copy_(1.5 * normal(parameter) / parameter.shape[-1] ** 0.5)
            elif "words" in name:
                parameter.copy_(normal(parameter))
            elif "positions" in name:
                parameter.copy_(0.5 * normal(parameter))
            else:
                parameter.copy_(normal(parameter) / parameter.shape[-1] ** 0.5)


def make(recipe: Recipe, seed: int = 0) -> Model:
    """A random model in float64."""
    model = Model(recipe).double().eval().requires_grad_(False)
    randomize(model, seed)
    return model


def make_inputs(
    recipe: Recipe, seed: int = 0, texts: int = 1, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A batch and its baselines: other tokens (one is the same), or other vectors.

    Vectors go ``share`` of the way to the other ones. Where an expert is chosen it is 1 / 20: a
    choice that changes on the way is a jump, which no integral of a gradient sees.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    if recipe.vectors:
        inputs = torch.randn(texts, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
        other = torch.randn(texts, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
        share = share / 20 if recipe.mlp == "top expert" else share
        return inputs, inputs + share * (other - inputs)
    inputs = torch.randint(WORDS, (texts, LENGTH), generator=generator)
    shift = torch.randint(1, WORDS, (texts, LENGTH), generator=generator)
    shift[:, 1] = 0
    return inputs, (inputs + shift) % WORDS
