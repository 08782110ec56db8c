"""Options that commands share, and how their values are read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from captum_lig.errors import LigError

__all__ = [
    "EMBEDDED",
    "CorpusFile",
    "DataSet",
    "Device",
    "Dtype",
    "File",
    "Format",
    "Layers",
    "Model",
    "Scalarization",
    "Steps",
    "Tolerance",
    "option",
    "parse_baseline",
    "parse_layers",
]


def option(metavar: str, help: str, default: str | bool = True) -> Any:
    """An option; ``default`` is how its default value is shown, or False: not at all."""
    return typer.Option(help=help, metavar=metavar, show_default=default)


CorpusFile = Annotated[
    Path,
    typer.Argument(
        help="A text a line, or .jsonl, .csv, .tsv, .parquet, .conllu.", metavar="CORPUS"
    ),
]
DataSet = Annotated[Path, option("DIR", "Folder to write the data set to.", False)]
EMBEDDED = "the embedded all-MiniLM-L6-v2"
Model = Annotated[
    str | None,
    option(
        "NAME|FOLDER", "minilm, smollm2, a name on the Hugging Face hub, or a folder.", EMBEDDED
    ),
]
File = Annotated[
    Path | None,
    option(
        "FILE", "One text a line, or in a .jsonl file one object a line with its options.", False
    ),
]
Device = Annotated[str | None, option("NAME", "Where the model runs, such as cuda.", "cpu")]
Dtype = Annotated[str | None, option("float32|float64", "Precision of the model.", "float32")]
Format = Annotated[
    str, option("table|json|jsonl|csv|parquet", "What is printed on standard output.")
]
Layers = Annotated[str, option("LIST|all", "Layers to look at, such as 0,2,4-5.")]
Scalarization = Annotated[str, option("l2|projection", "What is attributed of an output vector.")]
Steps = Annotated[int, option("N", "First nodes of the quadrature.")]
Tolerance = Annotated[float, option("X", "Largest completeness error of a row.")]


def parse_layers(given: str) -> list[int] | None:
    """``"0,2,4-5"`` is ``[0, 2, 4, 5]``, ``"all"`` is None, all else a LigError."""
    if given.strip() == "all":
        return None
    indices: set[int] = set()
    for part in given.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,4})\s*(?:-\s*([0-9]{1,4})\s*)?", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if first > last:
            raise LigError(f"--layers {given!r} is no list of layers: write 0,2,4-5 or all.")
        indices.update(range(first, last + 1))
    return sorted(indices)


BASELINES = ("target_token", "zero", "padding")


def parse_baseline(given: str, names: Sequence[str] = BASELINES) -> str | float:
    """The names of baselines stay, a finite number becomes one.

    Args:
        given: what the option was given.
        names: those that the command has.

    Raises:
        LigError: for anything else.
    """
    if given in names:
        return given
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise LigError(
            f"--baseline {given!r} is unknown: use {', '.join(names)} or a finite number."
        )
    return number
