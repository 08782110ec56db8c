"""Relevances of tokens against a chain by plain hooks, on small models and real weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from captum_lig import LayerFlow, LayerFlowIG
from captum_lig.prediction import cosine, logit
from tests.helpers import models
from tests.helpers.embedded import minilm_folder
from tests.helpers.hooked_chain import HookedChain, Sites
from tests.helpers.laws import number_of, other_inputs

BERT = ("attention.output.dense", "output.dense")
LLAMA = ("self_attn.o_proj", "mlp")
GPT2 = ("attn.c_proj", "mlp")


def tokens_of(flows: list[LayerFlow]) -> Tensor:
    """``(L + 1, S)``"""
    depths = [flow.need("entering")[0] for flow in flows]
    return torch.stack([*depths, flows[-1].need("mlp_total")[0]])


def check(flows: Any, wanted: Tensor, bound: float) -> None:
    found = tokens_of(flows)
    scale = torch.stack([flow.need("scale")[0] for flow in flows]).min()
    assert wanted.sum(-1).sub(wanted[-1].sum()).abs().max() <= 10 * bound * scale  # of the twin
    assert wanted.abs().max() > 0.1 * scale
    assert (found - wanted).abs().max() <= bound * scale, (found - wanted).abs().max() / scale


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_small_models(kind: str) -> None:
    model: Any = getattr(models, f"tiny_{kind}")(layers=3)
    sites = Sites(list(models.blocks(model)), *{"bert": BERT, "gpt2": GPT2, "llama": LLAMA}[kind])
    inputs = {"input_ids": torch.tensor([[5, 17, 31, 8, 44]])}
    other = other_inputs(inputs)
    flows = LayerFlowIG(model).attribute(inputs, other, number_of, tolerance=1e-6)
    check(flows, HookedChain(model, sites, panels=4).tokens(inputs, other, number_of), 1e-5)


def test_minilm() -> None:
    source = minilm_folder()
    model = AutoModel.from_pretrained(source, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    inputs = dict(tokenizer("The cat sat on the mat.", return_tensors="pt"))
    text = dict(tokenizer("A kitten was lying on a rug.", return_tensors="pt"))
    with torch.no_grad():
        vector = model(**text).last_hidden_state.mean(1)
    padding = inputs["input_ids"].clone()
    padding[:, 1:-1] = tokenizer.pad_token_id
    flows = LayerFlowIG(model).attribute(inputs, padding, cosine(text), tolerance=1e-6)

    def number(output: Any) -> Tensor:
        return torch.cosine_similarity(output.last_hidden_state.mean(1), vector)

    sites = Sites(list(model.encoder.layer), *BERT)
    other = {**inputs, "input_ids": padding}
    # The lowest block turns padding into a text.
    check(flows, HookedChain(model, sites, panels=4).tokens(inputs, other, number), 1e-5)


@pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2 names no folder with the model")
def test_smollm2() -> None:
    source = os.environ["SMOLLM2"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    inputs, other = (
        dict(tokenizer(f"The {noun} to the cabinet", return_tensors="pt"))
        for noun in ("keys", "key")
    )
    are, one = (tokenizer(word)["input_ids"][0] for word in (" are", " is"))
    flows = LayerFlowIG(model).attribute(
        inputs, other, logit(" are", minus=" is"), tokenizer=tokenizer, tolerance=1e-4
    )

    def number(output: Any) -> Tensor:
        row = output.logits[:, -1]
        return row[:, are] - row[:, one]  # type: ignore[no-any-return]

    sites = Sites(list(model.model.layers), *LLAMA)
    wanted = HookedChain(model, sites, panels=1).tokens(inputs, other, number)
    check(flows, wanted, 1e-3)
