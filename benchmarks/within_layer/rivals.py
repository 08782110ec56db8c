"""Maps of one layer by other methods, each from its paper, ``(T, S)``.

Notation: ``x_i`` tokens entering the layer, ``a[h, j, i]`` attention weights, ``f[h, i]`` what head
``h`` makes of token ``i``: its value through its part of the output projection, so that the
attention adds ``sum_h sum_i a[h, j, i] f[h, i]`` (and a bias) to token ``j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from captum_lig.integrals.scalarization import unit
from captum_lig.metrics.block import Case


@dataclass(frozen=True)
class Layer:
    """One layer of a BERT or a Llama, on one text."""

    case: Case

    @property
    def z(self) -> Tensor:
        """``(S, D)`` tokens entering."""
        return self.case.split.z

    @property
    def _attention(self) -> Any:
        block: Any = self.case.call.module
        return block.attention if hasattr(block, "attention") else block.self_attn

    @property
    def projection(self) -> nn.Linear:
        """From the heads side by side to the residual stream."""
        attention = self._attention
        found = attention.o_proj if hasattr(attention, "o_proj") else attention.output.dense
        assert isinstance(found, nn.Linear)
        return found

    @property
    def norm(self) -> nn.LayerNorm | None:
        """The norm of attention and residual stream together, in post-norm blocks."""
        found = getattr(getattr(self._attention, "output", None), "LayerNorm", None)
        assert found is None or isinstance(found, nn.LayerNorm)
        return found

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        split = self.case.split
        q, k, v = (
            x[0].repeat_interleave(split.heads // x.shape[1], 0) for x in split.pre(self.z[None])
        )
        logits = split.scaling * q @ k.transpose(-1, -2)
        if split.mask is not None:
            logits = logits + split.mask
        return logits.softmax(-1), v

    @property
    def weights(self) -> Tensor:
        """``a (H, T, S)``"""
        return self._parts[0]

    @property
    def made(self) -> Tensor:
        """``f (H, S, D)``"""
        value = self._parts[1]
        weight = self.projection.weight.unflatten(-1, (len(value), -1))  # (D, H, e)
        return torch.einsum("dhe,hse->hsd", weight, value)

    @property
    def mixed(self) -> Tensor:
        """``(T, S, D)`` what each source adds to each target, all heads together."""
        return torch.einsum("hts,hsd->tsd", self.weights, self.made)

    def with_residual(self) -> tuple[Tensor, Tensor]:
        """Kobayashi et al. 2021: the parts of what leaves the attention with residual and norm.

        Returns:
            ``(T, S, D)`` the part of each source, the residual stream with ``j = i``; ``(T, D)``
            the whole, their sum and a constant. The norm's scale counts as given.
        """
        parts = self.mixed
        every = torch.arange(len(self.z))
        parts[every, every] += self.z
        whole = parts.sum(1)
        if self.projection.bias is not None:
            whole = whole + self.projection.bias
        if (norm := self.norm) is None:
            return parts, whole
        scale = (whole.var(-1, unbiased=False) + norm.eps).sqrt()[:, None, None]
        centred = parts - parts.mean(-1, keepdim=True)
        return centred / scale * norm.weight, norm(whole)


@torch.no_grad()
def attention(layer: Layer) -> Tensor:
    """Attention weights, mean over heads."""
    return layer.weights.mean(0)


@torch.no_grad()
def attention_norm(layer: Layer) -> Tensor:
    """``||sum_h a f||``: Kobayashi et al., "Attention is Not Only a Weight" (2020), section 3."""
    return torch.linalg.vector_norm(layer.mixed, dim=-1)


@torch.no_grad()
def residual_norm(layer: Layer) -> Tensor:
    """The same with residual stream and norm: Kobayashi et al., "Incorporating Residual and
    Normalization Layers into Analysis of Masked Language Models" (2021), section 3."""
    return torch.linalg.vector_norm(layer.with_residual()[0], dim=-1)


@torch.no_grad()
def alti(layer: Layer) -> Tensor:
    """ALTI: Ferrando et al., "Measuring the Mixing of Contextual Information in the Transformer"
    (2022): ``max(0, ||y_j||_1 - ||y_j - T_j(x_i)||_1)``, rows made to sum to 1.
    """
    parts, whole = layer.with_residual()
    near = (whole[:, None] - parts).abs().sum(-1)
    kept = (whole.abs().sum(-1, keepdim=True) - near).clamp_min(0)
    return kept / kept.sum(-1, keepdim=True)


@torch.no_grad()
def value_zeroing(layer: Layer) -> Tensor:
    """Mohebbi et al., "Quantifying Context Mixing in Transformers" (2023), section 3: the cosine
    distance that a token leaving the layer moves if one source's values are 0 in all heads; rows
    made to sum to 1."""
    split, length = layer.case.split, len(layer.z)
    a, v = layer._parts
    own = (a @ v).transpose(0, 1)  # (T, H, e)
    taken = torch.einsum("hts,hse->sthe", a, v)
    every = torch.arange(length).repeat(length)
    moved = split.post((own - taken).flatten(0, 1), layer.z[every], every).unflatten(
        0, (length, -1)
    )
    found = 1 - torch.cosine_similarity(moved, split.output, dim=-1).T
    return found / found.sum(-1, keepdim=True)


def gradient(layer: Layer) -> Tensor:
    """Gradient times input, of the layer: ``<d<y_j, e_j> / dx_i, x_i - x0_i>`` at the text, with
    ``e_j`` the direction of the target's whole change from the baseline (Shrikumar et al. 2017)."""
    case, split = layer.case, layer.case.split
    starts = torch.stack([case.baseline(row) for row in range(len(case.rows))])  # (R, S, D)
    every = torch.arange(len(case.rows))
    with torch.no_grad():
        whole = split.output[case.rows] - split.whole(starts)[every, case.rows]
    with torch.enable_grad():
        z = layer.z.repeat(len(every), 1, 1).requires_grad_()
        numbers = (split.whole(z)[every, case.rows] * unit(whole)).sum(-1)
        (found,) = torch.autograd.grad(numbers.sum(), z)
    return (found * (layer.z - starts)).sum(-1)


RIVALS = {
    "attention": attention,
    "attention x value norm": attention_norm,
    "with residual and norm": residual_norm,
    "ALTI": alti,
    "value zeroing": value_zeroing,
}
"""They know no baseline."""
FROM_BASELINE = {"gradient x input": gradient}
