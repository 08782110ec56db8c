"""The rooms of the package: what stands where, and that imports only go down.

`docs/architecture.md` says what the rooms hold. Imports are read from the source: those inside
functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "captum_lig"
MOST_LINES = 450
MOST_ROOT_FILES = 10

FLOORS = (
    ("errors",),
    ("_arguments", "_captum", "_restore", "_types", "cost"),
    ("model", "paths", "pretrained"),
    ("integrals",),
    ("flow",),
    ("graph",),
    ("io",),
    ("inspection", "prediction"),
    ("attribution", "patching"),
    ("metrics", "views"),
    ("circuits",),
    ("layer_flow_ig", "set_to_set_ig"),
    ("answers", "explain"),
    ("corpus",),
    ("experiments",),
    ("cli",),
)
"""From the lowest to the highest; the rooms of one floor do not import each other."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

WITHOUT_A_MODEL = ("paths", "integrals", "flow", "graph")
"""Rooms that work on tensors: they import neither `model` nor transformers."""

LATE = {
    "captum_lig.flow.layer_flow": ("LayerFlow.plot", "LayerFlow._repr_html_"),
    "captum_lig.flow.flows": ("Flows._repr_html_",),
    "captum_lig.flow.explanation": ("Explanation._repr_html_",),
    "captum_lig.inspection.report": ("ModelReport._repr_html_",),
    "captum_lig.graph.flow_graph": (
        "FlowGraph.plot",
        "FlowGraph._repr_html_",
        "FlowGraph.explore",
        "FlowGraph.to_html",
        "FlowGraph.to_networkx",
        "FlowGraph.save",
        "FlowGraph.load",
    ),
}
"""Convenience methods: they import what is above them when they are called."""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """All imports of the package but those of the methods in LATE."""
    graph = grimp.build_graph("captum_lig", include_external_packages=True, cache_dir=None)
    for module, methods in LATE.items():
        lines = lines_of(PACKAGE.parent / f"{module.replace('.', '/')}.py", methods)
        for imported in graph.find_modules_directly_imported_by(module):
            details = graph.get_import_details(importer=module, imported=imported)
            if details and all(detail["line_number"] in lines for detail in details):
                graph.remove_import(importer=module, imported=imported)
    return graph


def lines_of(path: Path, methods: tuple[str, ...]) -> set[int]:
    """The numbers of the lines of some methods, named "Class.method"."""
    lines: set[int] = set()
    for cls in ast.parse(path.read_text()).body:
        for method in cls.body if isinstance(cls, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef) and f"{cls.name}.{method.name}" in methods:
                assert method.end_lineno is not None
                lines |= set(range(method.lineno, method.end_lineno + 1))
    return lines


def room(module: str) -> str | None:
    """The room of a module; None for other packages and for the face of this one."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if package == "captum_lig" else None


def edges(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            yield module, imported


def going_up(graph: grimp.ImportGraph) -> list[str]:
    """Imports of a room that does not lie below the importing one."""
    found = []
    for module, imported in edges(graph):
        here, there = room(module), room(imported)
        if here and there and here != there and FLOOR_OF[there] >= FLOOR_OF[here]:
            found.append(f"{module} -> {imported}")
    return found


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Modules that import each other, directly or through others."""
    components = networkx.strongly_connected_components(networkx.DiGraph(edges(graph)))
    return [sorted(modules) for modules in components if len(modules) > 1]


def reaching(graph: grimp.ImportGraph, importer: str, imported: str) -> list[tuple[str, ...]]:
    """The shortest chains of imports from a room to another or to another package."""
    assert {importer, imported} <= graph.modules, (importer, imported)
    return sorted(graph.find_shortest_chains(importer=importer, imported=imported))


# ---- the rooms -------------------------------------------------------------------------------


def test_the_root_holds_what_belongs_there() -> None:
    # Of folders those that hold code: an older checkout leaves its bytecode behind.
    rooms = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    rooms = {room.removesuffix(".py") for room in rooms} - {"__init__"}
    assert rooms == FLOOR_OF.keys()
    files = [path.name for path in PACKAGE.glob("*.py")]
    assert len(files) <= MOST_ROOT_FILES, sorted(files)


def test_no_import_goes_up(imports: grimp.ImportGraph) -> None:
    assert going_up(imports) == []


