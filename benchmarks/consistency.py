"""Do composed and direct maps agree: the tables of docs/consistency.md.

    python -m benchmarks.consistency CORPUS --model minilm --limit 43 --out FOLDER

As ``captum-lig consistency``; for each layer baseline, the best pairings with the controls and the
worst, and the best pairing layer by layer. A run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import table
from benchmarks.recorded import Recorded
from captum_lig.corpus import run
from captum_lig.experiments.consistency import OF_TOKENS, Ranked, pool, records
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
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--limit", type=int, default=None, help="the first texts")
    parser.add_argument("--max-tokens", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--best", type=int, default=5, help="pairings that are shown")
    parser.add_argument("--out", type=Path, required=True, help="a folder, gone on with")
    given = parser.parse_args()
    limits = {"corpus": given.corpus.name, "model": given.model, "limit": given.limit}
    engine = Recorded(given.out, limits | {"max_tokens": given.max_tokens})
    found = run(
        given.corpus,
        given.model,
        out=given.out,
        measures=(OF_TOKENS,),
        engine=engine,
        workers=given.workers,
        limit=given.limit,
        max_tokens=given.max_tokens,
        show_progress=True,
    )
    engine.rows(found)  # an error if the record is not of all
    counts = ", ".join(f"{count} {status}" for status, count in found.counts.items())
    pooled = pool(records(found))
    print(f"{engine.record.stamp()}\n\nTexts: {counts}.\n\n### Over all layers", end="\n\n")
    for baseline in LAYER_BASELINES:
        print(ranking(pooled, baseline, given.best), end="\n\n")
    print("### The best pairing layer by layer\n\n`rank`: its own among all of that layer.\n")
    for baseline in LAYER_BASELINES:
        print(f"#### Direct maps from `{baseline}`\n\n{by_layer(pooled, baseline)}", end="\n\n")


if __name__ == "__main__":
    main()
