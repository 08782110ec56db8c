"""A block's MLP: found in every family, put back, replaced, and named by the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import Block, LigError
from captum_lig.model.call import BlockCall, FeedForward
from captum_lig.model.feed_forward import at_feed_forward, find_feed_forward
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from tests.helpers.families import FAMILIES, drawn, ids, noise
from tests.helpers.hand_written import CausalSelfAttention, HandGPT
from tests.helpers.state import Unchanged

EXPECTED: dict[str, list[tuple[str, int]]] = {
    "bert": [("output.dropout", 0)],
    "distilbert": [("ffn", 0)],
    "albert": [("albert_layers.0.ffn_output", 0)],
    "modernbert": [("mlp", 0)],
    "gpt2": [("mlp", 0)],
    "gpt_neox": [("post_mlp_dropout", 0)],
    "opt": [("fc2", 0)],
    "bloom": [("mlp.dense_4h_to_h", 0)],
    "falcon": [("mlp", 0)],
    "llama": [("mlp", 0)],
    "mixtral": [("mlp", 0)],
    "gpt_oss": [("mlp", 0)],
    "gemma2": [("post_feedforward_layernorm", 0)],
    "phi": [("resid_dropout", 1)],
    "vit": [("dropout", 1)],
    "dinov2": [("drop_path", 1)],
    "t5": [("layer.1.dropout", 0), ("layer.2.dropout", 0)],
    "bart": [("fc2", 0)],
    "torch.nn.TransformerEncoder": [("dropout2", 0)],
    "a ViT as timm's": [("mlp", 0)],
}
"""By family, in the order of the blocks, those of an encoder first."""


@contextmanager
def blocks(model: nn.Module, inputs: Any, layer: Any = None) -> Iterator[list[BlockCall]]:
    with Finder(model, layer).blocks(ModelCall.of(model, inputs)) as calls:
        yield calls


def run(call: BlockCall) -> Tensor:
    one = call.for_text(0)
    with torch.no_grad():
        return one.on(one.hidden)


def by_hook(call: BlockCall, found: FeedForward, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The block's output with what the MLP gives changed by a plain hook."""
    turns = 0

    def leave(_: nn.Module, args: Any, output: Any) -> Any:
        nonlocal turns
        turns += 1
        if turns - 1 != found.turn:
            return None
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = found.module.register_forward_hook(leave)
    try:
        return run(call)
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Any) -> None:
    model = family.build()
    inputs = family.inputs(model)
    names = []
    with Unchanged(model, inputs), blocks(model, inputs) as calls:
        for call in calls:
            found = find_feed_forward(call)
            assert found is not None
            names.append((found.name, found.turn))
            replaced_as_by_a_hook(call, found)
    expected = EXPECTED.get(family.name)
    if expected is not None:
        assert list(dict.fromkeys(names)) == expected


