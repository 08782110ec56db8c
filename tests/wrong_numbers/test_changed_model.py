"""A model that was changed between two calls, or during one, is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lig import LayerFlowIG, circuits
from tests.helpers import models
from tests.helpers.random_blocks import Options, build
from tests.helpers.wrong_numbers import IDS, LAST, OTHER, Dropping, decoder, last, refused


def linear(inner: int, outer: int) -> nn.Linear:
    made = nn.Linear(inner, outer, dtype=torch.float64).eval()
    models.randomise(made, 3)
    return made


class Adapter(nn.Module):
    """Low-rank, as PEFT wraps linear maps."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a = base, linear(base.in_features, 2)
        self.b = linear(2, base.out_features)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))  # type: ignore[no-any-return]


def write(block: Any) -> None:
    with torch.no_grad():
        block.query.weight.mul_(1.5)


CHANGES: dict[str, Callable[[Any], None]] = {
    "weights": write,
    "projection": lambda b: setattr(b, "out", linear(16, 16)),
    "MLP": lambda b: setattr(b, "down", linear(24, 16)),
    "adapter": lambda b: setattr(b, "down", Adapter(b.down)),
    "dtype": lambda b: b.float() and b.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("site", ["sdpa", "eager"])
def test_what_was_found_out_of_a_model_that_is_another_one_now(site: str, change: str) -> None:
    model, x = build(Options(site=site, causal=True), 5, torch.float64, seed=1)
    start = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    lig = LayerFlowIG(model, [0])
    plain: dict[str, Any] = {"n_steps": 3, "tolerance": None}
    for given in (plain, {**plain, "baselines": start, "target": last}):
        lig.attribute(x, **given)
    CHANGES[change](model.blocks[0])
    for given in (plain, {**plain, "baselines": start, "target": last}):
        (found,), (wanted,) = (
            lig.attribute(x, **given),
            LayerFlowIG(model, [0]).attribute(x, **given),
        )
        assert set(found.tensors) == set(wanted.tensors)
        for name, value in wanted.tensors.items():
            assert torch.equal(found.tensors[name], value), name


def test_dropout_that_was_put_in_meanwhile() -> None:
    model, x = build(Options(causal=True), 5, torch.float64, seed=1)
    lig = LayerFlowIG(model)
    lig.attribute(x)
    model.blocks[0].down = Dropping(model.blocks[0].down)
    with refused("blocks.0", "random"):
        lig.attribute(x)


def test_a_model_that_is_changed_while_it_is_attributed() -> None:
    model = models.tiny_bert()
    runs = 0

    def train(module: nn.Module, *_: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 12:
            with torch.no_grad():
                model.embeddings.word_embeddings.weight.mul_(2)

    model.encoder.layer[0].register_forward_hook(train)
    with refused("embeddings.word_embeddings.weight", "while it was attributed"):
        LayerFlowIG(model).attribute(IDS)


@pytest.mark.parametrize("ask", [circuits.of_nodes, circuits.of_edges])
def test_circuits_of_a_model_that_is_changed_or_left(ask: Any) -> None:
    model = decoder()
    with ask(model, IDS, OTHER, LAST) as found:
        kept = torch.ones(found.count, dtype=torch.bool)
        model.transformer.h[1].mlp.train()
        with refused("transformer.h.1.mlp", "training mode"):
            found.values(kept)
        model.eval()
        found.values(kept)
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.weight.mul_(2)
        with refused("transformer.h.1.mlp.c_fc.weight"):
            found.values(kept)
    with refused("context is left"):
        found.values(kept)
