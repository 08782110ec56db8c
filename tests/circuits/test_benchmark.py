"""The benchmark of circuits: rivals against their definitions, a run that goes on, its tables."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import benchmarks.circuits.__main__ as command
from benchmarks.circuits import edges, known, measure, nodes, report, tasks
from benchmarks.patching import gradients
from benchmarks.patching.cases import Case, Dropped
from captum_lig import FlowGraph, LayerFlowIG, circuits
from captum_lig.graph import Reader, Writer
from tests.helpers import models
from tests.helpers.circuit_twin import Twin, plain, run
from tests.helpers.patched_runs import LENGTH, asked, without_prefix


@pytest.fixture(scope="module")
def question() -> Any:
    return without_prefix(asked("llama"))


@pytest.fixture(scope="module")
def twin(question: Any) -> Twin:
    model = question.net.model

    def read(output: Any) -> Tensor:
        return question.case.read(SimpleNamespace(logits=model.lm_head(output[0])))  # type: ignore[no-any-return]

    return Twin("llama", model.model, read)


def twin_scores(twin: Twin, case: Case, parts: list[float]) -> dict[tuple[Writer, Reader], Tensor]:
    """Mean gradients at what each reader alone gets, times what writers change."""
    end, start = (twin.embedded(x["input_ids"]) for x in (case.inputs, case.baseline))
    gradients: dict[Reader, list[Tensor]] = {}
    for part in parts:
        own: dict[Reader, Tensor] = {}

        def inputs(
            reader: Reader, wrote: dict[Writer, Tensor], own: dict[Reader, Tensor] = own
        ) -> Tensor:
            own[reader] = torch.zeros(LENGTH, models.WIDTH, dtype=torch.float64).requires_grad_()
            return plain(reader, wrote) + own[reader]

        _, value = run(twin, start + part * (end - start), inputs)
        found = torch.autograd.grad(value, list(own.values()))
        for reader, g in zip(own, found, strict=True):
            gradients.setdefault(reader, []).append(g)
    with torch.no_grad():
        (there, _), (here, _) = (run(twin, x, plain) for x in (start, end))
    return {
        (writer, reader): ((here[writer] - there[writer]) * torch.stack(each).mean(0)).sum(-1)
        for writer in here
        for reader, each in gradients.items()
    }


@pytest.mark.parametrize(("steps", "parts"), [(1, [1.0]), (3, [1 / 3, 2 / 3, 1.0])])
def test_eap_is_gradients_of_readers_alone(
    question: Any, twin: Twin, steps: int, parts: list[float]
) -> None:
    case = question.case
    ours = edges.eap_ig(question, steps)
    theirs = twin_scores(twin, case, parts)
    about = question.net.model, case.inputs, case.baseline["input_ids"], case.read
    with circuits.of_edges(*about) as found:
        assert ours.shape == (*found.reads.shape, LENGTH)
        for w, r in found.reads.nonzero().tolist():
            expected = theirs[found.writers[w], found.readers[r]]
            # Llama's own rotary positions are float32.
            torch.testing.assert_close(ours[w, r], expected, rtol=1e-6, atol=1e-8)
    assert float(ours.abs().max()) > 1e-2


def test_nodes_are_scored_as_in_the_benchmark_of_patching(question: Any) -> None:
    case = question.case
    about = question.net.model, case.inputs, case.baseline["input_ids"], case.read
    for steps in (1, 4):
        theirs = gradients.integrated(question, steps)
        places = nodes.integrated(question, steps)
        with circuits.of_nodes(*about, by_position=False) as found:
            summed = nodes.of_nodes(found.nodes, places)
        for node, value in zip(found.nodes, summed.tolist(), strict=True):
            kind = "heads" if node.kind == "heads" else "mlp"
            row = theirs[kind][node.layer]
            expected = row[node.head] if kind == "heads" else row.sum()
            assert value == pytest.approx(float(expected))
        with circuits.of_nodes(*about, by_position=True) as found:
            each = nodes.of_nodes(found.nodes, places)
        assert len(each) == LENGTH * len(summed)
        assert float(each.sum()) == pytest.approx(float(summed.sum()))


def test_patching_takes_out_and_puts_in(question: Any) -> None:
    case = question.case
    about = question.net.model, case.inputs, case.baseline["input_ids"], case.read
    other = question.net.model, case.baseline, case.inputs["input_ids"], case.read
    with circuits.of_nodes(*about, by_position=False) as found:
        out = found.value - found.values(~torch.eye(found.count, dtype=torch.bool))
        chosen = found.nodes
    with circuits.of_nodes(*other, by_position=False) as found:
        into = found.values(~torch.eye(found.count, dtype=torch.bool)) - found.value
    mean = nodes.of_nodes(chosen, nodes.patched(question))
    short = nodes.of_nodes(chosen, nodes.patched(asked("llama")))
    torch.testing.assert_close(short, mean)
    torch.testing.assert_close(mean, (out + into) / 2, rtol=1e-6, atol=1e-8)
    assert bool(((out - into).abs() > 1e-3).any())


# --- what is asked ------------------------------------------------------------------------------


def test_years_begin_before_they_end() -> None:
    found = list(tasks.years())
    assert len({text for text, _, _ in found}) == len(found) == 100
    for text, other, tens in found:
        century = text[-2:]
        assert text.endswith(f"from the year {century}{tens}1 to the year {century}")
        assert other == text.replace(f"{century}{tens}1", f"{century}01")
        assert 0 < tens < 9


def test_later_is_the_odds_of_larger_digits() -> None:
    logits = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0)).double()
    digits = [11, *range(1, 10)]  # the token of 0 is 11
    found = tasks.later(digits, 7)(SimpleNamespace(logits=logits))
    for row, value in zip(logits[:, -1].softmax(-1), found.tolist(), strict=True):
        after, before = row[[8, 9]].sum(), row[[11, 1, 2, 3, 4, 5, 6]].sum()
        assert value == pytest.approx(float((after / before).log()))


class Digits:
    """A tokenizer that reads digits one by one."""

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        ids = [10 + int(x) if x.isdigit() else 3 for x in text]
        return {"input_ids": torch.tensor([ids]) if len(text) > 1 else ids}


def test_prompts_that_the_model_does_not_do_are_counted() -> None:
    dropped = Dropped()

    def model(input_ids: Tensor) -> Any:
        """Says 9 after a year that does not begin a century, but after a 6 it says 0."""
        logits = torch.zeros(1, 1, 25)
        tens = int(input_ids[0, input_ids[0].ge(10).nonzero().flatten()[2]]) - 10
        logits[0, 0, 19 if tens not in (0, 6) else 10] = 5.0
        return SimpleNamespace(logits=logits)

    found = list(tasks.asked(model, Digits(), "greater", 20, dropped))
    assert len(found) == 20
    assert all(case.words == tuple(range(10, 20)) for case in found)
    assert dropped.answer > 0
    assert not any("61 to" in case.text for case in found)


# --- the run ------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, question: Any) -> None:
    """The command, of a small model and three prompts."""

    def cases(*_: Any) -> Any:
        for n in range(3):
            case = question.case
            yield Case(
                "objects", f"text {n}", "", case.inputs, case.baseline, case.read, case.words
            )

    monkeypatch.setattr(command, "load", lambda *_, **__: (None, question.net.model))
    monkeypatch.setattr(tasks, "asked", lambda *given: list(cases())[: given[3]])


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    given = ["circuits", "--model", "small", "--tasks", "objects", *arguments]
    monkeypatch.setattr(sys, "argv", given)
    command.main()


def test_a_run_goes_on_where_it_ended(
    small: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "found.json"
    called(monkeypatch, "--prompts", "1", "--out", str(out))
    first = json.loads(out.read_text())["texts"]
    measured = []

    def noted(*given: Any) -> Any:
        measured.append(given[1].text)
        return measure.measured(*given)

    monkeypatch.setattr(command, "measured", noted)
    called(monkeypatch, "--prompts", "2", "--out", str(out))
    assert measured == ["text 1"]
    both = json.loads(out.read_text())["texts"]
    assert both[0] == first[0]
    assert [one["text"] for one in both] == ["text 0", "text 1"]
    printed = capsys.readouterr().out
    assert "### Indirect objects: 2 prompts" in printed
    for kind in ("Edges (", "Nodes ("):
        assert f"\n\n{kind}" in printed
    edges = [f"{one}, sum" for one in (*measure.EDGE_METHODS, "**`LayerFlowIG`**")]
    edges += ["**`LayerFlowIG`**, size", "EAP-IG, 16, size"]
    for row in (*edges, *measure.NODE_METHODS, "**`LayerFlowIG`**", measure.CHANCE):
        assert f"\n| {row} |" in printed
    for curve in both[0]["curves"]:
        assert curve["faithfulness"][-1] == 1
    with pytest.raises(SystemExit):
        called(monkeypatch, "--kinds", "nodes", "--out", str(out))
    assert "name another file" in capsys.readouterr().err


def test_circuits_by_position_have_all_methods(question: Any) -> None:
    found = measure.measured(
        question.net, question.case, ("edges by position", "nodes by position"), ("signed",)
    )
    by_kind = report.of_kinds([found])
    assert set(by_kind["edges by position", "signed"]) == {
        *measure.EDGE_METHODS,
        measure.OURS,
        measure.CHANCE,
    }
    assert measure.PATCHING not in by_kind["nodes by position", "signed"]
    assert measure.CHANCE in by_kind["nodes by position", "signed"]


def test_heads_are_told_by_what_they_do(question: Any) -> None:
    net, case = question.net, question.case
    other = case.baseline["input_ids"]
    graph = FlowGraph(LayerFlowIG(net.model).attribute(case.inputs, other, case.read))
    # Words that stand in the text, so that something can attend to them.
    case = replace(case, words=tuple(case.inputs["input_ids"][0, [2, 4]].tolist()))
    found = known.heads_found(net, case, graph)
    ids = case.inputs["input_ids"][0]
    with torch.no_grad():
        stream = question.input.stream
        for layer in range(2):
            for head in range(models.HEADS):
                # Taken out of the stream at the end, with the final norm's scale held.
                own = question.input.heads[layer].clone()
                own[..., head * 8 : (head + 1) * 8] = 0
                project = net.projections[layer]
                wrote = (project(question.input.heads[layer]) - project(own))[0, -1]
                norm = net.inner.norm
                scale = (stream[-1][0, -1].square().mean() + norm.variance_epsilon).rsqrt()
                logits = net.model.lm_head(norm.weight * wrote * scale)
                for name, word in zip(("answer", "foil"), case.words, strict=True):
                    above = float(logits[word] - logits.mean())
                    assert found[name][layer][head] == pytest.approx(above, abs=1e-4)
    net.model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = net.model(**case.inputs, output_attentions=True).attentions
    net.model.set_attn_implementation("sdpa")
    kinds = {"to_changed": ids != other[0], "to_answer": ids == case.words[0]}
    kinds["to_foil"] = ids == case.words[1]
    for name, chosen in kinds.items():
        for layer, pattern in enumerate(patterns):
            expected = (pattern[0, :, -1].double() @ chosen.double()).tolist()
            assert found[name][layer] == pytest.approx(expected, abs=1e-4)
    trace = graph.relevance()
    assert found["relevance"][1][2] == pytest.approx(float(trace.heads[1, 2, -1]), abs=1e-4)


def test_tables_hold_means_over_prompts() -> None:
    curves = {"one": [[0.0] * 9 + [1.0], [1.0] * 10], "other": [[0.5] * 9 + [1.0]] * 2}
    found = report.summary(curves)
    assert found["one"]["faithfulness 0.001"].mean == 0.5
    same = found["other"]["faithfulness 0.001"]
    assert (same.mean, same.low, same.high, same.texts) == (0.5, 0.5, 0.5, 2)
    # Up to a half of all it is 0.5 away, from there to all it falls to 0.
    cmd = (0.499 * 0.5 + 0.5 * 0.25) / 0.999
    assert found["other"]["cmd"].mean == pytest.approx(cmd)
    assert found["other"]["cpr"].mean == pytest.approx(1 - cmd)
    assert found["one"]["cmd"].mean == pytest.approx(cmd)
    text = report.of_curves("edges", curves | {measure.OURS: [[0.75] * 9 + [1.0]] * 2})
    assert "| other, sum | 0.50±0.00 |" in text
    # Of the first five sizes 0.75 against 0.5; half of the distance from 1, so half of the area.
    assert f"| other, sum | 0.250±0.000 | {-cmd / 2:.3f}±0.000 |" in text
    # Paired by prompt: 0.75 less 0, and less 1.
    assert "| one, sum | 0.250±0.500 |" in text
    by_node = report.of_curves("nodes", curves | {measure.OURS: curves["one"]})
    assert "| **`LayerFlowIG`** | 0.50±0.50 |" in by_node
    assert "mean at 1 to 20 %" in by_node
