"""Sentences, and the models that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from captum_lig import LayerFlowIG
from captum_lig.prediction import layer_baselines
from captum_lig.pretrained.minilm import embedded_model_path
from captum_lig.pretrained.smollm2 import smollm2_path


def sentences(corpus: Path) -> list[str]:
    """Of a corpus in CoNLL-U, or in plain text with one sentence a line."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    if corpus.suffix != ".conllu":
        return lines
    return [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]


def load(folder: str | None, causal: bool = False) -> tuple[Any, Any]:
    """Tokenizer and model, in float32, of a folder, ``"smollm2"``, or ``"minilm"`` (as is None);
    transformers is quiet from now on."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = {None: embedded_model_path, "minilm": embedded_model_path, "smollm2": smollm2_path}
    source = known[folder]() if folder in known else folder
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model = kind.from_pretrained(source, dtype=torch.float32).eval()
    return transformers.AutoTokenizer.from_pretrained(source), model


def flows_from(model: Any, inputs: Any, baseline: Any) -> dict[str, Any]:
    """Flows for a graph by where their paths start; ``baseline`` is one of the model's input."""
    matched = layer_baselines(model, inputs, baseline)
    starts = {"zero": "zero", "target_token": "target_token", "layer_baselines": matched}
    lig = LayerFlowIG(model)
    return {
        name: lig.attribute(inputs, start, boundaries=("attention", "mlp"))
        for name, start in starts.items()
    }
