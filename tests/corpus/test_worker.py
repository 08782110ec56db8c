"""A batch of texts: numbers are those of the library, whatever else is in the batch."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captum_lig import LayerFlowIG, LigError, why
from captum_lig.corpus.batches import Batch, Part, batches_of
from captum_lig.corpus.measures import MEASURES, find_measure
from captum_lig.corpus.schema import columns_of
from captum_lig.corpus.settings import DEFAULT, Settings
from captum_lig.corpus.texts import Text
from captum_lig.corpus.worker import Worker
from captum_lig.flow.layer_flow import LayerFlow
from captum_lig.flow.summary import summarize
from captum_lig.metrics import (
    Tree,
    attachment,
    erasure,
    flow_completeness,
    flow_composition,
    word_map,
)
from captum_lig.pretrained.load import load_model
from tests.helpers.corpus_measures import Small
from tests.helpers.saved import save_tiny_gpt2, save_tiny_head

WORDS = ["the", "cat", "cats", "sat", "on", "mat", "x"]
OWN = "tests.helpers.corpus_measures:"


def batch_of(*texts: str | Text) -> Batch:
    found = [x if isinstance(x, Text) else Text(n, str(n), x) for n, x in enumerate(texts)]
    return Batch(0, 0, tuple(found))


def rows(part: Part, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = part.tables[table].to_pylist()
    return found


@pytest.fixture(scope="module")
def worker(tiny: Path) -> Worker:
    return Worker(Settings(model=str(tiny), n_steps=8))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ["the cat sat", "the cats sat on [x] mat", "mat on the mat"]


@pytest.fixture(scope="module")
def flows(tiny: Path, texts: list[str]) -> list[list[LayerFlow]]:
    """Of each text alone."""
    loaded = load_model(tiny)
    names = ("attention", "mlp", "layer", "feed_forward")
    lig = LayerFlowIG(loaded.network)
    found: list[Any] = [
        lig.attribute(loaded.encode(text), n_steps=8, boundaries=names) for text in texts
    ]
    return found


@pytest.fixture(scope="module")
def part(worker: Worker, texts: list[str]) -> Part:
    return worker(batch_of(*texts))


# ---- numbers ---------------------------------------------------------------------------------


def test_numbers_of_layers(part: Part, flows: list[list[LayerFlow]]) -> None:
    found = rows(part, "layers")
    assert [(row["number"], row["layer"]) for row in found] == [
        (n, layer) for n in range(3) for layer in range(3)
    ]
    for row in found:
        flow = flows[row["number"]][row["layer"]]
        summary = summarize(flow)
        errors = flow_completeness(flow)
        expected = {
            "layer_total": float(flow.need("layer_total").mean()),
            "attention_total": float(flow.need("attention_total").mean()),
            "mlp_total": float(flow.need("mlp_total").mean()),
            "chain_distance": float(flow_composition(flow)),
            "conserve_distance": float(flow_composition(flow, "conserve")),
            "product_distance": float(flow_composition(flow, "product")),
            "chain_row_distance": summary.agreement,
            "mlp_share": float(flow.need("feed_forward").sum() / flow.need("mlp_total").sum()),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
        assert row["heads_share"] + row["own_share"] == pytest.approx(1, abs=1e-4)
        for name in ("layer", "attention", "mlp", "chain"):
            assert row[f"{name}_error"] == pytest.approx(errors[name].worst, abs=1e-5)
            assert row[f"{name}_error_mean"] == pytest.approx(errors[name].mean, abs=1e-5)
            assert row[f"{name}_unconverged"] == 0
        assert row["uas"] is None


def test_rows_that_did_not_converge_are_counted(tiny: Path, texts: list[str]) -> None:
    found = Worker(Settings(str(tiny), n_steps=1, max_steps=1, measures=("completeness",)))(
        batch_of(*texts)
    )
    lig, loaded = LayerFlowIG(load_model(tiny).network), load_model(tiny)
    with pytest.warns(UserWarning, match="not within tolerance"):
        alone: Any = lig.attribute(loaded.encode(texts[1]), n_steps=1, max_steps=1)
    for row in rows(found, "layers"):
        if row["number"] == 1:
            flow = alone[row["layer"]]
            assert row["layer_unconverged"] == int((~flow.converged["layer"]).sum())
            assert row["attention_unconverged"] == int((~flow.converged["attention"]).sum())
    assert sum(row["attention_unconverged"] for row in rows(found, "layers")) > 0


def test_strongest_links_and_nodes(part: Part, flows: list[list[LayerFlow]]) -> None:
    links, nodes = rows(part, "links"), rows(part, "nodes")
    tokens = [row["tokens"] for row in rows(part, "texts")]
    for text, layers in enumerate(flows):
        for flow in layers:
            mine = [r for r in links if (r["number"], r["layer"]) == (text, flow.index)]
            expected = summarize(flow, links=5).links
            # The summary leaves out rows with one source, which there are none of here.
            assert [r["share"] for r in mine] == pytest.approx(
                [link.share for link in expected], rel=1e-3
            )
            assert [(r["target"], r["source"], r["head"]) for r in mine] == [
                (link.target, link.source, link.head) for link in expected
            ]
            assert [r["rank"] for r in mine] == list(range(5))
            for row in mine:
                assert row["target_token"] == tokens[text][row["target"]]
                assert row["source_token"] == tokens[text][row["source"]]
            mine = [r for r in nodes if (r["number"], r["layer"]) == (text, flow.index)]
            heads, mlps = flow.need("mlp")[0], flow.need("feed_forward")[0]
            values = sorted([*heads.abs().flatten().tolist(), *mlps.abs().tolist()], reverse=True)
            assert [abs(r["value"]) for r in mine] == pytest.approx(values[:5], rel=1e-3)
            for row in mine:
                at = mlps if row["kind"] == "mlp" else heads[:, row["head"]]
                assert row["value"] == pytest.approx(float(at[row["position"]]), rel=1e-3)


def test_attachment(tiny: Path) -> None:
    tree = Tree("a", "the cats sat", ("the", "cats", "sat"), ((0, 3), (4, 8), (9, 12)),
                (1, 2, -1), ("det", "nsubj", "root"), ("DET", "NOUN", "VERB"))  # fmt: skip
    text = Text(0, "a", tree.text, tree=tree)
    found = Worker(Settings(str(tiny), measures=("treebank",)))(batch_of(text, "the mat"))
    loaded = load_model(tiny)
    flows: Any = LayerFlowIG(loaded.network).attribute(loaded.encode(tree.text))
    for row in rows(found, "layers"):
        if row["number"] == 1:
            assert row["uas"] is None
            continue
        matrix = word_map(flows[row["layer"]].compose()[0], tree, loaded.offsets(tree.text))
        expected = attachment(matrix, tree.heads)
        assert row["uas"] == pytest.approx(float(expected.directed))
        assert row["uuas"] == pytest.approx(float(expected.undirected))
    assert [row["tree_words"] for row in rows(found, "texts")] == [2, None]


def test_whole_maps(tiny: Path, texts: list[str], flows: list[list[LayerFlow]]) -> None:
    given = Settings(str(tiny), n_steps=8, maps=("composed", "layer", "chain", "mlp"))
    found = Worker(given)(batch_of(*texts))
    assert found.maps is not None
    assert len(found.maps) == 3 * 3 * 4
    for text, layers in enumerate(flows):
        for flow in layers:
            expected = {"composed": flow.compose()} | flow.tensors
            for name in given.maps:
                ours = found.maps[f"{text}.{flow.index}.{name}"]
                torch.testing.assert_close(ours, expected[name][0], rtol=1e-3, atol=1e-5)


# ---- numbers to explain ----------------------------------------------------------------------


def answer_rows(part: Part) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (text,) = rows(part, "texts")
    return text, rows(part, "parts")


@pytest.mark.parametrize("counterfactual", ["the dog sat on", None])
def test_the_next_token(tmp_path: Path, counterfactual: str | None) -> None:
    save_tiny_gpt2(tmp_path)
    text = Text(0, "0", "the cat sat on", counterfactual, " the", " a")
    measures = ("answer", "erasure", "effects")
    found = Worker(Settings(str(tmp_path), measures=measures))(batch_of(text))
    about, parts = answer_rows(found)
    expected = why(text.text, tmp_path, counterfactual, target=" the", foil=" a")
    assert about["status"] == "done"
    assert about["unanswered"] is None
    assert about["target"] == expected.target
    assert about["change"] == pytest.approx(expected.change, rel=1e-4)
    assert about["value"] - about["other_value"] == pytest.approx(about["change"], rel=1e-3)
    assert about["sum_error"] < 1e-2
    wanted = [*expected.strongest_tokens(5), *expected.strongest_heads(5)]
    wanted += expected.strongest_mlps(5)
    assert [row["value"] for row in parts] == pytest.approx([one.value for one in wanted], rel=1e-2)
    assert [(row["layer"], row["head"], row["position"]) for row in parts] == [
        (one.layer, one.head, one.position) for one in wanted
    ]
    assert [row["kind"] for row in parts] == [one.kind.lower() for one in wanted]
    run = expected.run
    (erased,) = erasure(
        run.model,
        run.inputs,
        expected.graph.relevance().tokens[0][None],
        run.target,
        run.other,
        tokenizer=run.tokenizer,
    )
    assert about["aopc_sufficiency"] == pytest.approx(erased.aopc_sufficiency, rel=1e-4, abs=1e-5)
    assert [row["sufficiency"] for row in rows(found, "erasure")] == pytest.approx(
        erased.sufficiency.tolist(), rel=1e-4, abs=1e-5
    )
    checked = expected.check(5)
    effects = rows(found, "effects")
    assert [row["taken_out"] for row in effects] == pytest.approx(
        [one.out for one in checked.rows], rel=1e-3, abs=1e-5
    )
    assert {row["kind"] for row in effects} == {"token", "head", "mlp"}


def test_a_class_and_a_similarity(tmp_path: Path, tiny: Path) -> None:
    save_tiny_head(tmp_path, "classes")
    settings_of = {"measures": ("answer",)}
    text = Text(0, "0", "the cat sat", target="joy")
    about, _ = answer_rows(Worker(Settings(str(tmp_path), **settings_of))(batch_of(text)))
    assert about["change"] == pytest.approx(
        why("the cat sat", tmp_path, label="joy").change, rel=1e-4
    )
    text = Text(0, "0", "the cat sat", target="on the mat")
    about, _ = answer_rows(Worker(Settings(str(tiny), **settings_of))(batch_of(text)))
    expected = why("the cat sat", tiny, similar_to="on the mat").change
    assert about["change"] == pytest.approx(expected, rel=1e-4)


def test_a_question_without_an_answer(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path)
    texts = [
        Text(0, "0", "the cat sat", "the cat sat on"),
        Text(1, "1", "the cat sat", "the dog sat"),
        Text(2, "2", "the cat"),
    ]
    found = Worker(Settings(str(tmp_path), n_steps=4, tolerance=None))(batch_of(*texts))
    about = rows(found, "texts")
    assert [row["status"] for row in about] == ["done"] * 3
    assert "each token needs one to be compared with" in about[0]["unanswered"]
    assert [row["change"] is None for row in about] == [True, False, True]
    assert {row["number"] for row in rows(found, "parts")} == {1}
    assert {row["number"] for row in rows(found, "layers")} == {0, 1, 2}


# ---- batches ---------------------------------------------------------------------------------

SENTENCES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=10).map(" ".join), min_size=2, max_size=6
)


@given(SENTENCES, st.integers(1, 6))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rows_do_not_depend_on_the_batch(worker: Worker, sentences: list[str], size: int) -> None:
    texts = [Text(n, str(n), one) for n, one in enumerate(sentences)]
    found: list[dict[str, list[dict[str, Any]]]] = []
    for most in (1, size):
        length = worker.model.subject.count_tokens
        parts = [worker(one) for one in batches_of(texts, length, 6, most)]
        found.append({name: [r for p in parts for r in rows(p, name)] for name in worker.columns})
    alone, together = found
    for name in ("texts", "layers", "nodes"):
        for one, other in zip(*(sorted_rows(x[name]) for x in (alone, together)), strict=True):
            for column, value in one.items():
                if isinstance(value, float) and column.endswith(("error", "error_mean")):
                    assert other[column] == pytest.approx(value, abs=2e-5), column
                elif isinstance(value, float) and math.isfinite(value):
                    assert abs(other[column]) == pytest.approx(abs(value), rel=1e-3, abs=1e-4)
                elif name != "nodes":  # equally strong ones may change places
                    assert other[column] == value, column


def sorted_rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda row: [row.get(k, 0) for k in ("number", "layer", "rank")])


def test_a_text_that_raises_leaves_the_others(tiny: Path, texts: list[str]) -> None:
    found = Worker(Settings(str(tiny), measures=(OWN + "Fails", "totals"), n_steps=2))(
        batch_of(*texts, "mat on x")
    )
    about = sorted_rows(rows(found, "texts"))
    assert [row["status"] for row in about] == ["failed", "failed", "done", "done"]
    assert [row["reason"] for row in about] == ["ValueError: there is a cat"] * 2 + [None] * 2
    assert [row["length"] for row in about] == [None, None, 6, 5]
    assert {row["number"] for row in rows(found, "layers")} == {2, 3}


def test_texts_that_are_not_run(tiny: Path) -> None:
    worker = Worker(Settings(str(tiny), measures=("totals",), max_tokens=6, n_steps=2))
    bad = Text(0, "a", "", problem="the line is empty")
    found = worker(batch_of(bad, "the cat", "the " * 15, "the cat sat on mat", "  "))
    about = sorted_rows(rows(found, "texts"))
    assert [row["status"] for row in about] == ["skipped", "done"] + ["skipped"] * 3
    reasons = [row["reason"] for row in about]
    assert reasons[:2] == ["the line is empty", None]
    assert "takes 16 at most" in reasons[2]
    assert reasons[3] == "the text has 7 tokens, more than max_tokens=6."
    assert "no token of its own" in reasons[4]


def test_a_batch_that_runs_out_of_memory_is_halved(tiny: Path) -> None:
    Small.batches.clear()
    found = Worker(Settings(str(tiny), measures=(OWN + "Small",)))(batch_of(*["the cat"] * 7))
    assert [row["status"] for row in rows(found, "texts")] == ["done"] * 7
    assert Small.batches == [1, 2, 2, 2]


# ---- what is declared ------------------------------------------------------------------------


def test_parts_and_settings_are_picklable(worker: Worker, part: Part) -> None:
    again = pickle.loads(pickle.dumps(part))
    assert again.tables == part.tables
    assert pickle.loads(pickle.dumps(worker.settings)) == worker.settings
    assert Settings.from_json(worker.settings.to_json()) == worker.settings


def test_every_measure_says_what_its_columns_are() -> None:
    assert set(DEFAULT) == MEASURES.keys() - {"effects"}
    for columns in columns_of([find_measure(name) for name in MEASURES]).values():
        assert len({one.name for one in columns}) == len(columns)
        for one in columns:
            assert one.meaning.endswith("."), one


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"measures": ("totals", "luck")}, "measure 'luck' is unknown: use some of totals"),
        ({"measures": ("json:loads",)}, "measure 'json:loads' is unknown"),
        ({"measures": ("no.such:Thing",)}, "cannot be imported"),
        ({"measures": ("totals", "totals")}, "same name"),
        ({"measures": ()}, "name at least one"),
        ({"maps": ("all",)}, "use some of layer, composed"),
        ({"layers": (9,)}, "9"),
        ({"layers": (0, -3)}, r"layers=\(0, -3\) name layer 0 twice"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"weights": "0" * 64}, "other weights here than where the run began"),
        ({"tokenizer": "0" * 64}, "another tokenizer here than where the run began"),
        ({"tokenizer": 3}, "tokenizer=3: give a text"),
    ],
)
def test_settings_that_cannot_be_worked_with(tiny: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(LigError, match=said):
        Worker(Settings(str(tiny), **change))
