"""The commands together."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from captum_lig.cli import collector
from captum_lig.cli.consistency import consistency
from captum_lig.cli.corpus import corpus
from captum_lig.cli.explain import explain
from captum_lig.cli.inspect import inspect
from captum_lig.cli.why import why

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"captum-lig {version('captum-lig')}")
        except PackageNotFoundError:
            typer.echo("captum-lig, version unknown: it runs from its source, uninstalled")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    collector.begin()
    app()


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Why a model says what it says, and how tokens flow through each layer of a Transformer."""


app.command(no_args_is_help=True)(why)
app.command(no_args_is_help=True)(explain)
app.command("inspect")(inspect)
app.command(no_args_is_help=True)(corpus)
app.command(no_args_is_help=True)(consistency)
