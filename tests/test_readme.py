"""What a newcomer reads runs: the README, the pages and docstrings of the documentation, the
tutorial."""

from __future__ import annotations

import doctest
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging
from typer.testing import CliRunner

import captum_lig
from captum_lig import LayerFlowIG
from captum_lig.cli import app
from tests.helpers.embedded import minilm_folder
from tests.helpers.models import tiny_llama

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md"))]
NOTEBOOKS = sorted(ROOT.glob("tutorials/*.ipynb"))


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(name: str, source: str, namespace: dict[str, Any]) -> None:
    exec(compile(source, name, "exec"), namespace)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The code runs in an empty folder, with the embedded model and no network, and leaves nothing
    behind: neither random state nor the switch of the progress bars."""
    minilm_folder()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    bars = logging.is_progress_bar_enabled()
    with torch.random.fork_rng(devices=[]):
        yield
    if bars:
        logging.enable_progress_bar()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_code_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One namespace a page: its blocks are read from top to bottom. What a page shows right after
    a block is what the block printed, but for the digits of errors below 1e-3,
    which are the machine's own."""
    text = (ROOT / page).read_text(encoding="utf-8")
    namespace = {"__name__": "page"}
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    for number, block in enumerate(re.finditer(pattern, text, re.DOTALL | re.MULTILINE)):
        capsys.readouterr()
        run(f"{page}, block {number}", block[1], namespace)
        if block[2] is not None:
            assert without_errors(capsys.readouterr().out) == without_errors(block[2])


def without_errors(text: str) -> str:
    """A printed text without digits of errors such as 3e-05: they differ by machine."""
    return re.sub(r"\d(\.\d+)?e-0[4-9]|\d(\.\d+)?e-[1-9]\d", "a small error", text)


def examples() -> list[doctest.DocTest]:
    """Those of every docstring of the package."""
    modules = walk_packages(captum_lig.__path__, f"{captum_lig.__name__}.")
    finder = doctest.DocTestFinder()
    found = [test for module in modules for test in finder.find(import_module(module.name))]
    return [test for test in found if test.examples]


@cache
def surroundings() -> dict[str, Any]:
    """What the examples of docstrings take for granted: a model, a text and its flows; a decoder,
    two texts and a number of it."""
    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer("The cat sat on the mat.", return_tensors="pt")
    flows = LayerFlowIG(model).attribute(inputs)
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    return {
        "torch": torch,
        "tokenizer": tokenizer,
        "model": model,
        "inputs": inputs,
        "tokens": tokens,
        "flows": flows,
        "decoder": tiny_llama(),
        "ids": torch.tensor([[5, 9, 7]]),
        "other_ids": torch.tensor([[5, 4, 7]]),
        "target": lambda output: output.last_hidden_state[:, -1, 0],
    }


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_examples_of_docstrings_run(example: doctest.DocTest) -> None:
    example.globs.update(surroundings())
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example).failed == 0


def test_commands_of_the_readme_run() -> None:
    lines = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if "captum-lig " in line]
    hub = "openai-community/gpt2"  # a name on the hub needs a network
    offline = [command for command in commands if hub not in command]
    assert offline
    assert len(commands) > len(offline)
    for command in offline:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    for name in ("why.html", "why.png", "why.json"):
        assert Path("paris", name).stat().st_size > 0


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
    for link in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text):
        if not link.startswith("https://"):
            assert (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_were_run_in_order(notebook: Path) -> None:
    """And with nothing on stderr. `make notebooks` runs them again, from a clean kernel."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    streams = [output.get("name") for cell in code for output in cell["outputs"]]
    assert "stderr" not in streams
