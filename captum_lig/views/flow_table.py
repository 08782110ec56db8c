"""The terminal table: one row a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from captum_lig.flow.byte_level import plain_tokens
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.findings import View, choose_view, find_sink
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import LayerSummary, Link, one_text, row_shares, summarize
from captum_lig.flow.tokens import readable_token

__all__ = ["flow_table"]

_TOKEN_WIDTH = 12


def flow_table(
    flows: Sequence[LayerFlow],
    tokens: Sequence[str],
    rule: str = DEFAULT_RULE,
    *,
    kind: str | None = None,
    hide_first_token: bool = False,
) -> Group:
    """A table of layers and what can be said of it in a sentence or two, for a rich console.

    Links are between different tokens. Those into a token that has one possible source are left
    out: they are 100 % by construction.

    Args:
        flows: the flows of one text with all three boundaries, one a layer.
        tokens: the text's tokens, one for each source.
        rule: composition rule for the agreement and the links.
        kind: the map that links are of: ``"composed"``, ``"direct"``, or ``"influence"``, how much
            each source moves a target, whichever way (flows need that boundary). None: influence,
            where the flows hold it; else the composed one, or the direct one where that is more
            than 50 % off it (mean over the targets of a layer, median over the layers).
        hide_first_token: name no links from the first token. No number changes.

    Returns:
        A rich renderable: ``rich.print(flow_table(flows, tokens))``. It fits 80 columns.

    Raises:
        LigError: if flows and tokens do not fit, for an unknown rule or kind, or a missing
            boundary.
    """
    one_text(flows, tokens)
    view = choose_view(flows, rule, kind)
    layers = [summarize(flow, rule, view=view, hide_first_token=hide_first_token) for flow in flows]
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
    figures = "head, share" if view.kind == "composed" else "share"
    table.add_column(f"strongest links, {view.name}\nsource → target ({figures})")
    for layer in layers:
        cells: list[str | Text] = [str(layer.index), f"{layer.total:.3g}", _error(layer)]
        cells.append(layer.agreement_text)
        if show_heads:
            cells.append(f"{layer.via_heads:.0%}")
        table.add_row(*cells, _links(layer.links, names, view))
    said = [_verdict(layers, view)]
    sink = find_sink(flows, [row_shares(flow, view) for flow in flows])
    first = plain_tokens(tokens)[int(flows[0].valid[0].nonzero()[0])]
    if sink is not None:
        said.append(Text(sink.sentence(first, hide_first_token)))
    elif hide_first_token:
        said.append(Text(f"Links from the first token, {readable_token(first)}, are hidden."))
    return Group(table, Text(), *said, _legend(view, show_heads))


def _error(layer: LayerSummary) -> Text:
    if layer.converged:
        return Text(layer.error_text)
    return Text(f"{layer.error_text} !", style="bold red")


def _links(links: Sequence[Link], names: Sequence[str], view: View) -> Text:
    lines, sign = [], "+" if view.signed else ""
    for link in links:
        head = "" if link.head is None else f"{link.head}, "
        lines.append(f"{names[link.source]} → {names[link.target]} ({head}{link.share:{sign}.0%})")
    return Text("\n".join(lines) or "none", overflow="fold")


def _names(tokens: Sequence[str]) -> list[str]:
    """Readable tokens; one that looks like another is followed by its position."""
    shown = [readable_token(token, _TOKEN_WIDTH) for token in plain_tokens(tokens)]
    count = Counter(shown)
    return [name + (f"·{i}" if count[name] > 1 else "") for i, name in enumerate(shown)]


def _verdict(layers: Sequence[LayerSummary], view: View) -> Text:
    """Whether sums converged; beside it how far maps are apart, for which good sums say nothing."""
    worst = max(layers, key=lambda layer: layer.completeness_error).error_text
    rows = sum(layer.rows for layer in layers)
    missed = sum(layer.missed for layer in layers)
    if missed == 0:
        said = f"Sums converged to {worst}: each of the {rows} rows adds up to its total."
    else:
        said = (
            f"Not all sums converged: {missed} of {rows} rows miss their total by more than "
            f"{layers[0].tolerance:g} of it, the worst by {worst}."
        )
    style = "bold red" if missed else "yellow" if view.far else "green"
    return Text(f"{said} {view.sentence}".rstrip(), style=style)


def _legend(view: View, show_heads: bool) -> Text:
    meaning = (
        "total: how far the layer moves a token from its baseline. error: |sum of attributions - "
        "total| / total; a small one says that the sum is right, not that the map is. composed off "
        f"by: distance of the map composed by {view.rule} from the direct map, in units of the "
        "direct map. "
    )
    if show_heads:
        meaning += "via heads: the heads' part against the residual path. "
    if view.kind == "influence":
        whole = (
            "the sum of the lengths of what the sources bring, whichever way; they add up to no "
            "total"
        )
    elif view.kind == "composed" and view.rule == "product":
        whole = "the row's absolute sum"
    else:
        whole = "the target's total"
    if view.signed:
        whole += ", signed. How much, whichever way: influence=True (--show influence)"
    return Text(f"{meaning}share: of {whole}.", style="dim")
