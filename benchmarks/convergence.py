"""Rows that converged, counted: every layer, head and target of real and random models.

    python -m benchmarks.convergence --random --models minilm smollm2 --corpus SENTENCES

The corpus is plain text with one sentence a line, or CoNLL-U. ``--random`` adds random models in
the shapes of BERT-base, GPT-2, Llama, Qwen3 and Gemma 3. Prints, for each model and baseline, how
many rows are within tolerance, and names the rest.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.common import say, stamp, table, use_threads
from benchmarks.texts import load, sentences
from captum_lig import LayerFlowIG

BASELINES = ("target_token", "zero")


def spread(corpus: Path, count: int) -> list[str]:
    """``count`` sentences of 8 to 30 words, spread over the corpus."""
    fitting = [line for line in sentences(corpus) if 8 <= len(line.split()) <= 30]
    return fitting[:: max(1, len(fitting) // count)][:count]


def random_models() -> Iterator[tuple[str, nn.Module]]:
    """Two layers each, with random biases and norms: stock initialisation hides errors."""
    small: dict[str, Any] = {"num_hidden_layers": 2, "vocab_size": 200}
    grouped = {**small, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    grouped |= {"hidden_size": 512, "intermediate_size": 1024}
    windows = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    specials = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    configs = {
        "BERT-base shape": transformers.BertConfig(**small),
        "GPT-2 shape": transformers.GPT2Config(n_layer=2, vocab_size=200, **specials),
        "Llama shape": transformers.LlamaConfig(**grouped, **specials),
        "Qwen3 shape": transformers.Qwen3Config(**grouped, **specials),
        "Gemma 3 shape": transformers.Gemma3TextConfig(**grouped, **windows, **specials),
    }
    for name, config in configs.items():
        model = transformers.AutoModel.from_config(config).eval()
        generator = torch.Generator().manual_seed(0)
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                noise = 0.2 * noise + (1 if key.endswith("weight") else 0)
            elif "embed" not in key and not key.startswith(("wte", "wpe")):
                noise *= 1.2 / parameter.shape[-1] ** 0.5
            parameter.data.copy_(noise)
        yield name, model


def count_converged(name: str, model: nn.Module, inputs: list[Any]) -> Iterator[list[str]]:
    """A line for each baseline: rows, those within tolerance; what is not is named."""
    for baseline in BASELINES:
        rows = missed = 0
        worst, points, named = 0.0, 0.0, []
        for number, given in enumerate(inputs, 1):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                flows = LayerFlowIG(model).attribute(given, baseline)
            named += [str(w.message) for w in caught if "within tolerance" in str(w.message)]
            assert isinstance(flows, list)
            for flow in flows:
                for boundary, converged in flow.converged.items():
                    rows += converged.numel()
                    missed += int((~converged).sum())
                    worst = max(worst, float(flow.completeness_error(boundary).max()))
                assert flow.cost is not None
                points += flow.cost.path_points / len(flows) / len(inputs)
            say(f"{name}, {baseline}: {number} of {len(inputs)}")
        counts = [str(len(inputs)), baseline, f"{rows:,}", f"{rows - missed:,}"]
        say(f"{name}: {counts}")
        for message in named:
            say(f"   {message}")
        yield [name, *counts, f"{worst:.1e}", f"{points:.0f}"]


HEADER = ("model", "texts", "baseline", "rows", "within tolerance", "worst error")
NAMES = {"minilm": "all-MiniLM-L6-v2", "smollm2": "SmolLM2-135M"}
POINTS = "path points a target and layer"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--models", nargs="*", default=[], help="minilm, smollm2 or folders")
    parser.add_argument("--random", action="store_true")
    asked = parser.parse_args()
    if asked.models and asked.corpus is None:
        parser.error("--models needs a --corpus")
    use_threads(1)
    lines: list[list[str]] = []
    for given in asked.models:
        tokenizer, model = load(given)
        texts = spread(asked.corpus, asked.sentences)
        inputs = [tokenizer(text, return_tensors="pt") for text in texts]
        name = NAMES.get(given, Path(given).name)
        lines += count_converged(name, model, inputs)
    if asked.random:
        ids = torch.randint(3, 200, (1, 16), generator=torch.Generator().manual_seed(1))
        for name, model in random_models():
            lines += count_converged(name, model, [ids])
    print(f"{stamp()}\n\n{table([*HEADER, POINTS], lines)}")


if __name__ == "__main__":
    main()
