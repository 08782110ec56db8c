"""The MLP's output as a node of flows in lengths, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_lig import LayerFlow, LayerFlowIG, LigError
from tests.helpers import models, relevance_models, twins
from tests.helpers.relevance_models import RECIPES, Model

NODES = 24
ASKED = ("attention", "mlp", "feed_forward")


def expected(model: Model, z: Tensor, baseline: str, scalarization: str) -> dict[str, Tensor]:
    """Of the second block, by autograd alone: past the MLP with it on the line, then into it."""
    block = model.blocks[1]
    nodes = twins.gauss_legendre(NODES)
    size, heads = len(z), relevance_models.HEADS
    found = {
        name: z.new_zeros(size, heads if "head" in name else 1)
        for name in ("past heads", "heads into", "feed_forward", "token into", "residual", "total")
    }
    for j, start in enumerate(twins.path_starts(z, baseline)):
        ends = []
        for x in (start, z):
            u = block.attend(*block.queries_keys_values(x))
            ends.append((u, x, block.feed_forward(x, u)))
        (u0, z0, m0), (u1, z1, m1) = ends

        def output(u: Tensor, x: Tensor, m: Tensor, j: int = j) -> Tensor:
            return block.output(x, u, m)[j]

        (g_u, g_z, g_m), total = twins.mean_gradients(
            output, (u0, z0, m0), (u1, z1, m1), scalarization, *nodes
        )
        found["total"][j, 0] = total
        found["past heads"][j] = ((u1 - u0) * g_u).sum((1, 2))
        found["residual"][j, 0] = ((z1 - z0) * g_z).sum()
        found["feed_forward"][j, 0] = ((m1 - m0) * g_m).sum()
        if total == 0:
            continue
        for a, w in zip(*(x.tolist() for x in nodes), strict=True):
            u, x = ((p + a * (q - p)).requires_grad_() for p, q in ((u0, u1), (z0, z1)))
            value = (block.feed_forward(x, u) * g_m).sum()
            by_u, by_x = torch.autograd.grad(value, (u, x), materialize_grads=True)
            found["heads into"][j] += w * ((u1 - u0) * by_u).sum((1, 2))
            found["token into"][j, 0] += w * ((z1 - z0) * by_x).sum()
    return found


@pytest.mark.parametrize("scalarization", ["l2", "projection"])
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
@pytest.mark.parametrize("name", ["sequential", "parallel", "post-norm", "llama", "gate"])
def test_equals_the_definition(name: str, baseline: str, scalarization: str) -> None:
    model = relevance_models.make(RECIPES[name])
    inputs, _ = relevance_models.make_inputs(RECIPES[name])
    lig = LayerFlowIG(model, 1, scalarization)
    flow = lig.attribute(inputs, baseline, boundaries=ASKED, n_steps=NODES, tolerance=None)
    assert isinstance(flow, LayerFlow)
    with torch.no_grad():
        z = model.blocks[0](model.embed(inputs))[0]
    right = expected(model, z, baseline, scalarization)
    size = right["total"].clamp_min(1e-9)
    pairs = {
        "mlp": right["past heads"] + right["heads into"],
        "feed_forward_heads": right["heads into"],
        "feed_forward": right["feed_forward"],
        "feed_forward_token": right["token into"],
        "residual": right["residual"],
        "mlp_total": right["total"],
    }
    for field, value in pairs.items():
        ours = flow.need(field)[0].view(value.shape)
        assert float(((ours - value).abs() / size).max()) <= 1e-6, field


def test_rows_are_refined_and_add_up() -> None:
    model = relevance_models.make(RECIPES["llama"])
    inputs, _ = relevance_models.make_inputs(RECIPES["llama"])
    for flow in LayerFlowIG(model).attribute(inputs, "zero", boundaries=ASKED, tolerance=1e-5):
        assert {"attention", "mlp", "feed_forward_heads", "chain"} <= set(flow.checked)
        assert all(bool(rows.all()) for rows in flow.converged.values())
        rows = flow.feed_forward_heads.sum(-1) + flow.feed_forward_token
        assert float((rows - flow.feed_forward).abs().max()) <= 1e-5 * float(flow.mlp_total.max())
        torch.testing.assert_close(flow.compose("chain").sum(-1), flow.mlp_total)


def test_where_there_is_none() -> None:
    model = relevance_models.make(RECIPES["no MLP"])
    inputs, _ = relevance_models.make_inputs(RECIPES["no MLP"])
    with pytest.raises(LigError, match=r"its MLP is not found.*feed_forward="):
        LayerFlowIG(model).attribute(inputs, boundaries=ASKED)
    gpt2 = models.tiny_gpt2()
    with pytest.raises(LigError, match="'feed_forward' is what 'mlp' hands down"):
        LayerFlowIG(gpt2).attribute(models.tokens(gpt2, 1, 4), boundaries=("feed_forward",))
