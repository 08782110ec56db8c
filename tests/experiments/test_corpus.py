"""Consistency over a corpus: what is read, what is skipped, and runs that are cut off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import BertModel
from typer.testing import CliRunner, Result

from captum_lig import LayerFlowIG, LigError
from captum_lig.cli import app
from captum_lig.experiments.consistency import corpus_run, measure_text, pool, run_corpus
from captum_lig.experiments.consistency.corpus import read_sentences
from captum_lig.experiments.consistency.corpus_run import SUFFIXES, Corpus
from captum_lig.experiments.consistency.pairings import ATTENTION_BASELINES, LAYER_BASELINES
from captum_lig.experiments.consistency.table import excerpt, number, report
from captum_lig.flow.layer_flow import MLP_STARTS, RULES
from captum_lig.flow.words import word_groups
from captum_lig.pretrained.load import load_model
from tests.helpers.records import constant

LINES = ["the cat sat", "the cats sat on [x] mat", "", "mat on the"]


SETTINGS: dict[str, Any] = {"layers": [1], "n_steps": 4, "tolerance": 1e-2}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    return tiny


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of uninterrupted runs, rows.parquet and rows.csv."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = folder / "sentences.txt"
    corpus.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    for suffix in SUFFIXES:
        run_corpus(corpus, folder / f"rows{suffix}", model, **SETTINGS)
    return folder


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    """A finished run's rows.parquet, to change at will."""
    for name in ("rows.parquet", "rows.parquet.json"):
        shutil.copy(whole / name, tmp_path / name)
    return tmp_path / "rows.parquet"


# ---- reading ---------------------------------------------------------------------------------

CONLLU = """\
# sent_id = a-1
# text = Don't  stop.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\tSpacesAfter=\\s\\s
1\tDo\tdo\tAUX\t_\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_
3\tstop\tstop\tVERB\t_\t_\t0\troot\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_

1-2\tCan't\t_\t_\t_\t_\t_\t_\t_\t_
1\tCa\tcan\tAUX\t_\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_
3.1\tgone\tgo\tVERB\t_\t_\t_\t_\t_\t_
4\t(\t(\tPUNCT\t_\t_\t3\tpunct\t_\tSpaceAfter=No
5\tyet\tyet\tADV\t_\t_\t3\tadvmod\t_\tSpaceAfter=No
6\t)\t)\tPUNCT\t_\t_\t3\tpunct\t_\t_

"""


def test_plain_text(corpus: Path) -> None:
    found = list(read_sentences(corpus))
    assert [one.text for one in found] == LINES
    assert [one.number for one in found] == [0, 1, 2, 3]
    assert [one.name for one in found] == ["1", "2", "3", "4"]


def test_conllu(tmp_path: Path) -> None:
    path = tmp_path / "bank.conllu"
    path.write_text(CONLLU, encoding="utf-8")
    found = list(read_sentences(path))
    assert [one.name for one in found] == ["a-1", "2"]
    # The text that is there, and else that of the words: no empty nodes, no parts of a token.
    assert [one.text for one in found] == ["Don't  stop.", "Can't go (yet)"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bank.conllu", b"the cat sat\n\n", "is no CoNLL-U"),
        ("text.txt", b"\xff\xfe\xff\n", "is no UTF-8 text"),
        ("bank.conllu", b"# text = \xff\n", "is no UTF-8 text"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LigError, match=said) as caught:
        list(read_sentences(path))
    assert name in str(caught.value)


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bank.conllu"
    path.write_text(CONLLU, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "conllu", None)
    with pytest.raises(LigError, match=r"pip install 'captum-lig\[corpus\]'"):
        list(read_sentences(path))


# ---- records ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "merge"), [(".parquet", True), (".csv", False)])
def test_records_are_those_of_each_sentence(
    corpus: Path, model: Path, tmp_path: Path, suffix: str, merge: bool
) -> None:
    out = tmp_path / "new" / f"rows{suffix}"
    settings = {**SETTINGS, "layers": [0, 2], "merge_words": merge}
    result = run_corpus(corpus, out, model, **settings)
    assert (result.sentences, result.skipped) == (3, {"without a token of its own": 1})
    records = list(result.records())
    loaded = load_model(model)
    engine = LayerFlowIG(loaded.network, [0, 2])
    expected = []
    for place, line in enumerate(LINES):
        if not line:
            continue
        words = word_groups(offsets=loaded.offsets(line), text=line) if merge else None
        encoding = loaded.encode(line)
        about = {
            "sentence": place,
            "sentence_id": str(place + 1),
            "tokens": encoding["input_ids"].shape[1],
        }
        found = measure_text(engine, encoding, words, n_steps=4, tolerance=1e-2)
        expected += [about | vars(one) for one in found]
    assert len(records) == 3 * 2 * 3 * (24 + 2)
    assert records == expected
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, out.name + ".json"]
    if merge:
        assert {one["rows"] for one in records if one["sentence"] == 1} == {10}  # of 11 tokens


