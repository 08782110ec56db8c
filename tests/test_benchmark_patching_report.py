"""What the benchmark of patching asks, counts, compares and writes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.patching import __main__ as command
from benchmarks.patching import cases, measures, passes
from benchmarks.patching.net import KINDS
from captum_lig.errors import LigError
from tests.helpers import models
from tests.helpers.correlations import mean_ranks, pearson
from tests.helpers.patched_runs import CHANGED, LENGTH, asked, without_prefix


def test_passes_are_counted_by_the_work_of_the_blocks() -> None:
    question = asked("llama")
    blocks = question.net.blocks
    z = torch.randn(2, LENGTH, models.WIDTH, dtype=torch.float64)
    whole = without_prefix(question)
    with passes.counted(blocks, LENGTH) as cost:
        whole.value(z[:1])
        whole.value(z, start=1)  # two texts, half of the blocks
    assert cost.forward == pytest.approx(2)
    assert cost.backward == 0
    with passes.counted(blocks, LENGTH) as cost:
        question.gradients(question.input.stream[0])
    assert cost.forward == pytest.approx(1 - CHANGED / LENGTH)
    assert cost.backward == pytest.approx(1 - CHANGED / LENGTH)


def test_compared_and_interval() -> None:
    s, t = [3.0, -1.0, -1.0, 2.0, 0.5], [2.5, 0.0, -3.0, 2.0, 2.0]
    found = measures.compared(torch.tensor(s), torch.tensor(t))
    assert found["pearson"] == pytest.approx(pearson(s, t))
    assert found["spearman"] == pytest.approx(pearson(mean_ranks(s), mean_ranks(t)))
    norm = math.sqrt(sum(x * x for x in t))
    off = math.sqrt(sum((x - y) ** 2 for x, y in zip(s, t, strict=True)))
    assert found["distance"] == pytest.approx(off / norm)
    assert math.isnan(measures.compared(torch.ones(3), torch.arange(3))["pearson"])
    values = [float(x) for x in range(100)]
    row = measures.interval([*values, math.nan])
    assert (row["mean"], row["texts"]) == (49.5, 100)
    half = 1.96 * math.sqrt(sum((x - 49.5) ** 2 for x in values) / 100) / 10
    assert row["low"] == pytest.approx(49.5 - half, abs=0.5)
    assert row["high"] == pytest.approx(49.5 + half, abs=0.5)


def test_nodes_that_did_not_move_are_not_compared() -> None:
    moved = {"mlp": torch.tensor([[False, True, True], [True, True, False]])}
    truth = torch.tensor([[9.0, 1.0, 2.0], [3.0, 4.0, 9.0]])
    scores = {"mlp": torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 0.0]])}
    (row,) = measures.against(scores, {"mean": {"mlp": truth}}, moved)
    assert (row["distance"], row["size"]) == (0, 1)
    layers = measures.by_layer(scores, {"mlp": truth}, moved)
    assert [(one["layer"], one["distance"]) for one in layers] == [(0, 0), (1, 0)]


class Words:
    """A tokenizer of one token a word, but for one word."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str, return_tensors: str | None = None) -> dict[str, Any]:
        found = [w for word in text.split() for w in ([word] * 2 if word == "key" else [word])]
        ids = [self.known.setdefault(word, len(self.known)) for word in found]
        return {"input_ids": torch.tensor([ids]) if return_tensors else ids}


def test_prompts_that_cannot_be_used_are_counted() -> None:
    tokenizer = Words()
    plurals = [noun + "s" for noun in cases.NOUNS.split() if noun != "child"]
    for word in ("is", "are", *plurals):
        tokenizer(word)

    def model(input_ids: Tensor) -> Any:
        """Looks at the noun, and is always for " is" after "box" and "boxs"."""
        noun = int(input_ids[0, 1])
        plural = noun in [tokenizer.known[one] for one in plurals if one != "boxs"]
        logits = torch.zeros(1, input_ids.shape[1], 500)
        logits[0, -1, tokenizer.known["are" if plural else "is"]] = 1
        return SimpleNamespace(logits=logits)

    dropped = cases.Dropped()
    count = len(cases.NOUNS.split()) - 3
    found = list(cases.prompts(model, tokenizer, "agreement", count, dropped))
    assert len(found) == count
    # "key" is two tokens; the model is wrong on "boxs" and, as "children" is no plural, there.
    assert (dropped.length, dropped.answer) == (1, 2)
    for case in found:
        assert float(case.read(model(**case.inputs))) > 0 > float(case.read(model(**case.baseline)))
        assert case.words == tuple(
            tokenizer(" are" if one else " is")["input_ids"][0]
            for one in ((case.text.split()[1] in plurals), (case.other.split()[1] in plurals))
        )


def test_the_command_writes_every_method_and_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        command.load(None)
    except LigError:
        pytest.skip("the embedded model is not installed")
    corpus, out = tmp_path / "lines.txt", tmp_path / "out.jsonl"
    corpus.write_text("A small dog ran over the wide field.\nTwo men sat in a boat on the lake.\n")
    given = ["patching", "--corpus", str(corpus), "--sentences", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    command.main()
    printed = capsys.readouterr()
    assert "agreement, objects, capitals left out" in printed.err
    _, text = map(json.loads, out.read_text().splitlines())
    assert set(text["costs"]) == {"patching", *command.methods()}
    rows = {(row["method"], row["kind"], row["truth"]): row for row in text["rows"]}
    for method in ("RelP", "EAP-IG path, 16", "chance"):
        for kind in KINDS:
            for truth in ("out", "into", "mean"):
                assert math.isfinite(rows[method, kind, truth]["pearson"])
    assert rows["LayerIntegratedGradients", "tokens", "mean"]["pearson"] > 0.5
    for method in set(command.methods()) - {"flows towards the target"}:
        assert f"| {method} |" in printed.out
    pearson, distance = (rows["RelP", "heads", "mean"][name] for name in ("pearson", "distance"))
    assert f" {pearson:.3f}±0.000 / {distance:.2f} | " in printed.out
    # It goes on where it stopped: nothing is left to do.
    command.main()
    again = capsys.readouterr()
    assert again.out == printed.out
    assert "sentences 1" not in again.err
