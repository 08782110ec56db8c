"""Two texts, one padded on either side, and their flows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_lig import LayerFlow, LayerFlowIG, LigError
from tests.helpers import families

FAMILY = {family.name: family for family in families.FAMILIES}
IDS = {
    "right": torch.tensor([[11, 45, 23, 8, 30], [7, 19, 5, 0, 0]]),
    "left": torch.tensor([[11, 45, 23, 8, 30], [0, 0, 7, 19, 5]]),
}
KEPT = {side: ids != 0 for side, ids in IDS.items()}


def flows_of(
    model: nn.Module, inputs: Any, layers: list[Any] | None = None, **given: Any
) -> list[LayerFlow]:
    given = {"boundaries": ("layer",), "n_steps": 4, "tolerance": None, **given}
    flows = LayerFlowIG(model, layers).attribute(inputs, **given)
    assert isinstance(flows, list)
    return flows


def refused(model: nn.Module, inputs: Any) -> str:
    with pytest.raises(LigError) as caught:
        flows_of(model, inputs)
    return str(caught.value)
