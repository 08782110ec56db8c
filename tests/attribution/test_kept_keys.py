"""Blocks that put keys and values into one mapping, which later blocks may read (Gemma 4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_lig import Block, LayerFlowIG, LigError, patching
from tests.helpers import models
from tests.helpers.laws import EXACT, assert_same, check_laws, number_of
from tests.helpers.sdpa_blocks import LENGTH, WIDTH, Attending, Model

IDS = torch.tensor([[11, 45, 23, 8, 31]])
OTHER = torch.tensor([[11, 19, 23, 8, 40]])


class Keeping(Attending):
    """It puts its keys into what it gets, and may read what is there."""

    def __init__(self, reads: bool) -> None:
        super().__init__({"is_causal": True})
        self.reads = reads

    def forward(self, x: Tensor, kept: dict[str, Any] | None = None) -> Tensor:
        y: Tensor = super().forward(x)
        if kept is not None:
            y = y + torch.tanh(kept["keys"][0]) if self.reads and kept else y
            kept["keys"] = self.key(x), self.value(x)
        return y


class WithKept(Model):
    def forward(self, x: Tensor) -> Tensor:
        kept: dict[str, Any] = {}
        for block in self.blocks:
            x = block(x, kept)
        return x


def keeping(reads: bool) -> WithKept:
    return models.randomised(WithKept(Keeping(False), Keeping(False), Keeping(reads)))


def vectors(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, LENGTH, WIDTH, generator=generator, dtype=torch.float64)


def test_what_blocks_keep_and_none_reads() -> None:
    model = keeping(False)
    flows = LayerFlowIG(model).attribute(vectors(0), vectors(1), target=number_of)
    check_laws(flows)
    plain = Model(*model.blocks).eval()
    without = LayerFlowIG(plain).attribute(vectors(0), vectors(1), target=number_of)
    for flow, wanted in zip(flows, without, strict=True):
        assert_same(flow, wanted, bound=EXACT)


def test_what_blocks_keep_and_one_reads() -> None:
    with pytest.raises(LigError, match=r"'blocks\.2' .*gets another argument.*that depends on"):
        LayerFlowIG(keeping(True)).attribute(vectors(0), vectors(1), target=number_of)


@pytest.mark.skipif(not hasattr(transformers, "Gemma4TextConfig"), reason="no Gemma 4 here")
class TestGemma4:
    def made(self, per_layer: int, shared: int) -> nn.Module:
        config = transformers.Gemma4TextConfig(
            **{**models.GROUPED, "num_hidden_layers": 4},
            global_head_dim=8,
            layer_types=["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=shared,
            hidden_size_per_layer_input=per_layer,
            vocab_size_per_layer_input=models.VOCABULARY,
            sliding_window=8,
        )
        return models.randomised(transformers.Gemma4ForCausalLM(config))

    def number(self, output: Any) -> Tensor:
        return torch.tanh(output.logits[:, -1, 5] - output.logits[:, -1, 9])

    def test_a_number(self) -> None:
        flows = LayerFlowIG(self.made(0, 0)).attribute(IDS, OTHER, target=self.number)
        check_laws(flows)

    def test_shared_keys_and_values(self) -> None:
        """The blocks that read another's keys get all tokens, and are refused for what they do."""
        model = self.made(8, 2)
        said = r"'model\.layers\.2' .*reads other tokens than its own.*of an earlier block"
        with pytest.raises(LigError, match=said):
            LayerFlowIG(model).attribute(IDS, boundaries=("layer",))
        with pytest.raises(LigError, match=said):
            patching.effects(model, IDS, OTHER, self.number)
        whole = [Block(f"model.layers.{n}") for n in (2, 3)]
        for flow in LayerFlowIG(model, whole).attribute(IDS, boundaries=("layer",)):
            assert flow.need("layer").shape == (1, 5, 5)
            assert bool(flow.converged["layer"].all())
