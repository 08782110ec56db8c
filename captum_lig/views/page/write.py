"""Writing a page: the flow of lengths, or a number of the model and what carries it."""

from __future__ import annotations

from pathlib import Path

from captum_lig.errors import LigError
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.tokens import readable_token
from captum_lig.graph import FlowGraph
from captum_lig.io.codec import warn_if_large, writing
from captum_lig.views.page.document import document
from captum_lig.views.page.numbers import pack, packed_size
from captum_lig.views.page.question import Known, pack_question

__all__ = ["MODULES", "QUESTION_MODULES", "page", "write_page"]

MODULES = ["numbers", "graph", "routes", "words", "model", "ink", "flow", "maps", "node", "tables"]
MODULES += ["main"]
"""The scripts of the page of lengths, each after those that it imports."""
QUESTION_MODULES = ["numbers", "words"]
QUESTION_MODULES += [
    f"question/{name}"
    for name in ("data", "said", "state", "layout", "notes", "top", "drawing", "panel", "lists",
                 "ask")
]  # fmt: skip
"""The same of the page of a number."""
MOST = 500_000_000
"""Bytes of a page: a browser cannot hold more in one string."""


def page(
    graph: FlowGraph,
    title: str | None = None,
    rule: str = DEFAULT_RULE,
    *,
    kind: str | None = None,
    hide_first_token: bool = False,
    known: Known | None = None,
) -> str:
    """The interactive page of a graph as one HTML document that asks for nothing else.

    Args:
        graph: any graph; a pruned one shows the edges that it still has.
        title: what stands on top; plain text, whatever it contains. None: the graph's target and
            its change, or the tokens.
        rule: the composition rule that the page opens with, see :meth:`LayerFlow.compose`; of a
            graph of lengths.
        kind: the map that the page of lengths opens with: ``"composed"``, ``"direct"`` or
            ``"influence"``. None: influence, where the graph holds it; else the composed one, or
            the direct one where that is more than 50 % off it (mean over the targets of a layer,
            median over the layers), and the page says so.
        hide_first_token: open without lines from the first token; the page of lengths has a box for
            it.
        known: what is known beside the graph, of a graph with a target.

    Raises:
        LigError: for an unknown rule or kind, one that needs a boundary that is not there, or a
            kind where the graph has a target.
    """
    if graph.target is not None:
        graph.layers[0].shares(rule, True)  # refuses rules
        if kind is not None:
            raise LigError(f"kind={kind!r}: a graph with a target has one map: leave kind out.")
        header, numbers = pack_question(graph, title, known or Known())
        return document(
            "question/question.html",
            ["base.css", "question/question.css"],
            QUESTION_MODULES,
            header["title"],
            header,
            numbers,
        )
    if title is None:
        title = " ".join(readable_token(token).lstrip("␣") for token in graph.tokens)
    header, numbers = pack(graph, title, rule, hide_first_token, kind)
    return document("page.html", ["base.css", "page.css"], MODULES, title, header, numbers)


def write_page(
    graph: FlowGraph,
    path: str | Path,
    title: str | None = None,
    rule: str = DEFAULT_RULE,
    *,
    kind: str | None = None,
    hide_first_token: bool = False,
    known: Known | None = None,
) -> Path:
    """Write the interactive page of a graph.

    Args:
        graph: see :func:`page`.
        path: a file that ends in ``.html``. Missing folders are made.
        title: see :func:`page`.
        rule: see :func:`page`.
        kind: see :func:`page`.
        hide_first_token: see :func:`page`.
        known: see :func:`page`.

    Returns:
        The path.

    Raises:
        LigError: for another suffix, a page that no browser can open, or a rule or kind that
            :func:`page` refuses.
        OSError: if the file cannot be written.

    Warns:
        UserWarning: before a page of more than 100 MB is made.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise LigError(f"{str(path)!r} does not end in .html: name the page so.")
    if graph.target is None:
        size = packed_size(graph)
        if size > MOST:
            raise LigError(
                f"{str(path)!r} would be about {size / 1e6:,.0f} MB, and a browser opens no page "
                f"of more than {MOST / 1e6:,.0f} MB: prune the graph first (FlowGraph.prune), or "
                "take fewer layers or tokens (FlowGraph.subgraph)."
            )
        warn_if_large(path, size)
    made = page(graph, title, rule, kind=kind, hide_first_token=hide_first_token, known=known)
    with writing(path) as beside:
        beside.write_text(made, encoding="utf-8")
    return path
