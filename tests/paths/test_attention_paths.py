"""Every path of the attention core, for every row function, against the literal twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import LigError
from captum_lig.integrals.adaptive import refine
from captum_lig.integrals.boundaries import AttentionBoundary, LayerBoundary
from captum_lig.integrals.boundary import Boundary
from captum_lig.integrals.scalarization import L2, SCALARIZATIONS
from captum_lig.integrals.settings import Settings
from captum_lig.paths import few_rows
from captum_lig.paths.autograd import AutogradPath
from captum_lig.paths.choose import inspect_structure, make_path
from captum_lig.paths.jvp import jvp
from captum_lig.paths.norm import Norm
from captum_lig.paths.per_target import PerTargetPath
from captum_lig.paths.points import PointSet
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.shared import SharedPath
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.target_token import TargetTokenPath
from captum_lig.paths.values import SharedValues, WeightedValues
from tests.helpers import twin_blocks, twins
from tests.helpers.blocks import EPSILONS, HandCut, maps_of, rows_of, start_of

LENGTH = 4
SINKS = torch.tensor([1.0, -2.0, 0.3, 4.0], dtype=torch.float64)
ROW_FUNCTIONS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": SINKS},
    "both": {"softcap": 2.0, "sinks": SINKS},
}
PRES: dict[str, dict[str, Any]] = {
    "rms, rotary": {"norm": "rms", "rotary": True},
    "layer": {"norm": "layer", "causal": False},
    "identity": {"norm": "identity"},
    "tanh": {"norm": "tanh", "rotary": True},
    "rms, head norms": {"norm": "rms", "rotary": True, "key_norm": "head", "key_bias": False},
    "identity, width norms": {"norm": "identity", "key_norm": "width", "key_bias": False},
    "head norms after a bias": {"norm": "rms", "rotary": True, "key_norm": "head"},
}
BASELINES = ["zero", "tensor", "target_token", "per_target"]


def residual_stream(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(LENGTH, 6, generator=generator, dtype=torch.float64).to(dtype)


def cut_of(
    pre: str, row: str, opens: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[HandCut, twin_blocks.TwinBlock]:
    block = twin_blocks.random_block(length=LENGTH, **PRES[pre], **ROW_FUNCTIONS[row])
    # A cut that does not open says nothing of its row function.
    said = ROW_FUNCTIONS[row] if opens else {}
    return HandCut(block, residual_stream(dtype), opens=opens, **said), block


def path_kind(pre: str, baseline: str, opens: bool) -> type:
    if not opens:
        return AutogradPath
    if baseline in ("zero", "tensor"):
        return SharedPath
    if baseline == "target_token" and pre not in ("tanh", "head norms after a bias"):
        return TargetTokenPath
    return PerTargetPath


def assert_equals_twin(
    found: dict[str, Tensor], block: twin_blocks.TwinBlock, baseline: Any, scalarization: str
) -> None:
    nodes = twins.gauss_legendre(3)
    args = (block, residual_stream(), baseline, scalarization, *nodes)
    attention, attention_total = twins.attention_map(*args)
    mlp, residual, total = twins.mlp_map(*args)
    expected = {
        "attention": attention.transpose(0, 1),
        "attention_total": attention_total.T,
        "chain": twins.chain_map(*args).transpose(0, 1),
        "mlp": mlp,
        "residual": residual,
        "layer": twins.layer_map(*args)[0],
        "layer_total": total,
        "vectors": twins.layer_map(*args[:3], "vector", *nodes)[0],
        "head_vectors": twins.attention_map(*args[:3], "vector", *nodes)[0].transpose(0, 1),
    }
    for name, part in expected.items():
        torch.testing.assert_close(found[name], part, rtol=1e-8, atol=1e-10, msg=name)


CASES = [(pre, row, True) for pre in PRES for row in ("softmax", "both")]
CASES += [(pre, row, True) for pre in ("rms, rotary", "tanh") for row in ("softcap", "sinks")]
CASES += [(pre, "both", False) for pre in ("rms, rotary", "layer", "tanh")]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(("pre", "row", "opens"), CASES)
def test_every_boundary_equals_the_twin(pre: str, row: str, baseline: str, opens: bool) -> None:
    cut, block = cut_of(pre, row, opens)
    start, given = start_of(baseline, cut.z)
    scalarization = "projection" if pre == "layer" else "l2"
    rows = rows_of(cut, start)
    assert type(rows.path) is path_kind(pre, baseline, opens)
    alphas, weights = map(torch.from_numpy, twins.gauss_legendre(3))
    assert_equals_twin(maps_of(rows, alphas, weights, scalarization), block, given, scalarization)


@pytest.mark.parametrize("opens", [True, False], ids=["opened", "autograd"])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("row", ["softcap", "sinks"])
def test_the_limit_where_the_path_starts(row: str, baseline: str, opens: bool) -> None:
    """At a = 0 the l2 norm has no gradient: the limit needs the velocity of u."""
    cut, _ = cut_of("layer", row, opens)
    rows = rows_of(cut, start_of(baseline, cut.z)[0])
    one = torch.ones(1, dtype=torch.float64)
    for kind in (AttentionBoundary, LayerBoundary):
        boundary = kind.of("map", rows, L2)
        (at_start,) = boundary.sweep(0 * one, one).values()
        (close_by,) = boundary.sweep(1e-8 * one, one).values()
        assert at_start.abs().max() > 1e-3
        torch.testing.assert_close(at_start, close_by, rtol=1e-4, atol=1e-5)


@cache
def exact_maps(row: str, baseline: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The twin's attention and layer map, and their totals."""
    _, block = cut_of("rms, rotary", row, True)
    edges = [0.0, *(10.0 ** (k / 2) for k in range(-8, 1))]
    if baseline == "target_token":  # two contents can nearly cancel half way
        edges = [k / 16 for k in range(17)]
    given = (block, residual_stream(), baseline, "l2", *twins.panels(edges, 10))
    return {"attention": twins.attention_map(*given), "layer": twins.layer_map(*given)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("opens", [True, False], ids=["opened", "autograd"])
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("row", ["softcap", "sinks"])
def test_rows_are_certified(row: str, baseline: str, opens: bool, dtype: torch.dtype) -> None:
    cut, _ = cut_of("rms, rotary", row, opens, dtype)
    rows = rows_of(cut, start_of(baseline, cut.z)[0])
    for boundary, name in (
        (AttentionBoundary.of("map", rows, L2), "attention"),
        (LayerBoundary.of("map", rows, L2), "layer"),
    ):
        parts = boundary.sweep(*map(torch.from_numpy, twins.gauss_legendre(2)))
        assert _error(boundary, parts) > 1e-3
        settings = Settings.checked(8, "gausslegendre", 1e-3, 400)
        (refined,) = (found := refine(boundary, parts, settings)).values()
        assert _error(boundary, found) < 1e-3
        expected, total = exact_maps(row, baseline)[name]
        if expected.dim() == 3:
            expected, total = expected.transpose(0, 1), total.T
        else:
            refined = refined[:, 0]
        gap = (refined - expected).abs() / total.clamp_min(1e-9)[..., None]
        assert gap.max() < 1e-3


def _error(boundary: Boundary, parts: dict[str, Tensor]) -> float:
    miss = boundary.error(boundary.sums(parts), boundary.totals)
    return float((miss / boundary.scale.clamp_min(1e-9)).max())


@pytest.mark.parametrize("baseline", BASELINES)
def test_some_rows_are_those_of_all(baseline: str) -> None:
    chosen = torch.tensor([3, 1])
    alphas, weights = map(torch.from_numpy, twins.gauss_legendre(3))
    for pre, row, opens in (
        ("rms, rotary", "both", True),
        ("rms, head norms", "both", True),
        ("tanh", "both", True),
        ("tanh", "softmax", False),
    ):
        cut, _ = cut_of(pre, row, opens)
        start = start_of(baseline, cut.z)[0]
        every = rows_of(cut, start)
        whole = maps_of(every, alphas, weights)
        for rows in (rows_of(cut, start, rows=chosen), every.select(chosen)):
            some = maps_of(rows, alphas, weights)
            for name, part in some.items():
                torch.testing.assert_close(part, whole[name][chosen], msg=name)


@pytest.mark.parametrize("baseline", BASELINES)
def test_what_cannot_flow_is_exactly_zero(baseline: str) -> None:
    alphas, weights = map(torch.from_numpy, twins.gauss_legendre(3))
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for opens in (True, False):
        cut, _ = cut_of("rms, rotary", "sinks", opens)
        found = maps_of(rows_of(cut, start_of(baseline, cut.z)[0]), alphas, weights)
        assert (found["layer"][later] == 0).all()
        assert (found["attention"].transpose(1, 2)[later] == 0).all()
        assert (found["vectors"][later] == 0).all()
        own = found["layer"].diagonal()
        assert bool((own == 0).all()) == (baseline == "target_token")


@pytest.mark.parametrize("baseline", ["zero", "target_token", "per_target"])
def test_a_block_without_attention_is_a_layer_boundary(baseline: str) -> None:
    block = twin_blocks.random_block("tanh", LENGTH)
    cut = HandCut(block, residual_stream(), opens=False, has_attention=False)
    start, given = start_of(baseline, cut.z)
    for scalarization in ("l2", "projection"):
        rows = rows_of(cut, start)
        boundary = LayerBoundary.of("layer", rows, SCALARIZATIONS[scalarization])
        alphas, weights = twins.gauss_legendre(3)
        found = boundary.sweep(torch.from_numpy(alphas), torch.from_numpy(weights))
        expected, total = twins.layer_map(
            block, residual_stream(), given, scalarization, alphas, weights
        )
        torch.testing.assert_close(found["layer"][:, 0], expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(rows.layer_total, total)
        settings = Settings.checked(4, "gausslegendre", 1e-5, 1000)
        assert _error(boundary, refine(boundary, found, settings)) < 1e-5


def test_a_head_that_goes_far_and_comes_back_has_no_total() -> None:
    """At both ends each target sees itself alone, up to 1e-100; on the way it sees the others."""
    cut, block = cut_of("identity", "softmax")

    def pre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, k, v = block.pre(z)
        k = torch.nn.functional.normalize(k, dim=-1)
        return 1e4 * k, k, v

    cut.twin = replace(block, pre=pre)
    rows = rows_of(cut, start_of("target_token", cut.z)[0])
    alphas = torch.tensor([0.0, 1e-3, 1e-2, 1.0], dtype=torch.float64)
    moved = rows.path.at(alphas).moved[:, 2:].norm(dim=-1)
    assert (moved[-1] > 0).any()
    assert (moved[1:3] > 1e-3).any()
    assert (rows.attention_total == 0).all()
    boundary = AttentionBoundary.of("attention", rows, L2)
    assert (boundary.sweep(alphas, alphas)["attention"] == 0).all()


def test_the_layer_boundary_by_autograd_does_not_pay_for_heads() -> None:
    """One backward pass for all heads of a pair; the attention boundary takes one for each."""
    cut, _ = cut_of("tanh", "softmax", opens=False)
    rows = rows_of(cut, start_of("target_token", cut.z)[0])
    nodes = [torch.tensor([x], dtype=torch.float64) for x in (0.5, 1.0)]
    tokens = LENGTH * LENGTH  # of one path point for each row
    spent = []
    for kind in (LayerBoundary, AttentionBoundary):
        before = cut.meter.passed
        kind.of("map", rows, L2).sweep(*nodes)
        spent.append(cut.meter.passed - before)
    assert spent[0] == 3 * tokens + LENGTH  # u, u once more for its gradient, back; and post
    assert spent[1] == (2 + cut.heads) * tokens


class Doubled(torch.autograd.Function):
    """An operation of a model's own that knows no forward mode, as Bloom's gelu."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Once(Doubled):
    """The same, and its backward pass cannot be differentiated either."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


def test_derivatives_without_forward_mode_are_those_with_it() -> None:
    generator = torch.Generator().manual_seed(6)
    x, y, dx, dy = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)

    def pair(square: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        return lambda a, b: (square(a).sin() * b, square(b).sum(-1))

    expected = torch.func.jvp(pair(lambda a: a * a), (x, y), (dx, dy))
    torch.testing.assert_close(jvp(pair(lambda a: a * a), (x, y), (dx, dy)), expected)
    torch.testing.assert_close(jvp(pair(Doubled.apply), (x, y), (dx, dy)), expected)
    # What cannot be differentiated twice is missing from the derivative, without an error.
    for partly in (Once.apply, lambda a: a + Once.apply(a), lambda a: 9 * a + Once.apply(a)):
        with pytest.raises(LigError, match="influence"):
            jvp(pair(partly), (x, y), (dx, dy))


@pytest.mark.parametrize("opens", [True, False])
def test_blocks_without_forward_mode(opens: bool) -> None:
    """Every boundary, and the limit where the path starts, as with it."""
    found = []
    nodes = torch.tensor([0.0, 0.6], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for square in (lambda x: x * x, Doubled.apply):
        cut, block = cut_of("tanh", "softmax", opens)

        def pre(z: Tensor, own: Any = block.pre, square: Any = square) -> Any:
            return own(square(z))

        def post(u: Tensor, z: Tensor, own: Any = block.post, square: Any = square) -> Tensor:
            return square(own(u, z))

        cut.twin = replace(block, pre=pre, post=post)
        found.append(maps_of(rows_of(cut, start_of("tensor", cut.z)[0]), *nodes))
    for name, part in found[0].items():
        torch.testing.assert_close(found[1][name], part, msg=name)


# --- row functions alone ------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_row_functions_and_their_derivatives(heads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, ds = torch.randn(2, 4, 4, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.zeros(5, dtype=torch.float64)
    mask[2] = torch.finfo(torch.float32).min
    shape = [4 if axis == heads else 1 for axis in range(4)]
    sinks = SINKS.view(shape).expand(4, 4, 4, 1)

    def weights(s: Tensor) -> Tensor:
        capped = 1.5 * torch.tanh(s / 1.5) + mask
        return torch.cat([capped, sinks], -1).softmax(-1)

    expected, rate = torch.autograd.functional.jvp(weights, logits, ds)
    found = RowFunction(1.5, SINKS)(logits, mask, heads)
    assert found.rest is not None
    torch.testing.assert_close(torch.cat([found.p, found.rest], -1), expected)
    capped = found.capped(ds)
    mean = (found.p * capped).sum(-1, keepdim=True)
    torch.testing.assert_close(found.p * (capped - mean), rate[..., :-1])
    torch.testing.assert_close(-found.rest * mean, rate[..., -1:])


def test_weak_caps_and_sinks_change_nothing() -> None:
    logits = torch.randn(4, 2, 2, 5, dtype=torch.float64)
    plain = RowFunction()(logits, None, 0)
    weak = RowFunction(1e9, torch.full((4,), -1e4))(logits, None, 0)
    torch.testing.assert_close(weak.p, plain.p)
    assert plain.rest is None
    assert plain.slope is None


def test_a_row_that_sees_nothing_gives_everything_to_the_sink() -> None:
    mask = torch.full((3,), torch.finfo(torch.float32).min)
    found = RowFunction(None, SINKS.float())(torch.zeros(4, 1, 1, 3), mask, 0)
    assert (found.p == 0).all()
    assert found.rest is not None
    assert (found.rest == 1).all()


def test_the_norm_is_found_whatever_the_row_function() -> None:
    for pre, kind in (("rms, rotary", "rms"), ("layer", "layer"), ("identity", "identity")):
        cut, _ = cut_of(pre, "both")
        norm = inspect_structure(cut, EPSILONS).norm
        assert norm is not None
        assert norm.kind == kind
    for targets in (0, LENGTH):
        assert inspect_structure(cut_of("tanh", "both")[0], EPSILONS, targets).norm is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pre", ["rms, head norms", "identity, width norms"])
def test_norms_of_keys_are_found_where_they_help(pre: str, dtype: torch.dtype) -> None:
    cut, _ = cut_of(pre, "softmax", dtype=dtype)
    assert inspect_structure(cut, EPSILONS, targets=0).norm is None
    found = inspect_structure(cut, EPSILONS, targets=LENGTH)
    assert found.norm is not None
    assert found.norm.kind == PRES[pre]["norm"]
    assert found.normed_keys is not None
    assert found.normed_keys.norm == Norm("rms", 1e-2)
    # Other paths cannot use what holds for target tokens alone.
    path = make_path(cut, found, start_of("zero", cut.z)[0], torch.arange(LENGTH))
    assert isinstance(path, SharedPath)
    assert isinstance(path.along, QKVByRunning)
    cut.twin = replace(cut.twin, inside=lambda z: [z])  # the raw keys are nowhere to be seen
    assert inspect_structure(cut, EPSILONS, targets=LENGTH).norm is None


# --- few rows of a shared path --------------------------------------------------------------------

CLOSED = [
    (pre, row)
    for pre, row, opens in CASES
    if opens and pre != "tanh" and PRES[pre].get("key_norm") is None
]
POINTS = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)


def at_points(path: Any, few: bool, monkeypatch: pytest.MonkeyPatch) -> PointSet:
    monkeypatch.setattr(few_rows, "pays", lambda *_: few)
    found: PointSet = replace(path).at(POINTS)
    assert isinstance(found.values, WeightedValues if few else SharedValues)
    return found


@pytest.mark.parametrize("baseline", ["zero", "tensor"])
@pytest.mark.parametrize(("pre", "row"), CLOSED)
def test_few_rows_equal_the_twin(
    pre: str, row: str, baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_rows, "pays", lambda *_: True)
    cut, block = cut_of(pre, row)
    start, given = start_of(baseline, cut.z)
    rows = rows_of(cut, start)
    assert isinstance(rows.path, SharedPath)
    assert isinstance(rows.path.along, QKVClosedForm)
    alphas, weights = map(torch.from_numpy, twins.gauss_legendre(3))
    assert_equals_twin(maps_of(rows, alphas, weights, "l2"), block, given, "l2")


@pytest.mark.parametrize("baseline", ["zero", "tensor"])
@pytest.mark.parametrize(("pre", "row"), CLOSED)
def test_points_of_few_rows_are_those_by_tables(
    pre: str, row: str, baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, _ = cut_of(pre, row)
    path = rows_of(cut, start_of(baseline, cut.z)[0]).path
    few, tables = (at_points(path, few, monkeypatch) for few in (True, False))
    g = torch.randn(few.u.shape, generator=torch.Generator().manual_seed(2), dtype=few.u.dtype)
    for found, expected in (
        (few.u, tables.u),
        (few.velocity(), tables.velocity()),
        (few.vectors, tables.vectors),
        (few.rates(g), tables.rates(g)),
        (few.edges(g)[1], tables.edges(g)[1]),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    some = torch.tensor([3, 1])
    monkeypatch.setattr(few_rows, "pays", lambda *_: True)
    afresh = replace(path).select(some).at(POINTS)
    sliced = replace(path)
    sliced.at(POINTS)
    for at in (afresh, sliced.select(some).at(POINTS)):
        torch.testing.assert_close(at.u, few.u[:, some], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(at.velocity(), few.velocity()[:, some], rtol=1e-11, atol=1e-13)


def test_of_few_rows_what_is_zero_everywhere_is_left_out() -> None:
    """From zero, without a bias, one product of four tables is left."""
    cut, _ = cut_of("identity", "softmax")
    path = rows_of(cut, start_of("zero", cut.z)[0]).path
    assert isinstance(path, SharedPath)
    along = path.along
    assert isinstance(along, QKVClosedForm)
    q, k, v = ((x - x[:1]) for x in along.tables)  # no bias
    bare = QKVClosedForm(along.norm, (q, k, v), along.moments)
    rows = torch.tensor([2])
    few = few_rows.FewRows.of(bare, rows, 0.5)
    assert few is not None
    assert few.ends == (2,)
    nothing = QKVClosedForm(along.norm, (0 * q, 0 * k, 0 * v), along.moments)
    few = few_rows.FewRows.of(nothing, rows, 0.5)
    assert few is not None
    logits, *_ = few.at(POINTS)
    assert logits.shape == (4, len(q[0]), 1, q.shape[2])
    assert not logits.any()
