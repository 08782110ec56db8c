"""Several texts at once, padded, give what each gives alone, wherever the blocks are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_lig import LayerFlow, LayerFlowIG
from tests.helpers.families import FAMILIES

SHORT = 3
FAMILY = {family.name: family for family in FAMILIES}


def last_flow(model: Any, inputs: dict[str, torch.Tensor], boundaries: Any) -> LayerFlow:
    flows = LayerFlowIG(model).attribute(inputs, n_steps=4, tolerance=None, boundaries=boundaries)
    found: LayerFlow = flows[-1]  # type: ignore[index]
    return found


@pytest.mark.parametrize(
    "name", ["bert", "deberta-v2", "mpnet", "qwen3", "gpt_oss", "gptj", "bloom", "falcon", "mamba"]
)
def test_padded_batch(name: str) -> None:
    model = FAMILY[name].build()
    ids = torch.tensor([[11, 45, 23, 8, 30], [7, 19, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    boundaries = ("layer",) if name == "mamba" else ("attention", "mlp", "layer")
    both = last_flow(model, {"input_ids": ids, "attention_mask": mask}, boundaries)
    assert torch.equal(both.valid, mask.bool())
    for text, length in ((0, 5), (1, SHORT)):
        own = {
            "input_ids": ids[text : text + 1, :length],
            "attention_mask": mask[text : text + 1, :length],
        }
        alone = last_flow(model, own, boundaries)
        for boundary in boundaries:
            together, by_itself = getattr(both, boundary)[text], getattr(alone, boundary)[0]
            if boundary == "mlp":
                together = together[:length]
            else:
                assert bool((together[..., length:] == 0).all())
                together = together[..., :length, :length]
            size = float(by_itself.abs().max())
            torch.testing.assert_close(together, by_itself, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_each_side_has_its_own_padding(name: str) -> None:
    model = FAMILY[name].build()
    inputs = {
        "input_ids": torch.tensor([[11, 45, 23, 8], [7, 19, 5, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "decoder_input_ids": torch.tensor([[1, 9, 23, 4], [1, 8, 40, 6]]),
    }
    flows = LayerFlowIG(model).attribute(inputs, n_steps=4, tolerance=None)
    assert isinstance(flows, list)
    for flow in flows:
        expected = inputs["attention_mask"].bool()
        if flow.name.startswith("decoder"):
            expected = torch.ones_like(expected)
        assert torch.equal(flow.valid, expected), flow.name
    alone = LayerFlowIG(model).attribute(
        {
            "input_ids": inputs["input_ids"][1:, :3],
            "decoder_input_ids": inputs["decoder_input_ids"][1:],
        },
        n_steps=4,
        tolerance=None,
    )
    torch.testing.assert_close(flows[-1].layer[1], alone[-1].layer[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(flows[1].layer[1, :3, :3], alone[1].layer[0], rtol=1e-4, atol=1e-6)