def test_what_is_skipped_is_counted(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "sentences.txt"
    lines = ["", "the cat sat on", "the " * 15, "the cat", " ", "cat", "the mat sat on the mat"]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    result = run_corpus(corpus, tmp_path / "all.parquet", model, max_tokens=6, **SETTINGS)
    assert result.sentences == 3
    assert result.skipped == {
        "without a token of its own": 2,
        "too long for the model (16 tokens at most)": 1,
        "longer than 6 tokens": 1,
    }
    some = run_corpus(corpus, tmp_path / "some.parquet", model, limit=2, **SETTINGS)
    assert [one["sentence"] for one in some.records()][:: len(list(some.records())) - 1] == [1, 3]
    assert some.skipped == {
        "without a token of its own": 1,
        "too long for the model (16 tokens at most)": 1,
    }


def test_nothing_to_attribute(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "sentences.txt"
    for content, said in (("", "it is empty"), ("\n \n", r"\(2 without a token of its own\)")):
        corpus.write_text(content, encoding="utf-8")
        with pytest.raises(LigError, match=said):
            run_corpus(corpus, tmp_path / f"{len(content)}.parquet", model, **SETTINGS)


# ---- cut off, and gone on with ---------------------------------------------------------------


class _Cut(BaseException):
    """As a person's Ctrl-C: nothing may catch it."""


@pytest.mark.parametrize(("suffix", "at"), [(".parquet", 0), (".csv", 1), (".parquet", 2)])
def test_an_exception_in_a_sentence(
    whole: Path,
    corpus: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    suffix: str,
) -> None:
    out = tmp_path / f"cut{suffix}"
    calls: list[int] = []

    def measured(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == at + 1 and cut:
            raise _Cut
        return measure_text(*args, **kwargs)

    monkeypatch.setattr(corpus_run, "measure_text", measured)
    cut = True
    with pytest.raises(_Cut):
        run_corpus(corpus, out, model, **SETTINGS)
    assert not out.exists()
    cut, calls[:] = False, []
    found = run_corpus(corpus, out, model, **SETTINGS)
    assert len(calls) == 3 - at, "finished sentences are not done again"
    assert out.read_bytes() == (whole / f"rows{suffix}").read_bytes()
    assert (found.sentences, found.skipped) == (3, {"without a token of its own": 1})
    run_corpus(corpus, out, model, **SETTINGS)
    assert len(calls) == 3 - at, "nor is a finished run"


def test_a_process_that_is_killed(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "sentences.txt"
    corpus.write_text("\n".join(LINES * 5), encoding="utf-8")
    out, parts = tmp_path / "cut.parquet", tmp_path / "cut.parquet.parts"
    code = "from captum_lig.cli import main; main()"
    options = ["--layers", "1", "--steps", "4", "--tolerance", "0.01", "--out", str(out)]
    command = [sys.executable, "-c", code, "consistency", str(corpus), "--model", str(model)]
    # As many threads as here: sums in another order have other last digits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen([*command, *options], env=environment) as process:
        until = time.monotonic() + 300
        while len(_finished(parts)) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in _finished(parts)}
    assert 2 <= len(done) < 15
    assert not out.exists()
    run_corpus(corpus, out, model, **SETTINGS)
    whole = run_corpus(corpus, tmp_path / "whole.parquet", model, **SETTINGS)
    assert out.read_bytes() == whole.path.read_bytes()
    assert not parts.exists()


def _finished(parts: Path) -> list[Path]:
    return list(parts.glob("*.parquet"))


def test_a_run_cut_off_after_its_file_was_there(done: Path, corpus: Path, model: Path) -> None:
    """Killed while it tidied up: the file is whole, some parts are left."""
    before = done.read_bytes()
    parts = done.with_name("rows.parquet.parts")
    parts.mkdir()
    (parts / "00000003.parquet").write_bytes(b"")
    run_corpus(corpus, done, model, **SETTINGS)
    assert done.read_bytes() == before
    assert not parts.exists()


# ---- what is in the way ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 3}, r"limit None there and 3 now"),
        ({"layers": [0]}, r"layers \[1\] there and \[0\] now"),
        ({"merge_words": True}, "merge_words False there and True now"),
        ({"tolerance": 1e-3}, "tolerance 0.01 there and 0.001 now"),
    ],
)
def test_other_settings(
    done: Path, corpus: Path, model: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(LigError, match=said):
        run_corpus(corpus, done, model, **{**SETTINGS, **change})


def test_another_corpus_or_model(done: Path, corpus: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    trained = BertModel.from_pretrained(model)
    with torch.no_grad():
        trained.encoder.layer[1].output.dense.weight[3, 5] += 1e-3  # one number of all
    trained.save_pretrained(other)
    load_model(model).tokenizer.save_pretrained(other)
    with pytest.raises(LigError, match="model_sha256"):
        run_corpus(corpus, done, other, **SETTINGS)
    corpus.write_text("the cat\n", encoding="utf-8")
    with pytest.raises(LigError, match="corpus_sha256"):
        run_corpus(corpus, done, model, **SETTINGS)


def test_files_that_are_not_ours_stay(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("mine")
    with pytest.raises(LigError, match=r"rows\.csv' exists"):
        run_corpus(corpus, out, model, **SETTINGS)
    assert out.read_text() == "mine"
    for content in ("{", '"captum_lig"', '{"format": "other"}'):
        (tmp_path / "rows.csv.json").write_text(content)
        with pytest.raises(LigError, match="no settings of a consistency run"):
            run_corpus(corpus, out, model, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out": "rows.txt"}, r"'rows\.txt' has no known suffix: use one of \.parquet, \.csv"),
        ({"limit": 0}, "limit=0"),
        ({"max_tokens": -1}, "max_tokens=-1"),
    ],
)
def test_bad_settings(corpus: Path, model: Path, change: dict[str, Any], said: str) -> None:
    given = {"corpus": corpus, "out": "rows.csv", "model": model, **SETTINGS, **change}
    with pytest.raises(LigError, match=said):
        run_corpus(**given)
    assert not Path("rows.csv.json").exists()


# ---- the command -----------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["consistency", *map(str, arguments)])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
def test_the_command(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    options = ("--model", model, "--out", out, "--layers", "0,2", "--steps", 4, "--limit", 2)
    result = run(corpus, *options, "--by-layer", "--rank-by", "pearson")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "2 sentences compared, none skipped." in said
    for baseline in ("zero", "target_token", "target_token+zero_ratio"):
        assert f"Direct maps from {baseline} attention baseline" in said
    assert said.count("control: uniform") == said.count("control: all_zero") == 3
    assert f"wrote {out}" in result.stderr
    again = run(corpus, *options)
    assert again.exit_code == 0, again.output
    assert "control: uniform" in again.stdout
    wrong = run(corpus, *options, "--rank-by", "mean")
    assert wrong.exit_code == 2
    assert "captum-lig: ranking by 'mean': use one of l2" in " ".join(wrong.stderr.split())
    for path, option in ((tmp_path / "no.txt", ()), (corpus, ("--layers", "7"))):
        failed = run(path, "--model", model, "--out", tmp_path / "other.csv", *option)
        assert failed.exit_code == 2, failed.output
        assert failed.stderr.startswith("captum-lig: ")


def test_the_table_shows_the_numbers_of_the_ranking(whole: Path) -> None:
    result = Corpus(whole / "rows.parquet", 3, {"without a token of its own": 1})
    pooled = pool(result.records())
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report(pooled, result))
    text = console.export_text()
    assert "3 sentences compared; skipped: 1 without a token of its own." in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for baseline in ("zero", "target_token", "target_token+zero_ratio"):
        ranking = pooled.rank(baseline)
        shown = excerpt(ranking)
        assert [one.rank for one in shown if one.rank <= 5] == [1, 2, 3, 4, 5]
        assert shown[-1].rank == len(ranking) == 26
        assert sum(one.is_control for one in shown) == 2
        for one in shown:
            assert number(one.measures["l2"]).split(" ")[0] in text


def test_large_numbers_are_not_cut() -> None:
    """A number that lost its last digit is another number."""
    names = [(b, s, r) for b in ATTENTION_BASELINES for s in MLP_STARTS for r in RULES]
    records = []
    for baseline in LAYER_BASELINES:
        for place, (attention, start, rule) in enumerate([*names, (None, None, "uniform")]):
            one = constant(
                81234.0 - place,
                -0.00123,
                layer_baseline=baseline,
                attention_baseline=attention,
                mlp_start=start,
                rule=rule,
            )
            one |= {"l2_std": 32123.0, "rows": 123456, "unconverged_rows": 34567}
            records.append(one | {"correlation_rows": 98765})
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report(pool(records), Corpus(Path("x.csv"), 1, {}), by_layer=True))
    text = console.export_text()
    assert "…" not in text
    for number_shown in (" 98765\n", " 34567\n", " 81200 ", " ± 32000 ", " -0.00123 "):
        assert text.count(number_shown) >= 3 * 6, number_shown
    assert "123456 rows" in text


def test_numbers_are_short() -> None:
    assert number((0.012345, 0.00456)) == "0.0123 ± 0.0046"
    assert number((1234.5, 321.0)) == "1230 ± 320"
    assert number((-0.5, 0.0)) == "-0.5 ± 0"
    assert number(None) == "n/a"
