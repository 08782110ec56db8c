"""Direct edges from writers to readers of the residual stream, against the literal twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.graph.direct_edges import DirectEdges, Edge, Reader, Writer
from captum_lig.io.direct_edges import load_direct_edges
from captum_lig.prediction import state
from tests.helpers import direct_twin, models, relevance_models
from tests.helpers.families import FAMILIES
from tests.helpers.relevance_models import LENGTH, RECIPES
from tests.helpers.state import Unchanged

Number = Callable[[Any], Tensor]
SUMS = ("sequential", "parallel", "llama", "soft experts", "no MLP", "vision", "between")
EXACT: dict[str, Any] = {"n_steps": 32, "tolerance": 1e-8, "keep": 10**6}
INPUTS = torch.tensor([[11, 45, 23, 8]])
BASELINES = torch.tensor([[11, 7, 23, 31]])


def difference(output: Tensor) -> Tensor:
    last = output if output.dim() == 2 else output[:, -1]
    return last[:, 2] - last[:, 0]


def log_probability(output: Tensor) -> Tensor:
    last = output if output.dim() == 2 else output[:, -2]
    return last.log_softmax(-1)[:, 1]


def number(output: Any) -> Tensor:
    """Of any model's first tensor."""
    values = [output] if isinstance(output, Tensor) else list(output.values())
    flat = next(x for x in values if x.is_floating_point()).flatten(1)
    return torch.tanh(flat @ torch.linspace(-1, 2, flat.shape[1]).to(flat) / 5)


def by_pair(edges: DirectEdges, length: int) -> dict[Any, Tensor]:
    """`(S,)` by writer and reader, from the edges that are kept."""
    found = {
        (tuple(vars(edges.writers[w]).values()), tuple(vars(edges.readers[r]).values())): (
            torch.zeros(length, dtype=torch.float64)
        )
        for w, r in edges.reads.nonzero().tolist()
    }
    for edge, value in zip(edges, edges.value.tolist(), strict=True):
        pair = tuple(vars(edge.writer).values()), tuple(vars(edge.reader).values())
        assert edge.position is not None
        found[pair][edge.position] = value
    return found


def assert_same(edges: DirectEdges, expected: dict[Any, Tensor], length: int) -> None:
    found = by_pair(edges, length)
    assert found.keys() == expected.keys()
    size = sum(float(x.abs().sum()) for x in expected.values())
    for pair, values in expected.items():
        assert float((found[pair] - values).abs().max()) < 1e-6 * size, pair
    moved = sum(float(values.abs().max()) > 1e-6 * size for values in expected.values())
    assert moved > 0.9 * len(expected)


def assert_conserved(edges: DirectEdges, share: float = 1e-3) -> None:
    """To a share of the change; of the tokens' sizes, where these cancel to less than a tenth."""
    out = edges.out_of(Writer("embedding"))
    tokens = torch.zeros(int(out.position.max()) + 1, dtype=torch.float64)
    size = float(tokens.index_add_(0, out.position, out.value).abs().sum())
    scale = size if abs(edges.change) < size / 10 else abs(edges.change)
    assert edges.into_target == pytest.approx(edges.change, abs=share * scale)
    assert edges.out_of_embedding == pytest.approx(edges.change, abs=share * scale)


# ---- the twin --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMS)
def test_every_edge_as_the_twin_has_it(name: str) -> None:
    """Grouped keys ("llama"), parallel blocks, no MLP, a block that does not attend, experts."""
    model = relevance_models.make(RECIPES[name])
    inputs, baselines = relevance_models.make_inputs(RECIPES[name])
    target = log_probability if name in ("llama", "vision") else difference
    edges = LayerFlowIG(model).direct_edges(inputs, baselines, target, **EXACT)
    expected = direct_twin.direct_edges(model, target, inputs[0], baselines[0])
    assert_same(edges, expected, LENGTH)
    assert_conserved(edges, 1e-6)
    change = float(target(model(inputs)) - target(model(baselines)))
    assert edges.change == pytest.approx(change, rel=1e-9)


