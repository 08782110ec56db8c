"""Fields are declared once; one declared outside of the package goes through everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_lig import FlowGraph, LayerFlow, LigError
from captum_lig.flow.axes import FIELDS, Declared, Field, declare
from captum_lig.flow.explanation import Explanation
from captum_lig.flow.summary import summarize
from captum_lig.io.flows import load_flows, save_flows
from captum_lig.views.page import page
from captum_lig.views.plots import plot_completeness
from tests.helpers.pages import header, numbers
from tests.helpers.synthetic import layer_flow


@pytest.fixture(autouse=True)
def own_fields() -> Iterator[None]:
    """Whatever a test declares is gone after it."""
    before = dict(FIELDS)
    yield
    for name in FIELDS.keys() - before.keys():
        delattr(Declared, name)
        del FIELDS[name]


def gated(index: int, texts: int = 1) -> LayerFlow:
    """A flow with a boundary of its own: rows (text, target, head) over the sources."""
    flow = layer_flow(index, tokens=5, heads=2, texts=texts, targets=[0, 3, 4] if index else None)
    gate = torch.randn(texts, len(flow.targets), 2, 5, generator=torch.Generator().manual_seed(3))
    beside = torch.ones(texts, len(flow.targets), 2)
    total = gate.sum(-1) + 1
    total[..., -1, 1] *= 1.25
    return replace(flow, gate=gate, gate_bias=beside, gate_total=total)


def test_a_field_of_ones_own(tmp_path: Path) -> None:
    rows = ("text", "target", "head")
    declare(Field("gate_total", rows))
    declare(Field("gate_bias", rows))
    declare(Field("gate", (*rows, "source"), total="gate_total", beside=("gate_bias",)))
    flow = gated(1, texts=2)
    assert flow.gate.shape == (2, 3, 2, 5)  # type: ignore[attr-defined]
    assert "gate" in repr(flow)
    error = flow.completeness_error("gate")
    assert error.shape == flow.delta["gate"].shape == (2, 3, 2)
    torch.testing.assert_close(error[:, -1, 1], torch.full((2,), 0.2))
    assert (~replace(flow, tolerance=0.1).converged["gate"]).sum() == 2
    assert torch.equal(flow.select(1).gate, flow.gate[1:])  # type: ignore[attr-defined]
    for suffix in ("json", "safetensors"):
        path = save_flows(Explanation([flow], list("abcde")), tmp_path / f"f.{suffix}")
        (found,) = load_flows(path).flows
        assert torch.equal(found.gate, flow.gate)  # type: ignore[attr-defined]
    written = json.loads((tmp_path / "f.json").read_text())["layers"][0]["tensors"]["gate"]
    assert written["axes"] == ["text", "target", "head", "source"]
    one = flow.select(0)
    plain = replace(one, gate=None)
    assert summarize(one).rows == summarize(plain).rows + 6
    assert "gate" in [line.get_label() for line in plot_completeness([one])[1].get_lines()]

    graph = FlowGraph([gated(0), replace(one, index=1)], list("abcde"))
    graph = FlowGraph.load(graph.subgraph(range(1, 5)).save(tmp_path / "g.safetensors"))
    gates = [part for part in graph.summary() if part.boundary == "gate"]
    assert [(part.layer, part.rows, part.missed) for part in gates] == [(0, 8, 1), (1, 4, 1)]
    assert gates[0].worst == pytest.approx(0.2, rel=1e-5)
    merged = graph.merge_tokens([None, None, 1, 1])
    assert merged.layers[1].errors["gate"].argmax() == 5  # head 1, the last of three words
    assert "gate: worst completeness error" in graph._repr_html_()
    shown = page(graph)
    assert "gate" in header(shown)["layers"][0]["certified"]
    assert max(numbers(shown)[1, "error.gate"]) == pytest.approx(0.2, rel=1e-5)


def test_an_error_that_is_held_itself() -> None:
    declare(Field("share_missing", ("text", "target")))
    declare(
        Field("share", ("text", "target", "source"), missing="share_missing", scale="layer_total")
    )
    flow = layer_flow(tokens=4)
    assert flow.layer is not None
    missing = 0.5 * flow.layer_total  # type: ignore[operator]
    flow = replace(flow, share=flow.layer.abs(), share_missing=missing)
    assert torch.equal(flow.delta["share"], missing)
    torch.testing.assert_close(flow.completeness_error("share"), torch.full((1, 4), 0.5))


AXES = ("text", "target")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (Field("a b", AXES), "give a name of letters"),
        (Field("select", AXES), "no attribute of a flow has"),
        (Field("baseline", AXES), "no attribute of a flow has"),
        (Field("layer", AXES), "is declared already"),
        (Field("new", ("target", "text")), "name 'text' first"),
        (Field("new", ("text", "a b")), "has the axes"),
        (Field("new", ("text", "head", "head")), "each axis once"),
        (Field("new", (*AXES, "source"), total="news"), "needs 'news': declare that first"),
        (Field("new", (*AXES, "source"), total="attention_total"), "with the axes"),
        (Field("new", (*AXES, "source"), missing="layer_total"), "declare scale="),
        (Field("new", (*AXES, "source"), total="layer_total", missing="mlp_total"), "one of them"),
        (Field("new", ("text", "source", "target"), total="layer_total"), "belong to a text and a"),
    ],
)
def test_declarations_that_do_not_fit(field: Field, said: str) -> None:
    before = dict(FIELDS)
    with pytest.raises(LigError, match=said):
        declare(field)
    assert before == FIELDS
    assert not hasattr(Declared, "new")


def test_declaring_the_same_again_changes_nothing() -> None:
    for _ in range(2):
        declare(Field("again", AXES))
    assert list(FIELDS)[-1] == "again"


FITTING: dict[str, Any] = {"layer": torch.ones(1, 2, 3), "layer_total": torch.ones(1, 2)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"colour": torch.ones(1, 2)},
            "field 'colour' is not declared: use one of",
        ),
        ({"layer": torch.ones(2, 3)}, r"layer has the shape \(2, 3\), and its axes are \(text 1, "),
        ({"layer": torch.ones(1, 3, 3)}, "target 2"),
        ({"layer": torch.ones(1, 2, 2)}, "source 3"),
        ({"layer_total": torch.ones(2, 2)}, "text 1"),
        ({"layer_total": None}, "a flow with 'layer' needs 'layer_total', too"),
        (
            {"attention": torch.ones(1, 4, 2, 3), "attention_total": torch.ones(1, 5, 2)},
            r"attention_total has the shape \(1, 5, 2\), and its axes are \(text 1, head 4",
        ),
        ({"mlp_start": "middle"}, "mlp_start='middle' is unknown: use 'attention' or 'zero'"),
        ({"targets": torch.ones(1, 2).long()}, "targets has the shape"),
    ],
)
def test_flows_that_do_not_fit(fields: dict[str, Any], said: str) -> None:
    about: dict[str, Any] = {
        "name": "", "index": 0, "targets": torch.tensor([0, 2]),
        "valid": torch.ones(1, 3).bool(), "scalarization": "l2", "baseline": "zero",
    }  # fmt: skip
    LayerFlow(**about, **FITTING)
    with pytest.raises(LigError, match=said):
        LayerFlow(**{**about, **FITTING, **fields})


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.checked])
def test_every_field_says_how_it_is_asked_for(name: str) -> None:
    flow = replace(layer_flow(), tensors={})
    with pytest.raises(LigError, match=rf"no '{name}' boundary: name .* in boundaries=\(...\)"):
        flow.completeness_error(name)
    assert getattr(flow, name) is None
    assert getattr(LayerFlow, name) is FIELDS[name]
