"""What the parts of flows towards a target have to add up to, and questions to ask of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from captum_lig import LayerFlow

TOLERANCE = 1e-3
"""Of sums, relative to ``flow.scale``."""
EXACT = 1e-6
"""Of the same sums in another order; norms of many families round to float32."""

STREAM = ("cross", "elsewhere")
"""Fields that differ between the two streams of an encoder-decoder."""


# ---- questions -------------------------------------------------------------------------------


def other_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """A baseline: another token at all places but the first, other vectors or pixels."""
    return {name: _other(x) for name, x in inputs.items()}


def _other(x: Tensor) -> Tensor:
    if x.is_floating_point():
        return x + 0.5 * torch.randn(x.shape, generator=_seeded(5), dtype=torch.float64).to(x)
    changed = x.clone()
    changed[:, 1:] = (7 * x[:, 1:] + 5) % 45 + 4
    return changed


def number_of(output: Any) -> Tensor:
    """``(B,)`` read from all tokens that a model gives."""
    x = output if isinstance(output, Tensor) else next(iter(output.values()))
    weights = torch.randn(x.shape[1:], generator=_seeded(3), dtype=torch.float64).to(x)
    return 2 * torch.tanh(3 * (x * weights).flatten(1).mean(-1))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- laws ------------------------------------------------------------------------------------


def check_laws(flows: Sequence[LayerFlow], tolerance: float = TOLERANCE) -> None:
    """Sums at every depth, rows, columns, and what a layer hands to the one below."""
    last = flows[-1]
    assert_near(last.need("mlp_total").sum(-1), last.need("change"), last, tolerance)
    for flow in flows:
        _check_rows(flow, tolerance)
        _check_columns(flow)
        assert_near(sum_entering(flow), flow.need("change"), flow, tolerance)
    for below, above in pairwise(flows):
        # Not from a decoder to its encoder.
        if all((below.tensors.get(x) is None) == (above.tensors.get(x) is None) for x in STREAM):
            assert_near(below.need("mlp_total"), above.need("entering"), above, EXACT)


def sum_entering(flow: LayerFlow) -> Tensor:
    """``(B,)`` of all that there is at the depth where a layer begins."""
    other = 0.0 if flow.elsewhere is None else flow.elsewhere
    return flow.need("entering").sum(-1) + other


def _check_rows(flow: LayerFlow, tolerance: float) -> None:
    """What goes into a node is its relevance."""
    assert set(flow.delta) <= {"attention", "mlp", "feed_forward_heads", "cross"}
    for error in flow.delta.values():
        assert_near(error, torch.zeros_like(error), flow, tolerance)
    if flow.feed_forward is not None:
        past = flow.need("mlp") - flow.need("feed_forward_heads")
        total = past.sum(-1) + flow.feed_forward + flow.need("residual")
        if flow.feed_forward_cross is not None:
            total = total + flow.need("cross_sum") + flow.need("cross_token")
            total = total - flow.feed_forward_cross
        # Two stages, each within the tolerance.
        assert_near(total, flow.need("mlp_total"), flow, 2 * tolerance)
    if flow.attention is not None and flow.attention.shape[1]:
        heads = flow.need("mlp").transpose(1, 2)
        assert torch.equal(flow.need("attention_total"), heads)


def _check_columns(flow: LayerFlow) -> None:
    """What comes out of a token is its relevance."""
    if flow.attention is None:
        return
    columns = flow.attention.sum((1, 2)) + flow.need("residual")
    for name in ("feed_forward_token", "cross_token"):
        if name in flow.tensors:
            columns = columns + flow.tensors[name]
    assert_near(columns, flow.need("entering"), flow, EXACT)


def assert_near(found: Tensor, wanted: Tensor, flow: LayerFlow, bound: float) -> None:
    """Within ``bound`` of what errors are relative to, at every entry."""
    scale = flow.need("scale").view(-1, *[1] * (found.dim() - 1))
    gap = (found - wanted).abs()
    assert bool((gap <= bound * scale).all()), float((gap / scale).max())


def assert_same(
    found: LayerFlow, wanted: LayerFlow, text: int = 0, of: int = 0, bound: float = EXACT
) -> None:
    """The fields of two flows agree: text ``text`` of the first and ``of`` of the second.

    Of the second, without padding; the first may have padding on one of its sides.
    """
    rows, other = found.valid[text], wanted.valid[of]
    assert set(found.tensors) == set(wanted.tensors)
    scale = float(wanted.need("scale")[of])
    for name, x in found.tensors.items():
        ours, theirs = _valid(name, x[text], rows), _valid(name, wanted.tensors[name][of], other)
        assert ours.shape == theirs.shape, name
        gap = float((ours - theirs).abs().amax()) if ours.numel() else 0.0
        assert gap <= bound * scale, (name, gap / scale)


def _valid(name: str, x: Tensor, valid: Tensor) -> Tensor:
    """Without padding, of one text."""
    axes = {
        "attention": (1, 2),
        "attention_value": (1, 2),
        "attention_total": (1,),
        "cross": (1,),
        "cross_total": (1,),
        "cross_query": (1,),
    }
    for axis in axes.get(name, (0,) if x.dim() else ()):
        x = x.index_select(axis, valid.nonzero().squeeze(-1))
    return x