def test_a_text_of_a_batch_with_padding() -> None:
    recipe = RECIPES["llama"]
    model = relevance_models.make(recipe)
    inputs, baselines = relevance_models.make_inputs(recipe, texts=2)
    mask = torch.ones_like(inputs)
    mask[1, LENGTH - 1] = 0

    def read(output: Tensor) -> Tensor:
        return output[:, LENGTH - 2, 3]

    edges = LayerFlowIG(model).direct_edges(inputs, baselines, read, mask, text=1, **EXACT)
    short = inputs[1, : LENGTH - 1], baselines[1, : LENGTH - 1]
    assert_same(edges, direct_twin.direct_edges(model, read, *short), LENGTH - 1)
    with pytest.raises(LigError, match="inputs hold 2 texts: say which one is meant"):
        LayerFlowIG(model).direct_edges(inputs, baselines, read, mask)
    with pytest.raises(LigError, match="text=2: inputs hold 2 texts"):
        LayerFlowIG(model).direct_edges(inputs, baselines, read, mask, text=2)


# ---- what they add up to ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_edges_add_up_to_relevances(kind: str) -> None:
    """Out of a writer to its relevance in the flows, at every token; all that goes into a layer."""
    model = models.MODELS[kind](layers=3)
    lig = LayerFlowIG(model)
    with Unchanged(model, {"input_ids": INPUTS}):
        edges = lig.direct_edges(INPUTS, BASELINES, number, **EXACT)
    flows = lig.attribute(INPUTS, BASELINES, number, n_steps=32, tolerance=1e-6)
    assert isinstance(flows, list)
    pairs = by_pair(edges, 4)
    size = max(float(flow.need("mlp_total").abs().sum()) for flow in flows)
    for writer in edges.writers:
        out = sum(x for (w, _), x in pairs.items() if w == tuple(vars(writer).values()))
        expected = relevance_of(flows, writer)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6 * size)
    for reader in edges.readers:
        into = sum(x for (_, r), x in pairs.items() if r == tuple(vars(reader).values()))
        if reader.kind == "feed_forward":
            assert reader.layer is not None
            expected = flows[reader.layer].need("feed_forward")[0]
            torch.testing.assert_close(into, expected, rtol=0, atol=1e-6 * size)
    for layer, flow in enumerate(flows):
        into_heads = sum(
            float(edges.sums[:, n].sum())
            for n, r in enumerate(edges.readers)
            if r.layer == layer and r.kind in ("query", "key", "value")
        )
        assert into_heads == pytest.approx(float(flow.need("mlp").sum()), abs=1e-6 * size)


def relevance_of(flows: list[LayerFlow], writer: Writer) -> Tensor:
    if writer.kind == "embedding":
        return flows[0].need("entering")[0]
    assert writer.layer is not None
    flow = flows[writer.layer]
    if writer.kind == "feed_forward":
        return flow.need("feed_forward")[0]
    return flow.need("mlp")[0, :, writer.head]


@pytest.mark.parametrize(
    "name", ["falcon", "mixtral", "gpt_oss", "granite", "dinov2", "bloom", "modernbert"]
)
def test_families(name: str) -> None:
    """Parallel blocks, experts, sinks, scaled residuals, layer scales, hidden queries."""
    family = next(one for one in FAMILIES if one.name == name)
    model = family.build()
    inputs = family.inputs(model)
    baselines = {
        key: x / 2 if x.is_floating_point() else (x + torch.tensor([0, 5, 0, 2])) % 49
        for key, x in inputs.items()
    }
    edges = LayerFlowIG(model).direct_edges(inputs, baselines, number)
    assert_conserved(edges)
    parts = {reader.kind for reader in edges.readers} - {"output", "feed_forward"}
    assert parts == ({"head"} if name == "bloom" else {"query", "key", "value"})


def test_a_state_is_a_target() -> None:
    model = models.tiny_llama(layers=2)
    edges = LayerFlowIG(model).direct_edges(INPUTS, BASELINES, state(-1))
    assert_conserved(edges)
    assert edges.into(Reader("output")).position.unique().tolist() == [3]


