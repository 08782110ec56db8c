"""Every family of the table, as a small random model: cut where it should be, and right.

What the maps are compared with knows nothing of the cut: the model's own block is run by itself,
and `u` is what goes into the output projection, read and replaced by a hook.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlow, LayerFlowIG, LigError
from captum_lig.cost import Meter
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.model.split import SplitBlock
from tests.helpers import twins
from tests.helpers.families import FAMILIES, Family
from tests.helpers.state import Unchanged

NODES = 8


class Unhooked:
    """The last block of a model in a run of its own, for one text: z to z', and u within."""

    def __init__(self, model: nn.Module, name: str, inputs: dict[str, Any], family: Family) -> None:
        self.block = model.get_submodule(name)
        self.out = family.out_of(self.block)
        calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.append((args, kwargs, output))

        handle = self.block.register_forward_hook(keep, with_kwargs=True)
        config = getattr(model, "config", None)
        arguments = dict(inputs) if config is None else {**inputs, "use_cache": False}
        if "pixel_values" in inputs:
            arguments.pop("use_cache", None)
        with torch.no_grad():
            model(**arguments)
        handle.remove()
        self.args, self.kwargs, output = calls[-1]
        self.kwargs = {k: v for k, v in self.kwargs.items() if k != "past_key_values"}
        self.z = (self.args[0] if self.args else self.kwargs["hidden_states"])[0]
        self.output = (output[0] if isinstance(output, tuple) else output)[0]

    def __call__(self, z: Tensor) -> Tensor:
        """z (S, D) -> z' (S, D)."""
        if self.args:
            output = self.block(z[None], *self.args[1:], **self.kwargs)
        else:
            output = self.block(**{**self.kwargs, "hidden_states": z[None]})
        return (output[0] if isinstance(output, tuple) else output)[0]

    def attend(self, z: Tensor) -> Tensor:
        """z (S, D) -> u (S, H * d)."""
        seen: list[Tensor] = []
        assert self.out is not None
        handle = self.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self(z)
        finally:
            handle.remove()
        return seen[0].reshape(len(z), -1)

    def post(self, u: Tensor, z: Tensor) -> Tensor:
        """u (S, H * d), z (S, D) -> z' (S, D)."""
        assert self.out is not None
        handle = self.out.register_forward_pre_hook(lambda _, args: u.reshape(args[0].shape))
        try:
            return self(z)
        finally:
            handle.remove()


def row_of(
    function: Callable[..., Tensor], starts: tuple[Tensor, ...], ends: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], float]:
    """Attributions of one output vector to the tokens of each input, and their total."""
    means, total = twins.mean_gradients(function, starts, ends, "l2", *twins.gauss_legendre(NODES))
    steps = (end - start for start, end in zip(starts, ends, strict=True))
    return tuple(m * step for m, step in zip(means, steps, strict=True)), total


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Family) -> None:
    model = family.build()
    inputs = family.inputs(model)
    whole = "whole" in family.sites
    boundaries = ("layer",) if whole else ("attention", "mlp", "layer")
    lig = LayerFlowIG(model)
    draws = torch.random.fork_rng(devices=[]) if family.draws else nullcontext()
    with Unchanged(model, inputs), draws:
        flows = lig.attribute(inputs, boundaries=boundaries, max_steps=4096)
    assert isinstance(flows, list)
    assert len(flows) == len(family.sites)
    for flow in flows:
        for boundary in flow.delta:
            assert float(flow.completeness_error(boundary).max()) <= 1e-3, boundary
            if family.causal and "encoder" not in flow.name.split(".")[0]:
                causal(flow, boundary)
    cut_is_the_block(model, inputs, family)
    name = flows[-1].name
    sample_of_rows(Unhooked(model, name, inputs, family), lig, inputs, boundaries)


def causal(flow: LayerFlow, boundary: str) -> None:
    maps = getattr(flow, boundary)
    if boundary in ("attention", "layer"):
        assert bool((maps.triu(1) == 0).all())


