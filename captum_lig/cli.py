"""Command line: ``captum-lig``. Heavy imports wait until there is work."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from captum_lig.errors import LigError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Layer-wise Integrated Gradients: how tokens flow through each layer of a Transformer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

DATA_SUFFIXES = (".json", ".safetensors")
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"captum-lig {version('captum-lig')}")
        except PackageNotFoundError:
            typer.echo("captum-lig, version unknown: it runs from its source, uninstalled")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Layer-wise Integrated Gradients: how tokens flow through each layer of a Transformer."""


@app.command(no_args_is_help=True)
def explain(
    text: Annotated[str, typer.Argument(help="The text to explain.", metavar="TEXT")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Name on the Hugging Face hub, or a folder.",
            metavar="NAME|FOLDER",
            show_default="the embedded all-MiniLM-L6-v2",
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Layers to attribute, such as 0,2,4-5.", metavar="LIST|all")
    ] = "all",
    baseline: Annotated[
        str,
        typer.Option(
            help="What a path starts from: for each target the target's own token, or a constant.",
            metavar="target_token|zero|NUMBER",
        ),
    ] = "target_token",
    scalarization: Annotated[
        str, typer.Option(help="What is attributed of an output vector.", metavar="l2|projection")
    ] = "l2",
    rule: Annotated[
        str,
        typer.Option(
            help="How attention and mlp boundaries compose into one map.",
            metavar="conserve|chain|product",
        ),
    ] = "conserve",
    steps: Annotated[int, typer.Option(help="First nodes of the quadrature.", metavar="N")] = 16,
    method: Annotated[
        str,
        typer.Option(
            help="Rule of the first nodes; rows that need it are refined.", metavar="NAME"
        ),
    ] = "gausslegendre",
    tolerance: Annotated[
        float, typer.Option(help="Largest completeness error of a row.", metavar="X")
    ] = 1e-3,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            help="File to write: .json, .safetensors, .png, .pdf or .svg. May be given again.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Attribute every layer for TEXT: a table here, data and pictures with --out.

    For example:

    [bold]captum-lig explain "The cat sat on the mat" --out flow.json --out flow.png[/bold]
    """
    with _one_sentence():
        outputs = out or []
        _check_outputs(outputs)
        _check_rule(rule)
        indices, start = parse_layers(layers), parse_baseline(baseline)

        from rich.console import Console

        from captum_lig.explain import explain as run
        from captum_lig.export import save_flows
        from captum_lig.report import flow_table

        result = run(
            text,
            model,
            layers=indices,
            baseline=start,
            scalarization=scalarization,
            n_steps=steps,
            method=method,
            tolerance=tolerance,
            show_progress=sys.stderr.isatty(),
        )
        Console(highlight=False).print(flow_table(result.flows, result.tokens, rule))
        for path in outputs:
            if path.suffix.lower() in DATA_SUFFIXES:
                save_flows(result, path)
            else:
                from captum_lig.visualization import plot_flow

                title = f"{result.model}: “{result.text}”"
                figure, _ = plot_flow(result.flows, result.tokens, rule=rule, title=title)
                figure.savefig(path, dpi=200)
            typer.echo(f"wrote {path}")


def parse_layers(given: str) -> list[int] | None:
    """``"0,2,4-5"`` is ``[0, 2, 4, 5]``, ``"all"`` is None.

    Raises:
        LigError: if it is neither.
    """
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


def parse_baseline(given: str) -> str | float:
    """A name stays a name, a number becomes one.

    Raises:
        LigError: if it is neither ``zero``, ``target_token`` nor a finite number.
    """
    if given in ("zero", "target_token"):
        return given
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise LigError(
            f"--baseline {given!r} is unknown: use target_token, zero or a finite number."
        )
    return number


def _check_rule(rule: str) -> None:
    from captum_lig.flow import RULES

    if rule not in RULES:
        raise LigError(f"--rule {rule!r} is unknown: use one of {', '.join(RULES)}.")


def _check_outputs(paths: list[Path]) -> None:
    """Fail before the work rather than after it."""
    suffixes = DATA_SUFFIXES + PICTURE_SUFFIXES
    for path in paths:
        if path.suffix.lower() not in suffixes:
            raise LigError(
                f"--out {str(path)!r} has no known suffix: use one of {', '.join(suffixes)}."
            )
        new = not os.path.lexists(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise LigError(
                f"--out {str(path)!r} cannot be written ({error.strerror}): choose another place."
            ) from error
        if new:
            path.unlink()


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Bad input is one sentence on stderr and exit code 2, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a token still shows us
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except (LigError, OSError) as error:
        typer.echo(f"captum-lig: {error}", err=True)
        raise typer.Exit(2) from error
