"""A whole layer map against the loop over targets with Captum, in passes of the layer.

    python -m benchmarks.loop [--tokens 128] [--measured 4 | --full] [--check]

The loop is what a user of Captum writes: the layer's output for one target made a number by its
distance from where the path starts, Integrated Gradients of that, and so for each target. Its
time is taken for a few targets and multiplied, or with ``--full`` taken for all.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from statistics import median

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from benchmarks.common import finish, in_turns, ratio, say, stamp, table, use_threads
from benchmarks.passes import attribution
from benchmarks.shapes import Layer, bert_base, token_ids

TITLE = "A layer map against the loop over targets"
TOKENS = 128
STEPS = 16
BOUND = 5.0
"""Most passes of the layer per path point."""


def captum_row(layer: Layer, target: int, n_steps: int) -> Tensor:
    """Attributions ``(T,)`` of one target's distance from its output at a zero baseline."""
    start = torch.zeros_like(layer.z)
    with torch.no_grad():
        y_start = layer(start)[:, target]

    def distance(z: Tensor) -> Tensor:
        return torch.linalg.vector_norm(layer(z)[:, target] - y_start, dim=-1)

    attributions = IntegratedGradients(distance).attribute(layer.z, start, n_steps=n_steps)
    row: Tensor = attributions[0].sum(-1)
    return row


def captum_rows(layer: Layer, targets: list[int]) -> None:
    for target in targets:
        captum_row(layer, target, STEPS)


def run(
    tokens: int = TOKENS, measured: int = 3, rounds: int = 3, threads: int = 1
) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    use_threads(threads)
    model = bert_base(tokens)
    layer = Layer.of(model, token_ids(tokens))
    targets = torch.linspace(0, tokens - 1, measured).long().tolist()
    taken = in_turns(
        {
            "pass": layer.forward_backward,
            "map": attribution(model, tokens, "zero", "layer", STEPS),
            "loop": partial(captum_rows, layer, targets),
        },
        rounds,
        at_least=0.05,
    )
    share = tokens / len(targets)
    ours = ratio(taken["map"], taken["pass"]) / STEPS
    loop = ratio(taken["loop"], taken["pass"]) / STEPS * share
    gain = ratio(taken["loop"], taken["map"]) * share
    say(f"loop: {ours:.2f} and {loop:.0f} passes per path point, {gain:.0f} times")
    how = "measured in full" if share == 1 else f"from {len(targets)} of {tokens} targets"
    rows = [
        ["captum_lig", "1", f"{ours:.2f}", f"{median(taken['map']):.2f}"],
        [
            f"loop with Captum ({how})",
            f"{gain:.0f}",
            f"{loop:.0f}",
            f"{median(taken['loop']) * share:.1f}",
        ],
    ]
    section = "\n\n".join(
        [
            f"## {TITLE}",
            f"`python -m benchmarks.loop`. {stamp()}",
            f"The T x T layer map of a BERT-base-shaped layer, T = {tokens}, zero baseline, "
            f"{STEPS} path points. A pass is one forward and backward of the layer for one text; "
            f"the bound is {BOUND:.0f} of them per path point, and a loop over targets needs "
            f"{tokens} if it does nothing else (it can need fewer passes of one text, as it "
            "batches path points).",
            table(["", "ratio", "passes per path point", "seconds"], rows),
        ]
    )
    return section, [f"{ours:.2f} passes (at most {BOUND})"] if ours > BOUND else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--measured", type=int, default=3, help="targets the loop is timed on")
    parser.add_argument("--full", action="store_true", help="time the loop on all targets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="fail if the bound is missed")
    given = parser.parse_args()
    measured = given.tokens if given.full else given.measured
    section, missed = run(given.tokens, measured, threads=given.threads)
    print(section)
    return finish(missed, given.check)


if __name__ == "__main__":
    sys.exit(main())
