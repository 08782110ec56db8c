"""Effects of single nodes, against runs of the whole model with plain forward hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import Block, LigError, patching
from captum_lig.patching import Node
from tests.helpers import models
from tests.helpers.families import FAMILIES, noise
from tests.helpers.state import Unchanged

KINDS = ("tokens", "heads", "attention", "feed_forward")


def number(output: Any) -> Tensor:
    """Of what a model gives, not linear, of every token."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    weight = torch.linspace(-1, 2, hidden.shape[-1]).to(hidden)
    each = torch.tanh(hidden @ weight / 5)
    return each[:, -1] + each.square().sum(-1) / 3 + each[:, 0]


@dataclass
class Twin:
    """A model whose parts are named by hand, run anew for each node."""

    model: nn.Module
    blocks: list[str]
    """Names of the blocks, in the order they run."""
    out: str
    """In a block, the module whose input is the heads side by side."""
    mlp: str
    """In a block, the module that gives what the MLP adds."""
    heads: int
    turn: int = 0
    """Which of its calls within a block."""
    calls: int = 1
    """How often it is called in a block."""

    def run(self, inputs: dict[str, Any], node: Node, change: Callable[[Tensor], Tensor]) -> Any:
        """The output, with a node changed; `change` gets all of the tokens at its place."""
        end = node.kind == "tokens" and node.layer == len(self.blocks)
        name = self.blocks[-1 if end else node.layer]
        at = self.blocks[: self.blocks.index(name) + 1].count(name) - 1
        if self.blocks.count(name) > 1:  # one module, all of the layers
            at = len(self.blocks) - 1 if end else node.layer
        inside = {"heads": self.out, "attention": self.out, "feed_forward": self.mlp}
        path = f"{name}.{inside[node.kind]}" if node.kind in inside else name
        module = self.model.get_submodule(path)
        if node.kind == "feed_forward":
            at = at * self.calls + self.turn
        seen = 0

        def here() -> bool:
            nonlocal seen
            seen += 1
            return seen - 1 == at

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if not here():
                return None
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            if not here():
                return None
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        if end or node.kind == "feed_forward":
            handle: Any = module.register_forward_hook(after)
        else:
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            with torch.no_grad():
                return self.model(**inputs)
        finally:
            handle.remove()

    def value(self, inputs: dict[str, Any], node: Node) -> Tensor:
        """What there is at a node's place: `(1, S, width)`."""
        seen: list[Tensor] = []

        def look(x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x

        self.run(inputs, node, look)
        return seen[0]

    def put(self, inputs: dict[str, Any], node: Node, other: Tensor, positions: list[int]) -> float:
        """The number with a node's value from another run, or a mean vector, put in."""

        def change(own: Tensor) -> Tensor:
            changed = own.clone()
            width = own.shape[-1]
            channels = slice(None)
            if node.kind == "heads":
                assert node.head is not None
                size = width // self.heads
                channels = slice(node.head * size, (node.head + 1) * size)
            chosen = positions if node.position is None else [positions[node.position]]
            flat = own.dim() == 2  # some give (S, D)
            for i in chosen:
                new = other if other.dim() == 1 else other.reshape(-1, width)[i]
                row = changed[i] if flat else changed[0, i]
                row[channels] = new[channels]
            return changed

        return float(number(self.run(inputs, node, change)))

    def effects(
        self, inputs: dict[str, Any], baseline: dict[str, Any], node: Node, positions: list[int]
    ) -> tuple[float, float]:
        with torch.no_grad():
            ends = [float(number(self.model(**x))) for x in (inputs, baseline)]
        out = ends[0] - self.put(inputs, node, self.value(baseline, node), positions)
        into = self.put(baseline, node, self.value(inputs, node), positions) - ends[1]
        return out, into


def family(name: str) -> Any:
    return next(one for one in FAMILIES if one.name == name)


def tiny(name: str) -> nn.Module:
    return models.MODELS[name](layers=3)


def twin(name: str) -> Twin:
    model: Any = tiny(name) if name in models.MODELS else family(name).build()
    if name != "falcon":
        model.set_attn_implementation("eager")  # the others' softmax is in another precision
    prefix, out, mlp = {
        "bert": ("encoder.layer", "attention.output.dense", "output.dense"),
        "gpt2": ("h", "attn.c_proj", "mlp"),
        "llama": ("layers", "self_attn.o_proj", "mlp"),
        "gpt_neox": ("layers", "attention.dense", "mlp"),
        "gptj": ("h", "attn.out_proj", "mlp"),
        "bloom": ("h", "self_attention.dense", "mlp.dense_4h_to_h"),
        "falcon": ("h", "self_attention.dense", "mlp"),
        "phi": ("layers", "self_attn.dense", "mlp"),
        "opt": ("decoder.layers", "self_attn.out_proj", "fc2"),
        "olmo2": ("layers", "self_attn.o_proj", "post_feedforward_layernorm"),
        "vit": ("layers", "attention.o_proj", "mlp"),
        "albert": ("encoder.albert_layer_groups", *(f"albert_layers.0.{x}" for x in ALBERT)),
    }[name]
    layers = 3 if name in models.MODELS else 2
    blocks = [f"{prefix}.{0 if name == 'albert' else layer}" for layer in range(layers)]
    return Twin(model, blocks, out, mlp, models.HEADS)


ALBERT = ("attention.dense", "ffn_output")
NAMES = (
    *("bert", "gpt2", "llama", "gpt_neox", "gptj", "bloom", "falcon", "phi", "opt", "olmo2"),
    *("vit", "albert"),
)


def two(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if name == "vit":
        return {"pixel_values": noise(1, 3, 8, 8)}, {"pixel_values": noise(1, 3, 8, 8).flip(-1)}
    ids = torch.tensor([[11, 45, 23, 8]])
    other = torch.tensor([[11, 7, 23, 31]])
    return {"input_ids": ids}, {"input_ids": other}


@pytest.mark.parametrize("name", NAMES)
def test_every_node_as_with_plain_hooks(name: str) -> None:
    built = twin(name)
    inputs, baseline = two(name)
    for by_position in (True, False) if name in ("bert", "llama", "bloom") else (True,):
        with Unchanged(built.model, inputs):
            found = patching.effects(
                built.model,
                inputs,
                baseline,
                number,
                KINDS,
                by_position=by_position,
                internal_batch_size=1,
            )
        positions = found.positions.tolist()
        assert len(positions) == (5 if name == "vit" else 4)
        rows = found.rows()
        kinds = [row["kind"] for row in rows]
        layers, each = len(built.blocks), len(positions) if by_position else 1
        assert kinds.count("tokens") == (layers + 1) * len(positions)
        assert kinds.count("heads") == layers * models.HEADS * each
        assert kinds.count("attention") == kinds.count("feed_forward") == layers * each
        for row, node in zip(rows, found.nodes, strict=True):
            out, into = built.effects(inputs, baseline, node, positions)
            assert row["out"] == pytest.approx(out, abs=1e-9), node
            assert row["into"] == pytest.approx(into, abs=1e-9), node
            assert row["mean"] == pytest.approx((out + into) / 2, abs=1e-9)
            assert found.out.of(node) == row["out"]
            assert found.into.of(node) == row["into"]
            assert found.mean.of(node) == row["mean"]
        # Not all of them are nothing.
        for kind in KINDS:
            sizes = [abs(row["out"]) for row in rows if row["kind"] == kind]
            assert max(sizes) > 1e-3, kind


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bloom"])
def test_many_at_once_are_as_one_by_one(name: str) -> None:
    model = twin(name).model
    inputs, baseline = two(name)
    each = [
        patching.effects(model, inputs, baseline, number, KINDS, internal_batch_size=size)
        for size in (1, 3, None)
    ]
    for one in each[1:]:
        # Llama and Bloom take their softmax in float32.
        close = 1e-9 if name in ("bert", "gpt2") else 1e-6
        torch.testing.assert_close(one.taken_out, each[0].taken_out, rtol=0, atol=close)
        torch.testing.assert_close(one.put_in, each[0].put_in, rtol=0, atol=close)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_text_in_a_padded_batch_is_as_alone(name: str) -> None:
    model = tiny(name)
    batch = models.padded_batch(model, (5, 3))  # type: ignore[arg-type]
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, 1] = 7

    def summed(output: Any) -> Tensor:
        return torch.tanh(output[0][:, :3].sum((1, 2)) / 9)

    padded = patching.effects(model, batch, other, summed, KINDS, text=1, internal_batch_size=1)
    alone = [{k: v[1:, :3] for k, v in x.items()} for x in (batch, other)]
    found = patching.effects(model, *alone, summed, KINDS, internal_batch_size=1)
    assert padded.nodes == found.nodes
    assert padded.positions.tolist() == [0, 1, 2]
    torch.testing.assert_close(padded.taken_out, found.taken_out, rtol=0, atol=1e-7)
    torch.testing.assert_close(padded.put_in, found.put_in, rtol=0, atol=1e-7)
    assert float(found.taken_out.abs().max()) > 1e-2
    with pytest.raises(LigError, match="hold 2 texts: say which one"):
        patching.effects(model, batch, other, summed)


def test_shapes_are_those_of_a_trace() -> None:
    model = tiny("gpt2")
    inputs, baseline = two("gpt2")
    found = patching.effects(model, inputs, baseline, number)
    assert found.layers == (0, 1, 2)
    for values in (found.out, found.into, found.mean):
        assert values.tokens is not None
        assert values.heads is not None
        assert values.feed_forward is not None
        assert values.attention is None
        assert values.tokens.shape == (4, 4)
        assert values.heads.shape == (3, 4, 4)
        assert values.feed_forward.shape == (3, 4)
        assert values.tokens.dtype == torch.float64
        assert not bool(values.heads.isnan().any())
    for way in (found.out, found.into):
        assert way.tokens is not None
        whole = float(way.tokens[-1].sum())
        assert found.value - found.baseline_value == pytest.approx(whole, abs=1e-9)
    # The number reads the last hidden states alone: all of its tokens put back are the baseline.
    some = patching.effects(model, inputs, baseline, number, layers=[1], by_position=False)
    assert some.layers == (1,)
    assert some.out.tokens is not None
    assert some.out.heads is not None
    torch.testing.assert_close(some.out.tokens, found.out.tokens[1:3])
    assert some.out.heads.shape == (1, 4)


def test_single_nodes() -> None:
    model = tiny("llama")
    inputs, baseline = two("llama")
    whole = patching.effects(model, inputs, baseline, number, internal_batch_size=1)
    nodes = [Node("heads", 2, 3, 1), Node("tokens", 3, 3), Node("heads", 0, 1, 0)]
    found = patching.effects(model, inputs, baseline, number, nodes, internal_batch_size=1)
    assert found.nodes == tuple(nodes)
    for node in nodes:
        assert found.out.of(node) == whole.out.of(node)
        assert found.into.of(node) == whole.into.of(node)
    assert found.out.feed_forward is None
    assert found.out.heads is not None
    assert int((~found.out.heads.isnan()).sum()) == 2


def test_put_to_means() -> None:
    built = twin("gpt2")
    inputs, baseline = two("gpt2")
    texts = [inputs, baseline, {"input_ids": torch.tensor([[4, 9], [8, 8]])}]
    average = patching.means(built.model, texts)
    found = patching.effects(built.model, inputs, None, number, KINDS, instead=average)
    lines = [inputs, baseline, *({"input_ids": x} for x in torch.tensor([[[4, 9]], [[8, 8]]]))]
    with torch.no_grad():
        value = float(number(built.model(**inputs)))
    for node in found.nodes[::5]:
        mean = torch.cat([built.value(x, node)[0] for x in lines]).mean(0)
        expected = value - built.put(inputs, node, mean, [0, 1, 2, 3])
        assert found.out.of(node) == pytest.approx(expected, abs=1e-9), node
    assert found.put_in is None
    assert set(found.rows()[0]) == {"kind", "layer", "position", "head", "out"}
    with pytest.raises(LigError, match="nodes were put to means"):
        _ = found.mean
    with pytest.raises(LigError, match="texts are empty"):
        patching.means(built.model, [])


def test_blocks_below_do_not_run() -> None:
    model = tiny("gpt2")
    inputs, baseline = two("gpt2")
    ran = [0, 0, 0]
    handles = [
        block.mlp.register_forward_hook(lambda *_, n=n: ran.__setitem__(n, ran[n] + 1))  # type: ignore[misc]
        for n, block in enumerate(models.blocks(model))  # type: ignore[arg-type]
    ]
    patching.effects(model, inputs, baseline, number, ["tokens"], layers=[0])
    before = list(ran)
    patching.effects(model, inputs, baseline, number, [Node("heads", 2, 3, 0)], layers=[2])
    for handle in handles:
        handle.remove()
    first, second, third = (b - a for a, b in zip(before, ran, strict=True))
    assert first == second
    assert third > first + 2


def test_what_is_rounded_is_said() -> None:
    inputs, baseline = two("gpt2")
    model = tiny("gpt2").bfloat16()
    with pytest.warns(UserWarning, match=r"comes in bfloat16, .* rounded to steps of"):
        patching.effects(model, inputs, baseline, number, [Node("tokens", 1, 1)])


@pytest.mark.parametrize("size", [None, 2])
def test_vectors_into_torchs_own_layers(size: int | None) -> None:
    """Attention that is reached at torch's function, and an input that is no text."""
    model = family("torch.nn.TransformerEncoder").build()
    x, other = noise(1, 4, 32), noise(1, 4, 32).flip(1)
    found = patching.effects(model, x, other, number, KINDS, internal_batch_size=size)
    with torch.no_grad():
        change = float(number(model(x)) - number(model(other)))
    assert found.value - found.baseline_value == pytest.approx(change, abs=1e-9)  # type: ignore[operator]
    layers: Any = model.get_submodule("encoder.layers")
    value = {"x": x}

    def hooked(layer: nn.Module, position: int, width: slice, new: Tensor) -> float:
        def change(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[0, position, width] = new[0, position, width]
            return changed

        handle = layer.register_forward_hook(change)
        with torch.no_grad():
            result = float(number(model(**value)))
        handle.remove()
        return result

    seen: list[Tensor] = []
    handle = layers[0].dropout2.register_forward_hook(lambda _, __, m: seen.append(m))
    with torch.no_grad():
        model(other)
    handle.remove()
    for position in range(4):
        expected = found.value - hooked(layers[0].dropout2, position, slice(None), seen[0])
        out = found.out.of(Node("feed_forward", 0, position))
        assert out == pytest.approx(expected, abs=1e-9)


def test_an_encoder_and_its_decoder() -> None:
    model = family("bart").build()
    inputs = {
        "input_ids": torch.tensor([[11, 45, 23, 8]]),
        "decoder_input_ids": torch.tensor([[1, 9, 23]]),
    }
    baseline = {**inputs, "input_ids": torch.tensor([[11, 7, 23, 31]])}
    with pytest.raises(LigError, match="several streams"):
        patching.effects(model, inputs, baseline, number)
    encoder = patching.effects(model, inputs, baseline, number, KINDS, layers=[0, 1])
    built = Twin(
        model, ["encoder.layers.0", "encoder.layers.1"], "self_attn.out_proj", "fc2", models.HEADS
    )
    for node in encoder.nodes[::7]:
        out, into = built.effects(inputs, baseline, node, [0, 1, 2, 3])
        assert encoder.out.of(node) == pytest.approx(out, abs=1e-9), node
        assert encoder.into.of(node) == pytest.approx(into, abs=1e-9), node
    assert float(encoder.taken_out.abs().max()) > 1e-3
    decoder = patching.effects(model, inputs, baseline, number, KINDS, layers=[2, 3])
    built.blocks = ["decoder.layers.0", "decoder.layers.1"]
    for node in decoder.nodes[::5]:
        twin_node = Node(node.kind, node.layer - 2, node.position, node.head)
        out, into = built.effects(inputs, baseline, twin_node, [0, 1, 2])
        assert decoder.out.of(node) == pytest.approx(out, abs=1e-9), node
        assert decoder.into.of(node) == pytest.approx(into, abs=1e-9), node
    assert float(decoder.taken_out.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": ["neurons"]}, "give some of tokens, heads, attention, feed_forward"),
        ({"nodes": []}, "give some of tokens"),
        ({"nodes": [Node("heads", 7, 0, 0)]}, "which does not exist"),
        ({"nodes": [Node("tokens", 0)]}, "which does not exist"),
        ({"nodes": [Node("tokens", 0, 1)] * 2}, "hold one twice"),
        (
            {"nodes": [Node("attention", 0, 1), Node("attention", 1)]},
            "at one token and at all",
        ),
        ({"layers": [3]}, "out of range, there are 3 layers"),
        ({"internal_batch_size": 0}, "whole number, at least 1"),
        ({"text": 2}, "inputs hold 1 texts"),
    ],
)
def test_refused(given: dict[str, Any], says: str) -> None:
    inputs, baseline = two("gpt2")
    with pytest.raises(LigError, match=says):
        patching.effects(tiny("gpt2"), inputs, baseline, number, **given)


def test_blocks_that_the_caller_describes() -> None:
    model = tiny("gpt2")
    inputs, baseline = two("gpt2")
    described = [
        Block(f"h.{n}", attention=f"h.{n}.attn.c_proj", heads=4, feed_forward="mlp")
        for n in range(3)
    ]
    own, found, named = (
        patching.effects(
            model, inputs, baseline, number, KINDS, layers=layers, internal_batch_size=1
        )
        for layers in (described, None, ["h.0", "h.1", model.get_submodule("h.2")])
    )
    assert own.nodes == found.nodes == named.nodes
    for one in (own, named):
        torch.testing.assert_close(one.taken_out, found.taken_out, rtol=0, atol=1e-9)
        torch.testing.assert_close(one.put_in, found.put_in, rtol=0, atol=1e-9)
    parts = Block("h.0", output="h.1")
    with pytest.raises(LigError, match="spans several modules"):
        patching.effects(model, inputs, baseline, number, layers=[parts])
