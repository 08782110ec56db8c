"""What a notebook shows: short reprs and tables of everything public, and the page as a widget."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import captum_lig
from captum_lig import FlowGraph, LayerFlowIG, LigError, SetToSetIG, inspect_model, patching, why
from captum_lig.flow.compare_maps import compare_maps
from captum_lig.flow.flows import Flows
from captum_lig.prediction import (
    compare_with_layer_integrated_gradients,
    cosine,
    direct_relevance,
    logit,
    read_target,
    state,
)
from captum_lig.views.notebook import show_page
from captum_lig.views.plots import plot_flow, plot_graph, plot_layers, plot_map
from tests.helpers.browser import CHROMIUM, NO_CHROMIUM
from tests.helpers.models import tiny_bert, tiny_llama
from tests.helpers.models import tokens as text_of
from tests.helpers.saved import save_tiny_gpt2
from tests.helpers.synthetic import flows
from tests.helpers.target_flows import target_flows

ROOT = Path(captum_lig.__file__).parents[1]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each kind of result, of models of two or three layers."""
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2(folder)
    answer = why("the cat sat", folder, target=3, foil=4, tolerance=None)
    llama, bert = tiny_llama(), tiny_bert()
    ids, other = text_of(llama, 1, 5), text_of(llama, 1, 5, seed=1)
    lig, target = LayerFlowIG(llama), cosine(text_of(llama, 1, 4, seed=2))
    towards: Any = lig.attribute(ids, other, target)
    graph, lengths = FlowGraph(towards), FlowGraph(flows(3, baseline="zero"))
    edges = lig.direct_edges(ids, other, target)
    embedded = LayerFlowIG(bert).attribute(text_of(bert, 1, 6))
    compared = compare_with_layer_integrated_gradients(graph, llama, target, ids, other)
    return {
        "answer": answer,
        "run": answer.run.target,
        "says": answer.says,
        "part": answer.strongest_heads(1)[0],
        "check": answer.check(k=2),
        "flow": towards[0],
        "flows": towards,
        "lengths": embedded,
        "graph": graph,
        "graph of lengths": lengths,
        "trace": graph.relevance(),
        "trace of lengths": lengths.relevance(2),
        "routes": graph.paths(k=3),
        "edges of a kind": graph.edges("attention"),
        "certificate": graph.summary()[0],
        "direct edges": edges,
        "effects": patching.effects(llama, ids, other, target, "tokens"),
        "nodes": patching.effects(llama, ids, other, target, "tokens").out,
        "edge effects": patching.edge_effects(llama, ids, other, target, list(edges)[:3]),
        "means": patching.means(llama, [ids]),
        "report": inspect_model(llama, ids),
        "block": inspect_model(llama, ids).blocks[0],
        "direct": direct_relevance(llama, target, ids, other),
        "compared": compared,
        "comparison": compare_maps(torch.rand(3, 4), torch.rand(3, 4)),
        "cosine": cosine(ids),
        "state": state(2, torch.rand(64)),
        "bound target": read_target(logit(3), llama, 1),
        "engine": lig,
        "set to set": SetToSetIG(torch.nn.Linear(3, 3)),
    }


NAMES = ["answer", "run", "says", "part", "check", "flow", "flows", "lengths", "graph"]
NAMES += ["graph of lengths", "trace", "trace of lengths", "routes", "edges of a kind"]
NAMES += ["certificate", "direct edges", "effects", "nodes", "edge effects", "means", "report"]
NAMES += ["block", "direct", "compared", "comparison", "cosine", "state", "bound target"]
NAMES += ["engine", "set to set"]
SHOWN = ["answer", "check", "flow", "flows", "lengths", "graph", "graph of lengths", "trace"]
SHOWN += ["trace of lengths", "direct edges", "effects", "edge effects", "report"]


