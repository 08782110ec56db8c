"""A block is its module with the user's hooks on it: a steered or ablated model is attributed.

What a hook does at every position alike could stand in the weights as well: of both models all
numbers have to be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from captum_lig import Block, FlowGraph, LayerFlowIG, LigError
from captum_lig.flow.flows import Flows
from captum_lig.patching import effects

WIDTH, HEADS = 16, 2
HEAD = WIDTH // HEADS
IDS = torch.tensor([[3, 9, 4, 11, 5, 8]])
OTHER = torch.tensor([[3, 9, 7, 11, 5, 8]])
TARGET = (-1, 6)
VECTOR = torch.linspace(-1.0, 2.0, WIDTH, dtype=torch.float64)

Change = Callable[[GPT2LMHeadModel], object]


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_embd=WIDTH, n_layer=3, n_head=HEADS, bos_token_id=1, eos_token_id=2
    )
    made = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def added(x: Any) -> Any:
    return (x[0] + VECTOR, *x[1:]) if isinstance(x, tuple) else x + VECTOR


def leaving_block(model: GPT2LMHeadModel) -> object:
    return model.transformer.h[1].register_forward_hook(lambda _, __, output: added(output))


def entering_block(model: GPT2LMHeadModel) -> object:
    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return added(args), kwargs
        return args, {**kwargs, "hidden_states": added(kwargs["hidden_states"])}

    return model.transformer.h[2].register_forward_pre_hook(add, with_kwargs=True)


def leaving_mlp(model: GPT2LMHeadModel) -> object:
    return model.transformer.h[1].mlp.register_forward_hook(lambda _, __, output: added(output))


def in_weights(model: GPT2LMHeadModel) -> object:
    """The vector in the bias of the second block's MLP: the same function of the tokens."""
    return model.transformer.h[1].mlp.c_proj.bias.data.add_(VECTOR)


def without_head(model: GPT2LMHeadModel) -> object:
    """The second block's first head is put to 0 where it is projected."""

    def ablate(_: nn.Module, args: tuple[Tensor]) -> Tensor:
        return args[0] * (torch.arange(WIDTH) >= HEAD)

    return model.transformer.h[1].attn.c_proj.register_forward_pre_hook(ablate)


def without_its_weights(model: GPT2LMHeadModel) -> object:
    return model.transformer.h[1].attn.c_proj.weight.data[:HEAD].zero_()


STEERED = [
    (leaving_block, in_weights),
    (entering_block, in_weights),
    (leaving_mlp, in_weights),
    (without_head, without_its_weights),
]


def both(
    model: GPT2LMHeadModel, hook: Change, weights: Change
) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    hooked, plain = deepcopy(model), deepcopy(model)
    hook(hooked)
    weights(plain)
    with torch.no_grad():
        own, changed, before = (m(IDS).logits for m in (hooked, plain, model))
    torch.testing.assert_close(own, changed)
    assert (own - before).abs().max() > 1e-2  # the hook does something
    return hooked, plain


@pytest.mark.parametrize(("hook", "weights"), STEERED)
def test_a_number(model: GPT2LMHeadModel, hook: Change, weights: Change) -> None:
    found = [
        FlowGraph(LayerFlowIG(one).attribute(IDS, OTHER, TARGET, n_steps=16)).relevance()
        for one in both(model, hook, weights)
    ]
    for name in ("tokens", "heads", "feed_forward"):
        own, expected = (getattr(one, name) for one in found)
        assert own is not None
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-9)
    if hook is without_head:
        assert not found[0].heads[..., 1, 0, :].any()


@pytest.mark.parametrize(("hook", "weights"), STEERED)
def test_edges(model: GPT2LMHeadModel, hook: Change, weights: Change) -> None:
    own, expected = (
        LayerFlowIG(one).direct_edges(IDS, OTHER, TARGET, n_steps=16)
        for one in both(model, hook, weights)
    )
    assert own.sums.abs().max() > 1e-3
    torch.testing.assert_close(own.sums, expected.sums, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("hook", "weights"), STEERED)
