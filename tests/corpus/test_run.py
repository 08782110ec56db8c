"""A run over a corpus: its folder, going on after being cut off, engines, and the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import dataset, parquet
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel
from typer.testing import CliRunner, Result

from captum_lig import LigError
from captum_lig.cli import app
from captum_lig.corpus import Results, load, run
from captum_lig.corpus.batches import Batch, Part
from captum_lig.corpus.engines import local
from captum_lig.corpus.settings import Settings

LINES = ["the cat sat", "the cats sat on [x] mat", "", "mat on the", "x", "on " * 30]
SETTINGS: dict[str, Any] = {"n_steps": 4, "tolerance": 1e-2, "window": 4, "batch_size": 2}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(LINES * 2) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "sentences.txt").write_text("\n".join(LINES * 2) + "\n", encoding="utf-8")
    run(
        folder / "sentences.txt",
        tiny,
        out=folder / "out",
        workers=1,
        maps=("composed",),
        **SETTINGS,
    )
    return folder / "out"


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    """A finished run, to change at will."""
    shutil.copytree(whole, tmp_path / "done")
    return tmp_path / "done"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- the data set ----------------------------------------------------------------------------


def test_the_data_set(whole: Path) -> None:
    found = load(whole)
    assert found.counts == {"done": 8, "skipped": 4}
    texts = found.to_pandas("texts")
    assert texts["number"].tolist() == list(range(12))
    assert texts["text"].tolist() == LINES * 2
    assert texts["status"].tolist() == (["done"] * 2 + ["skipped"] + ["done"] * 2 + ["skipped"]) * 2
    layers = found.to_pandas("layers")
    done = [n for n in range(12) if n % 6 not in (2, 5)]
    assert list(zip(layers["number"], layers["layer"], strict=True)) == [
        (n, layer) for n in done for layer in range(3)
    ]
    assert parquet.ParquetDataset(whole / "links").read().num_rows > 0
    assert dataset.dataset(whole / "layers").count_rows() == 24
    assert not (whole / "unfinished").exists()
    # The same text twice, in other batches perhaps, has the same numbers.
    half = layers[layers.number < 6].drop(columns="number").to_numpy()
    again = layers[layers.number >= 6].drop(columns="number").to_numpy()
    assert abs(half - again)[~(abs(half - again) != abs(half - again))].max() < 1e-3


def test_maps(whole: Path) -> None:
    found = load(whole)
    for number, tokens in zip(range(12), found.to_pandas("texts")["tokens"], strict=True):
        if number % 6 in (2, 5):
            with pytest.raises(LigError, match="no maps of text"):
                found.maps(number)
            continue
        maps = found.maps(number)
        assert maps.keys() == {"0.composed", "1.composed", "2.composed"}
        assert {tuple(one.shape) for one in maps.values()} == {(len(tokens), len(tokens))}
    files = list((whole / "maps").iterdir())
    assert sum(len(load_file(file)) for file in files) == 24


def test_a_finished_run_is_only_read(done: Path, corpus: Path, tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.parquet")}
    found = run(corpus, tiny, out=done, engine=_never, maps=("composed",), **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.parquet")} == before
    assert found.counts == {"done": 8, "skipped": 4}


def _never(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
    raise AssertionError("nothing is left to do")


def test_a_table_that_is_not_there(whole: Path) -> None:
    with pytest.raises(LigError, match="there is no table 'heads': use erasure, layers"):
        load(whole).dataset("heads")


# ---- cut off, and gone on with ---------------------------------------------------------------


class _Cut(BaseException):
    """As a person's Ctrl-C: nothing may catch it."""


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_exception_between_batches(
    whole: Path, corpus: Path, tiny: Path, tmp_path: Path, at: int
) -> None:
    ran: list[int] = []

    def cut(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
        for part in local(settings, batches, workers):
            if len(ran) == at and stops:
                raise _Cut
            ran.append(part.number)
            yield part

    given: dict[str, Any] = {**SETTINGS, "engine": cut, "workers": 1, "maps": ("composed",)}
    stops = True
    with pytest.raises(_Cut):
        run(corpus, tiny, out=tmp_path / "out", **given)
    with pytest.raises(LigError, match="is not finished: run it again"):
        load(tmp_path / "out")
    stops = False
    run(corpus, tiny, out=tmp_path / "out", **given)
    assert len(ran) == len(set(ran)), "finished batches are not done again"
    assert contents(tmp_path / "out") == contents(whole)


def test_runs_that_are_killed(tiny: Path, tmp_path: Path) -> None:
    """kill -9 at random times, again and again until it is done: four times the same bits."""
    corpus = tmp_path / "sentences.txt"
    corpus.write_text("\n".join(LINES * 4), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_runs", corpus, tiny, tmp_path, "4", "0"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    killed = json.loads(ran.stdout.splitlines()[-1])
    assert sum(one > 0 for one in killed) >= 2, killed
    expected = contents(tmp_path / "whole")
    assert len(expected) > 10
    for trial in range(4):
        assert contents(tmp_path / f"trial-{trial}") == expected


def test_a_run_cut_off_while_it_tidied_up(done: Path, corpus: Path, tiny: Path) -> None:
    before = contents(done)
    (done / "unfinished" / "00000000-00000000-0123456789abcdef").mkdir(parents=True)
    run(corpus, tiny, out=done, engine=_never, maps=("composed",), **SETTINGS)
    assert contents(done) == before


def test_an_engine_that_loses_a_part(corpus: Path, tiny: Path, tmp_path: Path) -> None:
    def loses(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
        for part in local(settings, batches, workers):
            if part.number != 1:
                yield part

    def doubles(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
        for part in local(settings, batches, workers):
            yield part
            yield part

    given: dict[str, Any] = {**SETTINGS, "out": tmp_path / "out", "workers": 1}
    with pytest.raises(LigError, match=r"gave \d parts of \d: run the same again"):
        run(corpus, tiny, engine=loses, **given)
    found = run(corpus, tiny, engine=doubles, **given)
    assert found.to_pandas("texts")["number"].tolist() == list(range(12))


def test_two_processes_give_what_one_does(
    whole: Path, corpus: Path, tiny: Path, tmp_path: Path
) -> None:
    run(corpus, tiny, out=tmp_path / "two", workers=2, maps=("composed",), **SETTINGS)
    assert contents(tmp_path / "two") == contents(whole)


# ---- what is in the way ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 3}, r"limit None there and 3 now"),
        ({"layers": [0]}, r"layers None there and \[0\] now"),
        ({"tolerance": 1e-3}, "tolerance 0.01 there and 0.001 now"),
        ({"measures": ("totals",)}, "measures"),
    ],
)
def test_other_settings(
    done: Path, corpus: Path, tiny: Path, change: dict[str, Any], said: str
) -> None:
    before = contents(done)
    with pytest.raises(LigError, match=said):
        run(corpus, tiny, out=done, **{**SETTINGS, "maps": ("composed",), **change})
    assert contents(done) == before


def test_another_corpus_or_model(done: Path, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    trained = BertModel.from_pretrained(tiny)
    with torch.no_grad():
        trained.encoder.layer[1].output.dense.weight[3, 5] += 1e-3  # one number of all
    trained.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(other)
    # Its folder's name is a setting; at the same place its weights are what is seen.
    moved = json.loads((done / "settings.json").read_text())
    moved["settings"]["model"] = str(other)
    (done / "settings.json").write_text(json.dumps(moved))
    given: dict[str, Any] = {**SETTINGS, "maps": ("composed",), "out": done}
    with pytest.raises(LigError, match=r"another run \(a model with other weights or hooks\)"):
        run(corpus, other, **given)
    corpus.write_text("the cat\n", encoding="utf-8")
    with pytest.raises(LigError, match=r"another corpus"):
        run(corpus, tiny, **given)


def test_texts_that_changed_since_the_run_was_cut_off(tiny: Path, tmp_path: Path) -> None:
    """A list has no digest before it is read: the batches have."""

    def one(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
        yield from local(settings, iter([next(batches)]), 1)

    given: dict[str, Any] = {**SETTINGS, "out": tmp_path / "out", "workers": 1}
    with pytest.raises(LigError, match="run the same again"):
        run(LINES, tiny, engine=one, **given)
    with pytest.raises(LigError, match="belongs to another corpus: its batch 0 has other texts"):
        run([line + " cat" for line in LINES], tiny, **given)
    assert run(LINES, tiny, **given).counts == {"done": 4, "skipped": 2}


def test_other_texts_in_the_folder_of_a_finished_run(tiny: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {**SETTINGS, "out": tmp_path / "out", "workers": 1}
    rows = [{"text": "the cat", "target": "the mat"}, {"text": "sat on"}]
    run(rows, tiny, **given)
    for others in (["x", "the mat"], [*rows, "x"], rows[:1], [{**rows[0], "target": "x"}, rows[1]]):
        with pytest.raises(LigError, match="belongs to another corpus: its texts were others"):
            run(others, tiny, **given)
    assert run(rows, tiny, engine=_never, **given).counts == {"done": 2}


def test_fewer_texts_than_before(tiny: Path, tmp_path: Path) -> None:
    def two(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
        yield from local(settings, iter([next(batches), next(batches)]), 1)

    given: dict[str, Any] = {**SETTINGS, "batch_size": 1, "out": tmp_path / "out", "workers": 1}
    with pytest.raises(LigError, match="run the same again"):
        run(["x", "x", "x"], tiny, engine=two, **given)
    with pytest.raises(LigError, match="belongs to another corpus, of more texts"):
        run(["x"], tiny, **given)


def test_two_runs_in_one_folder(tiny: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {**SETTINGS, "out": tmp_path / "out", "workers": 1}

    def beside(settings: Settings, batches: Iterator[Batch], workers: int) -> Iterator[Part]:
        with pytest.raises(LigError, match="another process works in"):
            run(LINES, tiny, **given)
        yield from local(settings, batches, workers)

    assert run(LINES, tiny, engine=beside, **given).counts == {"done": 4, "skipped": 2}
    assert run(LINES, tiny, engine=_never, **given).counts == {"done": 4, "skipped": 2}


def test_a_run_cut_off_before_its_settings_were_there(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    (tmp_path / "out" / "settings.json.unfinished").write_text("{")
    assert run(["x"], tiny, out=tmp_path / "out", **SETTINGS).counts == {"done": 1}


def test_folders_that_are_not_ours_stay(corpus: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "a.txt").write_text("mine")
    with pytest.raises(LigError, match="holds no settings of a corpus run"):
        run(corpus, tmp_path / "no model", out=out, **SETTINGS)  # seen before a model is looked for
    (out / "settings.json").write_text('{"format": "other"}')
    with pytest.raises(LigError, match="holds no settings of a corpus run"):
        run(corpus, tiny, out=out, **SETTINGS)
    about = {"format": "captum_lig.corpus", "version": 99}
    (out / "settings.json").write_text(json.dumps(about))
    with pytest.raises(LigError, match="version 99 of the schema, and this is 1"):
        run(corpus, tiny, out=out, **SETTINGS)
    assert (out / "a.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workers": 0}, "workers=0"),
        ({"engine": "spark"}, "engine 'spark' is unknown: use one of local, ray"),
        ({"colour": 1}, "'colour'.* are no settings of a corpus run"),
        ({"corpus": []}, "is empty: it has no text"),
        ({"corpus": iter([])}, "is empty: it has no text"),
    ],
)
def test_what_cannot_be_run(
    corpus: Path, tiny: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    given = {"corpus": corpus, "model": tiny, "out": tmp_path / "out", **SETTINGS, **change}
    with pytest.raises(LigError, match=said):
        run(**given)


# ---- a model that is there, and the command ----------------------------------------------------


def test_a_model_that_is_there_already(whole: Path, tiny: Path, tmp_path: Path) -> None:
    model = BertModel.from_pretrained(tiny).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    given: dict[str, Any] = {**SETTINGS, "tokenizer": tokenizer}
    found: Results = run(LINES, model, out=tmp_path / "out", **given)
    layers, expected = found.to_pandas("layers"), load(whole).to_pandas("layers")
    expected = expected[expected.number < 6].reset_index(drop=True)
    assert abs(layers["layer_total"] - expected["layer_total"]).max() < 1e-4
    with pytest.raises(LigError, match="workers=2 load the model by its name"):
        run(LINES, model, out=tmp_path / "more", workers=2, **given)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["corpus", *map(str, arguments)])


def test_the_command(corpus: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "a folder" / "out"
    options = ("--model", tiny, "--out", out, "--layers", "0,2", "--steps", 4, "--limit", 3)
    options += ("--measures", "totals, links", "--maps", "composed", "--workers", 1)
    result = command(corpus, *options)
    assert result.exit_code == 0, result.output
    assert f"2 done, 1 skipped; wrote {out}: layers, links, texts" in result.stderr
    assert set(load(out).to_pandas("layers")["layer"]) == {0, 2}
    assert command(corpus, *options).exit_code == 0
    other = command(corpus, *options, "--baseline", "zero")
    assert other.exit_code == 2
    assert "baselines 'target_token' there and 'zero' now" in other.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--layers", "7"), "7"),
        (("--measures", "luck"), "measure 'luck' is unknown"),
        (("--baseline", "mean"), "--baseline 'mean' is unknown"),
        (("--max-tokens", "2", "--workers", "1"), "no text could be measured"),
    ],
)
def test_a_command_that_fails(
    corpus: Path, tiny: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = command(corpus, "--model", tiny, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