def test_sums_that_miss_are_told_of() -> None:
    model = models.tiny_llama(layers=2)
    rough: dict[str, Any] = {"n_steps": 1, "tolerance": 1e-6, "max_steps": 1}
    with pytest.warns(UserWarning, match="changes by") as told:
        LayerFlowIG(model).direct_edges(INPUTS, BASELINES, number, **rough)
    said = [str(one.message) for one in told]
    assert any("changes by" in x and "the edges into it add up to" in x for x in said)
    assert any("changes by" in x and "those out of the embedding add up to" in x for x in said)


# ---- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["post-norm", "gemma 2", "gate", "gate, parallel"])
def test_streams_that_are_no_sum_are_refused(name: str) -> None:
    model = relevance_models.make(RECIPES[name])
    inputs, baselines = relevance_models.make_inputs(RECIPES[name])
    with pytest.raises(LigError, match=r"does not add up to what changes .* \(off by .*pre-norm"):
        LayerFlowIG(model).direct_edges(inputs, baselines, difference)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bert", "does not add up"),
        ("gemma2", "does not add up"),
        ("olmo2", "does not add up"),
        ("mamba", "mixes tokens by other means than heads"),
        ("t5", "also reads the states of an encoder"),
    ],
)
def test_families_that_are_refused(name: str, says: str) -> None:
    family = next(one for one in FAMILIES if one.name == name)
    model = family.build()
    with pytest.raises(LigError, match=f"has no direct edges through it: .*{says}"):
        LayerFlowIG(model).direct_edges(family.inputs(model), None, number)


def test_what_cannot_be_asked() -> None:
    model = models.tiny_gpt2()
    lig = LayerFlowIG(model)
    with pytest.raises(LigError, match="keep=0: give a whole number"):
        lig.direct_edges(INPUTS, BASELINES, number, keep=0)
    with pytest.raises(LigError, match="needs a target"):
        lig.direct_edges(INPUTS, BASELINES)
    with pytest.raises(LigError, match=r"are written to \.safetensors files"):
        lig.direct_edges(INPUTS, BASELINES, number, file="edges.json")
    with pytest.raises(LigError, match="layer=1: direct edges go through all layers"):
        LayerFlowIG(model, layer=1).direct_edges(INPUTS, BASELINES, number)


# ---- kept, and in files ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[DirectEdges, Path]:
    path = tmp_path_factory.mktemp("edges") / "new" / "all.safetensors"
    model = models.tiny_llama(layers=3)
    edges = LayerFlowIG(model).direct_edges(INPUTS, BASELINES, number, file=path)
    assert len(edges) == int((edges.value != 0).sum()) < edges.count
    return edges, path


@pytest.mark.parametrize("keep", [1, 7, 200])
def test_the_strongest_are_kept(everything: tuple[DirectEdges, Path], keep: int) -> None:
    edges, path = everything
    model = models.tiny_llama(layers=3)
    for some in (
        LayerFlowIG(model).direct_edges(INPUTS, BASELINES, number, keep=keep),
        edges.strongest(keep),
    ):
        torch.testing.assert_close(some.value, edges.value[:keep], rtol=0, atol=0)
        assert list(some) == list(edges)[:keep]
        torch.testing.assert_close(some.sums, edges.sums, rtol=0, atol=0)
        assert (some.count, some.size) == (edges.count, edges.size)
    read = load_direct_edges(path, keep)
    torch.testing.assert_close(read.value, edges.value[:keep], rtol=1e-6, atol=0)
    assert next(iter(read)) == next(iter(edges))


def test_a_file_holds_all(everything: tuple[DirectEdges, Path]) -> None:
    edges, path = everything
    read = load_direct_edges(path)
    assert len(read) == len(edges)
    assert (read.writers, read.readers) == (edges.writers, edges.readers)
    assert (read.change, read.target, read.labels) == (edges.change, edges.target, edges.labels)
    assert torch.equal(read.reads, edges.reads)
    torch.testing.assert_close(read.sums, edges.sums, rtol=1e-6, atol=1e-9)
    ours, theirs = by_pair(read, 4), by_pair(edges, 4)
    for pair, values in theirs.items():
        torch.testing.assert_close(ours[pair], values, rtol=1e-6, atol=1e-12)


