"""A boundary with an axis of its own, from outside: nothing in the package knows of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_lig import FlowGraph, LayerFlowIG
from captum_lig.flow.axes import FIELDS, Field, declare
from captum_lig.flow.explanation import Explanation
from captum_lig.integrals.boundaries import LayerBoundary
from captum_lig.integrals.kinds import KINDS, Kind
from captum_lig.io.flows import load_flows, save_flows
from tests.helpers import models, twin_blocks
from tests.helpers.attributions import block_input


# --- the whole boundary: from here ...
class ByPart(LayerBoundary):
    """What of z' came through each head, and past them, along the layer's own path."""

    def rates(self, at: Any, a: Tensor, w: Tensor, starts: bool) -> dict[str, Tensor]:
        gu, gz = self.gradients(a, at.u, at.velocity()[0] if starts else None)
        heads = (gu * at.velocity()).sum(-1)
        past = (gz * self.rows.step).sum(-1, keepdim=True)
        return {
            self.name: torch.einsum("p,prk->rk", w.to(heads), torch.cat([heads, past], -1))[:, None]
        }


def by_part(rows: Any, asked: Any, _: Any) -> list[Any]:
    return [ByPart.of("part", rows, asked.scalarization)]


FIELDS_OF_IT = (
    Field("part_total", ("text", "target")),
    Field("part", ("text", "target", "part"), total="part_total"),
)
# ... to here, and entering it:


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "part", Kind(by_part, needs_heads=True))
    for field in FIELDS_OF_IT:
        declare(field)


@pytest.mark.usefixtures("entered")
@pytest.mark.parametrize("baseline", ["zero", "target_token"])
def test_it_is_integrated_certified_and_equals_its_definition(baseline: str) -> None:
    model = models.MODELS["llama"]()
    inputs = {"input_ids": models.tokens(model, 1, 5)}
    flow = LayerFlowIG(model, 1).attribute(
        inputs, baselines=baseline, boundaries=("part", "layer"), tolerance=1e-6, max_steps=4096
    )
    assert flow.tensors["part"].shape == (1, 5, models.HEADS + 1)
    assert bool(flow.converged["part"].all())
    assert float(flow.completeness_error("part").max()) <= 1e-6

    # A Riemann sum of <dA/du_h, change of u_h> over many small pieces of the path.
    block, z = twin_blocks.twin_block(model, 1, torch.ones(5)), block_input(model, 1, **inputs)[0]
    edges = torch.linspace(0, 1, 401, dtype=torch.float64) ** (4 if baseline == "zero" else 1)
    target = 3
    start = torch.zeros_like(z) if baseline == "zero" else z[target].expand_as(z)

    def at(a: Tensor) -> tuple[Tensor, Tensor]:
        x = start + a * (z - start)
        return block.attend(x)[:, target], x[target]

    u0, x0 = at(edges[0])
    y0 = block.post(u0[:, None], x0[None])[0]
    expected = torch.zeros(models.HEADS + 1, dtype=torch.float64)
    for low, high in pairwise(edges):
        u, x = (t.detach().requires_grad_() for t in at((low + high) / 2))
        change = block.post(u[:, None], x[None])[0] - y0
        gu, gx = torch.autograd.grad(change.norm(), (u, x))
        (u_low, x_low), (u_high, x_high) = at(low), at(high)
        expected[:-1] += (gu * (u_high - u_low)).sum(-1)
        expected[-1] += (gx * (x_high - x_low)).sum()
    found = flow.tensors["part"][0, target].double()
    limit = 2e-3 * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=limit)


@pytest.mark.usefixtures("entered")
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_it_is_saved_loaded_selected_and_in_the_graphs_summary(tmp_path: Path, suffix: str) -> None:
    model = models.MODELS["bert"]()
    inputs = models.padded_batch(model, (5, 3))
    flows = LayerFlowIG(model).attribute(inputs, boundaries=("attention", "mlp", "part"))
    assert isinstance(flows, list)
    assert bool((flows[0].tensors["part"][1, 3:] == 0).all())  # padding
    path = save_flows(Explanation(flows, list("abcde")), tmp_path / f"flows{suffix}")
    for flow, loaded in zip(flows, load_flows(path).flows, strict=True):
        assert torch.equal(loaded.tensors["part"], flow.tensors["part"])
        assert torch.equal(loaded.delta["part"], flow.delta["part"])
        assert loaded.select(1).tensors["part"].shape[0] == 1
    summary = FlowGraph(flows, list("abcde"), text=0).summary()
    assert {"attention", "mlp", "chain", "part"} == {one.boundary for one in summary}
    assert FIELDS["part"].axes[-1] == "part"
