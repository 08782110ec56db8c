"""The path of an encoder's states as the heads of a decoder see it: their queries are held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import QKV
from captum_lig.cost import PATHS, Meter
from captum_lig.errors import LigError
from captum_lig.paths.autograd import AutogradPath
from captum_lig.paths.baselines import Start
from captum_lig.paths.norm import recognise_norm
from captum_lig.paths.points import PointSet
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.validate import Sample, mixes_tokens, observe
from captum_lig.paths.values import SharedValues, grouped

__all__ = ["CrossBlock", "CrossPath", "cross_path"]


class CrossBlock(Protocol):
    """What a path needs of the cross-attention of a block."""

    states: Tensor
    """``(S, D)`` the encoder's states."""
    query: Tensor
    """``(H, T, d)``"""
    mask: Tensor | None
    """``(1 or H, T, S)``"""
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    epsilons: list[float]
    """Values of eps of the norms inside."""
    meter: Meter

    def pre(self, states: Tensor) -> QKV:
        """Queries, keys and values of ``states (N, S, D)``."""

    def attend(self, states: Tensor) -> Tensor:
        """The heads' outputs ``(N, T, H, d)`` for ``states (N, S, D)``, differentiable."""


def cross_path(block: CrossBlock, start: Tensor, targets: Tensor) -> CrossPath | AutogradPath:
    """The cheapest path of the states from ``start (S, D)`` that is what the block does along it.

    For ``targets (R,)``, as :func:`~captum_lig.paths.choose.choose_structure` does for a block's
    own tokens. The meter notes which it is.
    """
    states, shared = block.states, Start(shared=start)
    frozen = (start == states).all(-1).expand(len(targets), -1)
    with torch.no_grad():
        sample = Sample.of(shared, states, targets, block.epsilons)
        seen = observe(block.attend, sample)
        query, row = (
            block.scaling * block.query[:, targets],
            RowFunction(block.softcap, block.sinks),
        )
        mask = None if block.mask is None else block.mask[:, targets]
        if not mixes_tokens(block.pre, block.pre(states[None]), states, sample.z[0]):
            for qkv in _along(block, start):
                path = CrossPath(qkv, query, mask, row, frozen)
                with contextlib.suppress(LigError):  # no derivative along a direction
                    if seen.agrees(path.select(sample.few)):
                        block.meter.takes(path.kind)
                        return path
    found = AutogradPath(block.attend, start[None], states, targets, frozen, block.meter)
    block.meter.takes(found.kind)
    return found


def _along(block: CrossBlock, start: Tensor) -> Iterator[QKVClosedForm | QKVByRunning]:
    """Keys and values along the path, the cheapest first."""
    norm = recognise_norm(lambda states: block.pre(states)[1:], block.states, block.epsilons)
    if norm is not None:
        yield QKVClosedForm.between(norm, block.pre, start, block.states)
    yield QKVByRunning(block.pre, start, block.states)


@dataclass(frozen=True)
class CrossPath:
    """All targets share one path of the sources' states ``(S, D)``, and are no sources."""

    along: QKVClosedForm | QKVByRunning
    """Of keys and values; what it says of queries is not looked at."""
    query: Tensor
    """``(H, R, d)`` the queries, scaled."""
    mask: Tensor | None
    """``(1 or H, R, S)``"""
    row: RowFunction
    frozen: Tensor
    """``(R, S)`` sources that the path does not move."""

    @property
    def kind(self) -> str:
        """One of :data:`captum_lig.cost.PATHS`."""
        return PATHS[0] if isinstance(self.along, QKVClosedForm) else PATHS[1]

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""
        return self.frozen.shape[1]

    def select(self, rows: Tensor) -> CrossPath:
        """The same path for some of its rows."""
        return replace(
            self,
            query=self.query[:, rows],
            mask=None if self.mask is None else self.mask[:, rows],
            frozen=self.frozen[rows],
        )

    def double(self) -> CrossPath:
        """The same path in float64."""
        return replace(self, along=self.along.double(), query=self.query.double())

    def at(self, alphas: Tensor) -> CrossPoints:
        """Layout ``(P, H, R, S)``."""
        x = self.along(alphas)
        q = self.query.expand(len(alphas), -1, -1, -1)
        weights = self.row(grouped(q, x.k.transpose(-1, -2)), self.mask, heads=1)
        return CrossPoints(
            weights=weights,
            ds_key=weights.capped(grouped(q, x.dk.transpose(-1, -2))),
            ds_query=None,
            values=SharedValues(x.v, x.dv, q.shape[1] // x.v.shape[1]),
            to_layout=(0, 2, 1),
            rows=torch.arange(q.shape[2], device=q.device),
            frozen=self.frozen,
        )


class CrossPoints(PointSet):
    """Points whose rows are no sources."""

    @property
    def self_weights(self) -> None:
        """None: no target is a source."""
        return None