def replaced_as_by_a_hook(call: BlockCall, found: FeedForward) -> None:
    seen: list[Tensor] = []

    def keep(own: Callable[[], Tensor]) -> Tensor:
        seen.append(own())
        return seen[-1]

    with at_feed_forward(found, keep):
        again = run(call), run(call)  # two runs of the block in one context
    output = call.output[:1]
    for each in again:
        torch.testing.assert_close(each, output, rtol=1e-6, atol=1e-7)
    value, before = seen[0].detach(), seen[0].detach().clone()
    assert value.shape == output.shape
    # Put back without running it, it gives the same; what is put there is not written to.
    ran = []
    handle = found.module.register_forward_hook(lambda *_: ran.append(1))
    with at_feed_forward(found, lambda own: value):
        torch.testing.assert_close(run(call), output, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(run(call), output, rtol=1e-6, atol=1e-7)
    handle.remove()
    assert torch.equal(value, before)
    # Halved, it gives what a plain hook gives.
    with at_feed_forward(found, lambda own: own() / 2):
        halved = run(call)
    torch.testing.assert_close(halved, by_hook(call, found, lambda x: x / 2), rtol=0, atol=0)
    assert bool(((halved - output).abs().amax(-1) > 1e-6).all())


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.runs = nn.Linear(32, 32), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return torch.tanh(self.inner(x))


class Kind(nn.Module):
    """A block of one kind: its MLP before or after its norm, beside the attention, or not there."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention, self.mlp = CausalSelfAttention(4), Counting()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "parallel, MLP first":
            added = self.mlp(self.norm(x))
            return x + self.attention(self.norm(x)) + added
        if self.kind == "no MLP":
            return x + self.attention(self.norm(x))
        if self.kind == "no MLP, post-norm":
            return self.norm(x + self.attention(x))
        x = self.norm(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("parallel, MLP first", "mlp"),
        ("post-norm", "mlp"),
        ("no MLP", None),
        ("no MLP, post-norm", None),
    ],
)
def test_kinds_of_blocks(kind: str, name: str | None) -> None:
    model = drawn(nn.Sequential(Kind(kind), Kind(kind)))
    with blocks(model, noise(1, 4, 32)) as calls:
        found = [find_feed_forward(call) for call in calls]
        assert [None if one is None else one.name for one in found] == [name, name]
        if name is None:
            return
        for call, one in zip(calls, found, strict=True):
            assert one is not None
            before = call.module.mlp.runs  # type: ignore[union-attr]
            with at_feed_forward(one, lambda own: torch.zeros(1, 4, 32, dtype=torch.float64)):
                run(call)
            assert call.module.mlp.runs == before  # type: ignore[union-attr]


def test_of_several_texts_the_longest() -> None:
    model = HandGPT()
    drawn(model)
    batch = torch.tensor([[11, 45, 23, 8], [3, 9, 2, 7]])
    with blocks(model, batch) as calls:
        for call in calls:
            found = find_feed_forward(call)
            assert found is not None
            assert found.name == "mlp"
            with at_feed_forward(found, lambda own: own()):
                one = call.for_text(1)
                torch.testing.assert_close(one.on(one.hidden), call.output[1:])


def test_a_copy_in_another_precision_has_its_own() -> None:
    model = drawn(HandGPT()).float()
    layer = Block("blocks.1", feed_forward="mlp")
    with blocks(model, ids(model), layer) as (call,):
        assert call.feed_forward is not None
        assert call.feed_forward.module is model.get_submodule("blocks.1.mlp")
        wide = call.in_dtype(torch.float64)
        assert wide.feed_forward is not None
        assert wide.feed_forward.block is wide.module
        assert wide.feed_forward.module is wide.module.get_submodule("mlp")
        with at_feed_forward(wide.feed_forward, lambda own: own() / 2):
            halved = run(wide)
        assert halved.dtype == torch.float64
        assert bool((halved != wide.output[:1]).any())


@pytest.mark.parametrize("named", ["mlp", "blocks.1.mlp", "module"])
def test_named_by_the_caller(named: str) -> None:
    model = drawn(HandGPT())
    given = model.get_submodule("blocks.1.mlp") if named == "module" else named
    whole = Block("blocks.1", feed_forward=given)
    out = Block("blocks.1", attention="blocks.1.attn.c_proj", heads=4, feed_forward=given)
    for layer in (whole, out):
        with blocks(model, ids(model), layer) as (call,):
            found = find_feed_forward(call)
            assert found is not None
            assert found.name == "mlp"
            replaced_as_by_a_hook(call, found)


def test_named_by_the_caller_in_a_span() -> None:
    model = drawn(HandGPT())
    span = Block("blocks.0", output="blocks.1", feed_forward="blocks.1.mlp")
    with blocks(model, ids(model), span) as (call,):
        found = find_feed_forward(call)
        assert found is not None
        assert found.name == "model.blocks.1.mlp"
        replaced_as_by_a_hook(call, found)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("ln_1", "reaches the block's output at other tokens: what it gives at token"),
        ("blocks.0.mlp", "is not a module inside the block"),
        ("blocks.1", "is not a module inside the block"),
        ("mlp.0", "gives no tokens"),
        ("mpl", "'mpl' is not the name of a module"),
    ],
)
def test_refused(named: str, says: str) -> None:
    model = drawn(HandGPT())
    layer = Block("blocks.1", feed_forward=named)
    with pytest.raises(LigError, match=says), blocks(model, ids(model), layer):
        pass


def test_refused_where_it_reaches_nothing_or_cannot_be_reached() -> None:
    model = drawn(HandGPT())
    layer = Block("blocks.1", attention="blocks.1.attn.c_proj", heads=4, feed_forward="ln_1")
    with (
        pytest.raises(LigError, match="does not reach the block's output at the same token"),
        blocks(model, ids(model), layer),
    ):
        pass

    def post(u: Tensor, z: Tensor) -> Tensor:
        return z + u.flatten(2)

    parts = Block(
        "blocks.1",
        pre=lambda z: z,
        core=lambda z: z.unflatten(-1, (4, -1)),
        post=post,
        feed_forward="mlp",
    )
    with (
        pytest.raises(LigError, match="cannot be reached in a block of pre, core and post"),
        blocks(model, ids(model), parts),
    ):
        pass
    with pytest.raises(LigError, match="give a module of the model or its dotted name"):
        Block("blocks.1", feed_forward=3)  # type: ignore[arg-type]
