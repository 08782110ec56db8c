"""Which map of a layer says best what an intervention does, over sentences: ours and rivals.

    python -m benchmarks.within_layer --model minilm --corpus en_ewt-ud-dev.conllu \
        --sentences 300 --out minilm.jsonl

A line of the file for each sentence: a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import COMMIT, say, use_threads
from benchmarks.records import Record
from benchmarks.texts import load, sentences
from benchmarks.within_layer import report
from benchmarks.within_layer.maps import BASELINES, Maps
from benchmarks.within_layer.measure import NUMBERS, sentence


def differences(old: Any, new: Any) -> Iterator[float]:
    """Of all numbers that are in both, one by one."""
    if isinstance(old, dict):
        for name in old:
            yield from differences(old[name], new[name])
    elif isinstance(old, list):
        for x, y in zip(old, new, strict=True):
            yield from differences(x, y)
    elif (old is None) != (new is None):
        yield math.inf
    elif old is not None:
        yield abs(old - new)


def run(asked: argparse.Namespace) -> str:
    """Measure what is not in the file yet, and some of what was in it again.

    Returns how far that is from what the file has.
    """
    tokenizer, model = load(asked.model)
    count = model.config.num_hidden_layers
    layers = sorted(asked.layers) if asked.layers else list(range(count))
    names = ("model", "least", "most", "baselines", "tolerance", "max_steps")
    settings = {name: getattr(asked, name) for name in names}
    settings |= {"layers": layers, "numbers": NUMBERS, "corpus": asked.corpus.name}
    record = Record(asked.out, settings)
    done = {row["sentence"]: row for row in record.rows}
    maps = Maps(model, layers, asked.tolerance, asked.max_steps)
    fitting = 0
    known = sorted(done)[:: max(1, len(done) // max(1, asked.again))][: asked.again]
    gaps: list[float] = []
    for number, text in enumerate(sentences(asked.corpus)):
        if fitting == asked.sentences:
            break
        inputs = dict(tokenizer(text, return_tensors="pt"))
        length = inputs["input_ids"].shape[1]
        if not asked.least <= length <= asked.most:
            continue
        fitting += 1
        if number in done and number not in known:
            continue
        began = time.perf_counter()
        found = sentence(inputs, maps, asked.baselines)
        took = time.perf_counter() - began
        if number in known:
            gaps += differences(done[number]["numbers"], found["numbers"])
        else:
            record.add({"sentence": number, "tokens": length, **found}, took)
        say(f"{fitting}: {length} tokens, {took:.1f} s {found['seconds']}")
    if fitting < asked.sentences:
        say(f"{asked.corpus} has {fitting} sentences of {asked.least} to {asked.most} tokens.")
    if not gaps:
        return ""
    same = sum(gap == 0 for gap in gaps) / len(gaps)
    return (
        f"{len(known)} of the sentences taken again, of {COMMIT}: of {len(gaps):,} correlations "
        f"{same:.1%} are the same in all five digits, the largest difference is {max(gaps):.5f}."
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="minilm, smollm2 or a folder")
    parser.add_argument("--corpus", type=Path, help="CoNLL-U, or lines of text")
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--layers", type=int, nargs="*", help="all, if left out")
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--least", type=int, default=6, help="tokens of a sentence")
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--max-steps", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True, help="a file of JSON lines")
    parser.add_argument("--again", type=int, default=0, help="of what the file has, to compare")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    use_threads(asked.threads)
    warnings.filterwarnings("ignore", message=".*not within tolerance.*")
    torch.manual_seed(0)
    again = run(asked)
    print("\n\n".join(filter(None, [report.text(asked.out), again])))


if __name__ == "__main__":
    main()
