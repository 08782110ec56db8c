"""What the graph finds that is known: the strongest heads, and whether they do what is known.

Name movers (Wang et al., "Interpretability in the Wild", 2022, arXiv:2211.00593): heads that attend
from the last token to the indirect object's name and write it, so that through the final norm and
the unembedding their output promotes that name. Heads of agreement attend to the noun that the verb
goes with, and promote the verb's number.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from benchmarks.patching.cases import Case
from benchmarks.patching.net import Net
from captum_lig import FlowGraph

__all__ = ["heads_found"]


def heads_found(net: Net, case: Case, graph: FlowGraph) -> dict[str, list[list[float]]]:
    """Of each head at the last token, ``(L, H)``: its relevance and what it does.

    ``"to_answer"``, ``"to_foil"``: attention to tokens that are the answer, or the other word.
    ``"to_changed"``: to those that the counterfactual exchanges. ``"answer"``, ``"foil"``: what its
    output adds directly to their logits, above the mean of all words; the final norm's scale held.
    """
    ids, other = (x["input_ids"][0] for x in (case.inputs, case.baseline))
    answer, foil = case.words[:2]
    patterns, outputs, last = run_of(net, case)
    wrote = []
    for projection, u in zip(net.projections, outputs, strict=True):
        weight = projection.weight.unflatten(1, (net.heads, -1))  # (D, H, e)
        wrote.append(torch.einsum("he,dhe->hd", u.unflatten(0, (net.heads, -1)), weight))
    norm, unembedding = net.inner.norm, net.model.lm_head.weight
    scale = (last.square().mean() + norm.variance_epsilon).rsqrt()
    logits = torch.stack(wrote) * norm.weight * scale @ unembedding.T  # (L, H, words)
    found = {
        "relevance": graph.relevance().heads[:, :, -1],
        "to_answer": patterns[..., ids == answer].sum(-1),
        "to_foil": patterns[..., ids == foil].sum(-1),
        "to_changed": patterns[..., ids != other].sum(-1),
        "answer": logits[..., answer] - logits.mean(-1),
        "foil": logits[..., foil] - logits.mean(-1),
    }
    return {name: [[round(x, 4) for x in row] for row in v.tolist()] for name, v in found.items()}


@torch.no_grad()
def run_of(net: Net, case: Case) -> tuple[Tensor, list[Tensor], Tensor]:
    """The last token's patterns ``(L, H, S)``, heads' outputs, and what the final norm gets."""
    outputs: list[Tensor] = []
    last: list[Tensor] = []

    def note(to: list[Tensor]) -> Any:
        return lambda _, args: to.append(args[0][0, -1])

    before = net.model.config._attn_implementation
    net.model.set_attn_implementation("eager")
    try:
        with ExitStack() as stack:
            for projection in net.projections:
                stack.enter_context(projection.register_forward_pre_hook(note(outputs)))
            stack.enter_context(net.inner.norm.register_forward_pre_hook(note(last)))
            run = net.model(**case.inputs, output_attentions=True)
    finally:
        net.model.set_attn_implementation(before)
    return torch.stack([pattern[0, :, -1] for pattern in run.attentions]), outputs, last[0]
