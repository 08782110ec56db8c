"""Direct edges against runs with plain hooks: a reader's own input moved, all else as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LigError, patching
from captum_lig.graph import Edge, Reader, Writer
from tests.helpers import models
from tests.helpers.families import FAMILIES
from tests.helpers.state import Unchanged

INPUTS = torch.tensor([[11, 45, 23, 8]])
BASELINES = torch.tensor([[11, 7, 23, 31]])
SIZE = models.WIDTH // models.HEADS


def number(output: Any) -> Tensor:
    hidden: Tensor = output[0]
    each = torch.tanh(hidden @ torch.linspace(-1, 2, hidden.shape[-1]).to(hidden) / 5)
    return each[:, -1] + each.square().sum(-1) / 3


@contextmanager
def put(module: nn.Module, change: Callable[[Tensor], Tensor], inside: bool) -> Iterator[None]:
    """Change what a module gets, or what it gives."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        return change(output)

    handle: Any = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if inside
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


class Twin:
    """A pre-norm model whose parts are named by hand."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "gpt_neox":
            self.model: Any = next(f for f in FAMILIES if f.name == kind).build()
        else:
            self.model = models.MODELS[kind](layers=3)
        self.model.set_attn_implementation("eager")
        self.blocks: Any = self.model.h if kind == "gpt2" else self.model.layers
        names = {
            "gpt2": ("attn.c_proj", "ln_1", "ln_2", "mlp", "ln_f"),
            "llama": (
                *("self_attn.o_proj", "input_layernorm", "post_attention_layernorm", "mlp"),
                "norm",
            ),
            "gpt_neox": (
                *("attention.dense", "input_layernorm", "post_attention_layernorm", "mlp"),
                "final_layer_norm",
            ),
        }
        self.out, self.first, self.second, self.mlp, self.end = names[kind]
        self.key_heads = models.KEY_VALUE_HEADS if kind == "llama" else models.HEADS

    def part(self, layer: int, name: str) -> Any:
        return self.blocks[layer].get_submodule(name)

    def run(self, ids: Tensor) -> float:
        with torch.no_grad():
            return float(number(self.model(ids)))

    def seen(self, ids: Tensor, module: nn.Module, inside: bool) -> Tensor:
        found: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            found.append(x.clone())
            return x

        with put(module, keep, inside):
            self.run(ids)
        return found[0]

    def written(self, ids: Tensor, writer: Writer) -> Tensor:
        """`(1, S, D)` what a writer adds to the residual stream."""
        if writer.kind == "embedding":
            return self.seen(ids, self.blocks[0], True)
        assert writer.layer is not None
        if writer.kind == "feed_forward":
            return self.seen(ids, self.part(writer.layer, self.mlp), False)
        out = self.part(writer.layer, self.out)
        assert writer.head is not None
        channels = slice(writer.head * SIZE, (writer.head + 1) * SIZE)
        u = self.seen(ids, out, True)[..., channels]
        weight = out.weight if self.kind == "gpt2" else out.weight.T
        with torch.no_grad():
            return u @ weight[channels]  # type: ignore[no-any-return]

    def moved(self, ids: Tensor, reader: Reader, step: Tensor) -> float:
        """The number with `step` added to what a reader alone reads."""

        def add(x: Tensor) -> Tensor:
            return x + step

        if reader.kind == "output":
            with put(self.model.get_submodule(self.end), add, True):
                return self.run(ids)
        assert reader.layer is not None
        if reader.kind == "feed_forward":
            with put(self.part(reader.layer, self.second), add, True):
                return self.run(ids)
        assert reader.head is not None
        norm = self.part(reader.layer, self.first)
        with torch.no_grad():
            z = self.seen(ids, norm, True)
            if self.kind == "gpt2":
                made = self.part(reader.layer, "attn.c_attn")
                width = models.WIDTH
                kinds = ("query", "key", "value", "head")
                start = kinds.index(reader.kind) * width
                channels = slice(None) if reader.kind == "head" else slice(start, start + width)
            else:
                made = self.part(reader.layer, f"self_attn.{reader.kind[0]}_proj")
                channels = slice(None)
            other = made(norm(z + step))

        def exchange(x: Tensor) -> Tensor:
            x = x.clone()
            x[..., channels] = other[..., channels]
            return x

        # With all heads' queries (keys, values) moved, what the reader's own heads give.
        out = self.part(reader.layer, self.out)
        with put(made, exchange, False):
            u = self.seen(ids, out, True)
        # Heads that share a key or a value all get the moved one.
        shared = 1 if reader.kind in ("query", "head") else models.HEADS // self.key_heads
        head = slice(reader.head * shared * SIZE, (reader.head + 1) * shared * SIZE)

        def one_head(x: Tensor) -> Tensor:
            x = x.clone()
            x[..., head] = u[..., head]
            return x

        with put(out, one_head, True):
            return self.run(ids)

    def effects(self, edge: Edge) -> tuple[float, float]:
        step = self.written(INPUTS, edge.writer) - self.written(BASELINES, edge.writer)
        if edge.position is not None:
            kept = torch.zeros_like(step)
            kept[:, edge.position] = step[:, edge.position]
            step = kept
        out = self.run(INPUTS) - self.moved(INPUTS, edge.reader, -step)
        return out, self.moved(BASELINES, edge.reader, step) - self.run(BASELINES)


def edges_of(kind: str) -> list[Edge]:
    """Of every kind of writer and reader, at single tokens and at all."""
    neox = kind == "gpt_neox"
    last = 1 if neox else 2
    writers = [
        Writer("embedding"),
        *(Writer("heads", 0, h) for h in (0, 3)),
        Writer("feed_forward", 0),
        *([] if neox else [Writer("heads", 1, 2), Writer("feed_forward", 1)]),
    ]
    readers = [
        *([] if neox else [Reader(k, last, h) for k in ("query", "key", "value") for h in (0, 1)]),  # type: ignore[arg-type]
        *([Reader("head", last, 3)] if kind == "gpt2" else []),
        Reader("feed_forward", last),
        Reader("output"),
    ]
    found = [Edge(w, r, i) for w in writers for r in readers for i in (None, 1, 3)]
    if not neox:
        found += [
            Edge(Writer("heads", 1, 2), Reader("feed_forward", 1), 3),
            Edge(Writer("embedding"), Reader("key", 0, 1), 1),
            Edge(Writer("embedding"), Reader("feed_forward", 0)),
        ]
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_edges_as_with_plain_hooks(kind: str) -> None:
    twin = Twin(kind)
    edges = edges_of(kind)
    with Unchanged(twin.model, {"input_ids": INPUTS}):
        found = patching.edge_effects(twin.model, INPUTS, BASELINES, number, edges)
    # Llama and NeoX take their softmax in float32, and many at once round otherwise.
    close = 1e-9 if kind == "gpt2" else 1e-6
    for row, edge in zip(found.rows(), edges, strict=True):
        out, into = twin.effects(edge)
        assert row["out"] == pytest.approx(out, abs=close), edge
        assert row["into"] == pytest.approx(into, abs=close), edge
        assert row["mean"] == pytest.approx((out + into) / 2, abs=close)
        assert row["writer_kind"] == edge.writer.kind
        assert row["reader_head"] == edge.reader.head
    for reader in {edge.reader for edge in edges}:
        sizes = [
            abs(row["out"])
            for row, e in zip(found.rows(), edges, strict=True)
            if e.reader == reader
        ]
        assert max(sizes) > 1e-4, reader
    torch.testing.assert_close(found.mean, (found.out + found.into) / 2)


def test_one_by_one() -> None:
    model = models.tiny_gpt2(layers=3)
    edges = edges_of("gpt2")
    many, one = (
        patching.edge_effects(model, INPUTS, BASELINES, number, edges, internal_batch_size=size)
        for size in (None, 1)
    )
    torch.testing.assert_close(many.out, one.out, rtol=0, atol=1e-10)
    torch.testing.assert_close(many.into, one.into, rtol=0, atol=1e-10)
    assert many.value == one.value


def test_all_edges_into_the_output_cut_at_once_are_the_change() -> None:
    """If the output reads nothing of what changed, it gives what it gives for the baseline."""
    model = models.tiny_gpt2(layers=2)
    writers = [
        Writer("embedding"),
        *(Writer("heads", layer, head) for layer in range(2) for head in range(4)),
        *(Writer("feed_forward", layer) for layer in range(2)),
    ]

    def linear(output: Any) -> Tensor:
        return output[0][:, -1] @ torch.linspace(-1, 2, 32).to(output[0])  # type: ignore[no-any-return]

    # Linear in the tokens leaving, so that the parts add up.
    model.ln_f = nn.Identity().eval()  # type: ignore[assignment]
    edges = [Edge(writer, Reader("output")) for writer in writers]
    found = patching.edge_effects(model, INPUTS, BASELINES, linear, edges)
    change = found.value - found.baseline_value
    assert float(found.out.sum()) == pytest.approx(change, abs=1e-9)
    assert float(found.into.sum()) == pytest.approx(change, abs=1e-9)


@pytest.mark.parametrize(
    ("edge", "says"),
    [
        (Edge(Writer("heads", 1, 0), Reader("query", 1, 0)), "does not read what"),
        (Edge(Writer("heads", 2, 0), Reader("feed_forward", 1)), "does not read what"),
        (Edge(Writer("feed_forward", 1), Reader("feed_forward", 1)), "does not read what"),
        (Edge(Writer("heads", 0, 9), Reader("output")), "there is no writer"),
        (Edge(Writer("embedding"), Reader("feed_forward", 9)), "there is no reader"),
        (Edge(Writer("embedding"), Reader("query", 1, 9)), "give one of its 4 heads"),
        (Edge(Writer("embedding"), Reader("query", 1)), "give one of its 4 heads"),
        (Edge(Writer("embedding"), Reader("output"), 4), "there are 4 tokens"),
    ],
)
def test_edges_that_are_not_there(edge: Edge, says: str) -> None:
    model = models.tiny_gpt2(layers=3)
    with pytest.raises(LigError, match=says):
        patching.edge_effects(model, INPUTS, BASELINES, number, [edge])


def test_refused() -> None:
    edge = [Edge(Writer("embedding"), Reader("output"))]
    for kind in ("bert", "gemma2", "olmo2"):
        model = models.tiny_bert() if kind == "bert" else family(kind)
        with pytest.raises(LigError, match=r"does not add up to what changes .* a norm or a gate"):
            patching.edge_effects(model, INPUTS, BASELINES, number, edge)
    parallel = [Edge(Writer("heads", 1, 0), Reader("feed_forward", 1))]
    with pytest.raises(LigError, match="it comes before it or beside it"):
        patching.edge_effects(family("gpt_neox"), INPUTS, BASELINES, number, parallel)
    query = [Edge(Writer("embedding"), Reader("query", 1, 0))]
    with pytest.raises(LigError, match="is reached at its output projection"):
        patching.edge_effects(family("gpt_neo"), INPUTS, BASELINES, number, query)
    with pytest.raises(LigError, match="edges are empty"):
        patching.edge_effects(family("gpt_neo"), INPUTS, BASELINES, number, [])


def family(name: str) -> nn.Module:
    return next(one for one in FAMILIES if one.name == name).build()
