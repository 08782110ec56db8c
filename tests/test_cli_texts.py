"""The command line on a file of texts, with a tiny model."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from captum_lig.cli import app
from captum_lig.explain import explain
from captum_lig.io.flows import load_flows
from tests.helpers.explain_command import run, sentence
from tests.helpers.saved import save_tiny_gpt2

TEXT = "the cats sat on [x] mat"
TOKENS = ["[CLS]", "the", "cat", "##s", "sat", "on", "[", "x", "]", "mat", "[SEP]"]


FORMS = ("json", "jsonl", "csv", "parquet")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    rows: list[dict[str, Any]] = [
        {"text": "the cat", "layers": "1", "baseline": "zero"},
        {"text": "the mat"},
        {"text": "the cats sat"},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_many_texts_load_the_model_once(
    tiny: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    loading = AutoModel.from_pretrained

    def counted(*arguments: Any, **options: Any) -> Any:
        loads.append(arguments)
        return loading(*arguments, **options)

    monkeypatch.setattr(AutoModel, "from_pretrained", counted)
    outs = [part for form in FORMS[1:] for part in ("--out", tmp_path / f"all.{form}")]
    result = run("--file", three, "--model", tiny, "--layers", "0", "--format", "json", *outs)
    assert result.exit_code == 0, result.output
    assert len(loads) == 1
    found = json.loads(result.stdout)
    assert [one["line"] for one in found] == [1, 2, 3]
    assert [one["text"] for one in found] == ["the cat", "the mat", "the cats sat"]
    assert [[layer["index"] for layer in one["layers"]] for one in found] == [[1], [0], [0]]
    assert [one["settings"]["baseline"] for one in found] == [
        "zero",
        "target_token",
        "target_token",
    ]
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [one["tokens"] for one in found]

    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet").to_pylist()
    written = [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in table
    ]
    assert written == rows
    expected: Any = explain("the cat", tiny, layers=[1], baseline="zero").flows[0]
    own = [row for row in table if row["line"] == 1]
    assert len(own) == 4 * 4
    for row in own:
        at = (0, row["target"], row["source"])
        assert row["direct"] == pytest.approx(float(expected.layer[at]))
        assert row["composed"] == pytest.approx(float(expected.compose()[at]))
        assert row["total"] == pytest.approx(float(expected.layer_total[0, row["target"]]))


def test_one_text_in_every_form(tiny: Path) -> None:
    given = ("the cat", "--model", tiny, "--layers", "0", "--format")
    document = json.loads(run(*given, "json").stdout)
    assert document["format"] == "captum_lig.flow"
    (line,) = run(*given, "jsonl").stdout.splitlines()
    assert json.loads(line)["tokens"] == document["tokens"]
    rows = list(csv.DictReader(run(*given, "csv").stdout.splitlines()))
    assert len(rows) == 4 * 4
    assert "line" not in rows[0]
    table = pyarrow.parquet.read_table(io.BytesIO(run(*given, "parquet").stdout_bytes))
    assert table.num_rows == len(rows)


def test_texts_from_standard_input(tiny: Path) -> None:
    base = ("--model", str(tiny), "--layers", "0", "--format", "jsonl")
    given = 'the cat\r\n\n{"text": "the mat"}\n{x}\n'
    many = CliRunner().invoke(app, ["explain", "--file", "-", *base], input=given)
    assert many.exit_code == 0, many.output
    found = [json.loads(line) for line in many.stdout.splitlines()]
    assert [(one["line"], one["text"]) for one in found] == [
        (1, "the cat"),
        (3, "the mat"),
        (4, "{x}"),
    ]
    one = CliRunner().invoke(app, ["explain", "-", *base], input="the cat\nthe mat\n")
    assert json.loads(one.stdout)["text"] == "the cat\nthe mat"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no text: give one a line"),
        ("[1]", "line 1: '[1]' is no JSON object"),
        ("the cat", "line 1: 'the cat' is no JSON"),
        ('{"layers": "0"}', "has no text: write it under 'text'"),
        ('{"text": "the", "layer": "0"}', "'layer' is no key: use text, layers, baseline"),
        ('{"text": "the", "' + "a" * 5000 + '": 0}', "...aaaaaaaaaaaaa' is no key: use text"),
        ('{"text": "the", "layers": [0]}', "'layers' is [0], and should be of type str"),
        ('\n{"text": "the", "layers": "x"}', "line 2: --layers 'x' is no list of layers"),
        ('{"text": " "}', "line 1: the text ' ' is empty"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_lines_that_do_not_work(tiny: Path, tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    assert said in sentence(run("--file", file, "--model", tiny))


def test_a_line_that_fails_leaves_the_others(tiny: Path, tmp_path: Path) -> None:
    file, table = tmp_path / "texts.jsonl", tmp_path / "links.csv"
    file.write_text('{"text": "the cat"}\n{"text": "the", "layers": "9"}\n{"text": "the mat"}\n')
    given = ("--file", file, "--model", tiny, "--layers", "0", "--format", "json", "--out", table)
    result = run(*given)
    assert result.exit_code == 2
    assert [one["line"] for one in json.loads(result.stdout)] == [1, 3]
    assert {row["line"] for row in csv.DictReader(table.open())} == {"1", "3"}
    assert "captum-lig: line 2: layer 9 does not exist" in result.stderr
    assert "captum-lig: 1 of 3 texts could not be explained." in result.stderr


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_data_is_utf8_wherever_it_runs(tiny: Path, form: str) -> None:
    """A terminal of another encoding reads and writes what it can; data comes in one."""
    given = ["explain", "-", "--model", str(tiny), "--layers", "0", "--format", form]
    text = "\ufeffthe “cat” é\r\nsat"
    result = CliRunner(charset="latin-1").invoke(app, given, input=text.encode())
    assert result.exit_code == 0, result.stderr
    said = result.stdout_bytes.decode()
    rows = csv.DictReader(io.StringIO(said)) if form == "csv" else [json.loads(said)]
    assert {row["text"] for row in rows} == {"the “cat” é\nsat"}


def test_the_texts_are_not_written_over(tiny: Path, three: Path) -> None:
    before = three.read_bytes()
    said = sentence(run("--file", three, "--model", tiny, "--out", three))
    assert "is what --file reads: choose another name" in said
    assert three.read_bytes() == before


def test_layers_counted_from_the_end(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    last, both = (explain("the cat sat", tmp_path, layers=layers) for layers in ([-1], [0, -1]))
    (wanted,) = explain("the cat sat", tmp_path, layers=[1]).flows
    for flow in (last.flows[0], both.flows[1]):
        assert torch.equal(flow.need("layer"), wanted.need("layer"))
        assert flow.index == 1


def test_a_file_of_one_text_is_none_of_many(tiny: Path, three: Path, tmp_path: Path) -> None:
    for name in ("f.html", "f.json", "f.png", "f.safetensors"):
        said = sentence(run("--file", three, "--model", tiny, "--out", tmp_path / name))
        assert "is of one text, and --file is of many: use one of .jsonl, .csv, .parquet" in said
    folder = tmp_path / "found"
    result = run("--file", three, "--model", tiny, "--layers", "0", "--out", folder)
    assert result.exit_code == 0, result.output
    kinds = ("html", "json", "png")
    expected = sorted(f"explain-{number}.{kind}" for number in (1, 2, 3) for kind in kinds)
    assert sorted(path.name for path in folder.iterdir()) == expected
    assert load_flows(folder / "explain-2.json").text == "the mat"


def test_a_large_file_is_told_before_the_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_lig.io.codec.LARGE", 1000)
    out = tmp_path / "f.json"
    result = run("the cat", "--model", tiny, "--out", out)
    assert result.exit_code == 0, result.output
    said, wrote = result.stderr.splitlines()
    assert said.startswith(f"captum-lig: {out} will be up to 0 MB: keep fewer layers")
    assert wrote == f"wrote {out}"
