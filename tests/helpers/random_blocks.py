"""Small blocks drawn at random, and their attributions from the definition.

A block is what its options say: which norm and where, what the logits get besides products of
queries and keys, what mixes tokens before the attention. The reference knows nothing of captum_lig:
it differentiates the block's own forward in float64, at many nodes, every target on its own path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers import twins

WIDTH, HEADS, HEAD_WIDTH = 16, 4, 4
FORBIDDEN = -1e38
EDGES = [0.0, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5, 1.0]


@dataclass(frozen=True)
class Options:
    """What a block is made of."""

    site: str = "sdpa"  # or "interface", "eager"
    key_heads: int = HEADS  # or 2, 1
    causal: bool = False
    window: int | None = None  # how many tokens back, and ahead if not causal
    norm: str = "layer"  # or "rms", "none"
    post_norm: bool = False  # after the residual instead of before each part
    parallel: bool = False
    rotary: bool = False
    key_norm: str = "none"  # or "before", "after" the rotary encoding
    bias: str = "none"  # made of the "normed" tokens, the "raw" ones, or their "values"
    mix: str = "none"  # "keys", "values", "queries" or "inputs" of tokens and their neighbours
    gate: bool = False  # of the heads' outputs, from the tokens
    softcap: bool = False
    sinks: bool = False
    after: str = "tokens"  # or "mixed": the MLP looks at other tokens; or, "away" from the text
    # alone, at its position
    massive: bool = False  # one activation of 3,000


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as a family of transformers writes it, with a cap and sinks."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if attention_mask is not None:
        logits = logits + attention_mask
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        weights = torch.cat([logits, sinks], -1).softmax(-1)[..., :-1]
    else:
        weights = logits.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


class RandomBlock(nn.Module):
    """``(B, S, D)`` to ``(B, S, D)``: ``finish(attend(x), x)``."""

    def __init__(self, options: Options, text: Tensor) -> None:
        super().__init__()
        self.options = options
        self.config = PretrainedConfig(attn_implementation="eager")
        inner = options.key_heads * HEAD_WIDTH
        norm = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": None}[options.norm]

        def normed() -> nn.Module:
            return nn.Identity() if norm is None else norm(WIDTH, eps=1e-4)

        self.norm, self.norm_after = normed(), normed()
        # Normed keys have no bias in the families that norm them.
        self.key = nn.Linear(WIDTH, inner, bias=options.key_norm == "none")
        self.query = nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, inner), nn.Linear(WIDTH, WIDTH)
        self.query_norm = nn.RMSNorm(HEAD_WIDTH, eps=1e-3)
        self.key_norm = nn.RMSNorm(HEAD_WIDTH, eps=1e-3)
        self.bias = nn.Linear(WIDTH, HEADS)
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.sinks = nn.Parameter(torch.zeros(HEADS))
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.register_buffer("text", text)

    def before(self, x: Tensor) -> Tensor:
        """What queries, keys and values are made of."""
        z = x if self.options.post_norm else self.norm(x)
        return _with_neighbours(z) if self.options.mix == "inputs" else z

    def attend(self, x: Tensor) -> Tensor:
        """The heads' outputs ``(B, S, H, d)``."""
        o, z, length = self.options, self.before(x), x.shape[1]
        heads = (HEADS, o.key_heads, o.key_heads)
        maps = (self.query, self.key, self.value)
        q, k, v = (m(z).unflatten(-1, (h, HEAD_WIDTH)) for m, h in zip(maps, heads, strict=True))
        if o.key_norm == "before":
            q, k = self.query_norm(q), self.key_norm(k)
        if o.mix in ("queries", "keys", "values"):
            q, k, v = (
                _with_neighbours(t) if o.mix == name else t
                for name, t in (("queries", q), ("keys", k), ("values", v))
            )
        if o.rotary:
            q, k = _rotated(q), _rotated(k)
        if o.key_norm == "after":
            q, k = self.query_norm(q), self.key_norm(k)
        mask = _allowed(o, length, x)
        if o.bias != "none":
            made = {"normed": z, "raw": x, "values": _wide(v)}[o.bias]
            bias = torch.tanh(self.bias(made)).transpose(1, 2)[:, :, None]  # (B, H, 1, S)
            mask = bias if mask is None else mask + bias
            mask = mask.expand(-1, -1, length, -1)
        u = self._core(*(t.transpose(1, 2) for t in (q, k, v)), mask)
        # Where the core cannot be reached, heads end at the input of the output projection.
        return self._gated(u, x) if o.site == "eager" else u

    def _core(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        o = self.options
        if o.site == "sdpa":
            k, v = (t.repeat_interleave(HEADS // o.key_heads, 1) for t in (k, v))
            return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        function: Callable[..., Any] = eager_attention_forward
        if o.site == "interface":
            name = self.config._attn_implementation
            function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        extra: dict[str, Any] = {"softcap": 2.0} if o.softcap else {}
        extra |= {"s_aux": self.sinks} if o.sinks else {}
        output: Tensor = function(self, q, k, v, mask, scaling=HEAD_WIDTH**-0.5, **extra)[0]
        return output

    def _gated(self, u: Tensor, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x)).unflatten(-1, (HEADS, HEAD_WIDTH))
        return u * gate if self.options.gate else u

    def finish(self, u: Tensor, x: Tensor) -> Tensor:
        """All that follows the heads."""
        o = self.options
        attended = self.out((u if o.site == "eager" else self._gated(u, x)).flatten(-2))
        if o.parallel:
            return x + attended + self._feed(x if o.post_norm else self.norm(x), x)
        h = x + attended
        if o.post_norm:
            h = self.norm(h)
            return self.norm_after(h + self._feed(h, x))  # type: ignore[no-any-return]
        return h + self._feed(self.norm_after(h), x)

    def _feed(self, h: Tensor, x: Tensor) -> Tensor:
        wide = torch.tanh(self.up(h))
        if self.options.after == "mixed":
            wide = wide + 0.5 * wide.mean(1, keepdim=True)
        if self.options.after == "away":
            apart = (x[:, :, None] - self.text[:, None]).square().mean(-1)  # (B, S, S)
            far = torch.tanh(apart.amin(-1, keepdim=True))
            wide = wide + far * torch.arange(x.shape[1], device=x.device)[:, None]
        return self.down(wide)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.attend(x), x)


class OneBlock(nn.Module):
    """A model of one block, that is given its tokens."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def build(options: Options, length: int, dtype: torch.dtype, seed: int) -> tuple[OneBlock, Tensor]:
    """A model with every parameter drawn, and tokens ``(1, length, WIDTH)`` for it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, length, WIDTH, generator=generator, dtype=torch.float64)
    if options.massive:
        x[0, 0, 3] = 3000.0
    with torch.random.fork_rng(devices=[]):
        model = OneBlock(RandomBlock(options, torch.zeros_like(x)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.35 * noise)
    model = model.to(dtype).eval()
    x = x.to(dtype)
    model.blocks[0].text.copy_(x)  # type: ignore[operator, union-attr]
    return model, x


def _wide(v: Tensor) -> Tensor:
    """Values of all heads side by side, ``(B, S, WIDTH)``."""
    return v.repeat_interleave(HEADS // v.shape[2], 2).flatten(-2)


def _with_neighbours(x: Tensor) -> Tensor:
    """Each token with a part of the one before it."""
    return x + 0.7 * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def _rotated(x: Tensor) -> Tensor:
    """``(B, S, heads, 4)``, the pairs of channels turned by an angle that grows with the place."""
    place = torch.arange(x.shape[1], device=x.device)[:, None, None]
    angle = (place * torch.tensor([1.0, 0.3, 1.0, 0.3], device=x.device)).to(x.dtype)
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


def _allowed(options: Options, length: int, x: Tensor) -> Tensor | None:
    """The mask ``(1, 1, T, S)`` of causality and the window, or None."""
    if not options.causal and options.window is None:
        return None
    place = torch.arange(length, device=x.device)
    back = place[:, None] - place
    forbidden = (back < 0) if options.causal else torch.zeros_like(back, dtype=torch.bool)
    if options.window is not None:
        forbidden = forbidden | (back.abs() > options.window)
    return torch.zeros(1, 1, length, length, dtype=x.dtype, device=x.device).masked_fill(
        forbidden, torch.finfo(x.dtype).min
    )


# ---- attributions from the definition ----------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Maps and totals of one text, targets first."""

    attention: Tensor  # (T, H, S)
    attention_total: Tensor  # (T, H)
    layer: Tensor  # (T, S)
    layer_total: Tensor  # (T,)
    mlp: Tensor  # (T, H)
    residual: Tensor  # (T,)
    size: Tensor  # (T, H) lengths of the heads' outputs, that totals are lost in
    y_size: Tensor  # (T,)


def reference(
    block: RandomBlock, z: Tensor, starts: Tensor, scalarization: str, points_a_panel: int
) -> Reference:
    """From the block's own forward, for ``z (S, D)`` from ``starts (T, S, D)``, all in float64."""
    count, length = len(starts), len(z)
    nodes, weights = (torch.from_numpy(t) for t in twins.panels(EDGES, points_a_panel))
    target = torch.arange(count)
    step = z - starts  # (T, S, D)

    def points(start: Tensor, step: Tensor) -> Tensor:
        """``(P * T, ...)``"""
        a = nodes.view(-1, *[1] * start.dim())
        return (start + a * step).flatten(0, 1).requires_grad_()

    def of_targets(y: Tensor) -> Tensor:
        """``(P * T, S, ...)`` to ``(P, T, ...)``, each target on its own path."""
        y = y.view(-1, count, *y.shape[1:])
        return y[:, target, target]

    def scalar(y: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """``A`` of ``y (P, T, d)``."""
        if scalarization == "l2":
            return torch.linalg.vector_norm(y - start, dim=-1)
        total = torch.linalg.vector_norm(end - start, dim=-1, keepdim=True)
        return ((y - start) * (end - start) / total.clamp_min(1e-30)).sum(-1)

    def integral(gradient: Tensor, step: Tensor) -> Tensor:
        """``(P * T, ..., D)`` gradients to attributions ``(T, ...)``."""
        gradient = gradient.view(len(nodes), count, *gradient.shape[1:])
        rate = (gradient * step).sum(-1)
        return torch.einsum("p,p...->...", weights, rate)

    with torch.no_grad():
        ends = torch.cat([starts, z.expand_as(starts)])
        u_ends = of_targets(block.attend(ends))  # (2, T, H, d)
        y_ends = of_targets(block(ends))
    totals = torch.linalg.vector_norm(u_ends[1] - u_ends[0], dim=-1)
    x = points(starts, step)
    u = of_targets(block.attend(x))
    maps = []
    for h in range(HEADS):
        a = scalar(u[:, :, h], u_ends[0, :, h], u_ends[1, :, h])
        (gradient,) = torch.autograd.grad(a.sum(), x, retain_graph=True)
        maps.append(integral(gradient, step))
    a = scalar(of_targets(block(x)), *y_ends)
    (gradient,) = torch.autograd.grad(a.sum(), x)
    layer = integral(gradient, step)
    # The straight line between the ends, for each target's own token; what follows the heads is
    # given a sequence of that token alone.
    u_step, z_step = u_ends[1] - u_ends[0], step[target, target]
    u_line, z_line = points(u_ends[0], u_step), points(starts[target, target], z_step)
    y = block.finish(
        u_line[:, None].expand(-1, length, -1, -1), z_line[:, None].expand(-1, length, -1)
    )[:, 0].view(len(nodes), count, -1)
    by_u, by_z = torch.autograd.grad(scalar(y, *y_ends).sum(), (u_line, z_line))
    return Reference(
        attention=torch.stack(maps, 1),
        attention_total=totals,
        layer=layer,
        layer_total=torch.linalg.vector_norm(y_ends[1] - y_ends[0], dim=-1),
        mlp=integral(by_u, u_step),
        residual=integral(by_z, z_step),
        size=torch.linalg.vector_norm(u_ends, dim=-1).amax(0),
        y_size=torch.linalg.vector_norm(y_ends, dim=-1).amax(0),
    )
