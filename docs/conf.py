"""Settings of the documentation: ``make docs`` builds it in ``docs/_build/html``.

The sources are the pages as a code host shows them: the root of the repository is the source
folder and the README is the front page, so that one and the same link works in both places.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import captum_lig

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "generated"

project = "captum_lig"
author = "the captum_lig authors"
project_copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/generated/*",
    "tutorials/*.ipynb",
]
exclude_patterns = [".*", "docs/_build"]
templates_path = [str(ROOT / "docs" / "_templates")]  # autosummary looks from the source folder
root_doc = "README"
nitpicky = True  # but for what is not described here
nitpick_ignore_regex = [("py:.*", r"(captum|collections|matplotlib|torch)\..*")]

# Pages
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # as code hosts write a formula
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` runs them; their outputs are kept

# Reference
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give types with shapes and units
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# Site
html_theme = "furo"
html_title = "captum_lig"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

CONTENTS = {
    "Explain a prediction": [
        "docs/why",
        "tutorials/why",
        "docs/page",
        "docs/relevance",
        "tutorials/decoder",
        "docs/graph",
    ],
    "Compare two texts": ["docs/compare-two-texts", "docs/prompts-and-sinks"],
    "Use my own model": ["docs/own-models", "docs/families", "docs/gpu", "docs/long-texts"],
    "Work with the numbers": [
        "docs/how-to",
        "docs/pandas",
        "docs/charts",
        "docs/corpus",
        "docs/corpus-cluster",
    ],
    "Within a layer": [
        "docs/getting-started",
        "tutorials/first_map",
        "tutorials/set_to_set",
        "docs/gallery",
        "tutorials/*",
    ],
    "Come from elsewhere": ["docs/coming-from-*"],
    "What to trust": [
        "docs/method",
        "docs/limitations",
        "docs/reliability",
        "docs/patching",
        "docs/within-layer",
        "docs/circuits",
        "docs/consistency",
        "docs/convergence",
        "docs/benchmarks",
        "docs/*",
    ],
    "Reference": [
        "docs/reference",
        "docs/generated/command-line",
        "docs/architecture",
        "CONTRIBUTING",
        "CHANGELOG",
    ],
}
"""The sidebar: pages by what one wants to do. ``*`` stands for those that are not named."""


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Give the README its table of contents, which a code host would show as code."""
    if page != root_doc:
        return
    found = sorted(app.env.found_docs)
    named = {p for entries in CONTENTS.values() for e in entries for p in found
             if fnmatch(p, e) and not e.endswith("/*")}  # fmt: skip
    for caption, entries in CONTENTS.items():
        lines: list[str] = []
        for entry in entries:
            rest = entry.endswith("/*")
            pages = [p for p in found if fnmatch(p, entry) and p.count("/") == entry.count("/")]
            lines += [p for p in pages if not rest or p not in named] or [entry]
        source[0] += "\n".join(
            ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""]
        )


def describe_commands(app: Sphinx) -> None:
    """Write the page of the command line from its own help."""
    command = [sys.executable, "-m", "typer", "captum_lig.cli", "utils", "docs"]
    options = ["--name", "captum-lig", "--title", "Command line"]
    run = subprocess.run([*command, *options], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    text = html.unescape(run.stdout.decode())
    text = re.sub(r"<span[^>]*>(.*?)</span>", r"`\1`", text)  # an example
    text = re.sub(r"(`[^`]*`)|(--[a-z-]+)", lambda m: m[1] or f"`{m[2]}`", text)
    text = re.sub(r"^(\* `\S+`): .*\.\.\.$", r"\1", text, flags=re.MULTILINE)  # cut off by typer
    GENERATED.mkdir(exist_ok=True)
    (GENERATED / "command-line.md").write_text(text, encoding="utf-8")


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element
) -> nodes.reference | None:
    """Resolve ``LayerFlow.compose`` in a docstring of any module, as far as it is unambiguous.

    Functions are also known by the module they live in, and described where a package exports them.
    """
    if node.get("refdomain") != "py" or node.hasattr("refspecific"):
        return None
    node["refspecific"] = True
    page, kind, name = node["refdoc"], node["reftype"], node["reftarget"]
    if kind == "func" and name.startswith("captum_lig."):
        name = name.rpartition(".")[2]
    return env.domains["py"].resolve_xref(env, page, app.builder, kind, name, node, text)


def keep_colons(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Put an empty comment first, as napoleon reads ``word: more`` there as an attribute's type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def hide_fields(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, None] | None:
    """Leave out the signature of a dataclass: its fields are described one by one."""
    return ("", None) if what == "class" and is_dataclass(obj) else None


def exported_above(module: str) -> str:
    """Those names of a module that a package around it exports: they are described there."""
    names = vars(import_module(module))
    parts = module.split(".")
    above = [import_module(".".join(parts[:n])) for n in range(1, len(parts))]
    exported = [(package, name) for package in above for name in getattr(package, "__all__", [])]
    return ", ".join(
        name for package, name in exported if names.get(name) is getattr(package, name)
    )


def render_math(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without a script and without a network."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        formula = node.astext()
    writer.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def front_page(app: Sphinx, exception: Exception | None) -> None:
    """Let the README be the page that a server shows for the folder, too."""
    if exception is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


modules = [module.name for module in walk_packages(captum_lig.__path__, "captum_lig.")]
autosummary_context = {"described_above": {name: exported_above(name) for name in modules}}


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("builder-inited", describe_commands, priority=100)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", keep_colons, priority=100)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("missing-reference", resolve_short_name)
    app.connect("build-finished", front_page)
    app.add_html_math_renderer("mathml", (render_math, None), (render_math, None))
