"""`captum-lig why` on tiny models: one screen, files, and a sentence for each bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from captum_lig import why
from captum_lig.cli import app
from tests.helpers.saved import save_tiny_gpt2

TEXT, OTHER = "the cat sat on the mat", "the dog sat on the mat"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2(folder)
    return folder


def run(*arguments: str | Path, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["why", *map(str, arguments)], input=given)


def sentence(result: Result) -> str:
    """What is on stderr of a run that failed as it should."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("captum-lig: ")
    return str(result.stderr)


def without_times(shown: str) -> str:
    """A screen without its line of seconds."""
    return "\n".join(line.rstrip() for line in shown.splitlines() if " for the parts." not in line)


def test_the_screen_is_that_of_the_library(gpt2: Path) -> None:
    result = run(TEXT, "--model", gpt2, "--against", OTHER)
    assert result.exit_code == 0, result.output
    expected = without_times(str(why(TEXT, gpt2, OTHER)))
    assert without_times(result.stdout).strip() == expected.strip()
    assert "\x1b" not in result.output


def test_all_options_reach_the_library(gpt2: Path) -> None:
    base = (TEXT, "--model", gpt2, "--format", "json")
    for options, asked in (
        (["--target", " cat", "--foil", " dog"], {"target": " cat", "foil": " dog"}),
        (["--answer", " on"], {"answer": " on"}),
        (["--generate", "2"], {"generate": 2}),
        (["--position", "3"], {"position": 3}),
        (["--chat"], {"chat": True}),
        (["--tolerance", "0.0001"], {"tolerance": 1e-4}),
        (["--similar-to", "a dog"], {"similar_to": "a dog"}),
        (["--dtype", "float64", "--device", "cpu"], {"dtype": "float64", "device": "cpu"}),
    ):
        result = run(*base, *options)
        assert result.exit_code == 0, result.output
        found, expected = json.loads(result.stdout), why(TEXT, gpt2, **asked).numbers()
        for timed in ("seconds", "attribution_seconds"):
            del found[timed], expected[timed]
        assert found == json.loads(json.dumps(expected)), options


def test_a_position_of_thousands_of_digits(gpt2: Path) -> None:
    message = sentence(run(TEXT, "--model", gpt2, "--position", "1" * 5000))
    assert "position" in message
    assert len(message) < 500


@pytest.mark.parametrize("way", ["-", "--file", "--file -"])
def test_a_text_from_elsewhere(gpt2: Path, way: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT + "\n")
    where = {"-": ["-"], "--file": ["--file", file], "--file -": ["--file", "-"]}[way]
    given = None if way == "--file" else TEXT + "\r\n"
    result = run(*where, "--model", gpt2, "--format", "json", given=given)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found if way == "-" else found[0])["text"] == TEXT


def test_each_line_has_its_own_question(gpt2: Path, tmp_path: Path) -> None:
    file, table = tmp_path / "texts.jsonl", tmp_path / "all.csv"
    asked: list[dict[str, Any]] = [
        {"against": OTHER},
        {"target": " cat", "foil": " dog"},
        {"answer": " on"},
        {"position": 3},
        {"chat": True},
        {"similar_to": "a dog"},
    ]
    file.write_text("\n".join(json.dumps({"text": TEXT, **one}) for one in asked))
    result = run("--file", file, "--model", gpt2, "--format", "jsonl", "--check", "--out", table)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    for line, (one, options) in enumerate(zip(found, asked, strict=True), 1):
        expected = why(TEXT, gpt2, **options)
        assert (one["line"], one["target"], one["change"]) == (
            line,
            expected.target,
            expected.change,
        )
    rows = list(csv.DictReader(table.open()))
    assert {int(row["line"]) for row in rows} == {1, 2, 3, 4, 5, 6}
    heads = [row for row in rows if row["line"] == "1" and row["kind"] == "head"]
    expected = why(TEXT, gpt2, OTHER)
    for row, part in zip(heads, expected.strongest_heads(20), strict=True):
        assert (int(row["layer"]), int(row["head"])) == (part.layer, part.head)
        assert float(row["part"]) == pytest.approx(part.value)
    effects = {
        (row.node.layer, row.node.head, row.node.position): row.out
        for row in expected.check().rows
        if row.node.kind == "heads"
    }
    patched = [row for row in heads if row["taken_out"]]
    assert len(patched) >= 8
    for row in patched:
        at = (int(row["layer"]), int(row["head"]), int(row["position"]))
        assert float(row["taken_out"]) == pytest.approx(effects[at])


