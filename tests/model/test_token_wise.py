"""Of a long text a few tokens are looked at, where they show what the block does to all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SwitchTransformersConfig, SwitchTransformersEncoderModel

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.cost import Meter
from captum_lig.model import split
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.model.split import SplitBlock
from captum_lig.model.token_wise import FEW, TokenWise, shown_by, unseen
from tests.helpers import families, random_blocks

Change = Callable[[Tensor, Tensor, Tensor], Tensor]

WIDTH = 8
ELSEWHERE = torch.ones(WIDTH)


def rotated(x: Tensor) -> Tensor:
    first, second = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
    return torch.cat((-second, first), -1)


def heads(x: Tensor) -> Tensor:
    return x.view(1, FEW, 2, -1).transpose(1, 2).reshape(2, FEW, -1).transpose(0, 1).flatten(1)


def scrambled(x: Tensor) -> Tensor:
    return x.reshape(1, WIDTH, FEW).transpose(1, 2)


def in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:] += 2
    return x


BY_TOKEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: functional.linear(x, w),
    "product": lambda x, w: torch.addmm(w[0], x.view(-1, WIDTH), w).view(x.shape),
    "norm": lambda x, w: functional.layer_norm(x, (WIDTH,), w[0]),
    "root mean square": lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w[0],
    "gate": lambda x, w: functional.silu(x @ w) * (x @ w.T),
    "rotary": lambda x, w: x * w[0] + rotated(x) * w[1],
    "heads": lambda x, w: heads(x),
    "parts": lambda x, w: torch.cat(list(x.chunk(2, dim=-1))[::-1], dim=-1),
    "softmax": lambda x, w: x.softmax(-1),
    "largest": lambda x, w: x - x.amax(dim=-1, keepdim=True),
    "one feature": lambda x, w: x[..., :1] + x[:, :, 1:2] + x[..., [2]],
}
NOT_BY_TOKEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean over tokens": lambda x, w: x - x.mean(1, keepdim=True),
    "mean over tokens, moved": lambda x, w: x - x.transpose(1, 2).mean(-1)[:, None],
    "mean of all": lambda x, w: x - x.mean(),
    "shift": lambda x, w: torch.roll(x, 1, 1),
    "neighbour": lambda x, w: x[:, 1:] + x[:, :-1],
    "in place": lambda x, w: in_place(x),
    "first token": lambda x, w: x + x[:, 0],
    "flipped": lambda x, w: x.flip(1),
    "running sum": lambda x, w: x.cumsum(1),
    "mixing matrix": lambda x, w: torch.softmax(x @ x.transpose(1, 2) * 0, -1) @ x,
    "softmax over tokens": lambda x, w: x.softmax(1),
    "convolution": lambda x, w: functional.conv1d(x.transpose(1, 2), w[:, :, None]),
    "chosen tokens": lambda x, w: x[:, torch.arange(FEW)],
    "where a token is large": lambda x, w: x[x.sum(-1) > 0],
    "a number of a token": lambda x, w: x * float(x.sum()),
    "best features": lambda x, w: x.topk(2, dim=-1).values,
    "scrambled": lambda x, w: scrambled(x),
    "from elsewhere": lambda x, w: x + ELSEWHERE,
    "a difference of two": lambda x, w: (x[..., 0][:, :, None] - x[..., 0][:, None]).exp(),
}


def seen(function: Callable[[Tensor, Tensor], Tensor]) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, generator=generator) for size in ((1, FEW, WIDTH), (WIDTH, WIDTH)))
    with TokenWise([x], own=[w]) as watch:
        output = function(x, w)
    return bool(watch.says(output))


@pytest.mark.parametrize("name", BY_TOKEN)
def test_by_token(name: str) -> None:
    assert seen(BY_TOKEN[name])


@pytest.mark.parametrize("name", NOT_BY_TOKEN)
def test_not_by_token(name: str) -> None:
    assert not seen(NOT_BY_TOKEN[name])


def test_what_no_call_was_seen_of() -> None:
    """A kernel of one's own, say, that torch's functions are not called for."""

    def hidden(x: Tensor, _: Tensor) -> Tensor:
        with unseen():
            return x.flip(1)

    assert not seen(hidden)
    assert not seen(lambda x, w: hidden(x, w) + w[0])


def test_rows_of_a_table_of_positions() -> None:
    """A few tokens get its first rows, which say nothing of the others."""
    x, table = torch.randn(1, FEW, WIDTH), torch.randn(100, WIDTH)
    with TokenWise([x], own=[table]) as watch:
        output = x * table[:FEW]
    assert not watch.says(output)


# What reads positions, the number of each token, shape (1, tokens).
ENCODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rotary": lambda x, p: x * (0.1 * p[:, :, None].float()).cos() + x * p[..., None].sin(),
    "frequencies": lambda x, p: x + (p[..., None].to(x) @ ELSEWHERE[None]).sin(),
    "moved": lambda x, p: x + torch.stack([p, -p], dim=-1).repeat_interleave(WIDTH // 2, dim=-1),
    "beside tokens": lambda x, p: torch.cat([x, p[..., None].to(x)], dim=-1).relu() > 1,
}
SINGLES_OUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": lambda x, p: x * (p == 50)[..., None],
    "equal, of a sum": lambda x, p: x * (2 * p[..., None] + 1).eq(101),
    "equal, in the tokens' type": lambda x, p: x * (p[..., None].to(x) == 50),
    "equal, in the tokens' shape": lambda x, p: x * p[..., None].expand_as(x).eq(50),
    "equal, beside zeros": lambda x, p: x * ((torch.zeros_like(x) + p[..., None]) == 50),
    "where": lambda x, p: torch.where(p[..., None].bool(), x, -x),
    "truth value": lambda x, p: x * (p - 50)[..., None].to(torch.bool),
    "whole numbers": lambda x, p: x * (p[..., None].float() / 50).long(),
    "steep": lambda x, p: x * (-100 * (p[..., None] - 50.0).square()).exp(),
    "ramp": lambda x, p: x * (p[..., None] - 50).relu(),
    "beside a token": lambda x, p: x * (p[..., None] > x[..., :1]),
}


def sees_positions(function: Callable[[Tensor, Tensor], Tensor]) -> bool:
    x = torch.randn(1, FEW, WIDTH, generator=torch.Generator().manual_seed(0))
    positions = 3 * torch.arange(FEW)[None]
    with TokenWise([x], [positions], [ELSEWHERE]) as watch:
        output = function(x, positions)
    return bool(watch.says(output))


@pytest.mark.parametrize("name", ENCODES)
def test_positions_that_are_encoded(name: str) -> None:
    assert sees_positions(ENCODES[name])


@pytest.mark.parametrize("name", SINGLES_OUT)
def test_a_position_that_is_singled_out(name: str) -> None:
    assert not sees_positions(SINGLES_OUT[name])


def test_shown_by_a_few() -> None:
    length, few, valid = 100, torch.arange(0, 100, 10), torch.arange(90)
    same = torch.ones(1, length, 1)
    positions = torch.arange(length)[None, :, None].float()
    one = same.clone()
    one[0, 55] = 0
    behind = same.clone()
    behind[0, 95:] = 0
    for x, expected in ((same, True), (positions, True), (one, False), (behind, True)):
        assert shown_by([x], length, valid, few) is expected


# --- blocks that a few tokens do not show ---


class Beside(nn.Module):
    """A block that gets something beside its tokens, and what that does to its keys or values."""

    def __init__(self, block: nn.Module, part: str, change: Change) -> None:
        super().__init__()
        self.block, self.beside = block, torch.empty(0)
        block.get_submodule(part).register_forward_hook(
            lambda _, args, output: change(output, args[0], self.beside)
        )

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        self.beside = beside
        output: Tensor = self.block(x)
        return output


class Model(nn.Module):
    def __init__(self, block: nn.Module, beside: Tensor) -> None:
        super().__init__()
        self.blocks, self.beside = nn.ModuleList([block]), beside

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.blocks[0](x, self.beside)
        return output


def with_beside(
    part: str, change: Change, beside: Tensor, options: random_blocks.Options
) -> tuple[nn.Module, Tensor]:
    made, x = random_blocks.build(options, beside.shape[-2], torch.float64, 0)
    return Model(Beside(made.blocks[0], part, change), beside).eval(), x


def as_a_short_text(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor, baseline: str, at: int
) -> tuple[Tensor, Tensor]:
    """The map of one target, and as if the text were short: then all of it is looked at."""
    found = []
    for most in (split.LONG, 1000):
        monkeypatch.setattr(split, "LONG", most)
        flow = LayerFlowIG(model, "blocks.0").attribute(
            x, baseline, boundaries=("attention",), tolerance=1e-4
        )
        assert isinstance(flow, LayerFlow)
        assert flow.attention is not None
        found.append(flow.attention[0, :, at])
    return found[0], found[1]


@pytest.mark.parametrize("part", ["key", "value"])
def test_tokens_mixed_before_the_attention(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Keys or values are the mean over a word of two tokens: none of the few are neighbours."""
    length = 66
    word = torch.arange(length) // 2
    pool = torch.tril((word[:, None] == word).double())
    pool /= pool.sum(-1, keepdim=True)
    options = random_blocks.Options(norm="rms", causal=True)
    model, x = with_beside(part, lambda y, _, p: p[0] @ y, pool[None, None], options)
    own, whole = as_a_short_text(monkeypatch, model, x, "zero", length - 1)
    assert whole.abs().max() > 1e-2
    torch.testing.assert_close(own, whole, rtol=1e-6, atol=1e-9)


