"""The command line on a tiny model: runs that succeed, and a sentence for each bad input."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizerFast
from typer.testing import CliRunner

from captum_lig import LayerFlowIG
from captum_lig.cli import app, parse_baseline, parse_layers
from captum_lig.errors import LigError
from captum_lig.explain import explain
from captum_lig.io.flows import load_flows
from tests.helpers.explain_command import run, sentence
from tests.helpers.pages import header
from tests.helpers.saved import save_tiny_gpt2

TEXT = "the cats sat on [x] mat"
TOKENS = ["[CLS]", "the", "cat", "##s", "sat", "on", "[", "x", "]", "mat", "[SEP]"]


def test_table_and_files(tiny: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("f.json", "f.safetensors", "f.png", "f.pdf")]
    options = [part for path in outputs for part in ("--out", path)]
    result = run(TEXT, "--model", tiny, *options)
    assert result.exit_code == 0, result.output
    for layer in range(3):
        assert any(line.split()[:1] == [str(layer)] for line in result.stdout.splitlines())
    assert "Sums converged to" in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 200
    assert "\x1b" not in result.output
    for path in outputs:
        assert f"wrote {path}\n" in result.stderr
    assert outputs[2].read_bytes()[:4] == b"\x89PNG"
    assert outputs[3].read_bytes()[:4] == b"%PDF"

    from_json, from_safetensors = load_flows(outputs[0]), load_flows(outputs[1])
    assert from_json.tokens == TOKENS  # special tokens are kept
    assert from_json.model == str(tiny)
    assert from_json.text == TEXT
    for left, right in zip(from_json.flows, from_safetensors.flows, strict=True):
        assert left.layer is not None
        assert right.layer is not None
        assert left.layer.shape == (1, 11, 11)
        assert torch.equal(left.layer, right.layer)


def test_the_page(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.html"
    result = run(TEXT, "--model", tiny, "--out", out, "--layers", "1-2", "--rule", "chain")
    assert result.exit_code == 0, result.output
    said = header(out.read_text(encoding="utf-8"))
    assert said["title"] == f"{tiny}: “{TEXT}”"
    assert said["tokens"] == TOKENS
    assert [layer["index"] for layer in said["layers"]] == [1, 2]
    assert said["rule"] == "chain"
    assert result.stderr == f"wrote {out}\n"


def test_options_reach_the_result(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.json"
    result = run(
        *("the cat", "--model", tiny, "--out", out, "--layers", "0,2", "--baseline", "0.25"),
        *("--scalarization", "projection", "--steps", "5", "--rule", "chain"),
        *("--method", "riemann_middle", "--tolerance", "0.01"),
    )
    assert result.exit_code == 0, result.output
    assert "by chain" in " ".join(result.stdout.split())
    found = load_flows(out)
    assert [flow.index for flow in found.flows] == [0, 2]
    assert {flow.scalarization for flow in found.flows} == {"projection"}
    assert found.settings == {
        "layers": [0, 2],
        "baseline": 0.25,
        "scalarization": "projection",
        "n_steps": 5,
        "method": "riemann_middle",
        "tolerance": 0.01,
        "self_term": None,
    }
    assert {flow.tolerance for flow in found.flows} == {0.01}


def test_self_terms_are_asked_for_by_name(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.json"
    result = run("the cat", "--model", tiny, "--out", out, "--self-term", "map_ratio")
    assert result.exit_code == 0, result.output
    found = load_flows(out)
    assert found.settings["self_term"] == "map_ratio"
    assert {flow.baseline for flow in found.flows} == {"target_token+map_ratio"}
    refused = run("the cat", "--model", tiny, "--self-term", "map_ratio", "--baseline", "zero")
    assert "self terms are estimated for the baseline 'target_token'" in sentence(refused)


def test_a_model_of_what_comes_next_starts_from_padding(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    text = "the cat sat on the mat"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    inputs = tokenizer(text, return_tensors="pt")
    padding = torch.full_like(inputs["input_ids"], tokenizer.pad_token_id)
    padding[0, 0] = inputs["input_ids"][0, 0]
    with torch.no_grad():  # what enters each block
        starts = model(input_ids=padding, output_hidden_states=True).hidden_states[:2]
    for layers in ([0, 1], [1]):
        found = explain(text, tmp_path, layers=layers)
        expected: Any = LayerFlowIG(model, layers).attribute(inputs, [starts[i] for i in layers])
        for flow, right in zip(found.flows, expected, strict=True):
            torch.testing.assert_close(flow.layer, right.layer)
        assert found.settings["baseline"] == "padding"
    chosen = explain(text, tmp_path, baseline="target_token")
    assert {flow.baseline for flow in chosen.flows} == {"target_token"}
    with pytest.raises(LigError, match="layer 7 does not exist"):
        explain(text, tmp_path, layers=[0, 7])
    out = tmp_path / "f.json"
    assert run(text, "--model", tmp_path, "--out", out, "--layers", "1").exit_code == 0
    assert load_flows(out).settings["baseline"] == "padding"


def test_a_causal_model_is_known_by_what_its_first_token_sees(tmp_path: Path, tiny: Path) -> None:
    """GPT-2 without a head says nowhere that it is one of what comes next."""
    save_tiny_gpt2(tmp_path)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    found = explain("the cat sat on the mat", tmp_path)
    assert found.settings["baseline"] == "padding"
    assert all((flow.layer[0, 0] == 0).all() for flow in found.flows)  # the first token stays
    assert all((flow.layer[0, :, 0] == 0).all() for flow in found.flows)
    assert explain(TEXT, tiny).settings["baseline"] == "target_token"
    assert explain("the cat", tmp_path, self_term="map_ratio").settings["baseline"] == (
        "target_token"
    )


@pytest.mark.parametrize("end", ["<|im_end|>", None])
def test_a_causal_model_without_a_padding_token(tmp_path: Path, end: str | None) -> None:
    save_tiny_gpt2(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the cat sat")["input_ids"]
    tokenizer.pad_token, tokenizer.eos_token = None, end
    tokenizer.save_pretrained(tmp_path)
    if end is None:
        with pytest.raises(LigError, match=r"no padding and no end-of-text.*baseline='zero'"):
            explain("the cat sat", tmp_path)
        assert explain("the cat sat", tmp_path, baseline="zero").flows
        return
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    padded = torch.full((1, len(ids)), tokenizer.eos_token_id)
    padded[0, 0] = ids[0]
    with torch.no_grad():
        starts = model(input_ids=padded, output_hidden_states=True).hidden_states[:2]
    expected: Any = LayerFlowIG(model).attribute(torch.tensor([ids]), list(starts))
    for flow, right in zip(explain("the cat sat", tmp_path).flows, expected, strict=True):
        torch.testing.assert_close(flow.layer, right.layer)


def test_influence_is_attributed_and_shown_if_asked_for(tiny: Path) -> None:
    found = explain(TEXT, tiny, influence=True, layers=[0])
    assert found.flows[0].influence is not None
    assert explain(TEXT, tiny, layers=[0]).flows[0].influence is None
    result = run(TEXT, "--model", tiny, "--show", "influence")
    assert result.exit_code == 0, result.output
    assert "strongest links, influence" in result.stdout
    given = ("--model", tiny, "--layers", "0", "--format", "csv")
    (row, *_) = csv.DictReader(run(TEXT, *given).stdout.splitlines())
    assert row["influence"] == ""
    rows = list(csv.DictReader(run(TEXT, *given, "--show", "influence").stdout.splitlines()))
    lengths = found.flows[0].influence.flatten().tolist()
    assert [float(row["influence"]) for row in rows] == pytest.approx(lengths, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("show", ["influence", "direct", "composed"])
def test_the_page_opens_with_the_map_that_is_asked_for(
    tiny: Path, tmp_path: Path, show: str
) -> None:
    out = tmp_path / "flow.html"
    run(TEXT, "--model", tiny, "--out", out, "--layers", "0", "--show", show)
    said = header(out.read_text(encoding="utf-8"))
    assert said["opening"] == show
    assert any(one["name"] == "influence" for one in said["tensors"]) == (show == "influence")


def test_unknown_maps_are_refused(tiny: Path) -> None:
    assert "--show 'best' is unknown" in sentence(run(TEXT, "--model", tiny, "--show", "best"))


def test_the_first_token_is_hidden_if_asked_for(tiny: Path, tmp_path: Path) -> None:
    page = tmp_path / "f.html"
    options = ("--model", tiny, "--show", "direct", "--hide-first-token", "--out", page)
    result = run(TEXT, *options)
    assert result.exit_code == 0, result.output
    assert "[CLS] →" not in result.stdout
    assert "hidden" in result.stdout
    assert header(page.read_text())["hide_first_token"]
    assert result.stderr == f"wrote {page}\n"


def test_flows_of_the_command_are_those_of_the_library(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.safetensors"
    assert run(TEXT, "--model", tiny, "--out", out, "--steps", "4").exit_code == 0
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    expected: Any = LayerFlowIG(model).attribute(tokenizer(TEXT, return_tensors="pt"), n_steps=4)
    for left, right in zip(load_flows(out).flows, expected, strict=True):
        torch.testing.assert_close(left.layer, right.layer)
        torch.testing.assert_close(left.chain, right.chain)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["", "--layers", "all"], "the text '' is empty"),
        ([" \n"], "the text ' \\n' is empty"),
        (["the " * 15], "the text has 17 tokens, 2 special ones included, and model"),
        (["the", "--layers", "1,7"], "layer 7 does not exist: the model has 3 blocks, 0 to 2"),
        (["the", "--layers", "first"], "--layers 'first' is no list of layers: write 0,2,4-5"),
        (["the", "--baseline", "mean"], "--baseline 'mean' is unknown: use target_token, zero"),
        (["the", "--baseline", "inf"], "--baseline 'inf' is unknown"),
        (["the", "--scalarization", "max"], "scalarization 'max' is unknown: use one of"),
        (["the", "--rule", "sum"], "rule 'sum' is unknown: use one of conserve, chain, product"),
        (["the", "--steps", "0"], "n_steps=0"),
        (["the", "--method", "simpson"], "method 'simpson' is unknown: use one of"),
        (["the", "--out", "flow.xml"], "--out 'flow.xml' has no known suffix: use one of .json"),
        (["the", "--out", "no/flow"], "--out 'no/flow': there is no folder 'no': make it first"),
        (["the", "--out", "no/f.png"], "--out 'no/f.png': there is no folder 'no': make it first"),
        (["the", "--format", "xml"], "--format 'xml' is unknown: use one of table, json, jsonl"),
        (["the", "--device", "moon"], "device 'moon' cannot be used"),
        (["the", "--dtype", "half"], "dtype 'half' is unknown: use one of float32, float64"),
        (["the", "--self-term", "guess"], "self_term='guess' is unknown"),
        (["the", "--file", "x.txt"], "give either TEXT or --file"),
        ([], "give either TEXT or --file"),
        (["--file", "nowhere.txt"], "--file 'nowhere.txt' cannot be read (No such file"),
        (["the", "--layers", "0,2", "--out", "f.html"], "--layers '0,2' leaves some out: name a"),
    ],
)
def test_bad_input_is_one_sentence(tiny: Path, given: list[str], said: str) -> None:
    assert said in sentence(run(*given, "--model", tiny))


def test_limit_of_the_model_is_named(tiny: Path) -> None:
    assert "takes 16 at most: shorten the text" in sentence(run("the " * 15, "--model", tiny))
    assert run("the " * 14, "--model", tiny, "--layers", "0").exit_code == 0


def test_limit_of_the_tokenizer_counts_too(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    BertModel.from_pretrained(tiny).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(tiny, model_max_length=6).save_pretrained(folder)
    assert "takes 6 at most" in sentence(run("the " * 5, "--model", folder))


@pytest.mark.parametrize(
    "given",
    [
        ["--scalarization", "max"],
        ["--rule", "sum"],
        ["--steps", "0"],
        ["--method", "simpson"],
        ["--tolerance", "2"],
        ["--self-term", "guess"],
        ["--baseline", "mean"],
        ["--layers", "first"],
        ["--device", "moon"],
        ["--dtype", "half"],
        ["--format", "xml"],
    ],
    ids=lambda given: given[0],
)
@pytest.mark.usefixtures("unloaded")
def test_settings_are_checked_before_a_model_is_loaded(tiny: Path, given: list[str]) -> None:
    sentence(run("the", "--model", tiny, *given))


@pytest.mark.usefixtures("unloaded")
def test_outputs_are_checked_before_a_model_is_loaded(tiny: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder.png"
    file.write_text("")
    folder.mkdir()
    for out, said in (
        (file / "flow.json", f"there is no folder '{file}': make it first"),
        (folder, "cannot be written (it is a folder)"),
        (file, "is a file, and a name without a suffix is of a folder"),
    ):
        assert f"--out '{out}'" in (found := sentence(run("the", "--model", tiny, "--out", out)))
        assert said in found
    good = tmp_path / "flow.json"
    assert "flow.xml" in sentence(run("the", "--out", good, "--out", "flow.xml"))
    assert not good.exists()  # a look leaves nothing behind


@pytest.mark.usefixtures("unloaded")
def test_texts_are_checked_before_a_model_is_loaded(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("the cat\n\n" + "the " * 15)
    assert "line 3: the text has 17 tokens" in sentence(run("--file", file, "--model", tiny))


def test_a_name_without_a_suffix_is_a_folder(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    first = run("the cat", "--model", tiny, "--out", folder, "--out", tmp_path / "f.csv")
    assert first.exit_code == 0, first.output
    names = ["explain.html", "explain.json", "explain.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert f"{folder} will be made.\n" in first.stderr
    again = run("the cat", "--model", tiny, "--out", folder / "explain.png", "--layers", "0")
    assert again.stderr == (
        f"{folder / 'explain.png'} will be replaced.\nwrote {folder / 'explain.png'}\n"
    )


def test_precision_and_device_reach_the_model(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    result = run("the", "--model", tiny, "--dtype", "float64", "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    assert load_flows(out).flows[0].need("layer").dtype == torch.float64


def test_nothing_but_results_is_on_standard_output(tiny: Path, tmp_path: Path) -> None:
    given = ("the cat", "--model", tiny, "--layers", "0", "--format", "csv")
    assert run(*given, "--out", tmp_path / "new").stdout == run(*given).stdout


def test_an_older_file_survives_bad_input(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.json"
    out.write_text("older")
    sentence(run("", "--model", tiny, "--out", out))
    assert out.read_text() == "older"


def test_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = sentence(run("the", "--model", "nobody/nothing"))
    assert "model 'nobody/nothing' cannot be loaded: give a folder" in said
    said = sentence(run("the", "--model", tmp_path))
    assert f"folder '{tmp_path}' has no config.json" in said


def test_model_without_a_tokenizer(tiny: Path, tmp_path: Path) -> None:
    BertModel.from_pretrained(tiny).save_pretrained(tmp_path)
    said = sentence(run("the", "--model", tmp_path))
    assert f"model '{tmp_path}' has no tokenizer beside it" in said


def test_weights_that_lack_parameters_are_refused(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    said = sentence(run("the", "--model", tmp_path))
    assert "lack 1 parameters (encoder.layer.1.output.dense.weight" in said


def test_missing_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise LigError("The embedded model is not installed: run `pip`.")

    monkeypatch.setattr("captum_lig.pretrained.minilm.embedded_model_path", missing)
    assert "The embedded model is not installed" in sentence(run("the"))


def test_weights_that_are_not_finite(tiny: Path, tmp_path: Path) -> None:
    model = BertModel.from_pretrained(tiny)
    model.encoder.layer[1].output.dense.bias.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    BertTokenizerFast.from_pretrained(tiny).save_pretrained(tmp_path)
    assert "finite" in sentence(run("the", "--model", tmp_path))


def test_transformers_is_left_as_talkative_as_it_was(tiny: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    explain("the", tiny, layers=[0])
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_nothing_but_the_table_is_said_even_without_unicode(tiny: Path) -> None:
    command = [sys.executable, "-c", "from captum_lig.cli import main; main()"]
    result = subprocess.run(
        [*command, "explain", "the cat", "--model", str(tiny)],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == b""
    assert b"\\u2192" in result.stdout  # an arrow
    assert b"\x1b" not in result.stdout


def test_help_has_an_example_and_every_option() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for words in ("captum-lig explain", "--model", "--layers", "--baseline", "--scalarization"):
        assert words in result.stdout
    for words in (
        "--file",
        "--format",
        "--device",
        "--dtype",
        "--rule",
        "--steps",
        "--out",
        "target_token",
        "conserve",
        ".safetensors",
    ):
        assert words in result.stdout


def test_help_does_not_import_torch() -> None:
    program = "import sys; from captum_lig.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    program += "print(sorted({'torch', 'transformers', 'captum', 'numpy'} & set(sys.modules)))"
    for command in ([], ["why"], ["explain"], ["inspect"], ["corpus"], ["consistency"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True
        )
        assert "Usage: " in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("captum-lig")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("all", None), ("0", [0]), ("0,2,4-5", [0, 2, 4, 5]), (" 3 , 1-2 ", [1, 2, 3]), ("1,1", [1])],
)
def test_parse_layers(given: str, expected: list[int] | None) -> None:
    assert parse_layers(given) == expected


@pytest.mark.parametrize("given", ["", "1,", "2-1", "-1", "1-", "a", "1.5", "0-99999999999", "²"])
def test_layers_that_are_none(given: str) -> None:
    with pytest.raises(LigError, match="is no list of layers"):
        parse_layers(given)


@pytest.mark.parametrize(
    ("given", "expected"), [("zero", "zero"), ("padding", "padding"), ("-1e-3", -0.001)]
)
def test_parse_baseline(given: str, expected: str | float) -> None:
    assert parse_baseline(given) == expected


def test_baselines_of_a_corpus() -> None:
    """Padding has no path of its own where layers are mapped without a target."""
    with pytest.raises(LigError, match="use target_token, zero or a finite number"):
        parse_baseline("padding", ("target_token", "zero"))


@pytest.mark.parametrize("command", [["explain"], ["inspect", "--text"]])
def test_text_that_is_not_utf8(tiny: Path, command: list[str]) -> None:
    """Bytes of another encoding, as a terminal gives them, are one sentence."""
    model = ["--model", str(tiny)] if command == ["explain"] else [str(tiny)]
    program = [sys.executable, "-c", "from captum_lig.cli import main; main()"]
    arguments = [*command[:1], *model, *command[1:], b"caf\xe9"]
    done = subprocess.run([*program, *arguments], capture_output=True, check=False)
    assert done.returncode == 2
    message = done.stderr.decode()
    assert "Traceback" not in message
    assert "caf\\udce9" in message
    assert "not UTF-8 (character 4)" in message
