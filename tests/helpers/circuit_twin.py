"""Small models as readers and writers of a residual stream, and circuits of their edges.

Slow, in float64: a loop over readers, writers and tokens, from the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_lig.graph import Reader, Writer
from tests.helpers import models

SIZE = models.WIDTH // models.HEADS
Read = Callable[[Any], Tensor]


def number(output: Any) -> Tensor:
    hidden: Tensor = output[0]
    each = torch.tanh(hidden @ torch.linspace(-1, 2, hidden.shape[-1]).to(hidden) / 5)
    return each[:, -1] + each.square().sum(-1) / 3


# --- the twin: models written out ---------------------------------------------------------------


class Twin:
    """A model of one text: what readers make of their own tokens ``(S, D)``."""

    def __init__(self, kind: str, model: Any = None, read: Read = number) -> None:
        self.kind, self.number = kind, read
        self.model: Any = models.MODELS[kind](layers=3) if model is None else model
        self.blocks: Any = self.model.h if kind == "gpt2" else self.model.layers
        self.key_heads = models.KEY_VALUE_HEADS if kind == "llama" else models.HEADS

    def embedded(self, ids: Tensor) -> Tensor:
        if self.kind == "gpt2":
            return self.model.wte(ids[0]) + self.model.wpe(torch.arange(ids.shape[1]))  # type: ignore[no-any-return]
        return self.model.embed_tokens(ids[0])  # type: ignore[no-any-return]

    def made(self, layer: int, part: str, head: int, x: Tensor) -> Tensor:
        """A query, key or value of one head, ``(S, e)``."""
        block = self.blocks[layer]
        own = slice(head * SIZE, (head + 1) * SIZE)
        if self.kind == "gpt2":
            start = ("query", "key", "value").index(part) * models.WIDTH
            own = slice(start + own.start, start + own.stop)
            normed = block.ln_1(x)
            return normed @ block.attn.c_attn.weight[:, own] + block.attn.c_attn.bias[own]  # type: ignore[no-any-return]
        linear = block.self_attn.get_submodule(f"{part[0]}_proj")
        made = block.input_layernorm(x) @ linear.weight[own].T + linear.bias[own]
        return made if part == "value" else turned(made)  # type: ignore[no-any-return]

    def written(self, layer: int, head: int, u: Tensor) -> Tensor:
        """What a head adds to the stream, but for the bias that all share."""
        own, block = slice(head * SIZE, (head + 1) * SIZE), self.blocks[layer]
        if self.kind == "gpt2":
            return u @ block.attn.c_proj.weight[own]  # type: ignore[no-any-return]
        return u @ block.self_attn.o_proj.weight[:, own].T  # type: ignore[no-any-return]

    def bias(self, layer: int) -> Tensor:
        block = self.blocks[layer]
        out = block.attn.c_proj if self.kind == "gpt2" else block.self_attn.o_proj
        return out.bias  # type: ignore[no-any-return]

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        block = self.blocks[layer]
        if self.kind == "gpt2":
            return block.mlp(block.ln_2(x))  # type: ignore[no-any-return]
        return block.mlp(block.post_attention_layernorm(x))  # type: ignore[no-any-return]

    def read(self, x: Tensor) -> Tensor:
        end = self.model.ln_f if self.kind == "gpt2" else self.model.norm
        return self.number((end(x)[None],))[0]


def turned(x: Tensor) -> Tensor:
    """Rotary positions, by two features at a time; the frequencies are float32, as Llama's."""
    half = x.shape[-1] // 2
    found = x.clone()
    for n in range(half):
        frequency = 1.0 / torch.tensor(10000.0) ** torch.tensor(2 * n / x.shape[-1])
        for position in range(len(x)):
            angle = (position * frequency).double()
            cos, sin = angle.float().cos().double(), angle.float().sin().double()
            a, b = x[position, n], x[position, n + half]
            found[position, n] = a * cos - b * sin
            found[position, n + half] = b * cos + a * sin
    return found


Inputs = Callable[[Reader, dict[Writer, Tensor]], Tensor]
"""What a reader gets, of what was written below it."""


def run(twin: Twin, embedded: Tensor, inputs: Inputs) -> tuple[dict[Writer, Tensor], Tensor]:
    """What writers write, and the number, if each reader gets what ``inputs`` says."""
    wrote = {Writer("embedding"): embedded}
    for layer in range(len(twin.blocks)):
        made = {
            (part, head): twin.made(layer, part, head, inputs(Reader(part, layer, head), wrote))  # type: ignore[arg-type]
            for part in ("query", "key", "value")
            for head in range(models.HEADS if part == "query" else twin.key_heads)
        }
        own = {}
        for head in range(models.HEADS):
            of_key = head // (models.HEADS // twin.key_heads)
            query, key, value = made["query", head], made["key", of_key], made["value", of_key]
            logits = query @ key.T / SIZE**0.5
            logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
            u = torch.softmax(logits, -1) @ value
            own[Writer("heads", layer, head)] = twin.written(layer, head, u)
        # The bias is written once: by the first head.
        own[Writer("heads", layer, 0)] = own[Writer("heads", layer, 0)] + twin.bias(layer)
        wrote |= own
        x = inputs(Reader("feed_forward", layer), wrote)
        wrote[Writer("feed_forward", layer)] = twin.mlp(layer, x)
    return wrote, twin.read(inputs(Reader("output"), wrote))


def plain(_: Reader, wrote: dict[Writer, Tensor]) -> Tensor:
    return torch.stack(list(wrote.values())).sum(0)


def circuit(
    twin: Twin, ids: Tensor, other: Tensor, keeps: Callable[[Writer, Reader, int], bool]
) -> float:
    """The number with some edges kept, each at a token, from the definition."""
    before: dict[Reader, Tensor] = {}

    def noted(reader: Reader, wrote: dict[Writer, Tensor]) -> Tensor:
        before[reader] = plain(reader, wrote)
        return before[reader]

    with torch.no_grad():
        theirs, _ = run(twin, twin.embedded(other), noted)

        def inputs(reader: Reader, wrote: dict[Writer, Tensor]) -> Tensor:
            x = before[reader].clone()
            for writer, value in wrote.items():
                for i in range(len(x)):
                    if keeps(writer, reader, i):
                        x[i] += value[i] - theirs[writer][i]
            return x

        return float(run(twin, twin.embedded(ids), inputs)[1])
