"""RelP: attribution patching with LRP's coefficients in the place of gradients.

Jafari et al., "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching" (2025),
arXiv 2508.21258. One backward pass of the run at the input, in which

- a norm's scale is a constant (LN-rule, Ali et al. 2022);
- an attention pattern is a constant (AH-rule, Ali et al. 2022);
- an activation is its input times a constant, act(x) / x (Identity-rule);
- the two factors of a gate get half each (Half-rule, Arras et al. 2019);
- linear layers are as they are (0-rule).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.patching.net import Net, Question, Scores


def norm_rule(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A LayerNorm or RMSNorm with its scale held."""
    (x,) = args
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
        scale = (x.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
        return norm.weight * (x * scale.detach()) + norm.bias
    scale = (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    return norm.weight * (x * scale.detach())


def identity_rule(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """An activation as its input times a constant; where the input is 0 nothing is passed."""
    (x,) = args
    ratio = torch.where(x == 0, torch.zeros_like(x), output / x)
    return x * ratio.detach() + (output - x * ratio).detach()


def half_rule(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A factor of a gate: its value stays, its gradient is halved."""
    return output / 2 + output.detach() / 2


def constant(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Queries and keys: the pattern made of them is a constant."""
    return output.detach()


@contextmanager
def rules(net: Net) -> Iterator[None]:
    """The model with RelP's backward pass; its forward pass is what it was."""
    hooks: list[tuple[nn.Module, Any]] = []
    for block in net.blocks:
        if net.causal:
            hooks += [(block.self_attn.q_proj, constant), (block.self_attn.k_proj, constant)]
            hooks += [(block.mlp.act_fn, identity_rule), (block.mlp.act_fn, half_rule)]
            hooks += [(block.mlp.up_proj, half_rule)]
            hooks += [(block.input_layernorm, norm_rule)]
            hooks += [(block.post_attention_layernorm, norm_rule)]
        else:
            attention = block.attention
            hooks += [(attention.self.query, constant), (attention.self.key, constant)]
            hooks += [(block.intermediate.intermediate_act_fn, identity_rule)]
            hooks += [(attention.output.LayerNorm, norm_rule), (block.output.LayerNorm, norm_rule)]
    if net.causal:
        hooks.append((net.inner.norm, norm_rule))
    with ExitStack() as stack:
        shared: set[tuple[int, Any]] = set()
        for module, rule in hooks:
            # An activation without state may be one module for all blocks.
            if (id(module), rule) not in shared:
                stack.enter_context(module.register_forward_hook(rule))
            shared.add((id(module), rule))
        yield


def relp(question: Question) -> Scores:
    """One backward pass with RelP's rules, at the input."""
    with rules(question.net):
        return question.scores(question.gradients(question.input.stream[0]))
