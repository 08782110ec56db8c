"""What the package imports is declared, and what it reads is installed with it.

`python -m tests.matrix` builds the wheel and runs the tests from there; this is what can be said of
any installation.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import captum_lig
from captum_lig.graph import FlowGraph
from tests.helpers.synthetic import signed_flows

ROOT = Path(__file__).parents[1]
PACKAGE = Path(captum_lig.__file__).parent
CALLED = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "skimage": "scikit-image"}
"""Distributions that are not called as what is imported of them."""
LOOKED_FOR = {"import_module", "pytest.importorskip", "need"}
"""Functions that import what they are called with."""
OWN = {"captum_lig", "tests", "benchmarks", "models", "gallery", "pictures", "biology"}

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def declared(*extras: str) -> set[str]:
    """Distributions that are installed with the package, and with some extras."""
    asked = [SETUP["options"]["install_requires"]]
    asked += [SETUP["options.extras_require"][extra] for extra in extras]
    found = set()
    for line in "\n".join(asked).split():
        match = re.match(r"captum-lig\[(.*)\]", line)
        if match:
            found |= declared(*match[1].split(","))
        elif name := re.match(r"[\w.-]+", line):
            found.add(name[0].lower().replace("_", "-"))
    return found


def imported(code: str) -> tuple[set[str], set[str]]:
    """Packages that code imports: as it is loaded, and later or never."""
    tree = ast.parse(code)
    first, later = set[str](), set[str]()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in LOOKED_FOR:
            names = [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        found = {name.split(".")[0] for name in names} - sys.stdlib_module_names - OWN
        (first if node in tree.body else later).update(found)
    return first, later


def of_folder(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Distributions that the files of a folder import, each with one of these files."""
    first, later = dict[str, str](), dict[str, str]()
    beside = {path.stem for path in folder.rglob("*.py")}
    for path in folder.rglob("*.py"):
        for names, where in zip(imported(path.read_text()), (first, later), strict=True):
            for name in names - beside:
                where[CALLED.get(name, name).lower().replace("_", "-")] = str(path)
    return first, later


def test_what_the_package_imports_is_declared() -> None:
    first, later = of_folder(PACKAGE)
    assert len(first) > 5
    assert {k: v for k, v in first.items() if k not in declared()} == {}
    assert {k: v for k, v in later.items() if k not in declared("ray", "graph", "notebook")} == {}


OTHERS = {
    "tests": ({"test"}, {"onnx", "atheris"}),
    "benchmarks": ({"test"}, {"lig"}),
    "tutorials": ({"docs"}, {"onnx"}),
    "docs": ({"docs", "test"}, {"docutils", "packaging", "scikit-image"}),
}
"""Extras, and what comes otherwise: with sphinx, from a requirements file, in the authors'
environment, or that tests are skipped without."""


@pytest.mark.parametrize("folder", OTHERS)
def test_what_other_code_imports_is_declared(folder: str) -> None:
    extras, otherwise = OTHERS[folder]
    first, later = of_folder(ROOT / folder)
    undeclared = {**first, **later}.keys() - declared(*extras) - otherwise
    assert undeclared == set()


def test_all_that_is_declared_is_imported() -> None:
    first, later = of_folder(PACKAGE)
    assert declared() - first.keys() - later.keys() == set()


def test_licences_are_listed() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w-]+) \| (.+?) \|", page, re.MULTILINE))
    assert declared("corpus", "graph", "ray", "notebook") - listed.keys() == set()
    assert "see its files" not in listed.values()


def test_an_undeclared_import_would_be_seen() -> None:
    code = "import os\nfrom yaml import load\ndef f():\n    import lxml.etree\n    need('ray.util')"
    assert imported(code) == ({"yaml"}, {"lxml", "ray"})


def test_the_page_is_installed_with_its_files(tmp_path: Path) -> None:
    """The page takes each of them by its name; the matrix compares all files of the wheel."""
    assert files("captum_lig").joinpath("py.typed").is_file()
    FlowGraph(signed_flows(2, 4, 2)).to_html(tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" in written
    assert "<style" in written
