"""The tables of docs/consistency.md, from the folders that ``captum-lig consistency`` wrote.

    python -m benchmarks.consistency FOLDER

Prints, for each layer baseline, the best pairings with the controls and the worst, and the best
pairing layer by layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import table
from captum_lig.corpus import load
from captum_lig.experiments.consistency import Ranked, pool, records
from captum_lig.experiments.consistency.pairings import LAYER_BASELINES
from captum_lig.experiments.consistency.ranking import MEASURES, Pooled
from captum_lig.experiments.consistency.table import excerpt, number

MEASURED = ["L2", "relative L2", "Pearson", "Spearman"]


def names(one: Ranked) -> list[str]:
    """Attention baseline, mlp start and rule, or the control."""
    pairing = one.pairing
    if pairing.attention_baseline is None:
        return ["*control*", "", f"*{pairing.rule}*"]
    return [pairing.attention_baseline, str(pairing.mlp_start), pairing.rule]


def ranking(pooled: Pooled, baseline: str, best: int) -> str:
    """Pairings over all layers."""
    ranked = pooled.rank(baseline)
    rows = [
        [
            str(one.rank),
            *names(one),
            *(number(one.measures[name]) for name in MEASURES),
            f"{one.correlation_rows:,}",
            f"{one.unconverged_rows:,}",
        ]
        for one in excerpt(ranked, best)
    ]
    header = ["rank", "attention baseline", "mlp start", "rule", *MEASURED]
    zero_rows = ranked[0].rows - ranked[0].relative_rows
    counted = f"{ranked[0].rows:,} rows" + (f", {zero_rows:,} of them all 0" if zero_rows else "")
    heading = f"#### Direct maps from `{baseline}`: {counted}"
    return f"{heading}\n\n{table([*header, 'correlated', 'not converged'], rows)}"


def by_layer(pooled: Pooled, baseline: str) -> str:
    """The best pairing in each layer, beside the uniform control."""
    best = next(one for one in pooled.rank(baseline) if not one.is_control)
    rows = []
    for layer in pooled.layers:
        found = {one.pairing: one for one in pooled.rank(baseline, layer)}
        uniform = next(one for one in found.values() if one.pairing.rule == "uniform")
        rows.append(
            [
                str(layer),
                *(number(found[best.pairing].measures[name]) for name in MEASURES),
                *(number(uniform.measures[name]) for name in ("l2", "relative_l2")),
                f"{found[best.pairing].rank} of {len(found)}",
            ]
        )
    header = ["layer", *MEASURED, "uniform: L2", "uniform: relative L2", "rank"]
    return f"`{', '.join(names(best))}`:\n\n{table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--best", type=int, default=5)
    given = parser.parse_args()
    pooled = pool(records(load(given.folder)))
    for baseline in LAYER_BASELINES:
        print(ranking(pooled, baseline, given.best), end="\n\n")
    for baseline in LAYER_BASELINES:
        print(by_layer(pooled, baseline), end="\n\n")


if __name__ == "__main__":
    main()