def test_maps_of_lengths(model: GPT2LMHeadModel, hook: Change, weights: Change) -> None:
    """From the target's own token: what a hook adds is at both ends of the path."""
    own, expected = (
        LayerFlowIG(one).attribute(IDS, n_steps=16) for one in both(model, hook, weights)
    )
    assert isinstance(own, Flows)
    assert isinstance(expected, Flows)
    for one, other in zip(own, expected, strict=True):
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(tensor, other.tensors[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("hook", "weights"), STEERED)
def test_patching(model: GPT2LMHeadModel, hook: Change, weights: Change) -> None:
    own, expected = (
        effects(one, IDS, OTHER, TARGET, ("heads", "feed_forward", "tokens"))
        for one in both(model, hook, weights)
    )
    for there, here in ((own.out, expected.out), (own.into, expected.into)):
        for name in ("heads", "feed_forward", "tokens"):
            torch.testing.assert_close(getattr(there, name), getattr(here, name))


def at_one_position(model: GPT2LMHeadModel) -> object:
    def add(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + VECTOR * (torch.arange(hidden.shape[1]) == 2)[:, None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return model.transformer.h[1].register_forward_hook(add)


def other_tokens(model: GPT2LMHeadModel) -> object:
    def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = torch.linspace(-1, 1, WIDTH * 6, dtype=torch.float64).view(1, 6, WIDTH)
        if args:
            return (tokens.expand_as(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": tokens.expand_as(kwargs["hidden_states"])}

    return model.transformer.h[1].register_forward_pre_hook(put, with_kwargs=True)


def by_chance(model: GPT2LMHeadModel) -> object:
    return model.transformer.h[1].mlp.register_forward_hook(
        lambda _, __, output: output + torch.randn_like(output)
    )


def detached(model: GPT2LMHeadModel) -> object:
    def detach(_: nn.Module, __: Any, output: Any) -> Any:
        return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()

    return model.transformer.h[1].register_forward_hook(detach)


def without_mean(model: GPT2LMHeadModel) -> object:
    return model.transformer.h[1].mlp.register_forward_hook(
        lambda _, __, output: output - output.mean(1, keepdim=True)
    )


@pytest.mark.parametrize("hook", [at_one_position, other_tokens, by_chance, detached, without_mean])
def test_refused_with_the_hook_named(model: GPT2LMHeadModel, hook: Change) -> None:
    hook(model)
    with pytest.raises(LigError, match=r"transformer\.h\.1.*There are forward hooks on ") as said:
        LayerFlowIG(model).attribute(IDS, OTHER, TARGET, n_steps=8)
    assert ("'mlp'" if hook in (by_chance, without_mean) else "on it:") in str(said.value)


def test_such_a_block_taken_whole(model: GPT2LMHeadModel) -> None:
    """As the message says."""
    at_one_position(model)
    first, second, third = model.transformer.h
    flows = LayerFlowIG(model, [first, Block(second), third]).attribute(IDS, OTHER, TARGET)
    assert isinstance(flows, Flows)
    with torch.no_grad():
        own, other = (model(ids).logits[0, TARGET[0], TARGET[1]] for ids in (IDS, OTHER))
    for flow in flows:
        torch.testing.assert_close(flow.need("entering")[0].sum(), own - other, rtol=1e-3, atol=0.0)


def test_hooks_of_transformers_are_not_named(model: GPT2LMHeadModel) -> None:
    """Those that note hidden states and attentions stay on the modules, and change nothing."""
    with torch.no_grad():
        model(IDS, output_hidden_states=True)
    at_one_position(model)
    with pytest.raises(LigError, match="There are forward hooks on it: if"):
        LayerFlowIG(model).attribute(IDS, OTHER, TARGET, n_steps=8)


@pytest.mark.parametrize("hook", [None, leaving_block])
def test_hidden_states_are_noted_as_they_are_put_in(
    model: GPT2LMHeadModel, hook: Change | None
) -> None:
    """Transformers notes them by hooks, also of blocks that do not run."""
    if hook is not None:
        hook(model)
    model.config.output_hidden_states = True
    weight = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)

    def number(output: Any) -> Tensor:
        read: Tensor = output.hidden_states[2][:, -1] @ weight
        return read

    with torch.no_grad():
        own, other = (float(number(model(ids))) for ids in (IDS, OTHER))
    assert abs(own - other) > 1e-2
    found = effects(model, IDS, OTHER, number, ("tokens",))
    for side in (found.out.tokens, found.into.tokens):
        assert side is not None
        assert float(side[0, 2]) == pytest.approx(own - other, rel=1e-6)  # the word that differs
        assert side[1].abs().max() > 1e-3  # entering the second block, the first does not run