def test_a_line_that_fails_leaves_the_others(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text(f"{TEXT}\nthe\n{OTHER}\n")  # one token alone is its own padding
    result = run("--file", file, "--model", gpt2, "--format", "json")
    assert result.exit_code == 2
    assert [one["line"] for one in json.loads(result.stdout)] == [1, 3]
    first, last = result.stderr.splitlines()
    assert first.startswith("captum-lig: line 2: padding in place of the text's words leaves it")
    assert last == "captum-lig: 1 of 3 texts could not be explained."


def test_check_shows_both_effects(gpt2: Path) -> None:
    result = run(TEXT, "--model", gpt2, "--check")
    assert result.exit_code == 0, result.output
    assert "taken out" in result.stdout
    assert "put in" in result.stdout
    found = json.loads(run(TEXT, "--model", gpt2, "--check", "--format", "json").stdout)
    assert {"kind", "layer", "attributed", "out", "into"} <= found["check"][0].keys()


def test_files_are_told_and_so_is_what_they_replace(gpt2: Path, tmp_path: Path) -> None:
    folder, page = tmp_path / "found", tmp_path / "page.html"
    arguments = (TEXT, "--model", gpt2, "--against", OTHER, "--out", folder)
    first = run(*arguments, "--out", page, "--out", tmp_path / "n.json")
    assert first.exit_code == 0, first.output
    names = ("why.html", "why.png", "why.json")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    files = [*(folder / name for name in names), page, tmp_path / "n.json"]
    wrote = [f"wrote {path}" for path in files]
    assert first.stderr.splitlines() == [f"{folder} will be made.", *wrote]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    again = run(*arguments, "--format", "json")
    replaced = ", ".join(str(folder / name) for name in names)
    assert again.stderr.splitlines() == [f"{replaced} will be replaced.", *wrote[:3]]
    assert json.loads(again.stdout)["text"] == TEXT


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([TEXT, "--format", "xml"], "--format 'xml' is unknown: use one of table, json"),
        (["--target", " cat"], "give either TEXT or --file"),
        ([TEXT, "--file", "x.txt"], "give either TEXT or --file"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
        ([TEXT, "--out", "no/where"], "there is no folder 'no': make it first"),
        ([TEXT, "--out", "x.xml"], "--out 'x.xml' has no known suffix: use one of .html"),
        ([TEXT, "--against", "the cat"], 'the text has 6 tokens and the one it is compared with 2'),
        ([TEXT, "--target", " cat", "--label", "joy"], "are different questions"),
        ([TEXT, "--target", " catdog"], "is 3 tokens"),
        ([TEXT, "--tolerance", "-1"], "tolerance=-1"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence(gpt2: Path, given: list[str], said: str) -> None:
    assert said in sentence(run(*given, "--model", gpt2))


def test_out_is_looked_at_before_the_work(gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file, and a name without a suffix is of a folder" in sentence(
        run(TEXT, "--model", "nobody", "--out", file)
    )
    sentence(run("", "--model", gpt2, "--out", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_files_that_are_not_utf8(gpt2: Path, tmp_path: Path) -> None:
    file = tmp_path / "latin"
    file.write_bytes(b"caf\xe9")
    assert "is not UTF-8 (byte 4)" in sentence(run("--file", file, "--model", gpt2))


def test_words_for_models_are_named_where_one_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "one of minilm, smollm2" in sentence(run(TEXT, "--model", "nobody/nothing"))
