"""Direct edges from the definition, for the models of relevance_models: slow, in float64.

The multipliers of nodes are those of relevance_twin. What one reader hands to the tokens that enter
its block: autograd with every other reader detached. What a writer changes: its output's change
times its own columns of the output projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.helpers import relevance_twin
from tests.helpers.relevance_models import HEAD_WIDTH
from tests.helpers.relevance_twin import Layer, Number, Values, gauss_legendre

Name = tuple[str, int | None, int | None]  # kind, layer, head, as the fields of a Writer or Reader


def direct_edges(
    model: Any, number: Number, text: Tensor, baseline: Tensor, nodes: int = 32
) -> dict[tuple[Name, Name], Tensor]:
    """By writer and reader, ``(S,)``: only pairs whose reader reads the writer."""
    graph = relevance_twin.relevance(model, number, text, baseline, nodes)
    cuts = [block.has_mlp for block in model.blocks]
    ends, starts = (relevance_twin.run(model, x, cuts) for x in (text, baseline))
    written: dict[Name, Tensor] = {("embedding", None, None): ends[0].z - starts[0].z}
    found: dict[tuple[Name, Name], Tensor] = {}

    def read(reader: Name, g: Tensor) -> None:
        for writer, change in written.items():
            found[writer, reader] = (g * change).sum(-1)

    for layer, (block, start, end) in enumerate(zip(model.blocks, starts, ends, strict=True)):
        here = graph.layers[layer]
        if block.attends:
            for kind, head, g in heads(block, here, start, end, nodes):
                read((kind, layer, head), g)
        own = {}
        if block.attends:
            assert start.u is not None
            assert end.u is not None
            for head, change in enumerate(end.u - start.u):
                columns = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
                own["heads", layer, head] = change @ block.out.weight[:, columns].T
        if block.has_mlp:
            if not block.recipe.parallel:
                written |= own
            read(("feed_forward", layer, None), feed_forward(block, here, start, end, nodes))
            written["feed_forward", layer, None] = end.m - start.m  # type: ignore[operator]
        written |= own
    read(("output", None, None), graph.layers[-1].g_leaving)
    return found


def heads(
    block: Any, here: Layer, start: Values, end: Values, nodes: int
) -> Iterator[tuple[str, int, Tensor]]:
    """Each query, key and value of a head, and the multiplier that it alone hands to z."""
    change, g_u = end.z - start.z, here.g_u
    for part, kind in enumerate(("query", "key", "value")):
        count = len(block.queries_keys_values(start.z)[part])
        for head in range(count):
            total = torch.zeros_like(change)
            for a, weight in gauss_legendre(nodes):
                z = (start.z + a * change).detach().requires_grad_()
                made = [x.detach() for x in block.queries_keys_values(z)]
                others = made[part].clone()
                others[head] = block.queries_keys_values(z)[part][head]
                made[part] = others
                u = block.attend(*made)
                (g,) = torch.autograd.grad((g_u * u).sum(), z)
                total += weight * g
            yield kind, head, total


def feed_forward(block: Any, here: Layer, start: Values, end: Values, nodes: int) -> Tensor:
    """What the MLP hands to the stream that it reads: with its block's heads in it, or without."""

    def reads(values: Values) -> Tensor:
        if block.recipe.parallel or values.u is None:
            return values.z
        return values.z + block.out(torch.cat(list(values.u), -1))

    first, last = reads(start), reads(end)
    (g,) = relevance_twin.multipliers(
        lambda r: block.mlp(block.norm2(r)),
        [first],
        [last],
        here.g_m,
        nodes,  # type: ignore[arg-type]
    )
    assert g is not None
    return g