def test_there_are_no_circles(imports: grimp.ImportGraph) -> None:
    assert circles(imports) == []


@pytest.mark.parametrize("above", ["captum_lig.model", "transformers"])
@pytest.mark.parametrize("name", WITHOUT_A_MODEL)
def test_rooms_without_a_model(imports: grimp.ImportGraph, name: str, above: str) -> None:
    assert reaching(imports, f"captum_lig.{name}", above) == []


def test_only_the_command_line_imports_experiments(imports: grimp.ImportGraph) -> None:
    users = {room(a) for a, b in edges(imports) if room(b) == "experiments"} - {"experiments"}
    assert users == {"cli"}


def test_no_import_is_for_type_checking_alone(imports: grimp.ImportGraph) -> None:
    """Such an import hides a circle; only the face of the package has them, for editors."""
    run = grimp.build_graph("captum_lig", exclude_type_checking_imports=True, cache_dir=None)
    only_types = [
        f"{module} -> {imported}"
        for module, imported in edges(imports)
        if room(module)
        and room(imported)
        and imported not in run.find_modules_directly_imported_by(module)
    ]
    assert only_types == []


def test_nothing_imports_the_face_of_the_package(imports: grimp.ImportGraph) -> None:
    """`captum_lig` itself imports all of its public names."""
    assert imports.find_modules_that_directly_import("captum_lig") == set()


@pytest.mark.parametrize("folder", ["captum_lig", "benchmarks", "docs", "tutorials"])
def test_files_are_short(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


@pytest.mark.parametrize(("module", "methods"), LATE.items())
def test_the_late_methods_are_there(module: str, methods: tuple[str, ...]) -> None:
    path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
    for method in methods:
        assert lines_of(path, (method,)), method


def test_a_fault_would_be_seen() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in (
        ("captum_lig.flow.words", "captum_lig.views.plots"),
        ("captum_lig.model.call", "captum_lig.paths.base"),
        ("captum_lig.graph.edges", "captum_lig.graph.layer"),
        ("captum_lig.graph.layer", "captum_lig.graph.edges"),
        ("captum_lig.cli", "captum_lig.explain"),
    ):
        graph.add_import(importer=importer, imported=imported)
    assert going_up(graph) == [
        "captum_lig.flow.words -> captum_lig.views.plots",
        "captum_lig.model.call -> captum_lig.paths.base",
    ]
    assert circles(graph) == [["captum_lig.graph.edges", "captum_lig.graph.layer"]]


# ---- the tests -------------------------------------------------------------------------------

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_tests_mirror_the_rooms() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders - {"helpers", "laws", "wrong_numbers", "__pycache__"} <= rooms


def test_tests_use_public_names_and_no_other_test() -> None:
    found = {str(path.relative_to(ROOT)): private_names(path.read_text()) for path in TESTS}
    # What torch holds for a thread or the process, and its dispatch modes, have no public names.
    for helper in ("state", "largest"):
        of_torch = found.pop(f"tests/helpers/{helper}.py")
        assert not [name for name in of_torch if name.startswith("captum_lig")]
    assert found
    assert {path: names for path, names in found.items() if names} == {}


def test_a_private_name_would_be_seen() -> None:
    code = """
from __future__ import annotations
from captum_lig.io import flows as codec
from captum_lig.flow.words import _groups
from captum_lig._types import Pre
from tests.test_cli import tiny
codec._read_json(graph._repr_html_())
monkeypatch.setattr(codec, "_header", None)
"""
    assert set(private_names(code)) == {
        "captum_lig.flow.words._groups",
        "captum_lig._types",
        "tests.test_cli",
        "codec._read_json",
        "_header",
    }


def private_names(code: str) -> list[str]:
    """Private names of imported modules that code uses, and test modules that it imports."""
    tree = ast.parse(code)
    found, modules = [], set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                module = node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
                name = f"{module}.{alias.name}" if isinstance(node, ast.ImportFrom) else module
                modules.add(alias.asname or alias.name.split(".")[0])
                if private(module) or module.rpartition(".")[2].startswith("test_"):
                    found.append(module)
                elif private(name):
                    found.append(name)
        elif isinstance(node, ast.Attribute) and private(node.attr):
            owner: ast.expr = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in modules:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr"):
            found += [
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and private(str(argument.value))
            ]
    return found


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