def cut_is_the_block(model: nn.Module, inputs: dict[str, Any], family: Family) -> None:
    """post(core(pre(z)), z) is what the block gives in the model as it is, to 1e-5."""
    finder = Finder(model)
    call = ModelCall.of(model, inputs)
    with finder.recorded(call) as calls:
        for block, site in zip(calls, family.sites, strict=True):
            attached = finder.attached(block)
            # A newer transformers may have moved a family to its interface, which is as well.
            assert attached.site in (site, "interface")
            cut = SplitBlock(attached, 0, Meter())
            again = cut.whole(cut.z[None])[0]
            torch.testing.assert_close(again, cut.output, rtol=1e-5, atol=1e-5)
            if cut.has_attention:
                u = core(cut) if cut.opens else cut.attend(cut.z[None])[0]
                output = cut.post(u, cut.z, torch.arange(len(cut.z)))
                torch.testing.assert_close(output, cut.output, rtol=1e-5, atol=1e-5)
    last = Unhooked(model, calls[-1].name, inputs, family)
    torch.testing.assert_close(calls[-1].output[0], last.output, rtol=1e-5, atol=1e-5)


def core(cut: SplitBlock) -> Tensor:
    """Softmax attention, (S, H, d), one target at a time from its definition."""
    q, k, v = (x[0] for x in cut.pre(cut.z[None]))
    u = []
    for target in range(len(cut.z)):
        heads = []
        for h in range(len(q)):
            own = h * len(k) // len(q)
            logits = torch.stack([q[h, target] @ key for key in k[own]]) * cut.scaling
            if cut.softcap is not None:
                logits = cut.softcap * torch.tanh(logits / cut.softcap)
            if cut.mask is not None:
                logits = logits + cut.mask[h if len(cut.mask) > 1 else 0, target]
            weights = (logits - logits.max()).exp()
            rest = 0.0 if cut.sinks is None else (cut.sinks[h] - logits.max()).exp()
            heads.append((weights / (weights.sum() + rest)) @ v[own])
        u.append(torch.stack(heads))
    return torch.stack(u)


def sample_of_rows(
    twin: Unhooked, lig: LayerFlowIG, inputs: dict[str, Any], boundaries: tuple[str, ...]
) -> None:
    """The last target of the last block, with a plain rule: the same nodes here and there."""
    z, j = twin.z, len(twin.z) - 1
    flows = lig.attribute(
        inputs, n_steps=NODES, tolerance=None, output_indices=[j], boundaries=boundaries
    )
    flow = flows[-1]
    start = z[j].expand_as(z)

    def nearly_equal(actual: Tensor, expected: Tensor) -> None:
        # Families take norms and softmax in float32, whatever the dtype.
        size = float(expected.abs().max()) + 1e-9
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * size)

    (to_z,), total = row_of(lambda x: twin(x)[j], (start,), (z,))
    nearly_equal(flow.layer[0, 0], to_z.sum(-1))
    nearly_equal(flow.layer_total[0, 0], torch.tensor(total, dtype=z.dtype))
    if twin.out is None or "attention" not in boundaries:
        return
    heads = flow.attention.shape[1]
    for h in (0, heads - 1):

        def head(x: Tensor, h: int = h) -> Tensor:
            return twin.attend(x)[j].view(heads, -1)[h]

        (to_z,), total = row_of(head, (start,), (z,))
        nearly_equal(flow.attention[0, h, 0], to_z.sum(-1))
        nearly_equal(flow.attention_total[0, h, 0], torch.tensor(total, dtype=z.dtype))
    with torch.no_grad():
        u_start, u = twin.attend(start), twin.attend(z)
    (to_u, to_z), _ = row_of(lambda u, x: twin.post(u, x)[j], (u_start, start), (u, z))
    nearly_equal(flow.mlp[0, 0], to_u[j].view(heads, -1).sum(-1))
    nearly_equal(flow.residual[0, 0], to_z[j].sum())


def test_default_boundaries_of_blocks_without_attention() -> None:
    """What cannot be had is refused, with what can be."""
    family = next(family for family in FAMILIES if family.name == "mamba")
    model = family.build()
    inputs = family.inputs(model)
    with Unchanged(model, inputs), pytest.raises(LigError) as caught:
        LayerFlowIG(model).attribute(inputs)
    for words in ("layers.0", "MambaBlock", "MambaModel", "no attention", "boundaries=('layer',)"):
        assert words in str(caught.value)
