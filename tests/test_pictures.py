"""The committed pictures are those that docs/pictures.py makes, and say what the pages say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from captum_lig.errors import LigError
from captum_lig.pretrained.minilm import embedded_model_path

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    before = list(sys.path)
    monkeypatch.syspath_prepend(str(DOCS))
    import pictures

    yield pictures
    sys.path[:] = before
    for name in ("pictures", "gallery", "biology", "models"):
        sys.modules.pop(name, None)


def test_every_picture_is_made_by_the_script_and_shown(pictures: ModuleType) -> None:
    made = {f"{name}.png" for name in pictures.PICTURES if name not in pictures.GALLERY}
    made |= {f"gallery-{name}.png" for name in pictures.GALLERY}
    made.remove("charts.png")
    made |= pictures.BY_HAND
    made |= set(re.findall(r'"(charts-\w+\.png)"', (DOCS / "charts.md").read_text("utf-8")))
    there = {file.name for file in (DOCS / "images").iterdir()}
    assert there == made
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert {name for name in there if f"images/{name})" in text} == there
    for file in (DOCS / "images").iterdir():
        assert file.stat().st_size <= pictures.BYTES, file.name


def test_a_picture_keeps_its_colours_in_few_bytes(
    pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(pictures, "IMAGES", tmp_path / "docs" / "images")
    (tmp_path / "docs").mkdir()
    picture = Image.new("RGB", (80, 40), "white")
    picture.paste((178, 24, 43), (0, 0, 40, 40))
    picture.save(tmp_path / "x.png")
    pictures.keep(tmp_path / "x.png", "x", 0.5)
    with Image.open(tmp_path / "docs" / "images" / "x.png") as kept:
        assert kept.size == (40, 20)
        assert kept.convert("RGB").getpixel((5, 5)) == (178, 24, 43)
    monkeypatch.setattr(pictures, "BYTES", 10)
    with pytest.raises(SystemExit, match=r"x\.png is larger than 10 bytes"):
        pictures.keep(tmp_path / "x.png", "x")


def test_code_blocks_are_those_of_the_language(pictures: ModuleType) -> None:
    page = "a\n```python\nx = 1\n```\n```text\nno\n```\n```python\ny = 2\nz = 3\n```\n"
    assert pictures.code_blocks(page) == ["x = 1\n", "y = 2\nz = 3\n"]
    assert pictures.code_blocks(page, "text") == ["no\n"]


def test_an_unknown_name_is_refused(pictures: ModuleType) -> None:
    with pytest.raises(SystemExit, match="cat is unknown: name some of gallery, charts"):
        pictures.main(["cat"])


@pytest.mark.parametrize("name", ["minilm", "mgm", "sapiens"])
def test_the_gallery_shows_what_is_measured(pictures: ModuleType, name: str) -> None:
    """Of the models that are installed; the two that take longer are left to `make pictures`."""
    try:
        embedded_model_path()
        from gallery import EXAMPLES

        _, lines = EXAMPLES[name]()
    except (ImportError, LigError) as missing:
        pytest.skip(str(missing))
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    assert text in pictures.code_blocks((DOCS / "gallery.md").read_text("utf-8"), "text")
