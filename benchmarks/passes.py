"""What a map of all targets costs, in passes of the layer per path point.

    python -m benchmarks.passes [--shape BERT-base ...] [--tokens 16 ...] [--check]

``total`` is the whole call divided by its path points; ``slope`` is what one more path point
costs, which leaves out the fixed cost (running the model, finding the layer's structure, the two
ends of the path). A pass is forward and backward for the layer map, forward for the attention
map, of one text; ``floor`` is the same pass in the best batch of path points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from torch import nn

from benchmarks.common import Work, finish, in_turns, ratio, say, stamp, table, use_threads
from benchmarks.shapes import SHAPES, Layer, token_ids
from captum_lig import LayerFlowIG

TITLE = "Cost of a whole map"
TOKENS = (16, 41, 128, 512)
BASELINES = ("zero", "target_token")
BOUND = {"layer": 1.8, "attention": 1.5}
"""Most passes per path point, by boundary."""
FEW, MANY = 4, 16
"""Path points of the two calls whose difference gives the slope."""
BATCHES = (4, 16)
LONG = 512
"""From this length on a call takes seconds: fewer rounds, and none to warm up."""
BATCHED_TOKENS = 2048
"""Larger batches than this gain nothing and take long."""

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Cell:
    """The cost of one boundary, in passes per path point."""

    shape: str
    tokens: int
    baseline: str
    boundary: str
    total: float
    slope: float
    floor: float
    """A pass in the best batch, in passes of one text."""
    seconds: float
    """Of the whole call."""

    @property
    def missed(self) -> bool:
        return self.total > BOUND[self.boundary]

    def describe(self) -> str:
        return (
            f"{self.boundary} map, {self.shape}, T = {self.tokens}, {self.baseline}: "
            f"{self.total:.2f} passes per path point (at most {BOUND[self.boundary]})"
        )

    def row(self) -> list[str]:
        total = f"**{self.total:.2f}**" if self.missed else f"{self.total:.2f}"
        in_best_batch = f"{self.slope / self.floor:.2f}"
        where = [self.boundary, self.shape, str(self.tokens), self.baseline]
        costs = [total, f"{self.slope:.2f}", f"{self.floor:.2f}", in_best_batch]
        return [*where, *costs, f"{self.seconds:.3f}"]


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
    works: dict[str, Work] = {}
    for boundary, one in passes.items():
        for batch in _batches(tokens):
            works[f"{boundary} pass {batch}"] = partial(one, batch)
        for baseline in BASELINES:
            for n_steps in (FEW, MANY):
                work = attribution(model, tokens, baseline, boundary, n_steps)
                works[f"{boundary} {baseline} {n_steps}"] = work
    taken = in_turns(works, rounds, at_least=0.05, warm=tokens < LONG)
    return [
        _cell(taken, shape, tokens, baseline, boundary)
        for boundary in BOUND
        for baseline in BASELINES
    ]


def _batches(tokens: int) -> list[int]:
    return [1, *(batch for batch in BATCHES if batch * tokens <= BATCHED_TOKENS)]


def _cell(taken: Times, shape: str, tokens: int, baseline: str, boundary: str) -> Cell:
    one = taken[f"{boundary} pass 1"]
    few, many = (taken[f"{boundary} {baseline} {n}"] for n in (FEW, MANY))
    more = [b - a for a, b in zip(few, many, strict=True)]
    floors = [ratio(taken[f"{boundary} pass {b}"], one) / b for b in _batches(tokens)]
    return Cell(
        shape,
        tokens,
        baseline,
        boundary,
        total=ratio(many, one) / MANY,
        slope=ratio(more, one) / (MANY - FEW),
        floor=min(floors),
        seconds=median(many),
    )


def report(cells: Sequence[Cell]) -> str:
    """A section of the page."""
    missed = [cell for cell in cells if cell.missed]
    return "\n\n".join(
        [
            f"## {TITLE}",
            f"`python -m benchmarks.passes`. {stamp()}",
            f"Passes of the layer per path point for all T targets at once, {MANY} path points, "
            "one-layer models with random weights in the models' default attention. A pass is "
            "forward and backward to the layer's input for the layer map, forward alone for the "
            "attention map (all heads), of one text. *total*: the whole call divided by its path "
            f"points, at most {BOUND['layer']} for the layer map and {BOUND['attention']} for "
            "the attention map; bold where it is more. *slope*: what one more path point costs "
            f"(from {FEW} and {MANY} of them), without the fixed cost of a call. *floor*: the "
            "same pass in the best batch of path points: what going through the layer once for "
            "each costs at best.",
            table(HEADER, [cell.row() for cell in cells]),
            f"{len(cells) - len(missed)} of {len(cells)} within their bound.",
        ]
    )


def run(
    shapes: Sequence[str] = tuple(SHAPES), lengths: Sequence[int] = TOKENS, rounds: int = 5
) -> tuple[str, list[str]]:
    """The section, and the bounds that were missed."""
    cells: list[Cell] = []
    for shape in shapes:
        for tokens in lengths:
            found = measure(shape, tokens, rounds if tokens < LONG else min(rounds, 3))
            for cell in found:
                say(cell.describe())
            cells += found
    cells.sort(key=lambda cell: list(BOUND).index(cell.boundary))
    return report(cells), [cell.describe() for cell in cells if cell.missed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="fail if a bound is missed")
    given = parser.parse_args()
    use_threads(given.threads)
    section, missed = run(given.shape, given.tokens, given.rounds)
    print(section)
    return finish(missed, given.check)


if __name__ == "__main__":
    sys.exit(main())
