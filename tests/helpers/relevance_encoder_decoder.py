"""An encoder-decoder written out by hand, and the literal twin of its graph.

The decoder's blocks have two kinds of heads: u, of the attention among their own tokens, and c, of
the cross-attention to the encoder's final states e. Stages of such a block:
z -> u; (z, u, e) -> c; (z, u, c) -> m; (z, u, c, m) -> z'. The multiplier of e is the sum of what
the decoder's blocks hand to it, and goes through the encoder's final norm to its last block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import relevance_models, relevance_twin
from tests.helpers.relevance_models import HEAD_WIDTH, HEADS, WIDTH, WORDS, Recipe
from tests.helpers.relevance_twin import NODES, Edges, Layer, Number, Values

ENCODER_LENGTH, DECODER_LENGTH, CROSS_HEADS = 5, 4, 2


class DecoderBlock(relevance_models.Block):
    """``(B, T, D)`` and the encoder's states ``(B, S, D)`` to ``(B, T, D)``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(replace(recipe, causal=True), attends=True)
        before, after = recipe.norm == "before", recipe.norm == "after"
        inner = CROSS_HEADS * HEAD_WIDTH
        self.norm_cross = relevance_models.normalization(recipe) if before else nn.Identity()
        self.cross_query, self.cross_key, self.cross_value = (
            nn.Linear(WIDTH, inner) for _ in range(3)
        )
        self.cross_out = nn.Linear(inner, WIDTH)
        self.norm_cross_after = relevance_models.normalization(recipe) if after else nn.Identity()

    def forward(self, z: Tensor, e: Tensor) -> Tensor:  # type: ignore[override]
        x, split = self.norm1(z), relevance_models.split_heads
        u = functional.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x)), is_causal=True
        )
        r = self.norm1_after(z + self.out(u.transpose(1, 2).flatten(2)))
        c = functional.scaled_dot_product_attention(
            split(self.cross_query(self.norm_cross(r))),
            split(self.cross_key(e)),
            split(self.cross_value(e)),
        )
        r = self.norm_cross_after(r + self.cross_out(c.transpose(1, 2).flatten(2)))
        return cast(Tensor, self.norm2_after(r + self.mlp(self.norm2(r))))

    # ---- the pieces, for one text; queries_keys_values and attend are the block's ------------

    def _after_own(self, z: Tensor, u: Tensor) -> Tensor:
        return cast(Tensor, self.norm1_after(self.out(torch.cat(list(u), -1)) + z))

    def cross_queries(self, z: Tensor, u: Tensor) -> Tensor:
        """``(cross heads, T, d)``"""
        q = self.cross_query(self.norm_cross(self._after_own(z, u)))
        return torch.stack(q.split(HEAD_WIDTH, -1))

    def cross_keys_values(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """``(cross heads, S, d)`` each."""
        k, v = self.cross_key(e), self.cross_value(e)
        return torch.stack(k.split(HEAD_WIDTH, -1)), torch.stack(v.split(HEAD_WIDTH, -1))

    def cross(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """c ``(cross heads, T, d)``."""
        return relevance_models.attention(q, k, v, causal=False)

    def _after_cross(self, z: Tensor, u: Tensor, c: Tensor) -> Tensor:
        added = self.cross_out(torch.cat(list(c), -1))
        return cast(Tensor, self.norm_cross_after(self._after_own(z, u) + added))

    def fed(self, z: Tensor, u: Tensor, c: Tensor) -> Tensor:
        """m ``(T, D)``."""
        return cast(Tensor, self.mlp(self.norm2(self._after_cross(z, u, c))))

    def leaving(self, z: Tensor, u: Tensor, c: Tensor, m: Tensor) -> Tensor:
        """z' ``(T, D)``."""
        return cast(Tensor, self.norm2_after(self._after_cross(z, u, c) + m))


class Encoder(nn.Module):
    """Token numbers ``(B, S)`` to states ``(B, S, D)``."""

    def __init__(self, recipe: Recipe, words: nn.Embedding) -> None:
        super().__init__()
        self.words, self.positions = words, nn.Parameter(torch.zeros(ENCODER_LENGTH, WIDTH))
        self.blocks = nn.ModuleList(relevance_models.Block(recipe, attends=True) for _ in range(2))
        self.norm = relevance_models.normalization(recipe)

    def forward(self, inputs: Tensor) -> Tensor:
        z = self.embed(inputs)
        for block in self.blocks:
            z = block(z)
        return cast(Tensor, self.norm(z))

    def embed(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.words(inputs) + self.positions)


class Decoder(nn.Module):
    """Token numbers ``(B, T)`` and the encoder's states to ``(B, T, D)``."""

    def __init__(self, recipe: Recipe, words: nn.Embedding) -> None:
        super().__init__()
        self.words, self.positions = words, nn.Parameter(torch.zeros(DECODER_LENGTH, WIDTH))
        self.blocks = nn.ModuleList(DecoderBlock(recipe) for _ in range(2))
        self.norm = relevance_models.normalization(recipe)

    def forward(self, inputs: Tensor, e: Tensor) -> Tensor:
        z = self.embed(inputs)
        for block in self.blocks:
            z = block(z, e)
        return cast(Tensor, self.norm(z))

    def embed(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.words(inputs) + self.positions)


class EncoderDecoder(nn.Module):
    """Token numbers ``(B, S)`` and ``(B, T)`` to logits ``(B, T, words)``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        words = nn.Embedding(WORDS, WIDTH)
        self.encoder, self.decoder = Encoder(recipe, words), Decoder(recipe, words)
        self.unembed = nn.Linear(WIDTH, WORDS)

    def forward(self, inputs: Tensor, decoder_inputs: Tensor) -> Tensor:
        return cast(Tensor, self.unembed(self.decoder(decoder_inputs, self.encoder(inputs))))

    def read(self, z: Tensor) -> Tensor:
        """The tokens that leave the decoder's last block, ``(B, T, D)``, to logits."""
        return cast(Tensor, self.unembed(self.decoder.norm(z)))


def make(recipe: Recipe, seed: int = 0) -> EncoderDecoder:
    """A random model in float64; ``recipe`` with norms before each part, or after."""
    assert recipe.norm in ("before", "after")
    model = EncoderDecoder(recipe).double().eval().requires_grad_(False)
    relevance_models.randomize(model, seed)
    return model


Pair = tuple[Tensor, Tensor]


def make_inputs(seed: int = 0, texts: int = 1) -> tuple[Pair, Pair]:
    """Token numbers of both sides, and their baselines; each side keeps one token."""
    generator = torch.Generator().manual_seed(2000 + seed)
    inputs, baselines = [], []
    for length in (ENCODER_LENGTH, DECODER_LENGTH):
        ids = torch.randint(WORDS, (texts, length), generator=generator)
        shift = torch.randint(1, WORDS, (texts, length), generator=generator)
        shift[:, 0] = 0
        inputs.append(ids)
        baselines.append((ids + shift) % WORDS)
    return (inputs[0], inputs[1]), (baselines[0], baselines[1])


# ---- the twin --------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderValues:
    """What one run gives in a decoder's block."""

    z: Tensor
    u: Tensor
    e: Tensor
    c: Tensor
    m: Tensor
    leaving: Tensor


@dataclass(frozen=True)
class CrossEdges:
    """What goes into the heads of the cross-attention, and the multipliers of its arguments."""

    states: Tensor  # (C, T, S), edges e -> c
    value: Tensor  # (C, T, S), their part through the values
    token: Tensor  # (C, T), edges z[j] -> c[h, j], past u
    heads: Tensor  # (C, T, H), edges u[k, j] -> c[h, j]
    g_z: Tensor
    g_u: Tensor
    g_e: Tensor


@dataclass(frozen=True)
class DecoderLayer:
    """Relevances of a decoder's block; C heads of the cross-attention."""

    edges: Edges  # z -> u
    cross: CrossEdges
    cross_total: Tensor  # (C, T)
    mlp: Tensor  # (T, H), all that goes out of u
    feed_forward: Tensor  # (T,)
    feed_forward_heads: Tensor  # (T, H)
    feed_forward_cross: Tensor  # (T, C)
    feed_forward_token: Tensor  # (T,)
    past: Tensor  # (T, H), edges u -> z' past c and the MLP
    past_cross: Tensor  # (T, C), edges c -> z' past the MLP
    residual: Tensor  # (T,)
    mlp_total: Tensor  # (T,)
    entering: Tensor  # (T,)
    g_z: Tensor

    @property
    def fields(self) -> dict[str, Tensor]:
        """By their names in a flow, without the axis of texts."""
        return {
            "attention": self.edges.total,
            "attention_value": self.edges.value,
            "attention_total": self.mlp.T,
            "cross": self.cross.states,
            "cross_query": self.cross.token + self.cross.heads.sum(-1),
            "cross_total": self.cross_total,
            "cross_token": self.cross.token.sum(0),
            "cross_sum": self.cross.states.sum((0, 2)),
            "mlp": self.mlp,
            "feed_forward": self.feed_forward,
            "feed_forward_heads": self.feed_forward_heads,
            "feed_forward_token": self.feed_forward_token,
            "residual": self.residual,
            "mlp_total": self.mlp_total,
            "entering": self.entering,
        }


@dataclass(frozen=True)
class Relevance:
    """Both stacks from the bottom up; ``states (S,)`` are the relevances of the encoder's e."""

    encoder: list[Layer]
    decoder: list[DecoderLayer]
    states: Tensor
    change: Tensor


def run_decoder(model: EncoderDecoder, inputs: Tensor, e: Tensor) -> list[DecoderValues]:
    """The values of every node of one text."""
    z, values = model.decoder.embed(inputs), []
    for module in model.decoder.blocks:
        block = cast(DecoderBlock, module)
        u = block.attend(*block.queries_keys_values(z))
        c = block.cross(block.cross_queries(z, u), *block.cross_keys_values(e))
        m = block.fed(z, u, c)
        values.append(DecoderValues(z, u, e, c, m, block.leaving(z, u, c, m)))
        z = values[-1].leaving
    return values


def run_encoder(model: EncoderDecoder, inputs: Tensor) -> list[Values]:
    encoder = model.encoder
    return relevance_twin.run_blocks(encoder.blocks, encoder.embed(inputs), [True, True])  # type: ignore[arg-type]


def relevance(
    model: EncoderDecoder, number: Number, text: Pair, baseline: Pair, nodes: int = NODES
) -> Relevance:
    """The graph of one text, ``(S,)`` and ``(T,)``."""
    low, high = (run_encoder(model, x[0]) for x in (baseline, text))
    e_low, e_high = (model.encoder.norm(x[-1].leaving) for x in (low, high))
    starts, ends = run_decoder(model, baseline[1], e_low), run_decoder(model, text[1], e_high)

    def top(z: Tensor) -> Tensor:
        return number(model.read(z[None]))[0]

    g = relevance_twin.top_multiplier(top, starts[-1].leaving, ends[-1].leaving, nodes)
    g_e, decoder = torch.zeros_like(e_low), []
    for module, start, end in reversed(list(zip(model.decoder.blocks, starts, ends, strict=True))):
        decoder.append(_layer(cast(DecoderBlock, module), start, end, g, nodes))
        g, g_e = decoder[-1].g_z, g_e + decoder[-1].cross.g_e
    (g_last,) = relevance_twin.multipliers(
        model.encoder.norm, [low[-1].leaving], [high[-1].leaving], g_e, nodes
    )
    assert g_last is not None
    encoder = relevance_twin.down(model.encoder.blocks, low, high, g_last, nodes)  # type: ignore[arg-type]
    return Relevance(
        encoder,
        decoder[::-1],
        (g_e * (e_high - e_low)).sum(-1),
        top(ends[-1].leaving) - top(starts[-1].leaving),
    )


def _layer(
    block: DecoderBlock, start: DecoderValues, end: DecoderValues, g: Tensor, nodes: int
) -> DecoderLayer:
    one, other = [start.z, start.u, start.c, start.m], [end.z, end.u, end.c, end.m]
    z, u, c, m = (b - a for a, b in zip(one, other, strict=True))
    out_z, out_u, out_c, g_m = _there(block.leaving, one, other, g, nodes)
    ff_z, ff_u, ff_c = _there(block.fed, one[:3], other[:3], g_m, nodes)
    g_c = out_c + ff_c
    cross = _cross_edges(block, start, end, g_c, nodes)
    g_u = out_u + ff_u + cross.g_u
    edges, attention_z = relevance_twin.attention_edges(block, start.z, end.z, g_u, nodes)
    g_z = out_z + ff_z + cross.g_z + attention_z

    def tokens(multiplier: Tensor, change: Tensor) -> Tensor:
        return (multiplier * change).sum(-1)

    return DecoderLayer(
        edges=edges,
        cross=cross,
        cross_total=tokens(g_c, c),
        mlp=tokens(g_u, u).T,
        feed_forward=tokens(g_m, m),
        feed_forward_heads=tokens(ff_u, u).T,
        feed_forward_cross=tokens(ff_c, c).T,
        feed_forward_token=tokens(ff_z, z),
        past=tokens(out_u, u).T,
        past_cross=tokens(out_c, c).T,
        residual=tokens(out_z, z),
        mlp_total=tokens(g, end.leaving - start.leaving),
        entering=tokens(g_z, z),
        g_z=g_z,
    )


def _there(
    stage: object, one: list[Tensor], other: list[Tensor], g: Tensor, nodes: int
) -> list[Tensor]:
    return cast(list[Tensor], relevance_twin.multipliers(stage, one, other, g, nodes))  # type: ignore[arg-type]


def _cross_edges(
    block: DecoderBlock, start: DecoderValues, end: DecoderValues, g_c: Tensor, nodes: int
) -> CrossEdges:
    """(z, u, e) -> c, all three on their lines together; one autograd call for each c[h, j]."""
    count, length = g_c.shape[:2]
    moves = end.z - start.z, end.u - start.u, end.e - start.e
    states, value = (g_c.new_zeros(count, length, len(start.e)) for _ in range(2))
    token, heads = g_c.new_zeros(count, length), g_c.new_zeros(count, length, HEADS)
    g_z, g_u, g_e = (torch.zeros_like(move) for move in moves)
    for a, weight in relevance_twin.gauss_legendre(nodes):
        z, u, e = (
            (x + a * move).detach().requires_grad_()
            for x, move in zip((start.z, start.u, start.e), moves, strict=True)
        )
        q = block.cross_queries(z, u)
        (k, v), (_, v_moves) = relevance_twin.jvp(block.cross_keys_values, e.detach(), moves[2])
        c = block.cross(q, *block.cross_keys_values(e))
        v = v.detach().requires_grad_()
        c_of_values = block.cross(q.detach(), k.detach(), v)
        for h in range(count):
            for j in range(length):
                of_z, of_u, of_e = relevance_twin.gradients(g_c[h, j] @ c[h, j], z, u, e)
                token[h, j] += weight * (of_z * moves[0]).sum()
                heads[h, j] += weight * (of_u * moves[1]).sum((1, 2))
                states[h, j] += weight * (of_e * moves[2]).sum(-1)
                g_z += weight * of_z
                g_u += weight * of_u
                g_e += weight * of_e
                (of_v,) = relevance_twin.gradients(g_c[h, j] @ c_of_values[h, j], v)
                value[h, j] += weight * (of_v * v_moves).sum((0, 2))
    return CrossEdges(states, value, token, heads, g_z, g_u, g_e)