SPECIAL = 47


def by_its_position(y: Tensor, positions: Tensor, other: Tensor) -> Tensor:
    return torch.where(positions == SPECIAL, y + other, y)


@pytest.mark.parametrize("told_by", ["mark", "position"])
@pytest.mark.parametrize("part", ["key", "value"])
def test_one_special_token(monkeypatch: pytest.MonkeyPatch, part: str, told_by: str) -> None:
    """The projection of one token is another one: it is none of the few, and seen by few."""
    length, special = 96, SPECIAL
    assert special not in torch.linspace(0, length - 1, FEW).round().long()
    positions = torch.arange(length, dtype=torch.float64)[None, :, None]
    other = torch.randn(16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = random_blocks.Options(norm="rms", causal=True, window=8)
    if told_by == "mark":
        mark = (positions == special).double()
        model, x = with_beside(part, lambda y, z, m: y + m * (z @ other), mark, options)
    else:
        change: Change = lambda y, z, p: by_its_position(y, p, z @ other)  # noqa: E731
        model, x = with_beside(part, change, positions, options)
    own, whole = as_a_short_text(monkeypatch, model, x, "target_token", special + 3)
    assert whole[:, special].abs().max() > 1e-2
    torch.testing.assert_close(own, whole, rtol=1e-5, atol=1e-8)


def test_a_window_that_the_block_makes() -> None:
    """On some of the tokens it makes another one."""
    options = random_blocks.Options(causal=True, window=8)
    model, x = random_blocks.build(options, 66, torch.float64, 0)
    flow = LayerFlowIG(model, "blocks.0").attribute(
        x, "zero", boundaries=("attention",), output_indices=[65]
    )
    assert isinstance(flow, LayerFlow)
    assert flow.attention is not None
    assert not flow.attention[0, :, 0, :57].any()
    assert flow.attention[0, :, 0, 58:].all()


def test_tokens_that_compete_for_experts() -> None:
    """Beyond its capacity an expert drops tokens: of a few it drops none."""
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        vocab_size=60,
        d_model=16,
        d_ff=24,
        d_kv=4,
        num_heads=4,
        num_layers=1,
        num_sparse_encoder_layers=1,
        num_experts=2,
        expert_capacity=64,
    )
    model = SwitchTransformersEncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(4, 50, (1, 100))
    with pytest.raises(LigError, match="cannot be split at its attention"):
        LayerFlowIG(model, "encoder.block.0").attribute(
            ids, "zero", boundaries=("layer",), output_indices=[99]
        )


PLAIN = [
    "bert",
    "gpt2",
    "llama",
    "qwen3",
    "gemma2",
    "olmo2",
    "falcon",
]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_families_are_known_by_a_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.SIZES, "max_position_embeddings", 128)
    monkeypatch.setitem(families.SIZES, "n_positions", 128)
    torch.manual_seed(0)
    (family,) = [one for one in families.FAMILIES if one.name == name]
    model = family.build().eval()
    inputs = {"input_ids": torch.randint(5, 50, (1, 80))}
    finder = Finder(model)
    with torch.no_grad(), finder.recorded(ModelCall.of(model, inputs)) as calls:
        block = SplitBlock(finder.attached(calls[-1]), 0, Meter())
        assert len(block.z) > split.LONG
        assert len(block.some.z) == FEW
