"""Targets and baselines on real weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from captum_lig import FlowGraph, LigError
from captum_lig.graph.trace import shared_out
from captum_lig.prediction import (
    cosine,
    input_baseline,
    last_layer_relevance,
    layer_baselines,
    log_probability,
    logit,
    target_value,
)
from captum_lig.pretrained.tokenizer import tokenizer_of
from tests.helpers.embedded import minilm_folder
from tests.helpers.readings import flows_of


@pytest.fixture(scope="module")
def minilm() -> Any:
    return AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """Where ``SMOLLM2`` names the folder of a converted SmolLM2-135M."""
    folder = os.environ.get("SMOLLM2", "")
    if not Path(folder, "config.json").is_file():
        pytest.skip("SMOLLM2 does not name a folder with SmolLM2-135M")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def conserves(model: Any, target: Any, inputs: Any, start: Any, baseline: Any) -> None:
    settings = {"self_term": "zero_ratio"} if baseline == "zero_ratio" else {}
    chosen = layer_baselines(model, inputs, start) if baseline == "layer_baselines" else baseline
    chosen = "target_token" if settings else chosen
    graph = FlowGraph(flows_of(model, inputs, chosen, **settings))
    relevance, delta = last_layer_relevance(
        model, target, inputs, start, n_steps=20, return_convergence_delta=True
    )
    for rule in ("conserve", "chain"):
        tokens = shared_out(graph, start=relevance, rule=rule).tokens
        assert len(tokens) == len(graph.layers) + 1
        gap = (tokens.sum(-1) - relevance.sum()).abs()
        assert bool((gap <= 1e-5 * relevance.sum().abs()).all())
    with torch.no_grad():
        here, there = (
            target_value(model, target, x) for x in (inputs, input_baseline(model, inputs, start))
        )
    change = here - there
    assert float((relevance.sum() - change).abs()) <= 1e-4 * float(change.abs())
    assert float(delta.abs()) <= 1e-4 * float(change.abs())


@pytest.mark.filterwarnings("ignore:.*not within tolerance")
@pytest.mark.parametrize("baseline", ["zero", "target_token", "zero_ratio", "layer_baselines"])
def test_minilm_conserves(minilm: Any, baseline: str) -> None:
    inputs = dict(tokenizer_of(minilm)("The keys are on the table.", return_tensors="pt"))
    conserves(minilm, cosine("Where are my keys?"), inputs, None, baseline)


@pytest.mark.filterwarnings("ignore:.*not within tolerance")
@pytest.mark.parametrize("baseline", ["zero", "layer_baselines"])
def test_smollm2_conserves(smollm2: Any, baseline: str) -> None:
    inputs = dict(tokenizer_of(smollm2)("The keys to the cabinet", return_tensors="pt"))
    conserves(smollm2, logit(" are", minus=" is"), inputs, "The key to the cabinet", baseline)


def test_minilm_texts_and_padding(minilm: Any) -> None:
    tokenizer = tokenizer_of(minilm)
    texts = ["The keys are on the table.", "Keys!"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    other = tokenizer("Where are my keys?", return_tensors="pt")
    vectors = []
    with torch.no_grad():
        for text in (*texts, "Where are my keys?"):
            one = tokenizer(text, return_tensors="pt")
            vectors.append(minilm(**one).last_hidden_state[0].mean(0))
        values = target_value(minilm, cosine("Where are my keys?"), batch)
        torch.testing.assert_close(target_value(minilm, cosine(other), batch), values)
    for value, vector in zip(values, vectors, strict=False):
        wanted = vector @ vectors[-1] / vector.norm() / vectors[-1].norm()
        assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    start = input_baseline(minilm, batch)
    assert tokenizer.convert_ids_to_tokens(start["input_ids"][0]) == [
        "[CLS]",
        *["[PAD]"] * 7,
        "[SEP]",
    ]
    assert start["input_ids"][1].tolist() == [101, 0, 0, 102, 0, 0, 0, 0, 0]
    assert start["attention_mask"] is batch["attention_mask"]
    swapped = input_baseline(minilm, batch, ["The dogs are on the table.", "Dogs!"])
    assert tokenizer.decode(swapped["input_ids"][1], skip_special_tokens=True) == "dogs!"


def test_smollm2_tokens_as_strings(smollm2: Any) -> None:
    tokenizer = tokenizer_of(smollm2)
    inputs = tokenizer("The capital of France is Paris", return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    with torch.no_grad():
        logits = smollm2(**inputs).logits[0]
        are, is_ = (tokenizer(word)["input_ids"][0] for word in (" are", " is"))
        value = target_value(smollm2, logit(" are", minus=" is", position=3), inputs)
        assert float(value) == pytest.approx(float(logits[3, are] - logits[3, is_]), rel=1e-4)
        value = target_value(smollm2, log_probability(" is Paris"), inputs)
    wanted = sum(float(logits[n - 1].double().softmax(-1)[ids[n]].log()) for n in (4, 5))
    assert float(value) == pytest.approx(wanted, rel=1e-4)
    start = input_baseline(smollm2, inputs, "The capital of Italy is Paris")["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(start)[3] == "ĠItaly"
    with pytest.raises(LigError, match=r"6 tokens, its baseline 7\. .*' France'.*' the', ' Italy'"):
        input_baseline(smollm2, inputs, "The capital of the Italy is Paris")
    with pytest.raises(LigError, match=r"is 2 tokens, \[' are', 'zz'\]"):
        target_value(smollm2, logit(" arezz"), inputs)
    with pytest.raises(LigError, match=r"ends with .*' Paris'.* is of .*' Rome'"):
        target_value(smollm2, log_probability(" Rome"), inputs)
