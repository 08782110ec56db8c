"""Questions of the benchmark of patching, and their twin: whole models with one hook at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.patching import cases
from benchmarks.patching.net import KINDS, Net, Question, Scores
from tests.helpers import models

LENGTH, CHANGED, WORDS = 6, 2, (7, 11)
"""Tokens from `CHANGED` on differ in the decoder's texts, but for one."""


def llama(bias: bool = True) -> Any:
    shape = {**models.GROUPED, "attention_bias": bias, "mlp_bias": bias}
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(LlamaConfig(**shape))
    models.randomise(model, 0)
    for block in model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(block, name)
            setattr(block, name, models.ExactRMSNorm(norm.weight, norm.variance_epsilon))
    model.model.norm = models.ExactRMSNorm(model.model.norm.weight, 1e-5)
    return model.double().eval()


def difference(output: Any) -> Tensor:
    return output.logits[:, -1, WORDS[0]] - output.logits[:, -1, WORDS[1]]


def similarity(output: Any) -> Tensor:
    other = torch.linspace(-1, 1, models.WIDTH, dtype=torch.float64)[None]
    return torch.cosine_similarity(output.last_hidden_state.mean(1), other)


def asked(kind: str) -> Question:
    """A decoder whose texts share their beginning, or an encoder whose texts share two tokens."""
    model: Any = llama() if kind == "llama" else models.tiny_bert()
    ids, other = (models.tokens(model, 1, LENGTH, seed) for seed in (1, 2))
    same = [*range(CHANGED), 4] if kind == "llama" else [0, LENGTH - 1]
    other[0, same] = ids[0, same]
    read, words = (difference, WORDS) if kind == "llama" else (similarity, ())
    case = cases.Case(kind, "", "", {"input_ids": ids}, {"input_ids": other}, read, words)
    return Question(Net(model), case)


def without_prefix(question: Question) -> Question:
    return Question(question.net, question.case, prefix=False)


# --- the twin -----------------------------------------------------------------------------------


def sites(model: Any) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where the nodes are: a module, and whether its input or its output is read."""
    if isinstance(model, LlamaForCausalLM):
        blocks = list(model.model.layers)
        heads = [block.self_attn.o_proj for block in blocks]
        mlps = [block.mlp.down_proj for block in blocks]
    else:
        blocks = list(model.encoder.layer)
        heads = [block.attention.output.dense for block in blocks]
        mlps = [block.output.dense for block in blocks]
    stream = [(block, "in") for block in blocks] + [(blocks[-1], "out")]
    return {
        "stream": stream,
        "heads": [(module, "in") for module in heads],
        "mlp": [(module, "out") for module in mlps],
    }


@contextmanager
def watched(site: tuple[nn.Module, str], see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a function see, and replace, a value of a module in a run of the whole model."""
    module, end = site
    if end == "in":
        handle = module.register_forward_pre_hook(lambda _, args: (see(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, args, output: see(output))
    with handle:
        yield


def twin_run(question: Question, ids: dict[str, Tensor], see: Any = None) -> Any:
    """Values of all nodes ``(T, width)`` and the target of the whole model, differentiable."""
    found: dict[str, list[Tensor]] = {"stream": [], "heads": [], "mlp": []}
    with ExitStack() as stack:
        for place, modules in sites(question.net.model).items():
            for layer, site in enumerate(modules):

                def keep(x: Tensor, place: str = place, layer: int = layer) -> Tensor:
                    x = x if see is None else see(place, layer, x)
                    found[place].append(x)
                    return x

                stack.enter_context(watched(site, keep))
        value = question.case.read(question.net.model(**ids))
    return found, value


def twin_nodes(question: Question) -> Iterator[tuple[str, str, int, int, Any]]:
    """Kind, place, layer, number and the part of ``(T, width)`` of every node."""
    count, heads = len(question.net.blocks), question.net.heads
    width = models.WIDTH // heads
    for layer in range(count + 1):
        for j in range(LENGTH):
            yield "tokens", "stream", layer, j, (j, slice(None))
    for layer in range(count):
        for j in range(LENGTH):
            yield "attention", "heads", layer, j, (j, slice(None))
            yield "mlp", "mlp", layer, j, (j, slice(None))
        for h in range(heads):
            yield "heads", "heads", layer, h, (slice(None), slice(h * width, (h + 1) * width))


def twin_effects(question: Question) -> tuple[Scores, Scores]:
    """One run of the whole model for each node and direction."""
    texts = question.case.inputs, question.case.baseline
    with torch.no_grad():
        (ours, value), (theirs, base) = (twin_run(question, ids) for ids in texts)
    count, heads = len(question.net.blocks), question.net.heads
    shapes = {"tokens": (count + 1, LENGTH), "heads": (count, heads)}
    out, into = (
        {k: torch.zeros(shapes.get(k, (count, LENGTH))).double() for k in KINDS} for _ in range(2)
    )
    for kind, place, layer, number, part in twin_nodes(question):

        def put(other: Tensor, part: Any = part) -> Callable[[Tensor], Tensor]:
            def see(x: Tensor) -> Tensor:
                x = x.clone()
                x[0][part] = other[0][part]
                return x

            return see

        site = sites(question.net.model)[place][layer]
        with torch.no_grad():
            with watched(site, put(theirs[place][layer])):
                out[kind][layer, number] = value - question.case.read(
                    question.net.model(**texts[0])
                )
            with watched(site, put(ours[place][layer])):
                into[kind][layer, number] = (
                    question.case.read(question.net.model(**texts[1])) - base
                )
    return out, into


def twin_gradients(question: Question, parts: list[float]) -> Scores:
    """Gradients of every node, averaged over runs from interpolated embeddings, times changes."""
    with torch.no_grad():
        runs = [twin_run(question, x)[0] for x in (question.case.inputs, question.case.baseline)]
    start, end = runs[1]["stream"][0], runs[0]["stream"][0]
    total: Any = {place: [0] * len(values) for place, values in runs[0].items()}
    for part in parts:

        def see(place: str, layer: int, x: Tensor, part: float = part) -> Tensor:
            if (place, layer) == ("stream", 0):
                return (start + part * (end - start)).requires_grad_()
            return x

        found, value = twin_run(question, question.case.inputs, see)
        for place, values in found.items():
            for layer, gradient in enumerate(torch.autograd.grad(value, values, retain_graph=True)):
                total[place][layer] = total[place][layer] + gradient / len(parts)
    times = {
        place: torch.stack(
            [
                (total[place][layer] * (runs[0][place][layer] - runs[1][place][layer]))[0]
                for layer in range(len(total[place]))
            ]
        )
        for place in total
    }
    heads = times["heads"].unflatten(-1, (question.net.heads, -1)).sum(-1)
    return {
        "tokens": times["stream"].sum(-1),
        "attention": heads.sum(-1),
        "mlp": times["mlp"].sum(-1),
        "heads": heads.sum(1),
    }


def same(ours: Scores, theirs: Scores, within: float = 1e-10) -> None:
    assert set(ours) == set(theirs)
    for kind in ours:
        assert ours[kind].shape == theirs[kind].shape, kind
        size = float(theirs[kind].abs().max())
        assert size > 1e-3, f"{kind}: nothing to compare"
        assert float((ours[kind] - theirs[kind]).abs().max()) < within * size, kind
