"""What a newcomer reads runs: the README, the documentation's pages, the tutorial."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging
from typer.testing import CliRunner

from captum_lig.cli import app
from captum_lig.embedded import embedded_model_path
from captum_lig.errors import LigError

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/how-to.md", "docs/method.md", "docs/coming-from-captum.md"]
PAGES += ["docs/own-models.md"]
NOTEBOOK = ROOT / "tutorials" / "first_map.ipynb"


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(name: str, source: str, namespace: dict[str, Any]) -> None:
    exec(compile(source, name, "exec"), namespace)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The code runs in an empty folder, with the embedded model and no network, and leaves nothing
    behind: neither random state nor the switch of the progress bars."""
    try:
        embedded_model_path()
    except LigError:
        pytest.skip("the embedded model is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    bars = logging.is_progress_bar_enabled()
    with torch.random.fork_rng(devices=[]):
        yield
    if bars:
        logging.enable_progress_bar()


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page: str) -> None:
    """One namespace a page: its blocks are read from top to bottom."""
    found, namespace = blocks(page, "python"), {"__name__": "page"}
    assert found
    for number, source in enumerate(found):
        run(f"{page}, block {number}", source, namespace)


def test_commands_of_the_readme_run() -> None:
    lines = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if "captum-lig " in line]
    offline = [command for command in commands if "--model" not in command]
    assert offline
    assert len(commands) > len(offline)
    for command in offline:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert Path("flow.png").stat().st_size > 0


def test_targets_of_the_readme_are_in_the_makefile() -> None:
    named = [
        line.split()[1]
        for block in blocks("README.md", "sh")
        for line in block.splitlines()
        if line.startswith("make ")
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert named == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_tutorial_was_run_in_order_and_runs() -> None:
    """With one of its sentences, so that it takes seconds."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(code):
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        run(f"{NOTEBOOK.name}, cell {number + 1}", source, namespace)
        if "SENTENCES" in namespace:
            namespace["SENTENCES"] = namespace["SENTENCES"][:1]
