"""Measured tables of the documentation, and the command that takes them again."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import retake
from benchmarks.common import stamp

PRINTS = "from benchmarks.common import stamp; print(stamp(), '| new |', sep='\\n\\n')"


def paged(folder: Path, command: str) -> retake.Block:
    page = folder / "some.md"
    page.write_text(
        f"before\n\n<!-- measured: python -m {command} -->\n\nold\n\n"
        "<!-- measured: end -->\n\nafter\n"
    )
    (block,) = retake.blocks(page)
    return block


def numbers_outside_blocks(text: str) -> list[str]:
    """First lines of tables, not measured, at least a third of whose cells begin with a number."""
    text = re.sub(r"^```.*?^```", "", retake.BLOCK.sub("", text), flags=re.S | re.M)
    found = []
    for table in re.findall(r"(?:^[ ]*\|.*\n?)+", text, re.M):
        head, _, *rows = table.splitlines()
        cells = [c.strip(" *`≈<+-−") for row in rows for c in row.strip(" |").split("|")[1:]]
        if 3 * sum(cell[:1].isdigit() for cell in cells) >= max(len(cells), 1):
            found.append(head)
    return found


@pytest.mark.parametrize(
    "page",
    [retake.ROOT / "README.md", *sorted(retake.PAGES.glob("*.md"))],
    ids=lambda page: page.name,
)
def test_tables_of_numbers_are_measured(page: Path) -> None:
    assert not numbers_outside_blocks(page.read_text(encoding="utf-8"))


def test_a_table_of_numbers_is_seen() -> None:
    table = "| a | b | c |\n| :-- | --: | :-- |\n| x | **1.5** s | |\n| y | ≈ 2 | word |\n"
    assert numbers_outside_blocks(f"text\n\n{table}") == ["| a | b | c |"]
    assert not numbers_outside_blocks(
        f"<!-- measured: python -m a -->\n{table}\n<!-- measured: end -->"
    )
    assert not numbers_outside_blocks(table.replace("1.5", "one").replace("2", "two"))


@pytest.mark.parametrize("block", retake.every(), ids=lambda block: block.command[10:])
def test_every_block_names_a_program(block: retake.Block) -> None:
    option, name, *_ = block.words({"CORPUS": Path("c.conllu"), "RECORDS": Path("r")})
    assert option == "-m"
    assert importlib.util.find_spec(name) is not None
    assert block.text.strip(), f"{block.page.name} has nothing of {block.command}"


@pytest.mark.parametrize("block", retake.every(), ids=lambda block: block.command[10:])
def test_every_block_gives_options_that_there_are(block: retake.Block) -> None:
    _, name, *words = block.command.split()[1:]
    path = retake.ROOT / name.replace(".", "/")
    files = [*path.glob("*.py")] if path.is_dir() else [path.with_suffix(".py")]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in source or f'"{word[2:]}": {{' in source, word


def test_no_marker_is_left_open() -> None:
    for page in retake.PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- measured:") == 2 * len(retake.blocks(page)), page.name


def test_what_a_command_prints_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    block = paged(tmp_path, "some --model minilm")
    assert retake.take(block, ["-c", PRINTS])
    text = block.page.read_text()
    assert text.startswith(f"before\n\n<!-- measured: {block.command} -->\n\n`python -c")
    assert text.endswith("| new |\n\n<!-- measured: end -->\n\nafter\n")
    assert "old" not in text
    (again,) = retake.blocks(block.page)
    assert again.age().startswith("20")
    assert re.search(r", took \d+ s$", again.age())


@pytest.mark.parametrize("program", [PRINTS + "; raise SystemExit(3)", "print('| new |')"])
def test_a_page_stays_if_the_command_fails_or_has_no_stamp(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = paged(tmp_path, "some")
    before = block.page.read_text()
    assert block.age() == "never measured"
    assert not retake.take(block, ["-c", program], tmp_path)
    assert block.page.read_text() == before
    said = capsys.readouterr().err
    assert "some.md is as it was" in said
    (kept,) = tmp_path.glob("not-taken-*.md")
    assert str(kept) in said
    assert "| new |" in kept.read_text()


def test_a_placeholder_without_its_option(tmp_path: Path) -> None:
    block = paged(tmp_path, "some CORPUS --out RECORDS/some.json")
    places: dict[str, Path | None] = {"CORPUS": Path("/c/x y.conllu"), "RECORDS": Path("/r")}
    assert block.words(places) == ["-m", "some", "/c/x y.conllu", "--out", "/r/some.json"]
    with pytest.raises(SystemExit, match="needs --records"):
        block.words(places | {"RECORDS": None})


def test_what_a_record_took_is_not_what_its_last_run_took() -> None:
    text = f"{stamp(took=7200)}\n\n| new |"
    assert retake.timed(text, 3) == text
    assert retake.timed(f"{stamp()} More.\n\n| 1 |", 3).endswith(" More; took 3 s.\n\n| 1 |")


@pytest.mark.skipif(not (retake.ROOT / ".git").exists(), reason="sources without their history")
def test_what_is_of_other_code_is_stale(tmp_path: Path) -> None:
    block = paged(tmp_path, "some")
    assert block.stale(), "never measured"
    (now,) = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=retake.ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not replace(block, text=stamp([now])).stale()
    assert replace(block, text=stamp([f"{now} and changes"])).stale()
    assert replace(block, text=stamp(["an unknown commit"])).stale()


def test_a_stamp_names_command_and_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "benchmarks.some", "/a/b.conllu"])
    text = stamp(["1234567", "89abcde", "1234567"])
    assert text.startswith("`python -m benchmarks.some b.conllu`. Measured on ")
    assert ", of 1234567, 89abcde: " in text
    found = retake.STAMP.search(text)
    assert found is not None
    assert found[2] == "1234567, 89abcde"
