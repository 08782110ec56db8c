"""Commands, options, files and names that the documentation speaks of are there."""

from __future__ import annotations

import ast
import configparser
import inspect
import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import captum_lig
from captum_lig.cli import app

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
GROUP = typer.main.get_command(app)
assert isinstance(GROUP, click.Group) or hasattr(GROUP, "commands")
COMMANDS: dict[str, Any] = GROUP.commands  # type: ignore[attr-defined]

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def blocks(page: str, languages: str) -> list[str]:
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def lines(page: str) -> list[str]:
    """Commands of the shell blocks of a page, one a line."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def parse(command: str, arguments: list[str]) -> None:
    """Parse a command's arguments as the command line does, and run nothing."""
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    COMMANDS[command].make_context(command, list(arguments))


LINES = [(page, line) for page in PAGES for line in lines(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{p}-{line[:60]}" for p, line in LINES])
def test_a_command_of_a_page(page: str, line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "captum-lig":
        parse(arguments[0], arguments[1:])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
    elif program == "python":
        assert arguments[0] == "-m"
        assert_module_takes(arguments[1], arguments[2:])
    else:
        assert [program, arguments[0]] == ["pip", "install"]
        for name in arguments[1:]:
            if name.endswith(".txt"):
                assert (ROOT / name).is_file()
            if match := re.fullmatch(r"(?:captum-lig|\.)\[(.*)\]", name):
                assert set(match[1].split(",")) <= set(SETUP["options.extras_require"])


def assert_module_takes(module: str, arguments: list[str]) -> None:
    """Options stand in the source of the module, or of what its package shares."""
    path = ROOT / module.replace(".", "/")
    files = list(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files
    assert all(file.is_file() for file in files)
    source = "".join(file.read_text() for file in (*files, ROOT / "benchmarks" / "common.py"))
    for argument in arguments:
        if argument.startswith("--"):
            assert f'"{argument}"' in source, argument


def options() -> set[str]:
    """Of all commands, of the benchmarks and of the programs that pages call."""
    of_commands = {
        name
        for command in (GROUP, *COMMANDS.values())
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    tests = (ROOT / "tests" / name for name in ("matrix.py", "helpers/interrupted_calls.py"))
    files = (*(ROOT / "benchmarks").rglob("*.py"), *tests)
    sources = "".join(file.read_text() for file in files)
    return of_commands | {"--help", *re.findall(r'["[](--[a-z][a-z-]*)', sources)}


@pytest.mark.parametrize("page", PAGES)
def test_options_that_a_page_names(page: str) -> None:
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    code = re.findall(r"`([^`\n]+)`", prose)
    named = {name for one in code for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", one)}
    of_others = {"--no-deps", "--require-hashes"}  # pip's
    assert named - of_others <= options()


def test_the_table_of_questions() -> None:
    """Each option of the table of `why` stands there as it is given."""
    table = re.search(r"\| question \| options \|\n.*?\n\n", PAGES["docs/why.md"], re.DOTALL)
    assert table is not None
    given = [one for one in re.findall(r"`([^`]+)`", table[0]) if one.startswith("--")]
    assert len(given) > 6
    for one in given:
        arguments = shlex.split(one)
        if arguments == ["--model"]:
            arguments.append("FOLDER")
        parse("why", ["A text", *arguments])


def test_the_file_of_questions() -> None:
    """Keys of a line are options of the command, and the page lists all of them."""
    listed = re.search(r"whose keys are the options: (.*?)\. Options", PAGES["docs/why.md"], re.S)
    assert listed is not None
    keys = set(re.findall(r"`(\w+)`", listed[1]))
    names = {parameter.name for parameter in COMMANDS["why"].params}
    assert keys <= names
    (block,) = blocks("docs/why.md", "json")
    for line in block.splitlines():
        assert set(json.loads(line)) <= keys


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "py")])
def test_code_of_other_libraries_can_be_read(page: str) -> None:
    for block in blocks(page, "py"):
        ast.parse(block)


# ---- what is public --------------------------------------------------------------------------


def public_modules() -> list[str]:
    """Those that the reference names, and those of the names that it names."""
    found = {"captum_lig"}
    for kind, name in re.findall(r"\{py:(\w+)\}`~?([\w.]+)`", PAGES["docs/reference.md"]):
        while kind != "mod" and name != "captum_lig" and not is_module(name):
            name = name.rpartition(".")[0]
        found.add(name)
    return sorted(found)


def is_module(name: str) -> bool:
    try:
        import_module(name)
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("module", public_modules())
def test_public_names_are_described(module: str) -> None:
    found = import_module(module)
    assert found.__all__
    for name in found.__all__:
        value = getattr(found, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                described = inspect.isroutine(member) or isinstance(member, property)
                if described and not attribute.startswith("_"):
                    assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute}"


def test_the_reference_names_what_the_package_exports() -> None:
    named = set(re.findall(r"\{py:\w+\}`~?captum_lig\.(\w+)[.\w]*`", PAGES["docs/reference.md"]))
    assert set(captum_lig.__all__) - named == set()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_pages_import_what_is_public(page: str) -> None:
    public = public_modules()
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            module = str(node.module) if isinstance(node, ast.ImportFrom) else ""
            if not isinstance(node, ast.ImportFrom) or not module.startswith("captum_lig"):
                continue
            names = {alias.name for alias in node.names}
            modules = {name for name in names if f"{module}.{name}" in public}
            assert modules == names or module in public, f"{module} {names}"
            assert names - modules <= set(import_module(module).__all__), names


def test_versions_are_semantic() -> None:
    version = SETUP["metadata"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version == next(heading for heading in headings if heading.lower() != "unreleased")
    numbers = [tuple(map(int, one.split("."))) for one in headings if one.lower() != "unreleased"]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == (0, 1, 0)
