"""LayerFlow: compositions by hand and their laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import LayerFlow, LigError
from tests.helpers.synthetic import make_flow, number

PARTS = ("attention", "attention_total", "mlp", "residual", "layer", "layer_total", "chain")
ROW_AXIS = {"attention": 2, "attention_total": 2, "chain": 2}  # else 1


# ---- by hand ---------------------------------------------------------------------------------
#
# Two heads, three sources; the targets are the tokens 2 and 0, in this order.

HAND: dict[str, Any] = {
    "attention": [[[1, 2, 1], [3, 0, -1]], [[0, 5, 5], [2, 2, 4]]],  # [head][target][source]
    "attention_total": [[4, 2], [10, 8]],
    "mlp": [[8, 5], [1, -4]],  # [target][head]
    "residual": [7, 3],
    "layer": [[2, 9, 9], [0, 0, 0]],
    "layer_total": [20, 0],
    "chain": [[[4, 4, 0], [0.5, 1, -0.5]], [[1, 1, 3], [-2, -2, 0]]],
}


def hand(**changes: Any) -> LayerFlow:
    return make_flow([2, 0], 3, **{**HAND, **changes})


def test_product_by_hand() -> None:
    # target 2: 8 * (1, 2, 1) + 5 * (0, 5, 5); target 0: 1 * (3, 0, -1) - 4 * (2, 2, 4)
    expected = number([[[8, 41, 33], [-5, -8, -17]]])
    torch.testing.assert_close(hand().compose("product"), expected)


def test_conserve_by_hand() -> None:
    # target 2: 8/4 * (1, 2, 1) + 5/10 * (0, 5, 5), and 7 on token 2
    # target 0: 1/2 * (3, 0, -1) - 4/8 * (2, 2, 4), and 3 on token 0
    expected = number([[[2, 6.5, 4.5 + 7], [0.5 + 3, -1, -2.5]]])
    torch.testing.assert_close(hand().compose("conserve"), expected)


def test_chain_by_hand() -> None:
    expected = number([[[5, 5, 3 + 7], [-1.5 + 3, -1, -0.5]]])
    torch.testing.assert_close(hand().compose("chain"), expected)
    torch.testing.assert_close(hand().compose(), expected)


def test_heads_apart_by_hand() -> None:
    """Target 2 of the first head: 8/4 (1, 2, 1), of the second 5/10 (0, 5, 5)."""
    apart = {rule: hand().compose(rule, by_head=True) for rule in ("conserve", "product", "chain")}
    torch.testing.assert_close(
        apart["conserve"],
        number([[[[2, 4, 2], [1.5, 0, -0.5]], [[0, 2.5, 2.5], [-1, -1, -2]]]]),
    )
    torch.testing.assert_close(
        apart["product"], number([[[[8, 16, 8], [3, 0, -1]], [[0, 25, 25], [-8, -8, -16]]]])
    )
    torch.testing.assert_close(apart["chain"], number([HAND["chain"]]))


def test_select() -> None:
    first, second = hand(), hand(layer=[[0, 1, 19], [0, 0, 0]], mlp=[[1, 2], [3, 4]])
    both = replace(
        first,
        **{name: torch.cat([getattr(f, name) for f in (first, second)]) for name in PARTS},
        valid=first.valid.expand(2, -1),
        mlp_total=torch.cat([first.mlp_total, second.mlp_total]),  # type: ignore[list-item]
        chain_total=torch.cat([first.chain_total, second.chain_total]),  # type: ignore[list-item]
    )
    for text, right in ((0, first), (1, second), (-1, second), (-2, first)):
        one = both.select(text)
        for name in (*PARTS, "targets", "valid", "mlp_total", "chain_total"):
            assert torch.equal(getattr(one, name), getattr(right, name)), name
        assert all(torch.equal(one.delta[name], right.delta[name]) for name in right.delta)
    for text in (2, -3, True, "0", None):
        with pytest.raises(LigError, match="2 texts"):
            both.select(text)  # type: ignore[arg-type]


def test_what_the_quadrature_left_over_is_spread_by_size() -> None:
    """One head, one target (token 1): attention misses 2 of 4, the mlp boundary 3 of 12."""
    flow = make_flow(
        [1],
        2,
        attention=[[[3, -1]]],
        attention_total=[[4]],
        mlp=[[6]],
        residual=[3],
        layer=[[0, 12]],
        layer_total=[12],
        chain=[[[8, -2]]],
    )
    # mlp and residual become 6 + 3 * 6/9 = 8 and 3 + 3 * 3/9 = 4;
    # attention 3 + 2 * 3/4 = 4.5 and -1 + 2 * 1/4 = -0.5; chain misses 2: 8 + 1.6, -2 + 0.4.
    torch.testing.assert_close(flow.compose("conserve"), number([[[4.5 * 2, -0.5 * 2 + 4]]]))
    torch.testing.assert_close(flow.compose("chain"), number([[[9.6, -1.6 + 4]]]))
    torch.testing.assert_close(flow.compose("product"), number([[[18, -6]]]))


def test_composing_leaves_the_flow_alone() -> None:
    flow = hand(layer_total=[25, 1])
    before = {name: getattr(flow, name).clone() for name in PARTS}
    for rule in ("product", "conserve", "chain"):
        flow.compose(rule)
        flow.agreement(rule)
    assert all(torch.equal(getattr(flow, name), before[name]) for name in PARTS)


def test_agreement_by_hand() -> None:
    # Composed (conserve) minus direct for target 2: (0, -2.5, 2.5); its direct row is (2, 9, 9).
    agreement = hand().agreement("conserve")
    assert agreement.shape == (1, 2)
    assert float(agreement[0, 0]) == pytest.approx(math.sqrt(12.5) / math.sqrt(166))
    assert math.isnan(float(agreement[0, 1])), "a direct row of zeros has nothing to compare with"
    same = hand(layer=[[2, 6.5, 11.5], [3.5, -1, -2.5]])
    torch.testing.assert_close(same.agreement("conserve"), number([[0.0, 0.0]]))
    assert float(hand().agreement("chain")[0, 0]) == pytest.approx(math.sqrt(26 / 166))


def test_completeness_error_by_hand() -> None:
    flow = hand(layer=[[2, 9, 8], [0, 0, 0]], attention_total=[[5, 2], [10, 0]])
    torch.testing.assert_close(flow.completeness_error("layer"), number([[1 / 20, 0]]))
    torch.testing.assert_close(flow.completeness_error(), number([[1 / 20, 0]]))
    torch.testing.assert_close(flow.completeness_error("mlp"), number([[0, 0]]))
    infinite = float("inf")  # sums to 8, of a total of 0
    expected = number([[[1 / 5, 0], [0, infinite]]])
    torch.testing.assert_close(flow.completeness_error("attention"), expected)


def test_completeness_error_of_chain_by_hand() -> None:
    # Head 0 hands 8.5 to target 2, not 8; its layer total is 20.
    flow = hand(chain=[[[4, 4, 0.5], [0.5, 1, -0.5]], [[1, 1, 3], [-2, -2, 0]]])
    expected = number([[[0.5 / 20, 0], [0, 0]]])
    torch.testing.assert_close(flow.completeness_error("chain"), expected)


def test_converged_by_hand() -> None:
    """Relative errors are 0.05 and 0 at the layer boundary, 0.2 of one head of attention."""
    flow = hand(layer=[[2, 9, 8], [0, 0, 0]], attention_total=[[5, 2], [10, 8]])
    assert flow.converged == {}
    for tolerance, layer, head in ((0.01, False, False), (0.06, True, False), (0.3, True, True)):
        converged = replace(flow, tolerance=tolerance).converged
        assert converged.keys() == {"attention", "mlp", "layer", "chain"}
        assert converged["layer"].tolist() == [[layer, True]]
        assert converged["attention"].tolist() == [[[head, True], [True, True]]]
        assert converged["mlp"].tolist() == [[True, True]]
        assert converged["chain"].tolist() == [[[True, True], [True, True]]]


def test_an_error_that_is_not_a_number_is_not_called_exact() -> None:
    flow = hand(layer=[[2, float("nan"), 9], [0, 0, 0]])
    error = flow.completeness_error("layer")
    assert not bool(error[0, 0] == 0)
    assert float(error[0, 1]) == 0
    assert replace(flow, tolerance=0.5).converged["layer"].tolist() == [[False, True]]


@pytest.mark.parametrize("rule", ["mean", "", "Conserve", None, 3, ["chain"]])
def test_unknown_rule(rule: Any) -> None:
    with pytest.raises(LigError) as caught:
        hand().compose(rule)
    assert type(caught.value) is LigError
    for said in (repr(rule), "conserve", "chain", "product"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        (lambda f: f.compose("product"), "attention"),
        (lambda f: f.compose("product"), "mlp"),
        (lambda f: f.compose("conserve"), "attention"),
        (lambda f: f.compose("conserve"), "mlp"),
        (lambda f: f.compose("chain"), "chain"),
        (lambda f: f.agreement(), "layer"),
        (lambda f: f.agreement("chain"), "chain"),
        (lambda f: f.completeness_error(), "layer"),
        (lambda f: f.completeness_error("mlp"), "mlp"),
        (lambda f: f.completeness_error("attention"), "attention"),
        (lambda f: f.completeness_error("chain"), "chain"),
    ],
)
def test_missing_boundary(call: Callable[[LayerFlow], Tensor], missing: str) -> None:
    with pytest.raises(LigError) as caught:
        call(hand(**{missing: None}))
    assert type(caught.value) is LigError
    assert missing in str(caught.value)
    assert "boundaries=" in str(caught.value)


def test_chain_says_which_boundaries_it_needs() -> None:
    """`chain` is not the name of a boundary: asking for it again would fail again."""
    with pytest.raises(LigError) as caught:
        hand(chain=None).compose("chain")
    message = str(caught.value)
    assert "attention" in message
    assert "mlp" in message


@pytest.mark.parametrize("boundary", ["norm", "residual", "", None, 0])
def test_completeness_of_an_unknown_boundary(boundary: Any) -> None:
    with pytest.raises(LigError) as caught:
        hand().completeness_error(boundary)
    assert type(caught.value) is LigError
    assert repr(boundary) in str(caught.value)


# ---- laws ------------------------------------------------------------------------------------


@st.composite
def random_flows(draw: st.DrawFn) -> LayerFlow:
    """Parts of either sign that miss their totals; some heads and some targets do nothing."""
    heads, rows, sources = (draw(st.integers(1, 4)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    targets = torch.randint(sources, (rows,), generator=generator).tolist()

    def parts(*shape: int) -> Tensor:
        """Never so small that there is nothing to spread an error over."""
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return sign * (0.1 + torch.rand(shape, generator=generator, dtype=torch.float64))

    silent = torch.rand(heads, rows, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    still = torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    silent = silent | still
    moves = (~silent).double()
    return make_flow(
        targets,
        sources,
        attention=(parts(heads, rows, sources) * moves[..., None]).tolist(),
        attention_total=(parts(heads, rows).abs() * moves).tolist(),
        mlp=(parts(rows, heads) * moves.T).tolist(),
        residual=(parts(rows) * ~still).tolist(),
        layer=(parts(rows, sources) * ~still[:, None]).tolist(),
        layer_total=(parts(rows).abs() * ~still).tolist(),
        chain=(parts(heads, rows, sources) * moves[..., None]).tolist(),
    )


@settings(deadline=None, derandomize=True, max_examples=80)
@given(flow=random_flows(), rule=st.sampled_from(["conserve", "chain"]))
def test_rows_of_a_composition_add_up_to_the_layers_total(flow: LayerFlow, rule: str) -> None:
    composed = flow.compose(rule)
    assert flow.layer_total is not None
    assert flow.layer is not None
    assert composed.shape == flow.layer.shape
    assert bool(torch.isfinite(composed).all())
    torch.testing.assert_close(composed.sum(-1), flow.layer_total, rtol=1e-10, atol=1e-10)
    still = flow.layer_total == 0
    assert bool((composed[still] == 0).all())


@settings(deadline=None, derandomize=True, max_examples=40)
@given(flow=random_flows(), rule=st.sampled_from(["conserve", "chain", "product"]))
def test_what_is_not_in_a_head_is_the_residual_on_the_diagonal(flow: LayerFlow, rule: str) -> None:
    past = flow.compose(rule) - flow.compose(rule, by_head=True).sum(1)
    rows = torch.arange(len(flow.targets))
    own = past[:, rows, flow.targets]
    past[:, rows, flow.targets] = 0
    torch.testing.assert_close(past, torch.zeros_like(past))
    assert flow.residual is not None
    assert bool((own.abs() > 0).any()) == (rule != "product" and bool((flow.residual != 0).any()))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(flow=random_flows())
def test_agreement_is_not_a_number_where_the_direct_row_is_zero(flow: LayerFlow) -> None:
    assert flow.layer_total is not None
    agreement = flow.agreement()
    assert torch.equal(agreement.isnan(), flow.layer_total == 0)
    assert bool((agreement[~agreement.isnan()] >= 0).all())


@settings(deadline=None, derandomize=True, max_examples=40)
@given(flow=random_flows(), factor=st.sampled_from([1e-9, 1e-3, 1e6]))
def test_compositions_scale_with_the_outputs(flow: LayerFlow, factor: float) -> None:
    """z' in other units: what ends in z' scales, what ends in u stays."""
    scaled = make_flow(
        flow.targets.tolist(),
        flow.valid.shape[1],
        **{
            name: (getattr(flow, name)[0] * (1 if name.startswith("att") else factor)).tolist()
            for name in PARTS
        },
    )
    for rule in ("conserve", "chain", "product"):
        torch.testing.assert_close(
            scaled.compose(rule), flow.compose(rule) * factor, rtol=1e-9, atol=1e-11 * factor
        )
