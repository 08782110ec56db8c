"""Our maps of a text's layers, from one baseline."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from captum_lig import LayerFlowIG
from captum_lig.metrics import Intervening
from captum_lig.prediction import layer_baselines

BASELINES = ("target_token", "padding", "zero")
OURS = ("boundary attention", "layer", "projection", "conserve", "chain", "influence")


class Maps:
    """Attributes texts; ``tolerance`` and ``most`` as ``LayerFlowIG.attribute`` takes them."""

    def __init__(self, model: nn.Module, layers: list[int], tolerance: float, most: int) -> None:
        self.model, self.layers = model, layers
        self.settings = {"tolerance": tolerance, "max_steps": most}
        self.rows, self.missed = 0, 0
        """Of all texts so far: rows that are checked, and those that are not within tolerance."""
        self.truth = Intervening(model, layers)
        self.l2, self.projection = (LayerFlowIG(model, layers, s) for s in ("l2", "projection"))

    def start(self, inputs: dict[str, Tensor], baseline: str) -> Any:
        """What ``baselines`` is of :class:`LayerFlowIG`: one for each layer, or a name."""
        if baseline != "padding":
            return baseline
        every = layer_baselines(self.model, inputs)
        return [every[layer] for layer in self.layers]

    def of(self, inputs: dict[str, Tensor], start: Any) -> list[dict[str, Tensor]]:
        """By layer and name, ``(T, S)``."""
        boundaries = ("attention", "mlp", "layer", "influence")
        flows = self.l2.attribute(inputs, start, boundaries=boundaries, **self.settings)
        along = self.projection.attribute(inputs, start, boundaries=("layer",), **self.settings)
        assert isinstance(flows, list)
        assert isinstance(along, list)
        for flow in (*flows, *along):
            for within in flow.converged.values():
                self.rows += within.numel()
                self.missed += int((~within).sum())
        return [
            {
                "boundary attention": flow.need("attention")[0].sum(0),
                "layer": flow.need("layer")[0],
                "projection": straight.need("layer")[0],
                "conserve": flow.compose("conserve")[0],
                "chain": flow.compose("chain")[0],
                "influence": flow.need("influence")[0],
            }
            for flow, straight in zip(flows, along, strict=True)
        ]
