"""The page as a file: its numbers are the graph's, and it asks for nothing and trusts no text."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from captum_lig import FlowGraph, LigError
from captum_lig.views.page import page, write_page
from captum_lig.views.page.numbers import PARTS, packed_size
from captum_lig.views.page.write import MODULES, QUESTION_MODULES
from tests.helpers.pages import Elements, graph, header, numbers
from tests.helpers.synthetic import ATTACK, flows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_the_page_are_those_of_the_graph(dtype: torch.dtype) -> None:
    given = graph(dtype=dtype, influence=True)
    found = numbers(page(given))
    for place, layer in enumerate(given.layers):
        tensors = {name: getattr(layer, name) for name in PARTS}
        for name, tensor in tensors.items():
            edges = name in ("attention", "chain", "mlp", "residual", "direct", "influence")
            narrow = tensor.to(torch.float32) if edges else tensor
            assert found.pop((place, name)) == narrow.flatten().tolist()
        assert found.pop((place, "one_source")) == [0] * 5
        for name, errors in layer.errors.items():
            assert found.pop((place, f"error.{name}")) == errors.flatten().tolist()
        for rule in ("conserve", "chain", "product"):
            weights = layer.weights(rule)
            for name in ("heads", "residual", "size"):
                numbers_of = getattr(weights, name).flatten().tolist()
                assert found.pop((place, f"{rule}.{name}")) == numbers_of
    assert found == {}


def test_the_header_says_what_the_numbers_are() -> None:
    given = graph(tokens=4, heads=2)
    said = header(page(given, "a title", "chain"))
    assert (said["format"], said["version"]) == ("captum_lig.page", 4)
    assert said["title"] == "a title"
    assert said["tokens"] == ["a", "b", "c", "d"]
    assert [rule["name"] for rule in said["rules"]] == ["conserve", "chain", "product"]
    assert [rule["edges"] for rule in said["rules"]] == ["attention", "chain", "attention"]
    assert said["rule"] == "chain"
    assert (said["scalarization"], said["baseline"], said["tolerance"]) == ("l2", "zero", None)
    assert [layer["index"] for layer in said["layers"]] == [2, 3, 4]
    assert {layer["heads"] for layer in said["layers"]} == {2}


def test_what_a_graph_does_not_hold_is_left_out() -> None:
    given = [replace(flow, layer=None, chain=None) for flow in flows(2, baseline="zero")]
    without = page(FlowGraph(given), rule="conserve")
    names = {name for _, name in numbers(without)}
    left_out = {"direct", "direct_total", "error.layer", "chain", "error.chain", "chain.heads"}
    left_out |= {"influence", "influence_sum"}
    assert names.isdisjoint(left_out)
    assert [rule["name"] for rule in header(without)["rules"]] == ["conserve", "product"]
    assert header(without)["layers"][0]["certified"] == ["attention", "mlp"]
    with pytest.raises(LigError, match=r"layer 0 has no 'chain' boundary.*use rule='conserve'"):
        page(FlowGraph(given))


def test_which_map_a_page_opens_with() -> None:
    given = graph(influence=True)
    assert header(page(given))["opening"] == "influence"
    assert header(page(graph()))["opening"] == "composed"
    assert header(page(given.prune(top_k=1)))["opening"] == "composed"  # these edges, asked for
    assert header(page(given.merge_tokens([0, 0, 1, 1, 2])))["opening"] == "composed"
    assert header(page(given, kind="direct"))["opening"] == "direct"
    with pytest.raises(LigError, match="kind='best' is unknown: use one of composed, direct"):
        page(given, kind="best")
    with pytest.raises(LigError, match=r"layer 2 of the graph does not hold it.*'influence'"):
        page(graph(), kind="influence")


def test_a_pruned_graph_keeps_its_sums() -> None:
    given = graph()
    pruned = given.prune(top_k=2)
    found = numbers(page(pruned))
    assert found[0, "attention"].count(0.0) > 0
    assert found[0, "attention_sum"] == given.layers[0].attention_sum.flatten().tolist()


def test_only_what_the_policy_names_may_run() -> None:
    elements = Elements(page(graph()))
    policy = next(
        has["content"] or ""
        for _, has, _ in elements.found
        if has.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["script-src"] == digest(elements.text("script", type="module"))
    assert rules["style-src"] == digest(elements.text("style"))
    assert rules["img-src"] == "data:"


def test_the_page_points_at_nothing_outside() -> None:
    for _, has, _ in Elements(page(graph())).found:
        assert "src" not in has
        assert "style" not in has
        assert not [name for name in has if name.startswith("on")]
        assert (has.get("href") or "#").startswith(("#", "data:"))
    script = Elements(page(graph())).text("script", type="module")
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import|eval|innerHTML)\b", script)


def test_hostile_text_stays_text() -> None:
    benign = FlowGraph(flows(1, len(ATTACK)), ["x"] * len(ATTACK))
    hostile = FlowGraph(flows(1, len(ATTACK)), ATTACK)
    expected = Elements(page(benign, "x")).found
    for title in [*ATTACK, "</title><script>hacked=1</script>", "<!-- <script>"]:
        found = Elements(page(hostile, title)).found
        assert [name for name, _, _ in found] == [name for name, _, _ in expected]
        page(hostile, title).encode("utf-8")
    said = header(page(hostile, ATTACK[0]))
    assert said["tokens"][0] == ATTACK[0]
    assert said["title"] == ATTACK[0]
    assert "\u202e" not in "".join(said["tokens"])  # written as an escape


def test_the_title_without_one_is_the_text() -> None:
    given = FlowGraph(flows(1, 3), ["[CLS]", "Ġthe", "▁cat"])
    assert Elements(page(given)).text("title") == "[CLS] the cat"


def test_write_page(tmp_path: Path) -> None:
    given = graph()
    path = given.to_html(tmp_path / "new" / "flow.html", "a title", "product")
    assert path.read_text(encoding="utf-8") == page(given, "a title", "product")
    for wrong in ("flow.htm", "flow", "flow.json"):
        with pytest.raises(LigError, match=r"does not end in \.html"):
            write_page(given, tmp_path / wrong)
    with pytest.raises(LigError, match="rule 'sum' is unknown"):
        write_page(given, tmp_path / "other" / "flow.html", rule="sum")
    assert not (tmp_path / "other").exists()


def test_the_same_graph_gives_the_same_page() -> None:
    assert page(graph()) == page(graph())


@pytest.mark.parametrize("names", [MODULES, QUESTION_MODULES], ids=["lengths", "question"])
def test_modules_come_after_what_they_import(names: list[str]) -> None:
    folder = files("captum_lig.views.page").joinpath("assets")
    seen: dict[str, set[str]] = {}
    for name in names:
        text = folder.joinpath(f"{name}.js").read_text(encoding="utf-8")
        form = r'^import \{([^}]*)\} from "\.\.?/(\w+)\.js";$'
        for imported, module in re.findall(form, text, re.M):
            assert {one.strip() for one in imported.split(",") if one.strip()} <= seen[module]
        assert len(re.findall(r"^import ", text, re.M)) == len(re.findall(form, text, re.M))
        exports = re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", text, re.M)
        assert len(exports) == len(re.findall(r"^export ", text, re.M))
        seen[name.rpartition("/")[2]] = set(exports)


def test_every_script_is_in_a_page() -> None:
    folder = files("captum_lig.views.page").joinpath("assets")
    there = {f"{e.name}" for e in folder.iterdir() if e.name.endswith(".js")}
    there |= {f"question/{e.name}" for e in folder.joinpath("question").iterdir()
              if e.name.endswith(".js")}  # fmt: skip
    assert there == {f"{name}.js" for name in {*MODULES, *QUESTION_MODULES}}


# --- its size -------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [None, 3])
def test_the_size_is_known_before_the_page_is_made(top_k: int | None) -> None:
    given = graph(layers=4, tokens=16, heads=6)
    given = given if top_k is None else given.prune(top_k=top_k)
    numbers_of = Elements(page(given)).text("script", id="page-numbers")
    assert packed_size(given) == pytest.approx(len(numbers_of), rel=0.4)


def test_a_page_that_no_browser_opens_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = graph()
    monkeypatch.setattr("captum_lig.views.page.write.MOST", packed_size(given) - 1)
    monkeypatch.setattr("captum_lig.views.page.write.page", None)
    with pytest.raises(LigError, match=r"a browser opens no page.*prune the graph first"):
        given.to_html(tmp_path / "flow.html")


def test_a_large_page_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = graph()
    monkeypatch.setattr("captum_lig.io.codec.LARGE", packed_size(given) - 1)
    with pytest.warns(UserWarning, match="prune the graph first"):
        given.to_html(tmp_path / "flow.html")
