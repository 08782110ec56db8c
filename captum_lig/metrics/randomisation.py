"""Sanity check: does an explanation change when the model's parameters are made random?

Adebayo et al., "Sanity Checks for Saliency Maps" (2018), cascading randomisation: from
the top of the model to the bottom, one part more at each step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_lig._arguments import brief
from captum_lig._restore import restoring
from captum_lig.errors import LigError
from captum_lig.metrics.statistics import OverTexts, agreement

__all__ = ["RandomisationOverTexts", "Randomised", "cascading_randomisation"]


@dataclass(frozen=True)
class Randomised:
    """How like the first explanation is to that of a model with random parts."""

    part: str
    """The part made random last; those before it are random too."""
    spearman: float
    """Rank correlation of the numbers. Near 0 is what a faithful explanation shows."""
    spearman_of_sizes: float
    """Of their absolute values."""
    pearson: float


@restoring
def cascading_randomisation(
    model: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    parts: Sequence[str],
    seed: int = 0,
) -> list[Randomised]:
    """Explain a model again and again, while its parameters are made random from the top down.

    The entries of each parameter are put in random order, so that parts keep their scale (the paper
    draws them anew, which needs to know how they were drawn). It happens on a deep copy.

    Args:
        model: the model. It is not touched.
        explain: gives the numbers of a model, of any shape: a map, or relevances of tokens.
        parts: dotted names of the model's modules, in the order in which they are made random, the
            top first. Parameters that two share (tied embeddings) are shuffled once.
        seed: of the shuffling.

    Returns:
        One for each part.

    Raises:
        LigError: for parts that the model does not have, or that have no parameters; or if the
            numbers change their shape.
    """
    if isinstance(parts, str) or not parts:
        raise LigError(f"parts={brief(parts)}: give a list of names of modules, the top first.")
    other = copy.deepcopy(model)
    modules = dict(other.named_modules())
    for name in parts:
        if name not in modules:
            raise LigError(f"{type(model).__name__} has no module {name!r}: see named_modules().")
        if not list(modules[name].parameters()):
            raise LigError(f"module {name!r} has no parameters: leave it out.")
    before = explain(model)
    generator = torch.Generator().manual_seed(seed)
    done: set[Tensor] = set()
    found = []
    for name in parts:
        for parameter in modules[name].parameters():
            if parameter in done:
                continue
            done.add(parameter)
            order = torch.randperm(parameter.numel(), generator=generator)
            with torch.no_grad():
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
        after = explain(other)
        if after.shape != before.shape:
            raise LigError(
                f"explain gave {tuple(before.shape)} numbers of the model and "
                f"{tuple(after.shape)} of the one with random parts: give as many."
            )
        both = agreement(after.detach(), before.detach())
        sizes = agreement(after.detach().abs(), before.detach().abs())
        found.append(Randomised(name, both.spearman, sizes.spearman, both.pearson))
    return found


class RandomisationOverTexts(OverTexts):
    """Correlations with the explanation of the model itself, over texts, by part."""

    def update(self, randomised: Sequence[Randomised]) -> None:
        """Add one text."""
        self.add(
            {
                f"{one.part} {name}": value
                for one in randomised
                for name, value in vars(one).items()
                if name != "part"
            }
        )
