"""Classifiers on decoders without a padding token, which refuse several texts at once.

The library runs copies of one text together, where a model takes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from captum_lig import FlowGraph, LayerFlowIG, circuits, patching, why
from captum_lig.metrics import erasure
from captum_lig.prediction import class_logit, direct_relevance
from tests.helpers import models
from tests.helpers.saved import save_tiny_gpt2

IDS = torch.tensor([[3, 11, 45, 23, 8]])
OTHER = torch.tensor([[3, 11, 19, 23, 40]])
TARGET = class_logit(1)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, num_labels=3)
    return models.randomised(GPT2ForSequenceClassification(config))


def qwen3() -> PreTrainedModel:
    sizes = {**models.GROUPED, "hidden_size": 16, "num_hidden_layers": 2, "num_labels": 3}
    return models.randomised(Qwen3ForSequenceClassification(Qwen3Config(**sizes)))


def attributed(model: PreTrainedModel) -> dict[str, Tensor]:
    flows = LayerFlowIG(model).attribute(IDS, OTHER, target=TARGET)
    relevance = direct_relevance(model, TARGET, IDS, OTHER, n_steps=8)
    erased = erasure(model, IDS, flows[0].entering, TARGET, OTHER)[0]
    return {
        "flows": torch.stack([flow.entering for flow in flows]),
        "direct relevance": relevance.tokens,
        "erasure": erased.comprehensiveness,
    }


def patched(model: PreTrainedModel) -> dict[str, Tensor]:
    found = patching.effects(model, IDS, OTHER, TARGET)
    edges = LayerFlowIG(model).direct_edges(IDS, OTHER, target=TARGET)
    of_edges = patching.edge_effects(model, IDS, OTHER, TARGET, list(edges)[:6])
    graph = FlowGraph(LayerFlowIG(model).attribute(IDS, OTHER, target=TARGET))
    shares = (0.1, 0.5)
    with circuits.of_nodes(model, IDS, OTHER, TARGET) as nodes:
        nodes_kept = nodes.curve(graph, shares).values
    with circuits.of_edges(model, IDS, OTHER, TARGET) as kept:
        edges_kept = kept.curve(edges, shares).values
    assert found.put_in is not None
    return {
        "effects": found.taken_out,
        "into": found.put_in,
        "direct edges": edges.value,
        "edge effects": of_edges.out,
        "circuits of nodes": nodes_kept,
        "circuits of edges": edges_kept,
    }


@pytest.mark.parametrize("asked", [attributed, patched])
@pytest.mark.parametrize("made", [gpt2, qwen3])
def test_a_classifier_without_a_padding_token(made: Any, asked: Any) -> None:
    model = made()
    model.config.pad_token_id = 0  # not in the texts: it changes nothing but what is refused
    wanted = asked(model)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="no padding token is defined"):
        model(torch.cat([IDS, OTHER]))
    found = asked(model)
    assert model.config.pad_token_id is None
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], msg=lambda m, n=name: f"{n}: {m}")


def test_why_it_is_that_class(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_labels=3)
    model = models.randomised(GPT2ForSequenceClassification(config))
    model.config.pad_token_id = None
    text, other = "the cat sat on the mat", "the dog sat on the mat"
    found = why(text, model, other, tokenizer=tokenizer, label=1)
    for words, said in ((text, found.says), (other, found.would_say)):
        with torch.no_grad():
            row = model(**tokenizer(words, return_tensors="pt")).logits[0]
        assert said.value == pytest.approx(float(row[1]), abs=1e-9)
    assert found.change == pytest.approx(found.says.value - found.would_say.value, abs=1e-9)


def test_what_a_model_refuses_of_one_text_it_still_refuses() -> None:
    """Its own error, from the run on a single copy."""
    model = gpt2()
    calls = 0

    def target(output: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:  # of the two runs themselves it is a number
            raise ValueError("not this time")
        return output.logits[:, 1]  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="not this time"):
        LayerFlowIG(model).attribute(IDS, OTHER, target=target)
