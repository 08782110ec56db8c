"""What a block gets beside its states, and how these come: each token's, tokens first, in pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import Block, LayerFlow, LayerFlowIG, LigError, inspect_model
from tests.helpers import twin_blocks, twins
from tests.helpers.families import drawn, noise
from tests.helpers.sdpa_blocks import HEADS, LENGTH, WIDTH, Attending, Model

NAMES = ("attention", "mlp", "layer", "influence")


class Gated(Attending):
    """After its attention it multiplies by something that it gets for each token."""

    def __init__(self) -> None:
        super().__init__({"is_causal": True})
        self.gate, self.up = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH)

    def forward(self, x: Tensor, extra: Tensor, scale: Any = None) -> Tensor:
        return self.after(super().forward(x), extra)

    def after(self, y: Tensor, extra: Tensor) -> Tensor:
        return y + self.up(torch.tanh(self.gate(y)) * extra)  # type: ignore[no-any-return]


class OneByOne(Gated):
    """The same for a single sequence."""

    def forward(self, x: Tensor, extra: Tensor, scale: Any = None) -> Tensor:
        assert len(x) == 1
        return super().forward(x, extra)


class WithExtra(nn.Module):
    """It makes it from its tokens, as the model and not as the block."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.extra, self.blocks = nn.Linear(WIDTH, 3), nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        extra = 2 * self.extra(x)
        for block in self.blocks:
            x = block(x, extra, {"of no use": [extra[:, :1]]})
        return x


class InParts(Gated):
    """It gets that as two factors, and its places too, which it does not use."""

    def forward(self, x: Tensor, extra: Tensor, scale: Any = None, places: Any = None) -> Tensor:
        return super().forward(x, extra * scale)


class WithParts(WithExtra):
    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).expand(x.shape[:2])
        scale = 1 + places.to(x)[..., None] / 3
        for block in self.blocks:
            x = block(x, 2 * self.extra(x) / scale, scale, places)
        return x


def twin(block: Gated, extra: Tensor) -> twin_blocks.TwinBlock:
    """The block for one text, by hand."""

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (HEADS, -1)).transpose(0, 1)

    def pre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = block.norm(z)
        return split(block.query(x)), split(block.key(x)), split(block.value(x))

    def core(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return torch.softmax(logits + mask, -1) @ v

    def post(u: Tensor, z: Tensor) -> Tensor:
        return block.after(z + block.out(u.transpose(0, 1).flatten(1)), extra)

    mask = torch.full((len(extra), len(extra)), -1e30, dtype=extra.dtype).triu(1)
    return twin_blocks.TwinBlock(pre, core, post, mask)


@pytest.mark.parametrize("kind", [Gated, OneByOne, InParts])
@pytest.mark.parametrize("scalarization", ["l2", "projection"])
@pytest.mark.parametrize("baseline", ["target_token", "zero"])
def test_what_is_each_tokens_goes_with_it(
    baseline: str, scalarization: str, kind: type[Gated]
) -> None:
    block = kind()
    model = drawn((WithParts if kind is InParts else WithExtra)(block))
    texts = noise(1 if kind is OneByOne else 2, LENGTH, WIDTH)
    assert inspect_model(model, texts).not_supported == ()
    ig = LayerFlowIG(model, 0, scalarization=scalarization)
    given = {"baselines": baseline, "boundaries": NAMES, "n_steps": 6, "tolerance": None}
    flow, again = ig.attribute(texts, **given), ig.attribute(texts.flip(1), **given)
    assert isinstance(flow, LayerFlow)
    assert not torch.equal(flow.layer, again.layer)
    for text, z in enumerate(texts):
        reference = twin(block, 2 * model.extra(z).detach())
        rule = twins.gauss_legendre(6)
        args = reference, z, baseline, scalarization, *rule
        m, r, _ = twins.mlp_map(*args)
        expected = {
            "attention": twins.attention_map(*args)[0],
            "mlp": m,
            "residual": r,
            "layer": twins.layer_map(*args)[0],
        }
        vectors = twins.layer_map(reference, z, baseline, "vector", *rule)[0]
        expected["influence"] = torch.linalg.vector_norm(vectors, dim=-1)
        for name, value in expected.items():
            found = getattr(flow, name)[text]
            torch.testing.assert_close(found, value, rtol=2e-4, atol=2e-5, msg=name)


class TokensFirst(nn.Module):
    """States (S, B, D), as XLNet's and FSMT's; its attention is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(torch.einsum("ibd,jbd->bij", self.query(x), self.key(x)), -1)
        return x + self.out(torch.einsum("bij,jbd->ibd", weights, x))  # type: ignore[no-any-return]


class Transposed(Model):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class Pairs(Attending):
    """Each sees its neighbour on the first axis after itself, as LightGlue's pictures."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.out(x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1).mean(1, keepdim=True))


class NoGradients(Attending):
    """As Reformer's, which are differentiated by code of their own."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Detached(Attending):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


def refused(model: nn.Module, x: Tensor, *says: str) -> None:
    for attribute in (
        lambda: LayerFlowIG(model).attribute(x),
        lambda: LayerFlowIG(model, [Block("blocks.0")]).attribute(x, boundaries=("layer",)),
    ):
        with pytest.raises(LigError) as caught:
            attribute()
        assert all(words in str(caught.value) for words in says), str(caught.value)
    reasons = inspect_model(model, x).not_supported
    assert any(all(words in reason for words in says[1:]) for reason in reasons), reasons


@pytest.mark.parametrize("texts", [1, 2, LENGTH])
def test_tokens_first(texts: int) -> None:
    model = drawn(Transposed(TokensFirst()))
    says = ("blocks.0", "tokens first", f"({LENGTH}, {texts}, {WIDTH})", "(B, S, D)", "SetToSetIG")
    refused(model, noise(texts, LENGTH, WIDTH), *says)


def test_pairs() -> None:
    model = drawn(Model(Pairs({})))
    refused(model, noise(4, LENGTH, WIDTH), "blocks.0", "pairs or groups", "by itself")


@pytest.mark.parametrize("kind", [NoGradients, Detached])
def test_no_gradients(kind: type[Attending]) -> None:
    model = drawn(Model(kind({})))
    refused(model, noise(2, LENGTH, WIDTH), "blocks.0", "no gradients", "no_grad")


class Masked(Attending):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.how = {"attn_mask": mask}
        return super().forward(x)


class Masking(nn.Module):
    """Its first texts may read nothing at all."""

    def __init__(self, empty: int) -> None:
        super().__init__()
        self.blocks, self.empty = nn.ModuleList([Masked({})]), empty

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(len(x), 1, x.shape[1], x.shape[1])
        mask[: self.empty] = torch.finfo(x.dtype).min
        for block in self.blocks:
            x = block(x, mask=mask)
        return x


def test_a_first_text_that_is_all_padding() -> None:
    texts = noise(2, LENGTH, WIDTH)
    flow = LayerFlowIG(drawn(Masking(1)), 0).attribute(texts, n_steps=4, tolerance=None)
    alone = LayerFlowIG(drawn(Masking(0)), 0).attribute(texts[1:], n_steps=4, tolerance=None)
    torch.testing.assert_close(flow.layer[1:], alone.layer)
    assert not bool(flow.layer[0].any())


def test_texts_that_are_all_padding() -> None:
    with pytest.raises(LigError, match="every token of every text is padding"):
        LayerFlowIG(drawn(Masking(2))).attribute(noise(2, LENGTH, WIDTH))
