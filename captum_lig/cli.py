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
from typing import Annotated, Any

import typer

from captum_lig.errors import LigError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _option(metavar: str, help: str, default: str | bool = True) -> Any:
    """An option; ``default`` is how its default value is shown, or False: not at all."""
    return typer.Option(help=help, metavar=metavar, show_default=default)


EMBEDDED = "the embedded all-MiniLM-L6-v2"
Model = Annotated[
    str | None, _option("NAME|FOLDER", "Name on the Hugging Face hub, or a folder.", EMBEDDED)
]
Layers = Annotated[str, _option("LIST|all", "Layers to look at, such as 0,2,4-5.")]
Scalarization = Annotated[str, _option("l2|projection", "What is attributed of an output vector.")]
Steps = Annotated[int, _option("N", "First nodes of the quadrature.")]
Tolerance = Annotated[float, _option("X", "Largest completeness error of a row.")]

DATA_SUFFIXES = (".json", ".safetensors")
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
PAGE_SUFFIX = ".html"
SUFFIXES = (*DATA_SUFFIXES, *PICTURE_SUFFIXES, PAGE_SUFFIX)


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
    model: Model = None,
    layers: Layers = "all",
    baseline: Annotated[
        str,
        _option(
            "target_token|zero|NUMBER",
            "What a path starts from: for each target that target token, or a constant.",
        ),
    ] = "target_token",
    scalarization: Scalarization = "l2",
    rule: Annotated[
        str,
        _option("conserve|chain|product", "How attention and mlp boundaries compose into one map."),
    ] = "conserve",
    steps: Steps = 16,
    method: Annotated[
        str, _option("NAME", "Rule of the first nodes; rows that need it are refined.")
    ] = "gausslegendre",
    tolerance: Tolerance = 1e-3,
    self_term: Annotated[
        str | None,
        _option(
            "map_ratio|zero_ratio",
            "Estimate what targets owe to themselves; for the baseline target_token.",
            "none, it is 0",
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        _option("FILE", f"File to write: {', '.join(SUFFIXES)}. May be repeated.", False),
    ] = None,
) -> None:
    """Attribute every layer for TEXT: a table here, data, pictures and a page with --out.

    For example:

    [bold]captum-lig explain "The cat sat on the mat" --out flow.json --out flow.html[/bold]
    """
    with _one_sentence():
        from captum_lig.flow.layer_flow import RULES

        outputs = out or []
        _check_outputs(outputs)
        if rule not in RULES:
            raise LigError(f"--rule {rule!r} is unknown: use one of {', '.join(RULES)}.")
        indices, start = parse_layers(layers), parse_baseline(baseline)
        _check_page(outputs, layers, indices)

        from rich.console import Console

        from captum_lig.explain import explain as run
        from captum_lig.io.flows import save_flows
        from captum_lig.views.flow_table import flow_table

        result = run(
            text,
            model,
            layers=indices,
            baseline=start,
            scalarization=scalarization,
            n_steps=steps,
            method=method,
            tolerance=tolerance,
            self_term=self_term,
            show_progress=sys.stderr.isatty(),
        )
        Console(highlight=False).print(flow_table(result.flows, result.tokens, rule))
        title = f"{result.model}: “{result.text}”"
        for path in outputs:
            if path.suffix.lower() in DATA_SUFFIXES:
                save_flows(result, path)
            elif path.suffix.lower() == PAGE_SUFFIX:
                from captum_lig.graph import FlowGraph

                FlowGraph(result.flows, result.tokens).to_html(path, title, rule)
            else:
                from captum_lig.views.plots import plot_flow

                figure, _ = plot_flow(result.flows, result.tokens, rule=rule, title=title)
                figure.savefig(path, dpi=200)
            typer.echo(f"wrote {path}")


