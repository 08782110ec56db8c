"""Blocks drawn at random: every entry is right or flagged, or the block is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_lig import LayerFlow, LayerFlowIG, LigError
from tests.helpers.random_blocks import WIDTH, Options, Reference, build, reference

BASELINES = ("target_token", "zero", "tensor", "per_target")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NEAR = 5e-3
"""Largest error of an entry, as part of its row's total or largest entry; rows are certified to
1e-3 in their sums."""
SMALL = 1e-3
"""Totals below this part of the vector whose change they are: float32 has lost too much of them."""

OPTIONS = st.builds(
    Options,
    site=st.sampled_from(["sdpa", "sdpa", "interface", "eager"]),
    key_heads=st.sampled_from([4, 2, 1]),
    causal=st.booleans(),
    window=st.sampled_from([None, None, 1, 2]),
    norm=st.sampled_from(["layer", "rms", "none"]),
    post_norm=st.booleans(),
    parallel=st.booleans(),
    rotary=st.booleans(),
    key_norm=st.sampled_from(["none", "none", "before", "after"]),
    bias=st.sampled_from(["none", "none", "none", "normed", "raw", "values"]),
    mix=st.sampled_from(["none"] * 4 + ["keys", "values", "queries", "inputs"]),
    gate=st.booleans(),
    softcap=st.booleans(),
    sinks=st.booleans(),
    after=st.sampled_from(["tokens"] * 5 + ["mixed", "away"]),
    massive=st.sampled_from([False, False, False, True]),
)


def start_of(name: str, x: Tensor) -> tuple[str | Tensor, Tensor]:
    """What the package is given, and the start of each target's path ``(T, S, D)``."""
    z, generator = x[0].double(), torch.Generator().manual_seed(5)
    length = len(z)
    if name == "target_token":
        return name, z[:, None].expand(-1, length, -1)
    if name == "zero":
        return name, z.new_zeros(length, *z.shape)
    shape = (1, length, WIDTH) if name == "tensor" else (1, length, length, WIDTH)
    start = torch.randn(shape, generator=generator).to(x.dtype)
    own = start[0].double()
    return start, own.expand(length, -1, -1) if name == "tensor" else own


def may_be_refused(options: Options, dtype: torch.dtype) -> bool:
    """Whether tokens are mixed where no split at the attention allows it, or numbers overflow."""
    mixed = options.mix != "none"
    if options.after != "tokens" or (mixed and (options.causal or options.window is not None)):
        return True
    # The output projection is the first linear map that gets other tokens: here another one is.
    early = mixed and (options.mix == "inputs" or options.bias == "values")
    return (options.site == "eager" and early) or (options.massive and dtype == torch.float16)


def held_to(flow: LayerFlow, by_nodes: list[Reference], exact: bool) -> None:
    """Every certified row against the definition, where that is certain itself.

    Args:
        flow: what the package found.
        by_nodes: the definition at more and more nodes.
        exact: whether all was computed in float64.
    """
    for name, found in of_flow(flow).items():
        *rough, (wanted, total, size) = (of_reference(r)[name] for r in by_nodes)
        scale = total.maximum(wanted.abs().amax(-1)).clamp_min(1e-30)
        unsure = (rough[0][0] - wanted).abs().amax(-1).maximum(
            (wanted.sum(-1) - total).abs()
        ) / scale
        kept = flow.converged[name][0] & (unsure <= 1e-3)
        # What is left of a small difference between two large vectors is rounding.
        kept &= total > (1e-9 if exact else SMALL) * size
        error = (found.double() - wanted).abs().amax(-1) / scale
        worst = float(error[kept].max()) if bool(kept.any()) else 0.0
        assert worst <= NEAR, f"{name}: off by {worst:.1e}"


def of_flow(flow: LayerFlow) -> dict[str, Tensor]:
    """Rows of each boundary, sources or parts last."""
    mlp = torch.cat([flow.mlp[0], flow.residual[0][:, None]], -1)
    return {"attention": flow.attention[0], "layer": flow.layer[0], "mlp": mlp}


