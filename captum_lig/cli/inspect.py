"""``captum-lig inspect``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from captum_lig.cli import collector
from captum_lig.cli.messages import in_utf8, note, one_sentence, shown, status
from captum_lig.cli.options import EMBEDDED, Device, Dtype, option
from captum_lig.cli.outputs import planned
from captum_lig.cli.texts import read_lines
from captum_lig.errors import LigError

__all__ = ["inspect"]

FORMATS = ("table", "json")


def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            help="minilm, smollm2, a name on the Hugging Face hub, or a folder.",
            metavar="MODEL",
            show_default=EMBEDDED,
        ),
    ] = None,
    text: Annotated[
        str, option("TEXT", "What the model is run on to be looked at; - for standard input.")
    ] = "The keys to the cabinet are on the table.",
    out: Annotated[
        list[Path] | None,
        option("FILE", "File to write the findings to, .json; may be repeated.", False),
    ] = None,
    format: Annotated[str, option("table|json", "What is printed on standard output.")] = "table",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Show what MODEL is made of and what of it can be attributed, without attributing anything.

    For example:

    [bold]captum-lig inspect path/to/model --out model.json[/bold]
    """
    with one_sentence():
        if format not in FORMATS:
            raise LigError(f"--format {format!r} is unknown: use one of {', '.join(FORMATS)}.")
        if format == "json":
            in_utf8(sys.stdout)
        outputs = planned(out or [], (".json",))
        if text == "-":
            text = read_lines(text, None, {}, {})[0].options["text"]

        outputs.announce()
        with status("Looking at the model"):
            from captum_lig.inspection.inspect import inspect_pretrained

            collector.loaded()
            report = inspect_pretrained(model, text, dtype, device)
        if format == "json":
            typer.echo(json.dumps(report.to_json(), ensure_ascii=False, indent=1, allow_nan=False))
        else:
            from rich.console import Console

            from captum_lig.views.model_table import model_table

            Console(highlight=False).print(model_table(report))
        for path in outputs.files:
            report.save(path)
            note(f"wrote {shown(path)}")
