"""Edge attribution patching: gradients at readers times what writers change, of a Llama.

EAP: Syed, Rager, Conmy, "Attribution Patching Outperforms Automated Circuit Discovery" (2023),
arXiv:2310.10348. The score of an edge is the gradient at its reader's input, in the run at the
text, times what its writer changes.

EAP-IG (inputs): Hanna, Pezzelle, Belinkov, "Have Faith in Faithfulness" (2024), arXiv:2403.17806.
The gradient is the mean over runs whose embeddings go from the counterfactual's to the text's:
(1 / m) sum over k = 1..m, at z' + (k / m)(z - z'). With m = 1 it is EAP.

Readers and writers are those of ``LayerFlowIG.direct_edges``, in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.patching.net import Question

__all__ = ["eap_ig", "reader_gradients", "writer_changes"]


def eap_ig(question: Question, steps: int) -> Tensor:
    """``(W, R, S)`` a score for each writer, reader and token; also where there is no edge."""
    end, start = question.input.stream[0], question.baseline.stream[0]
    parts = torch.arange(1, steps + 1, dtype=end.dtype)[:, None, None] / steps
    gradients = reader_gradients(question, start + parts * (end - start)).double()
    return torch.einsum("wsd,rsd->wrs", writer_changes(question).double(), gradients)


def writer_changes(question: Question) -> Tensor:
    """``(W, S, D)`` what each writer adds in the text's run less what it adds in the other."""
    net, (own, other) = question.net, (question.input, question.baseline)
    found = [(own.stream[0] - other.stream[0])[0]]
    for layer, projection in enumerate(net.projections):
        step = (own.heads[layer] - other.heads[layer])[0].unflatten(-1, (net.heads, -1))
        weight = projection.weight.unflatten(1, (net.heads, -1))  # (D, H, e)
        found += torch.einsum("she,dhe->hsd", step, weight).unbind()
        found.append((own.mlp[layer] - other.mlp[layer])[0])
    return torch.stack(found)


def reader_gradients(question: Question, z: Tensor) -> Tensor:
    """``(R, S, D)`` the number's gradient at each reader's own input, mean over runs.

    Args:
        question: of a decoder, all of its tokens.
        z: ``(m, S, D)`` what enters the first block in each run.
    """
    net = question.net
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = args[0], output

    attentions = [block.self_attn for block in net.blocks]
    made = [[a.q_proj, a.k_proj, a.v_proj] for a in attentions]
    first = [block.input_layernorm for block in net.blocks]
    second = [block.post_attention_layernorm for block in net.blocks]
    watched = [*(m for three in made for m in three), *first, *second, net.inner.norm]
    with ExitStack() as stack:
        for module in watched:
            stack.enter_context(module.register_forward_hook(note))
        value = question.value(z.detach().requires_grad_())
    outputs = [seen[m][1] for m in watched]
    # The final norm sees what the number reads; a mean over tokens would be seen whole.
    gradients = dict(zip(watched, torch.autograd.grad(value.sum(), outputs), strict=True))
    found: list[Tensor] = []
    for layer, three in enumerate(made):
        cotangents = []
        for module in three:
            width = attentions[layer].head_dim
            g = gradients[module].unflatten(-1, (-1, width))  # (m, S, heads, d)
            weight = module.weight.unflatten(0, (-1, width))  # (heads, d, D)
            cotangents += torch.einsum("mshd,hdD->hmsD", g, weight).unbind()
        norm = first[layer]
        found += through(norm, seen[norm][0], torch.stack(cotangents)).mean(1)
        norm = second[layer]
        found += through(norm, seen[norm][0], gradients[norm][None]).mean(1)
    norm, (x, _) = net.inner.norm, seen[net.inner.norm]
    last = through(norm, x, gradients[norm][None]).mean(1)[0]
    found.append(nn.functional.pad(last, (0, 0, z.shape[1] - len(last), 0)))
    return torch.stack(found)


def through(norm: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """Gradients ``(R, m, S, D)`` at what a norm gives, as they are at ``x (m, S, D)``."""
    copies: Any = x.detach().expand(g.shape).clone().requires_grad_()
    (found,) = torch.autograd.grad(norm(copies), copies, g)
    return found