def of_reference(r: Reference) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The same, with totals and the sizes of what they are changes of."""
    mlp = torch.cat([r.mlp, r.residual[:, None]], -1)
    return {
        "attention": (r.attention.transpose(0, 1), r.attention_total.T, r.size.T),
        "layer": (r.layer, r.layer_total, r.y_size),
        "mlp": (mlp, r.layer_total, r.y_size),
    }


NAMED = {
    "a bias made of the tokens": Options(bias="normed"),
    "a bias made of raw tokens": Options(bias="raw", causal=True),
    "a bias made of values": Options(bias="values", key_heads=2),
    "keys of two tokens": Options(mix="keys"),
    "values of two tokens": Options(mix="values"),
    "queries of two tokens": Options(mix="queries"),
    "a convolution before the attention": Options(mix="inputs", norm="rms"),
    "norms after the rotary encoding": Options(key_norm="after", rotary=True, norm="rms"),
    "norms before the rotary encoding": Options(key_norm="before", rotary=True, norm="rms"),
    "nothing special": Options(causal=True),
}
PATHS = {
    ("norms after the rotary encoding", "target_token"): "run_block",
    ("norms after the rotary encoding", "zero"): "run_block",
    ("norms before the rotary encoding", "target_token"): "closed_form",
    ("norms before the rotary encoding", "zero"): "run_block",
    ("nothing special", "target_token"): "closed_form",
    ("nothing special", "zero"): "closed_form",
}


@pytest.mark.parametrize("baseline", ["target_token", "zero"])
@pytest.mark.parametrize("name", NAMED)
def test_paths_are_the_blocks_own(name: str, baseline: str) -> None:
    """The cheapest path that is what the block does is taken, and named in the cost."""
    model, x = build(NAMED[name], 5, torch.float64, seed=1)
    given_start, starts = start_of(baseline, x)
    flow = LayerFlowIG(model, 0).attribute(x, given_start, max_steps=4096)
    assert isinstance(flow, LayerFlow)
    assert flow.cost is not None
    assert flow.cost.path == PATHS.get((name, baseline), "autograd")
    assert all(bool(rows.all()) for rows in flow.converged.values())
    block = copy.deepcopy(model.blocks[0])
    held_to(flow, [reference(block, x[0], starts, "l2", n) for n in (8, 12)], exact=True)


@pytest.mark.parametrize("baseline", ["target_token", "zero"])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (Options(after="away"), torch.float64),
        (Options(after="mixed", massive=True), torch.float32),
    ],
    ids=["away from the text", "beside a massive activation"],
)
def test_tokens_mixed_after_the_attention(
    options: Options, dtype: torch.dtype, baseline: str
) -> None:
    """Refused, though at the text itself, or held against the largest entry, nothing is seen."""
    model, x = build(options, 5, dtype, seed=1)
    if options.massive:
        with torch.no_grad():  # it changes outputs by hundredths, and the largest is 3,000
            model.blocks[0].down.weight.mul_(0.1)  # type: ignore[union-attr, operator]
    with pytest.raises(LigError, match="has to treat each token by itself"):
        LayerFlowIG(model, 0).attribute(x, baseline)


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    options=OPTIONS,
    length=st.integers(3, 6),
    dtype=st.sampled_from(DTYPES),
    baseline=st.sampled_from(BASELINES),
    scalarization=st.sampled_from(["l2", "projection"]),
    seed=st.integers(0, 50),
)
def test_random_blocks(
    options: Options, length: int, dtype: torch.dtype, baseline: str, scalarization: str, seed: int
) -> None:
    """Right, flagged in ``converged``, or refused with the reason."""
    raw = options.norm == "none" or options.post_norm or options.bias == "raw"
    # Without a norm before it, attention makes logits of millions of such an activation.
    assume(not (options.massive and raw and dtype != torch.float64))
    model, x = build(options, length, dtype, seed)
    given_start, starts = start_of(baseline, x)
    lig = LayerFlowIG(model, 0, scalarization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not within tolerance is looked up in the flow
        try:
            flow = lig.attribute(x, given_start)
        except LigError as error:
            note(str(error))
            if may_be_refused(options, dtype):
                return
            raise
    assert isinstance(flow, LayerFlow)
    assert flow.cost is not None
    note(flow.cost.path)
    block = copy.deepcopy(model.blocks[0]).double()
    expected = [reference(block, x[0].double(), starts, scalarization, n) for n in (8, 12)]
    held_to(flow, expected, exact=dtype == torch.float64)
