"""A whole layer map against the loop over targets with Captum, in passes of the layer.

    python -m benchmarks.loop [--tokens 128] [--measured 4 | --full] [--check]

The loop is what a user of Captum writes: the layer's output for one target made a number by its
distance from where the path starts, Integrated Gradients of that, and so for each target. Its
time is taken for a few targets and multiplied, or with ``--full`` taken for all.
"""

from __future__ import annotations

import sys
from functools import partial
from statistics import median

import torch

from benchmarks.common import command, in_turns, ratio, say, section, table
from benchmarks.contenders import attribute_distance
from benchmarks.passes import attribution
from benchmarks.shapes import SHAPES, Layer, token_ids

TITLE = "A layer map against the loop over targets"
TOKENS = 128
STEPS = 16
BOUND = 5.0
"""Most passes of the layer per path point."""


def captum_rows(layer: Layer, targets: list[int]) -> None:
    """Attributions of the distance of some targets from their output at a zero baseline."""
    for target in targets:
        attribute_distance(
            lambda z, target=target: layer(z)[:, target],
            (layer.z,),
            (torch.zeros_like(layer.z),),
            STEPS,
        )


def run(
    tokens: int = TOKENS, measured: int = 3, full: bool = False, rounds: int = 3
) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    model = SHAPES["BERT-base"](tokens)
    layer = Layer.of(model, token_ids(tokens))
    targets = torch.linspace(0, tokens - 1, tokens if full else measured).long().tolist()
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
    text = section(
        TITLE,
        f"The T x T layer map of a BERT-base-shaped layer, T = {tokens}, zero baseline, "
        f"{STEPS} path points. A pass is one forward and backward of the layer for one text; "
        f"the bound is {BOUND:.0f} of them per path point, and a loop over targets needs "
        f"{tokens} if it does nothing else (it can need fewer passes of one text, as it "
        "batches path points).",
        table(["", "ratio", "passes per path point", "seconds"], rows),
    )
    return text, [f"{ours:.2f} passes (at most {BOUND})"] if ours > BOUND else []


OPTIONS = {
    "tokens": {"type": int, "default": TOKENS},
    "measured": {"type": int, "default": 3, "help": "targets the loop is timed on"},
    "full": {"action": "store_true", "help": "time the loop on all targets"},
}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))
