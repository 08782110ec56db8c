"""Consistency over a corpus: the records, the table that shows them, and the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from captum_lig import LayerFlowIG
from captum_lig.cli import app
from captum_lig.corpus import load, run
from captum_lig.experiments.consistency import OF_TOKENS, OF_WORDS, measure_text, pool, records
from captum_lig.experiments.consistency.pairings import ATTENTION_BASELINES, LAYER_BASELINES
from captum_lig.experiments.consistency.table import excerpt, number, report
from captum_lig.flow.layer_flow import MLP_STARTS, RULES
from captum_lig.flow.words import word_groups
from captum_lig.pretrained.load import load_model
from tests.helpers.records import constant

LINES = ["the cat sat", "the cats sat on [x] mat", "", "mat on the"]


SETTINGS: dict[str, Any] = {"n_steps": 4, "tolerance": 1e-2, "workers": 1}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    return tiny


# ---- records ---------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [True, False])
def test_records_are_those_of_each_sentence(
    corpus: Path, model: Path, tmp_path: Path, merge: bool
) -> None:
    measures = (OF_WORDS if merge else OF_TOKENS,)
    out = tmp_path / "out"
    result = run(corpus, model, out=out, measures=measures, layers=[0, 2], **SETTINGS)
    assert result.counts == {"done": 3, "skipped": 1}
    loaded = load_model(model)
    engine = LayerFlowIG(loaded.network, [0, 2])
    expected = []
    for place, line in enumerate(LINES):
        if not line:
            continue
        words = word_groups(offsets=loaded.offsets(line), text=line) if merge else None
        found = measure_text(engine, loaded.encode(line), words, n_steps=4, tolerance=1e-2)
        expected += [{"number": place} | vars(one) for one in found]
    assert len(expected) == 3 * 2 * 3 * (24 + 2)
    assert list(records(result)) == expected
    if merge:
        assert {one["rows"] for one in expected if one["number"] == 1} == {10}  # of 11 tokens


def test_settings_of_a_run_are_not_passed_over(corpus: Path, model: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"measures": (OF_TOKENS,), "layers": [0], "limit": 1, "workers": 1}
    result = run(corpus, model, out=tmp_path / "plain", tolerance=None, **given)
    assert result.counts == {"failed": 1}
    assert "tolerance=None" in result.dataset("texts").to_table()["reason"][0].as_py()
    few, many = (
        list(
            records(
                run(
                    corpus,
                    model,
                    out=tmp_path / f"{most}",
                    n_steps=2,
                    tolerance=1e-7,
                    max_steps=most,
                    **given,
                )
            )
        )
        for most in (3, 1024)
    )
    assert sum(one["unconverged_rows"] for one in few) > sum(
        one["unconverged_rows"] for one in many
    )


# ---- the command -----------------------------------------------------------------------------


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["consistency", *map(str, arguments)])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
def test_the_command(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows"
    options = ("--model", model, "--out", out, "--layers", "0,2", "--steps", 4, "--limit", 2)
    options += ("--workers", 1)
    result = command(corpus, *options, "--by-layer", "--rank-by", "pearson")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "2 sentences compared, none skipped." in said
    for baseline in ("zero", "target_token", "target_token+zero_ratio"):
        assert f"Direct maps from {baseline} attention baseline" in said
    assert said.count("control: uniform") == said.count("control: all_zero") == 3
    assert f"wrote {out}: pairings, texts" in result.stderr
    again = command(corpus, *options)
    assert again.exit_code == 0, again.output
    assert "control: uniform" in again.stdout
    wrong = command(corpus, *options, "--rank-by", "mean")
    assert wrong.exit_code == 2
    assert "captum-lig: ranking by 'mean': use one of l2" in " ".join(wrong.stderr.split())
    for path, option in ((tmp_path / "no.txt", ()), (corpus, ("--layers", "7"))):
        failed = command(path, "--model", model, "--out", tmp_path / "other", *option)
        assert failed.exit_code == 2, failed.output
        assert failed.stderr.startswith("captum-lig: ")


def test_the_table_shows_the_numbers_of_the_ranking(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    run(corpus, model, out=tmp_path / "out", measures=(OF_TOKENS,), layers=[1], **SETTINGS)
    result = load(tmp_path / "out")
    pooled = pool(records(result))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report(pooled, result.counts))
    text = console.export_text()
    assert "3 sentences compared, 1 skipped." in text
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
    made = []
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
            made.append(one | {"correlation_rows": 98765})
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report(pool(made), {"done": 1}, by_layer=True))
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
