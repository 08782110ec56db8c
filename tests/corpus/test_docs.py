"""docs/corpus.md says what the schema is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from captum_lig.corpus.batches import Batch
from captum_lig.corpus.measures import MEASURES
from captum_lig.corpus.schema import schema_markdown
from captum_lig.corpus.settings import Settings
from captum_lig.corpus.texts import Text
from captum_lig.corpus.worker import Worker

PAGE = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")


def test_the_page_has_the_schema() -> None:
    # A column that changes its name, type or meaning is a new version.
    assert schema_markdown().strip() in PAGE


def test_the_page_has_every_measure() -> None:
    for name, measure in MEASURES.items():
        assert f"| `{name}` | {measure.about} |" in PAGE


def test_the_measure_of_the_page(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "Middle" in code]
    example = ModuleType("example_of_the_page")
    exec(code, vars(example))
    monkeypatch.setitem(sys.modules, "example_of_the_page", example)
    settings = Settings(str(tiny), measures=("example_of_the_page:Middle",), n_steps=2)
    found = Worker(settings)(Batch(0, 0, (Text(0, "0", "the cat"), Text(1, "1", "the mat sat"))))
    values = found.tables["layers"].column("middle").to_pylist()
    assert len(values) == 2 * 3
    assert min(values) > 0
