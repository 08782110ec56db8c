"""A block written by hand, offered to the package as a cut of a model's block is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_lig.cost import Meter
from captum_lig.integrals.boundaries import GRADIENT, AttentionBoundary, LayerBoundary, MlpBoundary
from captum_lig.integrals.boundary import Boundary, sweep
from captum_lig.integrals.rows import Rows
from captum_lig.integrals.scalarization import SCALARIZATIONS, Cotangent, Vector
from captum_lig.paths.baselines import Start
from captum_lig.paths.choose import inspect_structure, make_path
from tests.helpers.twin_blocks import TwinBlock

EPSILONS = [1e-3, 1e-2]


@dataclass
class HandCut:
    """The cut of a twin's block for one text; pairs of query heads share keys and values."""

    twin: TwinBlock
    z: Tensor
    softcap: float | None = None
    sinks: Tensor | None = None
    opens: bool = True
    has_attention: bool = True
    meter: Meter = field(default_factory=Meter)

    @property
    def heads(self) -> int:
        return 4

    @property
    def mask(self) -> Tensor | None:
        return self.twin.mask[None].to(self.z) if self.opens else None

    @property
    def scaling(self) -> float:
        return 0.5

    def pre(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.opens
        q, k, v = (torch.stack(t) for t in zip(*self._each(self.twin.pre, z), strict=True))
        return q, k[:, ::2], v[:, ::2]

    def keys(self, z: Tensor) -> Tensor:
        return self.pre(z)[1]

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.pre(torch.stack([torch.zeros_like(self.z), self.z]))

    def inside(self, z: Tensor) -> list[Tensor]:
        return [x[None].to(z) for x in self.twin.inside(z[0].double())]

    def attend(self, z: Tensor) -> Tensor:
        self.meter.passed += z.shape[0] * z.shape[1]
        if not self.has_attention:
            return torch.stack(self._each(self.twin, z))[:, :, None]
        return torch.stack(self._each(self.twin.attend, z)).transpose(1, 2)

    def attend_at(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.attend(z)[:, rows]

    @property
    def some(self) -> HandCut:
        return self

    @property
    def few(self) -> Tensor:
        return torch.arange(len(self.z))

    def post(self, u: Tensor, z: Tensor, positions: Tensor) -> Tensor:
        if not self.has_attention:
            return u[:, 0]
        return self.twin.post(u.double().transpose(0, 1), z.double()).to(z)

    def _each(self, function: Callable[[Tensor], Any], z: Tensor) -> list[Any]:
        """The twin takes one text at a time, in float64."""
        found = [function(text.double()) for text in z]
        return [_to(x, z) for x in found]


def _to(x: Any, z: Tensor) -> Any:
    return tuple(part.to(z) for part in x) if isinstance(x, tuple) else x.to(z)


def start_of(name: str, z: Tensor) -> tuple[Start, Any]:
    """Where paths start, as the package and as the twins take it."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if name == "target_token":
        return Start(), name
    if name == "zero":
        return Start(shared=torch.zeros_like(z)), name
    if name == "tensor":
        start = draw(*z.shape)
        return Start(shared=start.to(z)), start
    start = draw(len(z), *z.shape)
    return Start(per_target=start.to(z)), start


@torch.no_grad()
def rows_of(cut: HandCut, start: Start, rows: Tensor | None = None) -> Rows:
    """Rows of a cut, all of them if none are named."""
    rows = torch.arange(len(cut.z)) if rows is None else rows
    structure = inspect_structure(cut, EPSILONS, len(rows) if start.is_target_token else 0)
    path = make_path(cut, structure, start.select(rows), rows)
    return Rows.between(
        path,
        cut.post,
        rows,
        start.select(rows).residual(cut.z, rows),
        cut.z[rows],
        torch.zeros(len(rows), dtype=torch.bool),
        pairs_at_once=7,
        meter=cut.meter,
    )


@torch.no_grad()
def maps_of(
    rows: Rows, alphas: Tensor, weights: Tensor, scalarization: str = "l2"
) -> dict[str, Tensor]:
    """Every boundary of some rows, rows first, by one rule; vectors as they are."""
    scalar = SCALARIZATIONS[scalarization]
    mlp = MlpBoundary.of("mlp", rows, scalar)
    found = mlp.results(mlp.sweep(alphas, weights))
    on_path: list[Boundary] = [
        AttentionBoundary.of("attention", rows, scalar),
        AttentionBoundary("chain", rows, Cotangent(found.pop(GRADIENT)), rows.layer_total[:, None]),
        LayerBoundary.of("layer", rows, scalar),
    ]
    for boundary, parts in zip(on_path, sweep(on_path, alphas, weights), strict=True):
        found |= boundary.results(parts)
    for vectors in (
        AttentionBoundary.of("head_vectors", rows, Vector),
        LayerBoundary.of("vectors", rows, Vector),
    ):
        found |= vectors.sweep(alphas, weights)
    found["vectors"] = found["vectors"][:, 0]
    return found
