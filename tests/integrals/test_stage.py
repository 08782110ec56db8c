"""The stages of a chain: what refining costs, and what it may leave out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captum_lig.cost import Meter
from captum_lig.integrals.settings import Settings
from captum_lig.integrals.stage import Budget, Ends, Stage, multipliers
from captum_lig.model.feed_forward import find_feed_forward
from captum_lig.model.inputs import ModelCall
from captum_lig.model.select import Finder
from captum_lig.model.stages import Stages
from tests.helpers import models


def stage_of(function: Callable[[Tensor], Tensor], width: int = 6) -> Stage:
    """A map of four tokens by themselves, from 0 to something."""
    end = torch.randn(4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = Ends(torch.zeros_like(end), end)
    y = Ends(function(x.start), function(x.end))
    g = torch.ones_like(y.end)
    size = (y.step * g).sum().abs()
    return Stage(lambda z: function(z), {"z": x}, y, g, size, 64, Meter())


def settings(tolerance: float, max_steps: int = 1024) -> Settings:
    return Settings.checked(5, "gausslegendre", tolerance, max_steps)


def missed(stage: Stage, found: dict[str, Tensor]) -> float:
    sums = (found["z"] * stage.arguments["z"].step).sum()
    return float(abs(sums - (stage.g * stage.output.step).sum()) / stage.relative_to)


@pytest.mark.parametrize("function", [torch.sin, torch.exp, lambda z: (9 * z).tanh(), torch.relu])
def test_refined_until_within_tolerance(function: Callable[[Tensor], Tensor]) -> None:
    stage = stage_of(lambda z: function(z - 0.3))
    assert missed(stage, multipliers(stage, settings(1e-4), Budget(), "any")) <= 1e-4


def test_rounding_is_not_refined() -> None:
    large = torch.tensor([3e4, -3e4, 1.0])

    def function(z: Tensor) -> Tensor:  # large parts that cancel in what is read of them
        return large * z.sum(-1, keepdim=True).sin() + 0.01 * z.cos()

    end = torch.tensor([[0.7, 0.9, 0.4], [0.2, 0.6, 1.1]])
    x = Ends(torch.zeros_like(end), end)
    y = Ends(function(x.start), function(x.end))
    g = torch.ones_like(end)
    stage = Stage(lambda z: function(z), {"z": x}, y, g, (g * y.step).sum().abs(), 64, Meter())
    multipliers(stage, settings(1e-5), Budget(), "any")
    assert stage.meter.pairs / len(g) < 30


def test_a_kink_is_refined_all_the_same() -> None:
    for place in torch.linspace(0.05, 0.95, 12).tolist():
        stage = stage_of(lambda z, at=place: (z - at).relu())
        assert missed(stage, multipliers(stage, settings(1e-4, 4096), Budget(), "any")) <= 1e-4


def test_the_stages_of_one_text_share_the_tolerance() -> None:
    budget, total = Budget(), 0.0
    stage = stage_of(lambda z: (3 * z).sin().exp())
    for _ in range(40):
        found = multipliers(stage, settings(1e-3), budget, "any")
        total += float((found["z"] * stage.arguments["z"].step).sum() - stage.output.step.sum())
    assert abs(total) <= 1e-3 * float(stage.relative_to)
    assert budget.spent == pytest.approx(total / 1e-3 / float(stage.relative_to), rel=1e-6)


def test_maps_that_serve_a_given_mlp_are_left_out() -> None:
    model = models.tiny_bert()
    call = ModelCall.of(model, models.tokens(model, 1, 5))
    finder = Finder(model)
    with finder.blocks(call) as blocks:
        place = find_feed_forward(blocks[0])
        assert place is not None
        assert place.serving, "the intermediate map serves the output's dropout alone"
        stages = Stages(blocks[0], place, None, Meter())
        nodes = stages.nodes(blocks[0].hidden)
        ran: list[str] = []
        names = {module: name for name, module in blocks[0].module.named_modules()}
        skipped = next(module for module, _ in place.serving)
        handle = next(skipped.children(), skipped).register_forward_hook(
            lambda module, *_: ran.append(names[module])
        )
        given = (blocks[0].hidden, nodes["u"], nodes["m"])
        torch.testing.assert_close(stages.output(*given), nodes["y"])
        handle.remove()
    torch.testing.assert_close(nodes["y"], blocks[0].output)
