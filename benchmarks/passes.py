"""What a map of all targets costs, in passes of the layer per path point.

    python -m benchmarks.passes [--shape BERT-base ...] [--tokens 16 ...] [--check]

``total`` is the whole call divided by its path points; ``slope`` is what one more path point
costs, which leaves out the fixed cost (running the model, finding the layer's structure, the two
ends of the path). A pass is forward and backward for the layer map, forward for the attention
map, of one text; ``floor`` is the same pass in the best batch of path points.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from torch import nn

from benchmarks.common import Work, command, in_turns, ratio, say, section, table
from benchmarks.shapes import SHAPES, Layer, token_ids
from captum_lig import LayerFlowIG

TITLE = "Cost of a whole map"
DEFAULT = ("BERT-base", "GPT-2", "Llama")
TOKENS = (16, 41, 128, 512)
BASELINES = ("zero", "target_token")
BOUND = {"layer": (1.0, 1.2), "attention": (1.5, 1.5)}
"""Most passes per path point, by boundary: of shorter texts than ``LONG``, and from there on."""
FEW, MANY = 4, 16
"""Path points of the two calls whose difference gives the slope."""
BATCHES = (4, 16)
LONG = 512
"""From this length on a call takes seconds: fewer rounds, and none to warm up."""
BATCHED_TOKENS = 2048
"""Larger batches than this gain nothing and take long."""


@dataclass(frozen=True)
class Cell:
    """The cost of one boundary, in passes per path point."""

    boundary: str
    shape: str
    tokens: int
    baseline: str
    total: float
    slope: float
    floor: float
    """A pass in the best batch, in passes of one text."""
    seconds: float
    """Of the whole call."""

    @property
    def bound(self) -> float:
        return BOUND[self.boundary][self.tokens >= LONG]

    @property
    def missed(self) -> bool:
        return self.total > self.bound

    def describe(self) -> str:
        return (
            f"{self.boundary} map, {self.shape}, T = {self.tokens}, {self.baseline}: "
            f"{self.total:.2f} passes per path point (at most {self.bound})"
        )

    def row(self) -> list[str]:
        total = f"**{self.total:.2f}**" if self.missed else f"{self.total:.2f}"
        costs = [f"{x:.2f}" for x in (self.slope, self.floor, self.slope / self.floor)]
        where = [self.boundary, self.shape, str(self.tokens), self.baseline]
        return [*where, total, *costs, f"{self.seconds:.3f}"]


HEADER = ["map", "shape", "T", "baseline", "total", "slope", "floor", "slope / floor", "seconds"]


def attribution(model: nn.Module, tokens: int, baseline: str, boundary: str, n_steps: int) -> Work:
    """One call, ready to run."""
    return partial(
        LayerFlowIG(model, layer=0).attribute,
        token_ids(tokens),
        baselines=baseline,
        n_steps=n_steps,
        boundaries=(boundary,),
        tolerance=None,
    )


def measure(shape: str, tokens: int, rounds: int) -> list[Cell]:
    """All cells of one shape and one length, in turns."""
    model = SHAPES[shape](max(TOKENS))
    layer = Layer.of(model, token_ids(tokens))
    passes = {"layer": layer.forward_backward, "attention": layer.forward}
    batches = [1, *(batch for batch in BATCHES if batch * tokens <= BATCHED_TOKENS)]
    works: dict[str, Work] = {}
    for boundary, one in passes.items():
        for batch in batches:
            works[f"{boundary} pass {batch}"] = partial(one, batch)
        for baseline in BASELINES:
            for n_steps in (FEW, MANY):
                work = attribution(model, tokens, baseline, boundary, n_steps)
                works[f"{boundary} {baseline} {n_steps}"] = work
    taken = in_turns(works, rounds, at_least=0.25, warm=tokens < LONG)
    cells = []
    for boundary in BOUND:
        one = taken[f"{boundary} pass 1"]
        floors = [ratio(taken[f"{boundary} pass {b}"], one) / b for b in batches]
        for baseline in BASELINES:
            few, many = (taken[f"{boundary} {baseline} {n}"] for n in (FEW, MANY))
            more = [b - a for a, b in zip(few, many, strict=True)]
            slope = ratio(more, one) / (MANY - FEW)
            costs = ratio(many, one) / MANY, slope, min(floors), median(many)
            cells.append(Cell(boundary, shape, tokens, baseline, *costs))
    return cells


def run(
    shape: Sequence[str] = DEFAULT, tokens: Sequence[int] = TOKENS, rounds: int = 9
) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    cells: list[Cell] = []
    for one in shape:
        for length in tokens:
            found = measure(one, length, rounds if length < LONG else min(rounds, 5))
            for cell in found:
                say(cell.describe())
            cells += found
    cells.sort(key=lambda cell: list(BOUND).index(cell.boundary))
    missed = [cell.describe() for cell in cells if cell.missed]
    text = section(
        TITLE,
        f"Passes of the layer per path point for all T targets at once, {MANY} path points, "
        "one-layer models with random weights in the models' default attention. A pass is "
        "forward and backward to the layer's input for the layer map, forward alone for the "
        "attention map (all heads), of one text. *total*: the whole call divided by its path "
        f"points, at most {BOUND['layer'][0]} for the layer map ({BOUND['layer'][1]} from T = "
        f"{LONG} on) and {BOUND['attention'][0]} for the attention map; bold where it is "
        f"more. *slope*: what one more path point costs (from {FEW} and {MANY} of them), without "
        "the fixed cost of a call. *floor*: the same pass in the best batch of path points: what "
        "going through the layer once for each costs at best.",
        table(HEADER, [cell.row() for cell in cells]),
        f"{len(cells) - len(missed)} of {len(cells)} within their bound.",
    )
    return text, missed


OPTIONS = {
    "shape": {"nargs": "+", "choices": SHAPES, "default": DEFAULT},
    "tokens": {"nargs": "+", "type": int, "default": list(TOKENS)},
    "rounds": {"type": int, "default": 9},
}

if __name__ == "__main__":
    sys.exit(command(__doc__, run, OPTIONS))
