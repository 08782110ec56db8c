"""``captum-lig consistency``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from captum_lig.cli import collector
from captum_lig.cli.messages import note, one_sentence, shown
from captum_lig.cli.options import (
    CorpusFile,
    DataSet,
    Layers,
    Model,
    Scalarization,
    Steps,
    Tolerance,
    option,
    parse_layers,
)

__all__ = ["consistency"]


def consistency(
    corpus: CorpusFile,
    out: DataSet,
    model: Model = None,
    layers: Layers = "all",
    limit: Annotated[int | None, option("N", "The first N sentences.", "the whole corpus")] = None,
    max_tokens: Annotated[
        int | None,
        option(
            "N",
            "Skip sentences with more tokens, special ones included.",
            "what the model takes",
        ),
    ] = None,
    workers: Annotated[int | None, option("N", "Processes.", "one a core, at most 8")] = None,
    merge_words: Annotated[
        bool, typer.Option("--merge-words", help="Compare maps between words, not tokens.")
    ] = False,
    scalarization: Scalarization = "l2",
    steps: Steps = 16,
    tolerance: Tolerance = 1e-3,
    rank_by: Annotated[
        str, option("l2|relative_l2|pearson|spearman", "Measure that the tables are ordered by.")
    ] = "l2",
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Show the best pairings layer by layer, too.")
    ] = False,
) -> None:
    """Do composed and direct maps agree? Every pairing of baselines, over a CORPUS.

    If it is cut off, the same command goes on where it stopped. For example:

    [bold]captum-lig consistency sentences.txt --limit 20 --out consistency[/bold]
    """
    with one_sentence():
        indices = parse_layers(layers)

        from rich.console import Console

        from captum_lig.corpus import run
        from captum_lig.errors import LigError
        from captum_lig.experiments.consistency import OF_TOKENS, OF_WORDS, pool, records
        from captum_lig.experiments.consistency.ranking import check_measure
        from captum_lig.experiments.consistency.table import report

        collector.loaded()

        check_measure(rank_by)
        result = run(
            corpus,
            model,
            out=out,
            measures=(OF_WORDS if merge_words else OF_TOKENS,),
            workers=workers,
            show_progress=sys.stderr.isatty(),
            layers=None if indices is None else tuple(indices),
            scalarization=scalarization,
            n_steps=steps,
            tolerance=tolerance,
            limit=limit,
            max_tokens=max_tokens,
        )
        if not result.counts.get("done"):
            raise LigError(
                f"no text could be measured: {str(out / 'texts')!r} says why, under reason."
            )
        pooled = pool(records(result))
        Console(highlight=False).print(report(pooled, result.counts, rank_by, by_layer))
        note(f"wrote {shown(out)}: {', '.join(result.tables)}")
