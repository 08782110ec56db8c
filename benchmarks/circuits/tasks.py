"""What is asked of a decoder: two tasks of the benchmark of patching, and which year is later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.patching import cases
from benchmarks.patching.cases import Case, Dropped

__all__ = ["TASKS", "asked"]

NOUNS = (
    "war siege famine drought reign voyage strike plague revolt trial dispute truce project "
    "expedition conflict partnership festival blockade alliance campaign"
)
CENTURIES = ("17", "16", "18", "15", "14")
TENS = (6, 7, 5, 8, 4, 3)


def years() -> Iterator[tuple[str, str, int]]:
    """A text that ends where a year's decade is due, one from its century's first year, and the
    decade of the year it began (after Hanna et al., "How does GPT-2 compute greater-than?", 2023,
    whose counterfactual it is)."""
    for shift, century in enumerate(CENTURIES):
        for number, noun in enumerate(NOUNS.split()):
            tens = TENS[(number + shift) % len(TENS)]
            frame = f"The {noun} lasted from the year {century}{{}} to the year {century}"
            yield frame.format(f"{tens}1"), frame.format("01"), tens


def later(digits: list[int], tens: int) -> Callable[[Any], Tensor]:
    """Log odds of a later decade than ``tens`` against an earlier one."""

    def read(output: Any) -> Tensor:
        logits = output.logits[:, -1]
        after, before = digits[tens + 1 :], digits[:tens]
        return logits[:, after].logsumexp(-1) - logits[:, before].logsumexp(-1)  # type: ignore[no-any-return]

    return read


def greater(model: Any, tokenizer: Any, dropped: Dropped) -> Iterator[Case]:
    """Prompts where the model prefers later decades, and not from the century's first year."""
    digits = [tokenizer(str(n))["input_ids"] for n in range(10)]
    if any(len(one) != 1 for one in digits):
        raise SystemExit("greater-than is asked of models that read digits one by one.")
    ids = [one[0] for one in digits]
    for text, other, tens in years():
        inputs, baseline = (dict(tokenizer(x, return_tensors="pt")) for x in (text, other))
        if inputs["input_ids"].shape != baseline["input_ids"].shape:
            dropped.length += 1
            continue
        read = later(ids, tens)
        with torch.no_grad():
            values = [float(read(model(**one))) for one in (inputs, baseline)]
        if not values[0] > 0 > values[1]:
            dropped.answer += 1
            continue
        yield Case("greater", text, other, inputs, baseline, read, tuple(ids))


TASKS = ("objects", "agreement", "greater", "capitals")


def asked(model: Any, tokenizer: Any, task: str, count: int, dropped: Dropped) -> Iterator[Case]:
    """The first ``count`` prompts of a task that the model does; others are counted."""
    if task == "greater":
        return islice(greater(model, tokenizer, dropped), count)
    return cases.prompts(model, tokenizer, task, count, dropped)
