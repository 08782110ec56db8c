"""Circuits of edges against small models written out, with a loop over readers and writers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import LayerFlowIG, LigError, circuits, patching
from captum_lig.graph import Edge
from tests.helpers import models
from tests.helpers.circuit_twin import Twin, circuit, number, plain, run
from tests.helpers.families import FAMILIES
from tests.helpers.state import Unchanged

INPUTS = torch.tensor([[11, 45, 23, 8]])
OTHER = torch.tensor([[11, 7, 23, 31]])
LENGTH, LAYERS = 4, 3
KINDS = ("gpt2", "llama")


@pytest.fixture(scope="module", params=KINDS)
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


def test_the_twin_is_the_model(twin: Twin) -> None:
    with torch.no_grad():
        for ids in (INPUTS, OTHER):
            theirs = float(number(twin.model(ids)))
            assert float(run(twin, twin.embedded(ids), plain)[1]) == pytest.approx(
                theirs, rel=1e-10
            )


# --- circuits -----------------------------------------------------------------------------------


def drawn(count: int, shares: list[float]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(len(shares), count, generator=generator) < torch.tensor(shares)[:, None]


@pytest.mark.parametrize("by_position", [False, True])
def test_circuits_are_those_of_the_definition(twin: Twin, by_position: bool) -> None:
    inputs = {"input_ids": INPUTS}
    with (
        Unchanged(twin.model, inputs),
        circuits.of_edges(
            twin.model, inputs, OTHER, number, by_position=by_position, internal_batch_size=2
        ) as found,
    ):
        kept = drawn(found.count, [0.2, 0.5, 0.9])
        values = found.values(kept)
    for row, value in zip(kept, values.tolist(), strict=True):
        edges = iter(row.tolist())
        table = {
            (found.writers[w], found.readers[r], i): here
            for w, r in found.reads.nonzero().tolist()
            for here_ in [[next(edges) for _ in range(LENGTH if by_position else 1)]]
            for i, here in enumerate(here_ if by_position else here_ * LENGTH)
        }
        theirs = circuit(twin, INPUTS, OTHER, lambda w, r, i, table=table: table[w, r, i])  # type: ignore[misc]
        # Llama's own attention takes its softmax in float32; the counterfactual run is its own.
        assert value == pytest.approx(theirs, rel=1e-9 if twin.kind == "gpt2" else 2e-7)
    assert len({round(x, 6) for x in values.tolist()}) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_all_is_the_text_and_nothing_the_counterfactual(kind: str, dtype: torch.dtype) -> None:
    model = models.MODELS[kind](layers=LAYERS, dtype=dtype)
    model.set_attn_implementation("eager")  # fused attention rounds otherwise
    with torch.no_grad():
        clean, other = (float(number(model(ids))) for ids in (INPUTS, OTHER))
    within = (1e-6 if dtype == torch.float64 else 1e-4) * abs(clean - other)
    with circuits.of_edges(model, INPUTS, OTHER, number) as found:
        ends = torch.tensor([[True], [False]]).expand(-1, found.count)
        whole, none = found.values(ends).tolist()
        curve = found.curve(torch.rand(found.reads.shape), shares=[0.0, 0.3, 1.0])
    assert whole == pytest.approx(clean, abs=within)
    assert none == pytest.approx(other, abs=within)
    assert curve.faithfulness[[0, 2]].tolist() == [0, 1]
    assert curve.kept == (0, round(0.3 * found.count), found.count)


CUT = ("gpt_neox", "gpt_neo", "gpt2")  # parallel; heads that do not open; sequential


@pytest.mark.parametrize("name", CUT)
def test_all_but_one_edge_is_path_patching(name: str) -> None:
    model = next(one for one in FAMILIES if one.name == name).build()
    with circuits.of_edges(model, INPUTS, OTHER, number, by_position=True) as found:
        pairs = found.reads.nonzero().tolist()
        kinds = {found.readers[r].kind: n for n, (_, r) in enumerate(pairs)}  # the last of each
        expected = {"head"} if name == "gpt_neo" else {"query", "key", "value"}
        assert kinds.keys() == {*expected, "feed_forward", "output"}
        numbers, kept = [], torch.ones(len(kinds), found.count, dtype=torch.bool)
        for row, pair in enumerate(kinds.values()):
            numbers.append(pair * LENGTH + 3)
            kept[row, numbers[-1]] = False
        values = found.values(kept)
        edges = [
            Edge(found.writers[w], found.readers[r], 3)
            for w, r in (pairs[n] for n in kinds.values())
        ]
    effects = patching.edge_effects(model, INPUTS, OTHER, number, edges)
    # Some layers of these models compute in float32.
    torch.testing.assert_close(values, effects.value - effects.out, rtol=1e-5, atol=1e-6)
    assert bool((effects.out.abs() > 1e-4).any())


def test_edges_of_the_library_are_ranked_as_they_are() -> None:
    model = models.tiny_llama(layers=2)
    edges = LayerFlowIG(model).direct_edges(INPUTS, OTHER, number)
    for by_position in (False, True):
        with circuits.of_edges(model, INPUTS, OTHER, number, by_position=by_position) as found:
            assert (found.writers, found.readers) == (edges.writers, edges.readers)
            assert torch.equal(found.reads, edges.reads)
            scores = found.scores(edges, "sum")
            best = edges if by_position else edges.summed()
            first = int(scores.abs().argmax())
            assert float(scores[first]) == float(best.value[0])
            edge = next(iter(best))
            pair = first // LENGTH if by_position else first
            w, r = found.reads.nonzero()[pair].tolist()
            assert (found.writers[w], found.readers[r]) == (edge.writer, edge.reader)
            assert edge.position == (first % LENGTH if by_position else None)
            assert found.curve(edges, shares=[0.1, 1.0]).count == found.count == len(scores)


def test_size_over_tokens_does_not_cancel() -> None:
    model = models.tiny_llama(layers=1)
    edges = LayerFlowIG(model).direct_edges(INPUTS, OTHER, number)
    with circuits.of_edges(model, INPUTS, OTHER, number) as found:
        sizes = found.scores(edges)
        squares = torch.zeros(found.reads.shape, dtype=torch.float64)
        for w, r, value in zip(edges.writer, edges.reader, edges.value, strict=True):
            squares[w, r] += value**2
        torch.testing.assert_close(sizes, squares[found.reads].sqrt())
        sums = found.scores(edges, "sum")
        assert not torch.allclose(sizes, sums.abs())
        for order, scores in (("size", sizes), ("signed", sums)):
            one, other = (found.curve(x, shares=[0.3, 1.0], order=order) for x in (edges, scores))  # type: ignore[arg-type]
            assert torch.equal(one.values, other.values)
        curve = found.curve(sizes, shares=[0.2, 1.0])
        assert curve.kept == found.curve(squares, shares=[0.2, 1.0]).kept
        with pytest.raises(LigError, match="over_tokens='mean'"):
            found.scores(edges, "mean")  # type: ignore[arg-type]


def test_padding_is_left_as_it_is() -> None:
    """A text with padding before it gives what it gives without."""
    model = models.tiny_gpt2(layers=LAYERS)
    padding = torch.zeros(1, 2, dtype=torch.long)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    place = {"attention_mask": mask, "position_ids": torch.tensor([[0, 0, 0, 1, 2, 3]])}

    def last(output: Any) -> Tensor:
        return number((output[0][:, -LENGTH:],))

    def padded(ids: Tensor) -> dict[str, Tensor]:
        return {"input_ids": torch.cat([padding, ids], 1), **place}

    with circuits.of_edges(model, INPUTS, OTHER, number) as found:
        kept = drawn(found.count, [0.3, 0.8])
        values = found.values(kept)
    with circuits.of_edges(model, padded(INPUTS), padded(OTHER), last) as found:
        torch.testing.assert_close(found.values(kept), values)


# --- what is refused ----------------------------------------------------------------------------


def refusals() -> Iterator[tuple[str, Callable[[circuits.EdgeCircuits], object]]]:
    yield r"kept has the shape \(1, 3\): give \(C, ", lambda c: c.values(torch.ones(3).bool())
    yield r"give \(W, R\) = ", lambda c: c.curve(torch.ones(2, 3))
    yield r"scores have the shape \(5,\)", lambda c: c.curve(torch.ones(5))
    yield "order='best'", lambda c: c.curve(torch.ones(c.reads.shape), order="best")  # type: ignore[arg-type]
    yield r"shares=\[2\]", lambda c: c.curve(torch.ones(c.reads.shape), shares=[2])


def test_what_does_not_fit_is_refused() -> None:
    model = models.tiny_gpt2(layers=1)
    with circuits.of_edges(model, INPUTS, OTHER, number) as found:
        for message, ask in refusals():
            with pytest.raises(LigError, match=message):
                ask(found)
        edges = LayerFlowIG(models.tiny_llama(layers=1)).direct_edges(INPUTS, OTHER, number)
        with pytest.raises(LigError, match="give edges of this model"):
            found.curve(edges)
    with (
        pytest.raises(LigError, match="no direct edges through it"),
        circuits.of_edges(models.tiny_bert(), INPUTS, OTHER, number),
    ):
        pass


@pytest.mark.parametrize("by_position", [False, True])
def test_edges_of_another_text_are_refused(by_position: bool) -> None:
    model = models.tiny_gpt2(layers=1)
    given = {"longer": (INPUTS, OTHER), "shorter": (INPUTS[:, :-1], OTHER[:, :-1])}
    edges = {name: LayerFlowIG(model).direct_edges(*texts, number) for name, texts in given.items()}
    for name, other in (("longer", "shorter"), ("shorter", "longer")):
        with circuits.of_edges(model, *given[name], number, by_position=by_position) as found:
            found.scores(edges[name])
            for order in ("size", "signed"):
                with pytest.raises(LigError, match="give both the same text, baseline and target"):
                    found.curve(edges[other], order=order)  # type: ignore[arg-type]


def test_sums_are_no_edges_by_position() -> None:
    model = models.tiny_gpt2(layers=1)
    edges = LayerFlowIG(model).direct_edges(INPUTS, OTHER, number)
    with (
        circuits.of_edges(model, INPUTS, OTHER, number, by_position=True) as found,
        pytest.raises(LigError, match="before summed"),
    ):
        found.curve(edges.summed())


def test_a_number_lost_in_rounding_is_refused() -> None:
    """Of a number whose change is as large as its rounding nothing can be said."""
    model = models.tiny_gpt2(layers=1, dtype=torch.float32)

    def rounded(output: Any) -> Tensor:
        hidden: Tensor = output[0]
        return torch.sin(1e7 * hidden[:, -1, 0])

    with (
        circuits.of_edges(model, INPUTS, OTHER, rounded) as found,
        pytest.raises(LigError, match="kept rounded"),
    ):
        found.curve(torch.ones(found.reads.shape))
