"""``captum-lig corpus``."""

from __future__ import annotations

import sys
from typing import Annotated

from captum_lig.cli import collector
from captum_lig.cli.messages import note, one_sentence, shown
from captum_lig.cli.options import (
    CorpusFile,
    DataSet,
    Device,
    Dtype,
    Layers,
    Model,
    Scalarization,
    Steps,
    Tolerance,
    option,
    parse_baseline,
    parse_layers,
)

__all__ = ["corpus"]


def corpus(
    corpus: CorpusFile,
    out: DataSet,
    model: Model = None,
    limit: Annotated[int | None, option("N", "The first N texts.", "the whole corpus")] = None,
    measures: Annotated[
        str | None, option("LIST", "Measures, such as totals,links.", "all but effects")
    ] = None,
    engine: Annotated[str, option("local|ray", "What runs them.")] = "local",
    workers: Annotated[
        int | None, option("N", "Processes, or Ray's actors.", "one a core, at most 8")
    ] = None,
    address: Annotated[
        str | None, option("ADDRESS", "A Ray cluster's.", "RAY_ADDRESS, or this machine")
    ] = None,
    layers: Layers = "all",
    baseline: Annotated[
        str, option("target_token|zero|NUMBER", "Where the paths of the layers start.")
    ] = "target_token",
    scalarization: Scalarization = "l2",
    steps: Steps = 16,
    tolerance: Tolerance = 1e-3,
    max_tokens: Annotated[
        int | None, option("N", "Skip texts with more tokens.", "what the model takes")
    ] = None,
    maps: Annotated[
        str | None, option("LIST", "Keep whole maps: layer,composed,attention,mlp,chain.", "none")
    ] = None,
    strongest: Annotated[int, option("K", "Links, nodes and parts to keep of each kind.")] = 5,
    batch_size: Annotated[int, option("N", "Most texts that are run together.")] = 16,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure every text of a CORPUS: a data set of Parquet files.

    If it is cut off, the same command goes on where it stopped. For example:

    [bold]captum-lig corpus en_ewt-ud-dev.conllu --limit 300 --out ewt[/bold]
    """
    with one_sentence():
        indices = parse_layers(layers)

        from captum_lig.corpus import run
        from captum_lig.corpus.settings import DEFAULT
        from captum_lig.errors import LigError

        collector.loaded()

        found = run(
            corpus,
            model,
            out=out,
            measures=DEFAULT if measures is None else _names(measures),
            engine=engine,
            workers=workers,
            address=address,
            show_progress=sys.stderr.isatty(),
            limit=limit,
            layers=None if indices is None else tuple(indices),
            baselines=parse_baseline(baseline, ("target_token", "zero")),
            scalarization=scalarization,
            n_steps=steps,
            tolerance=tolerance,
            max_tokens=max_tokens,
            maps=() if maps is None else _names(maps),
            strongest=strongest,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
        )
        counts = ", ".join(f"{count} {status}" for status, count in found.counts.items())
        note(f"{counts}; wrote {shown(out)}: {', '.join(found.tables)}")
        if not found.counts.get("done"):
            raise LigError(
                f"no text could be measured: {str(out / 'texts')!r} says why, under reason."
            )


def _names(given: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in given.split(",") if one.strip())
