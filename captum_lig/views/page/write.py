"""Assembling the page: its template, style and script, and the packed numbers of one graph."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from captum_lig.errors import LigError
from captum_lig.flow.composition import DEFAULT_RULE
from captum_lig.flow.tokens import readable_text, readable_token
from captum_lig.graph import FlowGraph
from captum_lig.io.codec import warn_if_large, writing
from captum_lig.views.page.numbers import pack

__all__ = ["page", "write_page"]

MODULES = ["numbers", "graph", "routes", "words", "model", "ink", "flow", "maps", "node", "tables"]
MODULES += ["main"]
"""The scripts, each after those that it imports."""


def page(
    graph: FlowGraph,
    title: str | None = None,
    rule: str = DEFAULT_RULE,
    *,
    hide_first_token: bool = False,
) -> str:
    """The interactive page of a graph as one HTML document that asks for nothing else.

    Args:
        graph: any graph; a pruned one shows the edges that it still has.
        title: what stands on top; plain text, whatever it contains. None: the graph's target and
            its change, or the tokens.
        rule: the composition rule that the page opens with, see :meth:`LayerFlow.compose`. Where
            maps composed by it are more than 50 % off the direct ones (mean over the targets of a
            layer, median over the layers), it opens with the direct maps, and says so.
        hide_first_token: open without lines from the first token; the page has a box for it.

    Raises:
        LigError: for an unknown rule, or one that needs a boundary that is not there.
    """
    if title is None and graph.target is not None:
        title = f"{graph.target}: {graph.change:+.4g}"
    elif title is None:
        title = " ".join(readable_token(token).lstrip("␣") for token in graph.tokens)
    header, numbers = pack(graph, title, rule, hide_first_token)
    style, script = _asset("page.css"), _script()
    return Template(_asset("page.html")).substitute(
        title=html.escape(readable_text(title, 200)),
        policy=_policy(style, script),
        style=style,
        script=script,
        header=_json(header),
        numbers=numbers,
    )


def write_page(
    graph: FlowGraph,
    path: str | Path,
    title: str | None = None,
    rule: str = DEFAULT_RULE,
    *,
    hide_first_token: bool = False,
) -> Path:
    """Write the interactive page of a graph.

    Args:
        graph: see :func:`page`.
        path: a file that ends in ``.html``. Missing folders are made.
        title: see :func:`page`.
        rule: see :func:`page`.
        hide_first_token: see :func:`page`.

    Returns:
        The path.

    Raises:
        LigError: for another suffix, or a rule that :func:`page` refuses.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise LigError(f"{str(path)!r} does not end in .html: name the page so.")
    document = page(graph, title, rule, hide_first_token=hide_first_token)
    warn_if_large(path, len(document))
    with writing(path) as beside:
        beside.write_text(document, encoding="utf-8")
    return path


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded, and of code and style only what is written here may run."""
    return (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    text = files("captum_lig.views.page").joinpath("assets", name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


@cache
def _script() -> str:
    """The modules as one script: a page of one file has none that could be imported.

    Each becomes a function that returns its exports, in the form that its linter and its tests
    know apart from the words ``import`` and ``export``.
    """
    parts = ["const modules = {};"]
    for name in MODULES:
        text = _asset(f"{name}.js")
        exports = re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", text, re.M)
        text = re.sub(r"^export ", "", text, flags=re.M)
        text = re.sub(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', r"const \1 = modules.\2;",
                      text, flags=re.M)  # fmt: skip
        parts.append(
            f"modules.{name} = (() => {{\n{text}\nreturn {{ {', '.join(exports)} }};\n}})();"
        )
    return "\n".join(parts)