@app.command("inspect")
def inspect_(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Name on the Hugging Face hub, or a folder.",
            metavar="MODEL",
            show_default=EMBEDDED,
        ),
    ] = None,
    text: Annotated[
        str, _option("TEXT", "What the model is run on to be looked at.")
    ] = "The keys to the cabinet are on the table.",
    out: Annotated[
        Path | None, _option("FILE", "File to write the findings to, .json.", False)
    ] = None,
) -> None:
    """Show what MODEL is made of and what of it can be attributed, without attributing anything.

    For example:

    [bold]captum-lig inspect path/to/model --out model.json[/bold]
    """
    with _one_sentence():
        if out is not None:
            _check_outputs([out], (".json",))

        from rich.console import Console

        from captum_lig.inspection.inspect import inspect_pretrained
        from captum_lig.views.model_table import model_table

        report = inspect_pretrained(model, text)
        Console(highlight=False).print(model_table(report))
        if out is not None:
            report.save(out)
            typer.echo(f"wrote {out}")


@app.command(no_args_is_help=True)
def consistency(
    corpus: Annotated[
        Path,
        typer.Argument(
            help="Plain text, one sentence a line, or CoNLL-U (.conllu).", metavar="CORPUS"
        ),
    ],
    out: Annotated[Path, _option("FILE", "File to write the records to: .parquet or .csv.", False)],
    model: Model = None,
    layers: Layers = "all",
    limit: Annotated[
        int | None, _option("N", "Stop after N sentences.", "the whole corpus")
    ] = None,
    max_tokens: Annotated[
        int | None,
        _option(
            "N",
            "Skip sentences with more tokens, special ones included.",
            "what the model takes",
        ),
    ] = None,
    merge_words: Annotated[
        bool, typer.Option("--merge-words", help="Compare maps between words, not tokens.")
    ] = False,
    scalarization: Scalarization = "l2",
    steps: Steps = 16,
    tolerance: Tolerance = 1e-3,
    rank_by: Annotated[
        str, _option("l2|relative_l2|pearson|spearman", "Measure that the tables are ordered by.")
    ] = "l2",
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Show the best pairings layer by layer, too.")
    ] = False,
) -> None:
    """Do composed and direct maps agree? Every pairing of baselines, over a CORPUS.

    If it is cut off, the same command goes on where it stopped. For example:

    [bold]captum-lig consistency sentences.txt --limit 20 --out consistency.parquet[/bold]
    """
    with _one_sentence():
        indices = parse_layers(layers)

        from rich.console import Console

        from captum_lig.experiments.consistency import pool, run_corpus
        from captum_lig.experiments.consistency.ranking import check_measure
        from captum_lig.experiments.consistency.table import report

        check_measure(rank_by)
        result = run_corpus(
            corpus,
            out,
            model,
            layers=indices,
            scalarization=scalarization,
            n_steps=steps,
            tolerance=tolerance,
            limit=limit,
            max_tokens=max_tokens,
            merge_words=merge_words,
            show_progress=sys.stderr.isatty(),
        )
        pooled = pool(result.records())
        Console(highlight=False).print(report(pooled, result, rank_by, by_layer))
        typer.echo(f"wrote {out}")


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


def parse_baseline(given: str) -> str | float:
    """``zero`` and ``target_token`` stay, a finite number becomes one, all else is a LigError."""
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


def _check_page(paths: list[Path], given: str, indices: list[int] | None) -> None:
    """A page joins its layers, so none between them may be missing."""
    pages = [path for path in paths if path.suffix.lower() == PAGE_SUFFIX]
    if pages and indices is not None and indices[-1] - indices[0] >= len(indices):
        raise LigError(
            f"--out {str(pages[0])!r} joins consecutive layers, and --layers {given!r} leaves some "
            "out: name a range such as 2-5."
        )


def _check_outputs(paths: list[Path], suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Fail before the work rather than after it."""
    for path in paths:
        if path.suffix.lower() not in suffixes:
            use = "one of " * (len(suffixes) > 1) + ", ".join(suffixes)
            raise LigError(f"--out {str(path)!r} has no known suffix: use {use}.")
        new = not os.path.lexists(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise LigError(
                f"--out {str(path)!r} cannot be written ({error.strerror}): choose another path."
            ) from error
        if new:
            path.unlink()


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Bad input is one sentence on stderr and exit code 2, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for tokens the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except (LigError, OSError) as error:
        typer.echo(f"captum-lig: {error}", err=True)
        raise typer.Exit(2) from error
