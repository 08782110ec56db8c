"""Every call that takes targets or a number, on a long text: nothing as large as heads x T x T.

A map of all heads is that large by itself; calls that give one hold it and nothing larger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from captum_lig import FlowGraph, LayerFlowIG, SetToSetIG, circuits, inspect_model, patching
from captum_lig.graph.direct_edges import Edge, Reader, Writer
from captum_lig.model import attention_call
from captum_lig.patching import Node
from captum_lig.prediction import direct_relevance, logit
from tests.helpers.drawn_weights import drawn
from tests.helpers.largest import Largest

LENGTH, HEADS, WIDTH, VOCABULARY = 300, 16, 32, 50
ALL_HEADS = HEADS * LENGTH**2
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 4,
    "head_dim": 2,
    "max_position_embeddings": LENGTH,
}


def llama() -> nn.Module:
    return drawn(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)))


@pytest.fixture(autouse=True)
def _large_from_here_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of all heads count as many: so a text of some hundred tokens is a long one."""
    monkeypatch.setattr(attention_call, "LARGE", ALL_HEADS - 1)


IDS = torch.randint(3, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(1))
OTHER = IDS.clone()
OTHER[0, 5] = (OTHER[0, 5] + 7) % VOCABULARY
NUMBER = (IDS, OTHER, logit(3))
PLAIN: dict[str, Any] = {"n_steps": 2, "tolerance": None}


def lengths(model: nn.Module, *boundaries: str, start: str = "zero") -> Any:
    return LayerFlowIG(model, layer=1).attribute(
        IDS, start, boundaries=boundaries, output_indices=[LENGTH - 1, 9], **PLAIN
    )


def number(model: nn.Module, *boundaries: str, **given: Any) -> Any:
    return LayerFlowIG(model).attribute(*NUMBER, boundaries=boundaries, **PLAIN, **given)


def edges(model: nn.Module) -> Any:
    return LayerFlowIG(model).direct_edges(*NUMBER, keep=10, **PLAIN)


def effects(model: nn.Module) -> Any:
    nodes = [
        Node("tokens", 1, 5),
        Node("heads", 0, 5, 3),
        Node("attention", 1, 200),
        Node("feed_forward", 1, None),
    ]
    return patching.effects(model, *NUMBER, nodes)


def edge_effects(model: nn.Module) -> Any:
    writer = Writer("heads", 0, 3)
    readers = [Reader("query", 1, 3), Reader("value", 1, 2), Reader("feed_forward", 1)]
    return patching.edge_effects(model, *NUMBER, [Edge(writer, reader) for reader in readers])


def kept_nodes(model: nn.Module) -> Any:
    with circuits.of_nodes(model, *NUMBER, by_position=False) as found:
        return found.values(torch.eye(found.count, dtype=torch.bool)[:2])


def kept_edges(model: nn.Module) -> Any:
    with circuits.of_edges(model, *NUMBER, by_position=False) as found:
        return found.values(torch.eye(found.count, dtype=torch.bool)[:2])


def set_to_set(model: Any) -> Any:
    decoder = model.model
    places = decoder.rotary_emb(torch.empty(1, LENGTH, WIDTH), torch.arange(LENGTH)[None])

    def block(z: Tensor) -> Tensor:
        output = decoder.layers[1](z, position_embeddings=places)
        return output if isinstance(output, Tensor) else output[0]

    z = decoder.embed_tokens(IDS)
    return SetToSetIG(block).attribute(z, "target_token", output_indices=[9], n_steps=2)


def averages(model: nn.Module) -> Any:
    return patching.means(model, [IDS])


def report(model: nn.Module) -> Any:
    return inspect_model(model, IDS)


def whole_model(model: nn.Module) -> Any:
    return direct_relevance(model, logit(3), IDS, OTHER, n_steps=2)


CALLS: dict[str, Callable[[Any], Any]] = {
    "the layer of two tokens": lambda model: lengths(model, "attention", "mlp", "layer"),
    "from their own tokens": lambda model: lengths(model, "mlp", "layer", start="target_token"),
    "with their MLP": lambda model: lengths(model, "mlp", "feed_forward"),
    "a number, sums alone": lambda model: number(model, "mlp", "feed_forward"),
    "direct edges": edges,
    "patching": effects,
    "patching of edges": edge_effects,
    "means": averages,
    "circuits of nodes": kept_nodes,
    "circuits of edges": kept_edges,
    "set to set": set_to_set,
    "inspecting": report,
    "integrated gradients": whole_model,
}


@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_holds_the_weights_of_all_heads(name: str) -> None:
    model = llama()
    with Largest() as seen:
        CALLS[name](model)
    assert LENGTH * WIDTH < seen.entries < ALL_HEADS


def test_a_graph_of_a_prediction_holds_what_it_gives_and_nothing_larger() -> None:
    model = llama()
    with Largest() as seen:
        flows = number(model, "attention", "mlp", "feed_forward", internal_batch_size=1)
        graph = FlowGraph(flows, [str(n) for n in range(LENGTH)])
        graph.relevance()
    assert flows[0].need("attention").numel() == ALL_HEADS
    assert seen.entries <= ALL_HEADS