def test_all_are_named(everything: dict[str, Any]) -> None:
    assert set(NAMES) == set(everything)


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_is_short(name: str, everything: dict[str, Any]) -> None:
    shown = repr(everything[name])
    lines = sum(1 + len(line) // 100 for line in shown.splitlines())
    assert lines <= 6, shown
    assert "tensor(" not in shown
    assert not re.search(r"0x[0-9a-f]{6}", shown)


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_shows_more_than_the_repr(name: str, everything: dict[str, Any]) -> None:
    shown = everything[name]._repr_html_()
    assert re.search(r"<(table|img|pre)", shown), shown[:200]
    assert "<script" not in shown
    assert len(shown) < 300_000


def test_pictures_have_words_on_their_axes() -> None:
    words = ["[CLS]", "the", "cat", "saw", "the", "[SEP]"]
    given = Flows(flows(2))
    expected = ["[CLS]", "the (1)", "cat", "saw", "the (4)", "[SEP]"]
    graph = FlowGraph(flows(2, baseline="zero"), words)
    drawn = [
        plot_layers(given, words)[1][0],
        plot_flow(given, words)[1][0],
        plot_graph(graph, "saw", "cat")[1],
        plot_map(given[0].need("layer")[0, 2:4], words, ["cat", "saw"])[1],
    ]
    for axes, axis in zip(drawn, "yyyx", strict=True):
        labels = getattr(axes, f"get_{axis}ticklabels")()  # of both sides
        assert [label.get_text() for label in labels][:6] == expected
    rows = [label.get_text() for label in drawn[-1].get_yticklabels()]
    assert rows == ["cat", "saw"]


def test_padding_counts_in_the_positions_of_words() -> None:
    padded = flows(1, valid=[False, True, True, True, True, True])
    _, axes = plot_layers(padded, ["[PAD]", "a", "b", "a", "c", "d"])
    assert [label.get_text() for label in axes[0].get_xticklabels()] == [
        "a (1)", "b", "a (3)", "c", "d",
    ]  # fmt: skip


def test_what_tokens_say_is_no_markup() -> None:
    attack = "<img src=x onerror=alert(1)>"
    graph = FlowGraph(target_flows(), [attack] * 5)
    for shown in (graph.relevance()._repr_html_(), graph._repr_html_()):
        assert attack not in shown
        assert "&lt;img" in shown


# ---- the page --------------------------------------------------------------------------------


def test_without_anywidget_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["anywidget"] = None
from captum_lig import LigError
from captum_lig.views.notebook import show_page
from captum_lig.views.plots import plot_flow, plot_graph, plot_layers, plot_map
try:
    show_page("<p>")
except LigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "captum-lig[notebook]" in done.stdout


def test_a_widget_of_a_graph() -> None:
    pytest.importorskip("anywidget")
    graph = FlowGraph(target_flows())
    widget = graph.explore(height=500)
    assert (widget.height, widget.state, widget.selected) == (500, "", None)
    assert widget.document.startswith("<!doctype html>")
    widget.state = "n=20&s=2.1.4"
    assert widget.selected == "2.1.4"
    bundle, _ = widget._repr_mimebundle_()
    assert "while the notebook runs" in bundle["text/html"]
    assert bundle["text/plain"] == repr(widget)
    assert len(repr(widget)) < 80
    with pytest.raises(LigError, match="height=0"):
        show_page("<p>", height=0)


PAGE = """<!doctype html><title>page</title><p>the page</p>"""
HOST = """<!doctype html><meta charset="utf-8"><div id="here"></div><script type="module">
import widget from "/widget.js";
const on = {}, values = %s;
window.model = {
  get: (name) => values[name],
  set: (name, value) => { values[name] = value; on["change:" + name]?.forEach((f) => f()); },
  save_changes: () => { window.saved = { ...values }; },
  on: (event, f) => { (on[event] ??= []).push(f); },
  off: (event, f) => { on[event] = on[event].filter((g) => g !== f); },
};
window.listening = () => Object.values(on).flat().length;
window.stop = widget.render({ model, el: document.getElementById("here") });
</script>"""


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    script = ROOT / "captum_lig/views/notebook/assets/widget.js"
    document = FlowGraph(target_flows()).explore().document
    values = json.dumps({"document": document, "height": 400, "state": "s=t3"})
    host = HOST % values.replace("</", "<\\/")
    tab = browser.new_page()
    tab.errors = []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.route("**/widget.js", lambda r: r.fulfill(path=script, content_type="text/javascript"))
    tab.route("http://notebook.test/", lambda r: r.fulfill(body=host, content_type="text/html"))
    tab.goto("http://notebook.test/")
    tab.frame_locator("iframe").locator("h1").wait_for()
    yield tab
    tab.close()


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_the_widget_shows_the_page_and_shares_its_state(tab: Any) -> None:
    page = tab.frames[1]
    assert "are" in page.locator("h1").inner_text()
    assert page.evaluate("window.location.hash") == "#s=t3"
    assert tab.locator("iframe").bounding_box()["height"] == pytest.approx(402, abs=2)
    page.evaluate("window.location.hash = 's=1.0.2'")
    tab.wait_for_function("window.saved?.state === 's=1.0.2'")
    tab.evaluate("model.set('state', 's=t1')")
    page.wait_for_function("window.location.hash === '#s=t1'")
    tab.evaluate("model.set('height', 300)")
    assert tab.locator("iframe").bounding_box()["height"] == pytest.approx(302, abs=2)
    assert tab.evaluate("listening()") == 2
    tab.evaluate("stop()")
    assert tab.evaluate("listening()") == 0
    assert tab.errors == []


def test_a_cell_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = "from captum_lig import FlowGraph\nfrom tests.helpers.target_flows import target_flows\n"
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(code + "graph = FlowGraph(target_flows())\ngraph.explore()"),
            nbformat.v4.new_code_cell("graph.relevance()"),
        ]
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
    shown, table = (cell.outputs[-1]["data"] for cell in notebook.cells)
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} <= set(shown)
    assert "<table>" in table["text/html"]
