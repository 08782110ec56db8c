"""Whether flows towards a target add up to the change of the target at every depth of a decoder.

    python -m benchmarks.completeness_of_targets FOLDER

FOLDER holds a Llama-like decoder and its tokenizer. Prompts of ``benchmarks.patching`` against
their counterfactuals and against padding, one by one and in padded batches of texts of different
lengths. At every depth the relevances of the tokens have to add up to the change of the target;
what they miss is relative to the change, or to the sum of their sizes where they cancel to less
than a tenth of it. Prints Markdown, and names what misses the tolerance.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import now, say, stamp, table, use_threads
from benchmarks.patching.cases import TASKS, Case, Dropped, prompts
from benchmarks.texts import load
from captum_lig import LayerFlowIG
from captum_lig.prediction import logit

TOLERANCE = 1e-3
TEXTS = 4
"""In a batch."""
STAGES = 3
"""Of a block: attention, MLP, and what leaves it."""


@dataclass(frozen=True)
class Question:
    """Texts, their baseline, and what kind of question it is."""

    kind: str
    cases: list[Case]
    inputs: dict[str, Tensor]
    baseline: dict[str, Tensor] | None


@dataclass(frozen=True)
class Answer:
    """Of one text."""

    kind: str
    text: str
    worst: float
    """Error at the worst depth."""
    depth: int
    cancelled: int
    """Depths where errors are relative to the sum of sizes."""
    nodes: float
    """Of the quadrature, in the mean over layers and stages; in a batch over its texts, too."""
    seconds: float


def questions(model: Any, tokenizer: Any, count: int) -> Iterator[Question]:
    """About ``count`` texts, a third of each kind."""
    each = -(-count // (4 * len(TASKS)))
    found = {task: list(prompts(model, tokenizer, task, 2 * each, Dropped())) for task in TASKS}
    for cases in found.values():
        for case in cases[:each]:
            yield Question("counterfactual", [case], case.inputs, case.baseline)
            yield Question("padding", [case], case.inputs, None)
    mixed = [case for group in zip(*found.values(), strict=True) for case in group]
    mixed = mixed[len(mixed) // 2 :]
    for number, first in enumerate(range(0, len(mixed), TEXTS)):
        cases = mixed[first : first + TEXTS]
        tokenizer.padding_side = ("right", "left")[number % 2]
        inputs, other = (
            dict(tokenizer(texts, return_tensors="pt", padding=True))
            for texts in ([c.text for c in cases], [c.other for c in cases])
        )
        side = f"batch, padded {tokenizer.padding_side}"
        yield Question(f"counterfactual, {side}", cases, inputs, other)
        yield Question(f"padding, {side}", cases, inputs, None)


def answers(lig: LayerFlowIG, question: Question) -> Iterator[Answer]:
    """What the sums miss, of each text."""
    began = now()
    # Texts of a batch have one target: that of the first.
    token, other = question.cases[0].words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flows = lig.attribute(question.inputs, question.baseline, logit(token, minus=other))
    seconds = (now() - began) / len(question.cases)
    places = torch.stack([flow.need("entering") for flow in flows])  # (L, B, S)
    top = flows[-1].need("mlp_total")
    places = torch.cat([places, top[None]]).double()
    change = flows[0].need("change").double()
    size = places.abs().sum(-1)
    cancelled = change.abs() < 0.1 * size
    error = (places.sum(-1) - change).abs() / torch.where(cancelled, size, change.abs())
    nodes = mean(flow.cost.path_points for flow in flows) / STAGES
    for text, case in enumerate(question.cases):
        depth = int(error[:, text].argmax())
        yield Answer(
            question.kind,
            case.text,
            float(error[depth, text]),
            depth,
            int(cancelled[:, text].sum()),
            nodes,
            seconds,
        )


def row(kind: str, found: list[Answer]) -> list[str]:
    errors = [one.worst for one in found]
    return [
        kind,
        str(len(found)),
        f"{max(errors):.1e}",
        f"{median(errors):.1e}",
        str(sum(error > TOLERANCE for error in errors)),
        str(sum(one.cancelled > 0 for one in found)),
        f"{mean(one.nodes for one in found):.1f}",
        f"{max(one.nodes for one in found):.1f}",
        f"{mean(one.seconds for one in found):.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="smollm2, or a folder with a Llama")
    parser.add_argument("--count", type=int, default=100, help="how many texts")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    tokenizer, model = load(arguments.model, causal=True)
    lig, found = LayerFlowIG(model), []
    for question in questions(model, tokenizer, arguments.count):
        for answer in answers(lig, question):
            found.append(answer)
            say(
                f"{len(found):4d} {answer.kind}: {answer.worst:.1e}, {answer.nodes:.1f} nodes, "
                f"{answer.seconds:.1f} s, {answer.cancelled} cancelling  {answer.text}"
            )
    kinds = list(dict.fromkeys(one.kind for one in found))
    columns = ("", "texts", "worst", "median", "missed", "cancelling", "nodes", "most", "seconds")
    rows = [row(kind, [one for one in found if one.kind == kind]) for kind in kinds]
    print(f"{stamp()}\n\n{table(columns, [*rows, row('all', found)])}")
    for one in found:
        if one.worst > TOLERANCE:
            print(f"- {one.worst:.1e} entering layer {one.depth}, {one.kind}: {one.text!r}")


if __name__ == "__main__":
    main()
