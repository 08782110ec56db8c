"""One HTML document of a template, styles, modules of a script, a header and numbers.

It asks for nothing on the network, and its policy forbids it to. Texts are untrusted: they come as
JSON that cannot end its element, and scripts make text nodes of them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from captum_lig.flow.tokens import readable_text

__all__ = ["document"]


def document(
    template: str,
    styles: Sequence[str],
    modules: Sequence[str],
    title: str,
    header: dict[str, Any],
    numbers: str,
) -> str:
    """Put a page together.

    Args:
        template: name of the template among the assets.
        styles: names of its style sheets.
        modules: names of its scripts without ``.js``, each after those that it imports.
        title: of the document, plain text.
        header: facts in JSON's types.
        numbers: packed ones.
    """
    style, script = "\n".join(map(_asset, styles)), _script(tuple(modules))
    return Template(_asset(template)).substitute(
        title=html.escape(readable_text(title, 200)),
        policy=_policy(style, script),
        style=style,
        script=script,
        header=_json(header),
        numbers=numbers,
    )


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
def _script(names: tuple[str, ...]) -> str:
    """The modules as one script: a page of one file has none that could be imported.

    Each becomes a function that returns its exports, in the form that its linter and its tests
    know apart from the words ``import`` and ``export``.
    """
    parts = ["const modules = {};"]
    for name in names:
        text = _asset(f"{name}.js")
        exports = re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", text, re.M)
        text = re.sub(r"^export ", "", text, flags=re.M)
        text = re.sub(r'^import (\{[^}]*\}) from "\.\.?/(\w+)\.js";$', r"const \1 = modules.\2;",
                      text, flags=re.M)  # fmt: skip
        own = name.rpartition("/")[2]
        parts.append(
            f"modules.{own} = (() => {{\n{text}\nreturn {{ {', '.join(exports)} }};\n}})();"
        )
    return "\n".join(parts)
