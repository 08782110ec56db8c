"""One sentence: every map beside interventions, in every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.common import now
from benchmarks.within_layer.maps import Maps
from benchmarks.within_layer.rivals import FROM_BASELINE, RIVALS, Layer
from captum_lig.metrics import Interventions, map_agreement
from captum_lig.metrics.block import cases

NUMBERS = tuple(
    f"{measure} {direction} {kind}"
    for measure in ("size", "signed")
    for direction in ("out", "into", "mean")
    for kind in ("spearman", "pearson")
)
LATER = "without the first token"
"""What an attention sink takes is not what most ask for: the same of all other sources."""


def numbers_of(score: Tensor, effects: Interventions) -> dict[str, list[float | None]]:
    """In the order of ``NUMBERS``, of all sources and without the first; None: not defined."""
    later = effects.moves.clone()
    later[..., 0] = False
    found = {}
    for name, moves in (("all", effects.moves), (LATER, later)):
        numbers = map_agreement(score, replace(effects, moves=moves))
        found[name] = [
            None if numbers[one] != numbers[one] else round(numbers[one], 5) for one in NUMBERS
        ]
    return found


def sentence(inputs: dict[str, Tensor], maps: Maps, baselines: list[str]) -> dict[str, Any]:
    """By baseline, layer and map; rows missed, of how many; and seconds by what they went into."""
    spent: dict[str, float] = {}

    def clock(what: str, began: float) -> None:
        spent[what] = round(spent.get(what, 0.0) + now() - began, 2)

    layers, found, rows = maps.layers, {}, {}
    shared: list[dict[str, Tensor]] = []
    for baseline in baselines:
        start = maps.start(inputs, baseline)
        began = now()
        truths = maps.truth.sources(inputs, start)
        clock("interventions", began)
        began = now()
        before = maps.missed, maps.rows
        ours = maps.of(inputs, start)
        rows[baseline] = [maps.missed - before[0], maps.rows - before[1]]
        clock(f"maps from {baseline}", began)
        began = now()
        with cases(maps.truth.finder, inputs, start) as blocks:
            ran = [Layer(texts[0]) for texts in blocks]
            shared = shared or [{name: rival(x) for name, rival in RIVALS.items()} for x in ran]
            beside = [{name: rival(x) for name, rival in FROM_BASELINE.items()} for x in ran]
        clock("rivals", began)
        found[baseline] = {
            str(layer): {
                name: numbers_of(score, truth)
                for name, score in {**own, **rivals, **gradients}.items()
            }
            for layer, truth, own, rivals, gradients in zip(
                layers, truths, ours, shared, beside, strict=True
            )
        }
    return {"numbers": found, "rows": rows, "seconds": spent}
