"""What nodes write, against a literal twin: columns of W_o, the MLP's output, by hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from captum_lig import LigError
from captum_lig.patching import Node
from captum_lig.patching.writes import writes
from captum_lig.prediction import logit
from tests.helpers.models import ExactRMSNorm, randomise, tiny_bert

INPUTS = torch.tensor([[11, 45, 23, 8, 30]])
BASELINES = torch.tensor([[11, 7, 23, 31, 30]])
LAYERS, HEADS, WIDTH, VOCABULARY = 2, 3, 15, 50
"""A width that is odd, so that no vector of signs has the mean 0."""


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        head_dim=6,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        intermediate_size=20,
        attention_bias=True,
    )
    model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # as the library runs it, to the last digit
    for block in model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(block, name, exact(getattr(block, name)))
    model.model.norm = exact(model.model.norm)
    return model


def exact(norm: Any) -> ExactRMSNorm:
    """Without the family's rounding to float32."""
    return ExactRMSNorm(norm.weight, norm.variance_epsilon)


def gpt2() -> Any:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=20,
        n_positions=16,
    )
    return GPT2LMHeadModel(config)


class Twin:
    """A model's parts by their names, run once with hooks."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.model = llama() if kind == "llama" else gpt2()
        randomise(self.model, 3)
        self.model.double().eval()
        body = self.model.model if kind == "llama" else self.model.transformer
        self.blocks = body.layers if kind == "llama" else body.h
        self.norm = body.norm if kind == "llama" else body.ln_f

    def run(self, ids: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        handles = [self.norm.register_forward_hook(lambda _, a, __: seen.update(final=a[0][0]))]

        def keep(module: Any, name: str, output: bool) -> None:
            def note(_: Any, args: Any, got: Any) -> None:
                seen[name] = got[0] if output else args[0][0]

            handles.append(module.register_forward_hook(note))

        for n, block in enumerate(self.blocks):
            own = block.self_attn.o_proj if self.kind == "llama" else block.attn.c_proj
            keep(own, f"u{n}", False)
            keep(block.mlp, f"m{n}", True)
        first = self.blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(z=(args or [kwargs["hidden_states"]])[0][0]),
            with_kwargs=True,
        )
        with torch.no_grad():
            seen["logits"] = self.model(ids).logits[0]
        for handle in [*handles, first]:
            handle.remove()
        return seen

    def write(self, seen: dict[str, Tensor], node: Node) -> Tensor:
        if node.head is None:
            return seen[f"m{node.layer}"][node.position]
        u = seen[f"u{node.layer}"][node.position]
        block, size = self.blocks[node.layer], len(u) // HEADS
        w = block.self_attn.o_proj.weight if self.kind == "llama" else block.attn.c_proj.weight.T
        own = slice(node.head * size, (node.head + 1) * size)
        return w[:, own] @ u[own]

    def logits(self, seen: dict[str, Tensor], write: Tensor, at: int) -> Tensor:
        """Through the norm held at a token, and the unembedding."""
        x = seen["final"][at]
        if self.kind == "llama":
            scale = self.norm.weight / (x.square().mean() + self.norm.variance_epsilon).sqrt()
        else:
            scale = self.norm.weight / (x.var(unbiased=False) + self.norm.eps).sqrt()
            write = write - write.mean()
        return self.model.lm_head.weight @ (scale * write)

    def constant(self, seen: dict[str, Tensor], at: int) -> Tensor:
        """What biases bring: of each W_o, and of the last norm."""
        if self.kind == "llama":
            biases = [block.self_attn.o_proj.bias for block in self.blocks]
        else:
            biases = [block.attn.c_proj.bias for block in self.blocks]
        found = self.logits(seen, sum(biases, torch.zeros_like(biases[0])), at)
        last = getattr(self.norm, "bias", None)
        return found if last is None else found + self.model.lm_head.weight @ last


def nodes_at(position: int) -> list[Node]:
    heads = [Node("heads", n, position, h) for n in range(LAYERS) for h in range(HEADS)]
    return heads + [Node("feed_forward", n, position) for n in range(LAYERS)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("at", [-1, 2])
def test_writes_in_the_vocabulary_are_those_of_the_twin(kind: str, at: int) -> None:
    twin = Twin(kind)
    own, other = twin.run(INPUTS), twin.run(BASELINES)
    nodes = nodes_at(4) + nodes_at(3)
    found = writes(twin.model, INPUTS, BASELINES, logit(5), nodes, at)
    for node, mine, change in zip(found.nodes, found.own, found.change, strict=True):
        exact, before = twin.write(own, node), twin.write(other, node)
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(change, exact - before, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(
            found.unembedding(change), twin.logits(own, exact - before, at), rtol=1e-7, atol=1e-8
        )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_writes_the_embedding_and_the_biases_add_up_to_the_logits(kind: str) -> None:
    twin = Twin(kind)
    own = twin.run(INPUTS)
    found = writes(twin.model, INPUTS, BASELINES, logit(5), nodes_at(4))
    parts = found.unembedding(torch.cat([found.own, own["z"][4][None]]))
    assert parts.shape == (LAYERS * (HEADS + 1) + 1, VOCABULARY)
    total = parts.sum(0) + twin.constant(own, 4)
    torch.testing.assert_close(total, own["logits"][4], rtol=1e-7, atol=1e-8)


def test_post_norm_models_and_those_without_a_vocabulary_say_why() -> None:
    bert = tiny_bert()
    with pytest.raises(LigError, match="no matrix that makes logits"):
        writes(bert, INPUTS, BASELINES, lambda out: out[0][:, -1].sum(-1), nodes_at(4))


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (Node("heads", 7, 1, 0), r"head 7\.0 at 1"),
        (Node("heads", 1, 9, 0), r"head 1\.0 at 9"),
        (Node("heads", 1, 1, 99), r"head 1\.99 at 1"),
        (Node("heads", 1, 1, -1), r"head 1\.-1 at 1"),
        (Node("feed_forward", 1, -1), "MLP 1 at -1"),
        (Node("feed_forward", 1), "MLP 1"),
        # What is neither a head nor an MLP is not the MLP.
        (Node("attention", 1, 1), "attention 1 at 1"),
        (Node("tokens", 1, 1), "entering 1 at 1"),
    ],
)
def test_a_node_that_is_not_there(node: Node, name: str) -> None:
    twin = Twin("llama")
    with pytest.raises(LigError, match=f"{name} is no node of the model"):
        writes(twin.model, INPUTS, BASELINES, logit(5), [*nodes_at(4), node])


def test_positions_and_nodes_that_are_not_there() -> None:
    twin = Twin("llama")
    with pytest.raises(LigError, match="position=9: there are"):
        writes(twin.model, INPUTS, BASELINES, logit(5), nodes_at(4), 9)
    with pytest.raises(LigError, match="nodes are empty"):
        writes(twin.model, INPUTS, BASELINES, logit(5), [])
