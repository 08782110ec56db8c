"""``captum-lig explain``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from captum_lig.cli.options import (
    Layers,
    Model,
    Scalarization,
    Steps,
    Tolerance,
    option,
    parse_baseline,
    parse_layers,
)
from captum_lig.cli.outputs import (
    DATA_SUFFIXES,
    PAGE_SUFFIX,
    SUFFIXES,
    check_outputs,
    one_sentence,
    tell,
)
from captum_lig.errors import LigError

__all__ = ["explain"]


def explain(
    text: Annotated[str, typer.Argument(help="The text to explain.", metavar="TEXT")],
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
        option("FILE", f"File to write: {', '.join(SUFFIXES)}. May be repeated.", False),
    ] = None,
) -> None:
    """Attribute every layer for TEXT: a table here, data, pictures and a page with --out.

    For example:

    [bold]captum-lig explain "The cat sat on the mat" --out flow.json --out flow.html[/bold]
    """
    with one_sentence():
        from captum_lig.flow.findings import KINDS
        from captum_lig.flow.layer_flow import RULES

        outputs = out or []
        before = {path for path in outputs if path.exists()}
        check_outputs(outputs)
        if rule not in RULES:
            raise LigError(f"--rule {rule!r} is unknown: use one of {', '.join(RULES)}.")
        if show is not None and show not in KINDS:
            raise LigError(f"--show {show!r} is unknown: use one of {', '.join(KINDS)}.")
        indices, start = (
            parse_layers(layers),
            None if baseline is None else parse_baseline(baseline),
        )
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
            influence=show == "influence",
            show_progress=sys.stderr.isatty(),
        )
        Console(highlight=False).print(
            flow_table(
                result.flows, result.tokens, rule, kind=show, hide_first_token=hide_first_token
            )
        )
        title = f"{result.model}: “{result.text}”"
        for path in outputs:
            if path.suffix.lower() in DATA_SUFFIXES:
                save_flows(result, path)
            elif path.suffix.lower() == PAGE_SUFFIX:
                from captum_lig.graph import CannotCarryWarning, FlowGraph

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", CannotCarryWarning)  # the page says it
                    graph = FlowGraph(result.flows, result.tokens)
                graph.to_html(path, title, rule, hide_first_token=hide_first_token)
            else:
                from captum_lig.views.plots import plot_flow

                figure, _ = plot_flow(
                    result.flows,
                    result.tokens,
                    rule,
                    title,
                    kind=show,
                    hide_first_token=hide_first_token,
                )
                figure.savefig(path, dpi=200)
            tell(path, path in before)


def _check_page(paths: list[Path], given: str, indices: list[int] | None) -> None:
    """A page joins its layers, so none between them may be missing."""
    pages = [path for path in paths if path.suffix.lower() == PAGE_SUFFIX]
    if pages and indices is not None and indices[-1] - indices[0] >= len(indices):
        raise LigError(
            f"--out {str(pages[0])!r} joins consecutive layers, and --layers {given!r} leaves some "
            "out: name a range such as 2-5."
        )
