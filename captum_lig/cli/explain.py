"""``captum-lig explain``."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_lig.cli import collector
from captum_lig.cli.messages import memory_in_words, note, one_sentence, shown, status
from captum_lig.cli.options import (
    Device,
    Dtype,
    File,
    Format,
    Layers,
    Model,
    Scalarization,
    Steps,
    Tolerance,
    option,
    parse_baseline,
    parse_layers,
)
from captum_lig.cli.outputs import LIST_SUFFIXES, PAGE_SUFFIX, PICTURE_SUFFIXES, planned
from captum_lig.cli.results import Results, check_format
from captum_lig.cli.texts import Line, read_lines
from captum_lig.errors import LigError

if TYPE_CHECKING:
    from captum_lig.pretrained.load import Checkpoint

__all__ = ["explain"]

DATA_SUFFIXES = (".json", ".safetensors")
FILES = ("explain.html", "explain.png", "explain.json")
SUFFIXES = (*DATA_SUFFIXES, *PICTURE_SUFFIXES, PAGE_SUFFIX, *LIST_SUFFIXES)
OUT = f"A folder gets page, picture and numbers; a file is {', '.join(SUFFIXES)}."
SMALLER = "keep fewer layers (--layers), or write .safetensors, a fifth of .json."
BOUNDARIES = ("attention", "mlp", "layer")
KEYS = {"layers": str, "baseline": str}


def explain(
    text: Annotated[
        str | None,
        typer.Argument(help="The text; - for standard input.", metavar="TEXT", show_default=False),
    ] = None,
    file: File = None,
    model: Model = None,
    layers: Layers = "all",
    baseline: Annotated[
        str | None,
        option(
            "target_token|zero|padding|NUMBER",
            "What a path starts from: for each target that target token, padding, or a constant.",
            "padding for causal models, else target_token",
        ),
    ] = None,
    scalarization: Scalarization = "l2",
    rule: Annotated[
        str,
        option("chain|conserve|product", "How attention and mlp boundaries compose into one map."),
    ] = "chain",
    steps: Steps = 16,
    method: Annotated[
        str, option("NAME", "Rule of the first nodes; rows that need it are refined.")
    ] = "gausslegendre",
    tolerance: Tolerance = 1e-3,
    self_term: Annotated[
        str | None,
        option(
            "map_ratio|zero_ratio",
            "Estimate what targets owe to themselves; for the baseline target_token.",
            "none, it is 0",
        ),
    ] = None,
    show: Annotated[
        str | None,
        option(
            "composed|direct|influence",
            "The map that links are of; influence is how much, whichever way, and more work.",
            "composed, or direct where that is more than 50 % off it",
        ),
    ] = None,
    hide_first_token: Annotated[
        bool,
        typer.Option(
            "--hide-first-token", help="Show no links from the first token; numbers stay."
        ),
    ] = False,
    out: Annotated[
        list[Path] | None,
        option("DIR|FILE", f"Folder or file to write; may be repeated. {OUT}", False),
    ] = None,
    format: Format = "table",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Attribute every layer for TEXT: a table here, data, pictures and a page with --out.

    For example:

    [bold]captum-lig explain "The cat sat on the mat" --out flow.json --out flow.html[/bold]
    """
    with one_sentence():
        outs = out or []
        check_format(format, outs)
        lines = read_lines(text, file, {"layers": layers, "baseline": baseline}, KEYS)
        asked = [_read(line) for line in lines]
        outputs = planned(outs, SUFFIXES, FILES, [line.number for line in lines], file)
        for line, given in zip(lines, asked, strict=True):
            _check_page(outputs.single[line.number], line.options["layers"], given["layers"])

        with status("Reading the texts"):
            from captum_lig.cli.forms import FlowForms
            from captum_lig.explain import explain as run
            from captum_lig.flow.composition import find_rule
            from captum_lig.flow.findings import KINDS
            from captum_lig.flow.self_term import check_estimate
            from captum_lig.integrals.scalarization import check
            from captum_lig.integrals.settings import Settings
            from captum_lig.pretrained.load import check_place, find_model, load_model

            find_rule(rule)
            if show is not None and show not in KINDS:
                raise LigError(f"--show {show!r} is unknown: use one of {', '.join(KINDS)}.")
            check(scalarization)
            Settings.checked(steps, method, tolerance)
            if self_term is not None:
                for given in asked:
                    check_estimate(self_term, given["baseline"] or "target_token", BOUNDARIES)
            check_place(dtype, device)
            found = find_model(model)
            for line, given in zip(lines, asked, strict=True):
                _check_text(found, line)
                for path in outputs.single[line.number]:
                    _tell_size(path, found, line, given["layers"], show == "influence")
        outputs.announce()
        with status("Loading the model"):
            loaded = load_model(found, dtype, device)
        collector.loaded()
        results = Results(format, outputs, file is not None, FlowForms.columns)
        failed = 0
        for line, given in zip(lines, asked, strict=True):
            try:
                with memory_in_words():
                    result = run(
                        line.options["text"],
                        loaded,
                        **given,
                        scalarization=scalarization,
                        n_steps=steps,
                        method=method,
                        tolerance=tolerance,
                        self_term=self_term,
                        influence=show == "influence",
                        show_progress=sys.stderr.isatty(),
                    )
            except LigError as error:
                if line.number is None:
                    raise
                note(f"captum-lig: {line.named(error)}")
                failed += 1
            else:
                results.add(FlowForms(result, rule, show, hide_first_token), line.number)
        results.close()
        if failed:
            raise LigError(f"{failed} of {len(lines)} texts could not be explained.")


def _read(line: Line) -> dict[str, Any]:
    """The settings of one text."""
    layers, baseline = line.options["layers"], line.options["baseline"]
    try:
        if not line.options["text"].strip():
            raise LigError(f"the text {line.options['text']!r} is empty: give at least one word.")
        start = None if baseline is None else parse_baseline(str(baseline))
        return {"layers": parse_layers(str(layers)), "baseline": start}
    except LigError as error:
        raise line.named(error) from error


def _check_text(found: Checkpoint, line: Line) -> None:
    try:
        found.encode(line.options["text"])
    except LigError as error:
        raise line.named(error) from error


def _tell_size(
    path: Path, found: Checkpoint, line: Line, layers: list[int] | None, influence: bool
) -> None:
    """Say before the work that a file will be large."""
    from captum_lig.io.codec import LARGE

    depth = getattr(found.config, "num_hidden_layers", None)
    heads = getattr(found.config, "num_attention_heads", None)
    if path.suffix.lower() not in DATA_SUFFIXES or depth is None or heads is None:
        return
    tokens = found.count_tokens(line.options["text"])
    maps = 2 * heads + 1 + influence * (heads + 1)
    numbers = (len(layers) if layers else depth) * maps * tokens**2
    size = numbers * (22 if path.suffix.lower() == ".json" else 4)
    if size > LARGE:
        note(f"captum-lig: {shown(path)} will be up to {size / 1e6:,.0f} MB: {SMALLER}")
    # It is said again where the file is written.
    warnings.filterwarnings("ignore", message=f"{re.escape(repr(str(path)))} will be about")


def _check_page(paths: list[Path], given: str, indices: list[int] | None) -> None:
    """A page joins its layers, so none between them may be missing."""
    pages = [path for path in paths if path.suffix.lower() == PAGE_SUFFIX]
    if pages and indices is not None and indices[-1] - indices[0] >= len(indices):
        raise LigError(
            f"--out {str(pages[0])!r} joins consecutive layers, and --layers {given!r} leaves some "
            "out: name a range such as 2-5."
        )