def test_a_damaged_file(everything: tuple[DirectEdges, Path], tmp_path: Path) -> None:
    whole = everything[1].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[:-10])
    with pytest.raises(LigError, match="is damaged"):
        load_direct_edges(path)
    path.write_bytes(whole.replace(b"captum_lig.direct_edges", b"captum_lig.other_things"))
    with pytest.raises(LigError, match=r"holds 'captum_lig\.other_things'"):
        load_direct_edges(path)


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    def breaks(output: Any) -> Tensor:
        if output[0].requires_grad:
            raise RuntimeError("here")
        return number(output)

    with pytest.raises(RuntimeError, match="here"):
        LayerFlowIG(models.tiny_gpt2()).direct_edges(
            INPUTS, BASELINES, breaks, file=tmp_path / "edges.safetensors"
        )
    assert list(tmp_path.iterdir()) == []


# ---- asking them -----------------------------------------------------------------------------


def test_some_of_them(everything: tuple[DirectEdges, Path]) -> None:
    edges, _ = everything
    reader, writer = Reader("value", 2, 1), Writer("heads", 1, 3)
    into, out = edges.into(reader), edges.out_of(writer)
    assert {edge.reader for edge in into} == {reader}
    assert {edge.writer for edge in out} == {writer}
    column, row = edges.readers.index(reader), edges.writers.index(writer)
    assert float(into.value.sum()) == pytest.approx(float(edges.sums[:, column].sum()), abs=1e-12)
    assert float(out.value.sum()) == pytest.approx(float(edges.sums[row].sum()), abs=1e-12)
    both = edges.into(reader).out_of(writer)
    assert float(both.value.sum()) == pytest.approx(float(edges.sums[row, column]), abs=1e-12)
    summed = edges.summed()
    assert len(summed) == summed.count == int(edges.reads.sum())
    assert all(edge.position is None for edge in summed)
    assert summed.into_target == edges.into_target
    assert bool((summed.value.abs().diff() <= 0).all())
    with pytest.raises(LigError, match="there is no reader"):
        edges.into(Reader("query", 9, 0))
    with pytest.raises(LigError, match="there is no writer"):
        edges.out_of(Writer("heads", 0, 9))


class Words:
    """As much of a tokenizer as names tokens."""

    def decode(self, ids: list[int]) -> str:
        return f" w{ids[0]}"


def test_tokens_by_name() -> None:
    padded, other = (torch.cat([torch.tensor([[0]]), x], 1) for x in (INPUTS, BASELINES))
    inputs = {"input_ids": padded, "attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}
    baselines = {**inputs, "input_ids": other}
    words: Any = Words()

    def last(output: Any) -> Tensor:
        return number(output[0][:, -1])

    model = models.tiny_llama(layers=2)
    edges = LayerFlowIG(model).direct_edges(inputs, baselines, last, tokenizer=words)
    assert edges.labels == (" w11", " w45", " w23", " w8")
    edge = next(iter(edges))
    assert edge.position is not None
    name = edges.labels[edge.position]
    assert edges.words(1) == [f"{edge.writer} -> {edge.reader} at {name!r} ({edge.position})"]


def test_in_words(everything: tuple[DirectEdges, Path]) -> None:
    edges, _ = everything
    assert str(Edge(Writer("heads", 12, 3), Reader("query", 20, 1), 5)) == "a12.h3 -> a20.h1.q at 5"
    assert str(Edge(Writer("embedding"), Reader("feed_forward", 0))) == "embedding -> m0"
    assert str(Edge(Writer("feed_forward", 4), Reader("output"))) == "m4 -> output"
    assert str(Edge(Writer("feed_forward", 4), Reader("head", 5, 0))) == "m4 -> a5.h0"
    first, row = next(iter(edges)), edges.rows()[0]
    assert row["writer_kind"] == first.writer.kind
    assert row["reader_layer"] == first.reader.layer
    assert row["position"] == first.position
    assert row["value"] == float(edges.value[0])
    assert row["words"] == edges.words(1)[0] == str(first)
    shown = str(edges)
    assert f"{len(edges)} of {edges.count:,} edges, 100.0% of their size" in shown
    assert edges.words(10)[9] in shown
