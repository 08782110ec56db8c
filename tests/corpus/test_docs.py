"""docs/corpus.md says what the schema is."""

from __future__ import annotations

from pathlib import Path

from captum_lig.corpus.measures import MEASURES
from captum_lig.corpus.schema import schema_markdown

PAGE = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")


def test_the_page_has_the_schema() -> None:
    # A column that changes its name, type or meaning is a new version.
    assert schema_markdown().strip() in PAGE


def test_the_page_has_every_measure() -> None:
    for name, measure in MEASURES.items():
        assert f"| `{name}` | {measure.about} |" in PAGE
