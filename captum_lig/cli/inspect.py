"""``captum-lig inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captum_lig.cli.options import EMBEDDED, option
from captum_lig.cli.outputs import check_outputs, one_sentence, tell

__all__ = ["inspect"]


def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Name on the Hugging Face hub, or a folder.",
            metavar="MODEL",
            show_default=EMBEDDED,
        ),
    ] = None,
    text: Annotated[
        str, option("TEXT", "What the model is run on to be looked at.")
    ] = "The keys to the cabinet are on the table.",
    out: Annotated[
        Path | None, option("FILE", "File to write the findings to, .json.", False)
    ] = None,
) -> None:
    """Show what MODEL is made of and what of it can be attributed, without attributing anything.

    For example:

    [bold]captum-lig inspect path/to/model --out model.json[/bold]
    """
    with one_sentence():
        before = out is not None and out.exists()
        if out is not None:
            check_outputs([out], (".json",))

        from rich.console import Console

        from captum_lig.inspection.inspect import inspect_pretrained
        from captum_lig.views.model_table import model_table

        report = inspect_pretrained(model, text)
        Console(highlight=False).print(model_table(report))
        if out is not None:
            report.save(out)
            tell(out, before)
