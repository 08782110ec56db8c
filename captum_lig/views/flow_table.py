"""The terminal table: one row a layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import LayerSummary, Link, one_text, summarize
from captum_lig.flow.tokens import readable_token

__all__ = ["flow_table"]

_TOKEN_WIDTH = 12


def flow_table(flows: Sequence[LayerFlow], tokens: Sequence[str], rule: str = "conserve") -> Group:
    """A table of layers and a line that says what it certifies, for a rich console.

    Args:
        flows: the flows of one text with all three boundaries, one a layer.
        tokens: the text's tokens, one for each source.
        rule: composition rule for the agreement and the links.

    Returns:
        A rich renderable: ``rich.print(flow_table(flows, tokens))``. It fits 80 columns.

    Raises:
        LigError: if flows and tokens do not fit, for an unknown rule, or a missing boundary.
    """
    one_text(flows, tokens)
    layers = [summarize(flow, rule) for flow in flows]
    names = _names(tokens)
    # With target-token paths nothing comes past the heads, and the column would say nothing.
    show_heads = any(layer.via_heads < 1 for layer in layers)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("mean\ntotal", justify="right")
    table.add_column("worst\nerror", justify="right")
    table.add_column("composed\noff by", justify="right")
    if show_heads:
        table.add_column("via\nheads", justify="right")
    table.add_column("strongest links between tokens\nsource → target (head, share)")
    for layer in layers:
        cells: list[str | Text] = [str(layer.index), f"{layer.total:.3g}", _error(layer)]
        cells.append(layer.agreement_text)
        if show_heads:
            cells.append(f"{layer.via_heads:.0%}")
        table.add_row(*cells, _links(layer.links, names))
    return Group(table, Text(), *_legend(layers, rule, show_heads))


def _error(layer: LayerSummary) -> Text:
    if layer.certified:
        return Text(layer.error_text)
    return Text(f"{layer.error_text} !", style="bold red")


def _links(links: Sequence[Link], names: Sequence[str]) -> Text:
    lines = [
        f"{names[link.source]} → {names[link.target]} ({link.head}, {link.share:+.0%})"
        for link in links
    ]
    return Text("\n".join(lines) or "none", overflow="fold")


def _names(tokens: Sequence[str]) -> list[str]:
    """Readable tokens; one that occurs more than once is followed by its position."""
    return [
        readable_token(token, _TOKEN_WIDTH) + (f"·{i}" if tokens.count(token) > 1 else "")
        for i, token in enumerate(tokens)
    ]


def _legend(layers: Sequence[LayerSummary], rule: str, show_heads: bool) -> list[Text]:
    worst = max(layers, key=lambda layer: layer.completeness_error).error_text
    rows = sum(layer.rows for layer in layers)
    missed = sum(layer.missed for layer in layers)
    if missed == 0:
        verdict = Text(
            f"Certified: each of the {rows} rows of attributions adds up to its total, the worst "
            f"to within {worst} of it.",
            style="green",
        )
    else:
        verdict = Text(
            f"Not certified: {missed} of {rows} rows of attributions miss their total by more than "
            f"{layers[0].tolerance:g} of it, the worst by {worst}.",
            style="bold red",
        )
    meaning = (
        "total: how far the layer moves a token from its baseline. error: |sum of attributions - "
        f"total| / total. composed off by: distance of the map composed by {rule} from the direct "
        "map, in units of the direct map. "
    )
    if show_heads:
        meaning += "via heads: the heads' part against the residual path. "
    whole = "row's absolute sum" if rule == "product" else "target's total"
    meaning += f"share: of the {whole}."
    return [verdict, Text(meaning, style="dim")]
