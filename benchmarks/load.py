"""Memory and time of layer maps over the texts of a batch and the layers of a model.

    python -m benchmarks.load [--texts 1 ...] [--layers 1 ...] [--tokens 32] [--width 256]

Models shaped as BERT, each case in a process of its own. ``internal_batch_size`` is the same for
all, so what a call takes beyond the record of the model's run has to be, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from transformers import BertConfig, BertModel

from benchmarks.common import command, measured, say, section, table, use_threads
from captum_lig import LayerFlowIG

TITLE = "Load: texts of a batch, and layers"
MIB = 2**20
TEXTS, LAYERS = (1, 4, 16, 64), (1, 12, 48)


@dataclass(frozen=True)
class Case:
    """A batch, and a model."""

    texts: int
    layers: int
    tokens: int
    width: int
    at: int


@dataclass(frozen=True)
class Used:
    """What a call took."""

    peak: int
    """Bytes beyond those that were held once the model had run."""
    kept: int
    """Of them the tokens that enter and leave each layer, and the maps: they grow with both."""
    seconds: float


def measure(case: Case) -> Used:
    """Run a case, here and now."""
    use_threads(1)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=case.width // 64,
        intermediate_size=4 * case.width,
        max_position_embeddings=case.tokens,
    )
    model = BertModel(config).eval()
    ids = torch.randint(1000, (case.texts, case.tokens))
    with torch.no_grad():
        model(input_ids=ids[:1])

    def attribute() -> object:
        return LayerFlowIG(model).attribute(
            ids, "zero", boundaries=("layer",), internal_batch_size=case.at, tolerance=None
        )

    _, seconds, peak = measured(attribute)
    kept = 4 * case.texts * case.layers * case.tokens * (2 * case.width + case.tokens)
    return Used(peak, kept, seconds)


HEADER = ["layers", "texts", "peak", "of it kept", "rest", "seconds", "ms a text and layer"]


def row(case: Case, used: Used) -> list[str]:
    sizes = [f"{size / MIB:.0f} MiB" for size in (used.peak, used.kept, used.peak - used.kept)]
    each = 1000 * used.seconds / case.texts / case.layers
    return [str(case.layers), str(case.texts), *sizes, f"{used.seconds:.1f}", f"{each:.0f}"]


def run(
    texts: Sequence[int] = TEXTS,
    layers: Sequence[int] = LAYERS,
    tokens: int = 32,
    width: int = 256,
    at: int = 1024,
) -> tuple[str, list[str]]:
    """The section; there is no bound."""
    rows = []
    for case in (Case(many, deep, tokens, width, at) for deep in layers for many in texts):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(row(case, pool.submit(measure, case).result()))
        say(f"load: {', '.join(rows[-1])}")
    return section(
        TITLE,
        f"Layer maps of all layers of models shaped as BERT, {width} wide, texts of {tokens} "
        f"tokens, 16 path points, zero baseline, internal_batch_size {at}. *peak*: of the process, "
        "beyond what it held once the model had run. *of it kept*: the tokens entering and leaving "
        "every layer, and the maps, which grow with both. What is promised is that path points, "
        "of *rest*, take no more for many texts and layers than for one; the other part of it are "
        "the activations of one layer of the whole batch.",
        table(HEADER, rows),
    ), []


OPTIONS = {
    "texts": {"nargs": "+", "type": int, "default": list(TEXTS)},
    "layers": {"nargs": "+", "type": int, "default": list(LAYERS)},
    "tokens": {"type": int, "default": 32},
    "width": {"type": int, "default": 256},
    "at": {"type": int, "default": 1024, "help": "internal_batch_size"},
}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))
