"""Composed against direct maps: measures, pairings and rankings against literal twins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.experiments.consistency import (
    measure_text,
    pool,
    uniform_map,
)
from captum_lig.experiments.consistency.pairings import (
    ATTENTION_BASELINES,
    LAYER_BASELINES,
    PAIRINGS,
    LayerMaps,
    Pairing,
    layer_maps,
)
from captum_lig.flow.layer_flow import MLP_STARTS
from tests.helpers import models, twin_blocks, twins
from tests.helpers import records as made
from tests.helpers.attributions import block_input
from tests.helpers.correlations import mean_ranks, pearson
from tests.helpers.synthetic import number

# ---- controls --------------------------------------------------------------------------------


def test_the_uniform_map_by_hand() -> None:
    visible = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    found = uniform_map(number([4, 3, 6]), visible)
    assert found.tolist() == [[4, 0, 0], [1.5, 1.5, 0], [2, 2, 2]]


# ---- words -----------------------------------------------------------------------------------


def test_maps_between_words_by_hand() -> None:
    pairing = Pairing("zero", "zero", "chain")
    maps = LayerMaps(
        index=3,
        visible=torch.ones(3, 3).tril().bool(),
        direct={"zero": number([[1, 2, 3], [4, 5, 6], [7, 8, 9]])},
        composed={pairing: number([[1, 0, 0], [0, 1, 0], [0, 0, -1]])},
        direct_unconverged={"zero": torch.tensor([False, False, True])},
        composed_unconverged={pairing: torch.tensor([False, True, True])},
    )
    merged = maps.merged(torch.tensor([0, 1, 1]))
    assert merged.index == 3
    assert merged.visible.tolist() == [[True, False], [True, True]]
    assert merged.direct["zero"].tolist() == [[1, 5], [11, 28]]
    assert merged.composed[pairing].tolist() == [[1, 0], [0, 0]]
    assert merged.direct_unconverged["zero"].tolist() == [False, True]
    assert merged.composed_unconverged[pairing].tolist() == [False, True]
    apart = maps.merged(torch.tensor([0, 1, 0]))  # a word of two places
    assert apart.direct["zero"].tolist() == [[20, 10], [10, 5]]


# ---- pairings against the twins --------------------------------------------------------------

NODES = twins.gauss_legendre(32, power=2)
PATHS = ("zero", "target_token")


def flows_of(model: PreTrainedModel, inputs: Any, **kwargs: Any) -> dict[str, list[LayerFlow]]:
    flows: dict[str, list[LayerFlow]] = {}
    for baseline in PATHS:
        flows[baseline] = []
        for start in MLP_STARTS:
            flow = LayerFlowIG(model, 1).attribute(
                inputs, baseline, mlp_start=start, **{"n_steps": 32, "tolerance": 1e-7, **kwargs}
            )
            assert isinstance(flow, LayerFlow)
            flows[baseline].append(flow)
    return flows


def with_self_terms(c: Tensor, ratio: Tensor) -> Tensor:
    """c (..., T, S) and ratios (..., T), by the published rule."""
    filled = c.clone()
    for place in np.ndindex(*c.shape[:-1]):
        filled[place] = number(
            twins.with_self_term(c[place].tolist(), place[-1], float(ratio[place].detach()))
        )
    return filled


def own_ratio(zero: Tensor) -> Tensor:
    own = zero.diagonal(dim1=-2, dim2=-1)
    return own / (zero.sum(-1) - own)


def twin_maps(model: PreTrainedModel, z: Tensor) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    """Direct maps by layer baseline and composed maps by pairing, from the definitions."""
    block = twin_blocks.twin_block(model, 1, torch.ones(len(z)))
    args = {baseline: (block, z, baseline, "l2", *NODES) for baseline in PATHS}
    layer = {baseline: twins.layer_map(*args[baseline])[0] for baseline in PATHS}
    direct = {
        **layer,
        "target_token+zero_ratio": with_self_terms(layer["target_token"], own_ratio(layer["zero"])),
    }
    attention = {baseline: twins.attention_map(*args[baseline]) for baseline in PATHS}
    q, k, _ = block.pre(z)
    p = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + block.mask).softmax(-1)
    p_own = p.diagonal(dim1=-2, dim2=-1)
    from_zero = twins.mlp_map_from_zero(block, z, "l2", *NODES)
    composed = {}
    for start in MLP_STARTS:
        chains, mlps = {}, {}
        for baseline in PATHS:
            if start == "attention":
                mlps[baseline] = twins.mlp_map(*args[baseline])[:2]
                chains[baseline] = twins.chain_map(*args[baseline])
            else:
                mlps[baseline] = from_zero[0], torch.zeros(len(z), dtype=z.dtype)
                chains[baseline] = twins.chain_map_with(block, z, baseline, from_zero[2], *NODES)[0]
        for name in ATTENTION_BASELINES:
            baseline, _, estimate = name.partition("+")
            (c, totals), chained = attention[baseline], chains[baseline]
            if estimate == "map_ratio":
                c, chained = (with_self_terms(x, p_own / (1 - p_own)) for x in (c, chained))
            elif estimate:
                c = with_self_terms(c, own_ratio(attention["zero"][0]))
                chained = with_self_terms(chained, own_ratio(chains["zero"]))
            m, r = mlps[baseline]
            composed[Pairing(name, start, "conserve")] = twins.conserve(c, totals, m, r)
            composed[Pairing(name, start, "product")] = twins.product(c, m)
            composed[Pairing(name, start, "chain")] = twins.chain(chained, r)
    return direct, composed


def test_every_pairing_equals_the_twin() -> None:
    model = models.tiny_bert()
    ids = models.tokens(model, 1, 4)
    flows = flows_of(model, ids)
    maps = layer_maps(flows["zero"], flows["target_token"])
    z = block_input(model, 1, input_ids=ids)[0]
    direct, composed = twin_maps(model, z)
    assert maps.direct.keys() == direct.keys() == set(LAYER_BASELINES)
    assert maps.composed.keys() == composed.keys() == set(PAIRINGS)
    assert len(PAIRINGS) == 4 * 2 * 3
    for ours, right in ((maps.direct, direct), (maps.composed, composed)):
        for key, found in ours.items():
            size = right[key].abs().sum(-1, keepdim=True)
            assert float(((found - right[key]).abs() / size).max()) < 1e-8, key
    # They are twenty-seven different maps.
    every = torch.stack([*maps.direct.values(), *maps.composed.values()])
    apart = (every[:, None] - every).abs().amax((-1, -2))
    assert float(apart[~torch.eye(len(every), dtype=torch.bool)].min()) > 1e-3


def literal_records(maps: LayerMaps, words: list[int] | None = None) -> dict[Any, Any]:
    """Means over targets by layer baseline and pairing, from the definitions, in plain loops."""
    visible = maps.visible.tolist()
    count = len(visible)
    group = words if words is not None else list(range(count))
    size = max(group) + 1

    def summed(m: Tensor) -> list[list[float]]:
        out = [[0.0] * size for _ in range(size)]
        for j in range(count):
            for i in range(count):
                out[group[j]][group[i]] += float(m[j, i])
        return out

    seen = [[False] * size for _ in range(size)]
    for j in range(count):
        for i in range(count):
            seen[group[j]][group[i]] |= visible[j][i]
    found = {}
    for baseline, direct_map in maps.direct.items():
        direct = summed(direct_map)
        candidates: dict[Any, Any] = {p: summed(m) for p, m in maps.composed.items()}
        candidates["all_zero"] = [[0.0] * size] * size
        candidates["uniform"] = [
            [sum(row) / sum(see) if s else 0.0 for s in see]
            for row, see in zip(direct, seen, strict=True)
        ]
        for key, composed in candidates.items():
            l2 = [math.dist(x, y) for x, y in zip(direct, composed, strict=True)]
            rows = [
                ([x[i] for i in range(size) if see[i]], [y[i] for i in range(size) if see[i]])
                for x, y, see in zip(direct, composed, seen, strict=True)
            ]
            found[baseline, key] = {
                "l2": l2,
                "relative_l2": [
                    d / math.hypot(*x) if any(x) else math.nan
                    for d, x in zip(l2, direct, strict=True)
                ],
                "pearson": [pearson(x, y) for x, y in rows],
                "spearman": [pearson(mean_ranks(x), mean_ranks(y)) for x, y in rows],
            }
    return found


@pytest.mark.parametrize("words", [None, [0, 0, 1, 2, 2]])
@pytest.mark.parametrize("family", models.MODELS)
def test_records_are_the_means_of_rows(family: str, words: list[int] | None) -> None:
    model = models.MODELS[family]()
    ids = models.tokens(model, 1, 5)
    kinds: dict[str, Any] = {"n_steps": 8, "tolerance": 1e-3}
    records = measure_text(LayerFlowIG(model, 1), ids, words, **kinds)
    flows = flows_of(model, ids, **kinds)
    maps = layer_maps(flows["zero"], flows["target_token"])
    causal = family in models.CAUSAL
    everything = torch.ones(5, 5, dtype=torch.bool)
    assert torch.equal(maps.visible, everything.tril() if causal else everything)
    expected = literal_records(maps, words)
    assert len(records) == len(expected) == 3 * (24 + 2)
    for record in records:
        key: Any = Pairing(record.attention_baseline, record.mlp_start, record.rule)
        if record.attention_baseline is None:
            key = record.rule
            assert record.correlation_rows == 0
        measures = expected[record.layer_baseline, key]
        assert record.layer == 1
        assert record.rows == (5 if words is None else 3)
        assert record.unconverged_rows == 0
        for name, values in measures.items():
            there = [x for x in values if not math.isnan(x)]
            mean, std = getattr(record, f"{name}_mean"), getattr(record, f"{name}_std")
            # Zero rows (a causal model's first) and rows of one source have no correlation.
            if name == "pearson" and record.attention_baseline is not None:
                assert record.correlation_rows == len(there)
            if name == "relative_l2":
                assert record.relative_rows == len(there)
            if not there or (key == "uniform" and name in ("pearson", "spearman")):
                continue
            assert mean == pytest.approx(float(np.mean(there)), rel=1e-5, abs=1e-7)
            assert std == pytest.approx(float(np.std(there)), rel=1e-4, abs=1e-6)


def test_controls_have_no_correlation_and_the_zero_map_is_as_far_as_the_row_is_long() -> None:
    model = models.tiny_gpt2()
    records = measure_text(LayerFlowIG(model), models.tokens(model, 1, 4), n_steps=4)
    assert {record.layer for record in records} == {0, 1}
    for record in records:
        if record.rule == "all_zero":
            assert record.relative_l2_mean == pytest.approx(1)
            assert record.pearson_mean is record.spearman_std is None
            # A causal model's first token does not move on its target-token path.
            assert record.relative_rows == (4 if record.layer_baseline == "zero" else 3)


def test_padding_is_left_out() -> None:
    model = models.tiny_bert()
    ids = models.tokens(model, 1, 4)
    padded = torch.cat([torch.full((1, 2), models.PADDING_ID), ids], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    places = torch.tensor([[0, 0, 0, 1, 2, 3]])
    inputs = {"input_ids": padded, "attention_mask": mask, "position_ids": places}
    engine = LayerFlowIG(model, 1)
    for words in (None, torch.tensor([0, 1, 2, 2, 3, 4])):
        short = measure_text(engine, ids, None if words is None else words[2:] - 2, n_steps=6)
        for left, right in zip(measure_text(engine, inputs, words, n_steps=6), short, strict=True):
            for name, value in vars(right).items():
                expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
                assert getattr(left, name) == expected, name


def test_rows_that_are_not_certified_are_counted() -> None:
    model = models.tiny_llama()
    ids = models.tokens(model, 1, 5)
    kinds: dict[str, Any] = {"n_steps": 4, "tolerance": 1e-3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captum_lig.integrals.adaptive.refine", lambda b, parts, *_: parts)
        with pytest.warns(UserWarning, match="not within tolerance"):
            flows = flows_of(model, ids, **kinds)
        records = measure_text(LayerFlowIG(model, 1), ids, **kinds)
    open_rows = {
        (path, start, name): (~rows).flatten(0, -2).any(0) if rows.dim() > 2 else ~rows[0]
        for path, pair in flows.items()
        for start, flow in zip(MLP_STARTS, pair, strict=True)
        for name, rows in flow.converged.items()
    }
    assert any(bool(rows.any()) for rows in open_rows.values())
    counts = set()
    for record in records:
        paths = {record.layer_baseline.split("+")[0]}
        paths |= {"zero"} if record.layer_baseline.endswith("zero_ratio") else set()
        used = [open_rows[path, "attention", "layer"] for path in paths]
        if record.attention_baseline is not None:
            path, _, estimate = record.attention_baseline.partition("+")
            boundary = "chain" if record.rule == "chain" else "attention"
            for one in {path, "zero"} if estimate == "zero_ratio" else {path}:
                used += [open_rows[one, record.mlp_start, name] for name in (boundary, "mlp")]
        right = int(torch.stack(used).any(0).sum())
        assert record.unconverged_rows == right, record
        counts.add(right)
    assert len(counts) > 1


def test_texts_and_words_that_do_not_fit() -> None:
    model = models.tiny_bert()
    engine = LayerFlowIG(model)
    with pytest.raises(LigError, match="2 texts were given"):
        measure_text(engine, models.tokens(model, 2, 3))
    for words in (torch.zeros(4, dtype=torch.long), torch.zeros(3)):
        with pytest.raises(LigError, match="does not fit the text's 3 tokens"):
            measure_text(engine, models.tokens(model, 1, 3), words)


# ---- ranking ---------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_pooling_records_is_pooling_rows(lengths: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    texts = []
    for length in lengths:
        rows = {
            name: generator.normal(3, 2, length).tolist()
            for name in ("l2", "relative_l2", "pearson", "spearman")
        }
        hidden = generator.random(length) < 0.3
        for name in ("pearson", "spearman"):
            rows[name] = [math.nan if h else x for x, h in zip(rows[name], hidden, strict=True)]
        texts.append(rows)
    records = [made.record(rows, layer=place % 2) for place, rows in enumerate(texts)]
    pooled = pool(records)
    for layer in (None, *pooled.layers):
        (found,) = pooled.rank("zero", layer)
        chosen = [t for place, t in enumerate(texts) if layer in (None, place % 2)]
        for name, measure in found.measures.items():
            values = [x for rows in chosen for x in rows[name] if not math.isnan(x)]
            if not values:
                assert measure is None
                continue
            assert measure is not None
            assert measure[0] == pytest.approx(float(np.mean(values)), rel=1e-9)
            assert measure[1] == pytest.approx(float(np.std(values)), rel=1e-6, abs=1e-6)
        assert found.rows == sum(len(rows["l2"]) for rows in chosen)
        assert found.unconverged_rows == len(chosen)


def test_ranking_by_hand() -> None:
    records = [
        made.constant(3, 0.5, rule="chain"),
        made.constant(1, 0.2, rule="conserve"),
        made.constant(2, math.nan, rule="uniform", attention_baseline=None, mlp_start=None),
        made.constant(9, 0.9, rule="chain", layer_baseline="target_token"),
        made.constant(4, 0.9, rule="conserve", layer=1),
    ]
    pooled = pool(records)

    def order(**kinds: Any) -> list[str]:
        ranking = pooled.rank("zero", **kinds)
        assert [one.rank for one in ranking] == list(range(1, len(ranking) + 1))
        return [one.pairing.rule for one in ranking]

    assert order() == ["uniform", "conserve", "chain"]  # 2, (1 + 4) / 2, 3
    assert order(layer=0) == ["conserve", "uniform", "chain"]
    assert order(layer=0, by="relative_l2") == ["chain", "uniform", "conserve"]
    assert order(layer=0, by="pearson") == ["chain", "conserve", "uniform"]
    assert order(by="spearman") == ["conserve", "chain", "uniform"]
    assert [one.is_control for one in pooled.rank("zero")] == [True, False, False]
    assert pooled.layers == [0, 1]
    with pytest.raises(LigError, match="ranking by 'mean': use one of l2"):
        order(by="mean")
    with pytest.raises(LigError, match="no records of layer baseline 'target_token' in layer 1"):
        pooled.rank("target_token", layer=1)
