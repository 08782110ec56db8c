"""The path of an encoder's states as the heads of a decoder see it: their queries are held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from captum_lig._types import QKV
from captum_lig.cost import Meter
from captum_lig.errors import LigError
from captum_lig.paths.autograd import AutogradPath
from captum_lig.paths.baselines import Start
from captum_lig.paths.norm import recognise_norm
from captum_lig.paths.qkv import QKVByRunning, QKVClosedForm
from captum_lig.paths.shared import SharedPath
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.validate import Sample, mixes_tokens, observe

__all__ = ["CrossBlock", "cross_path"]


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


def cross_path(block: CrossBlock, start: Tensor, targets: Tensor) -> SharedPath | AutogradPath:
    """The cheapest path of the states from ``start (S, D)`` that is what the block does along it.

    For ``targets (R,)``, as :func:`~captum_lig.paths.choose.choose_structure` does for a block's
    own tokens. The meter notes which it is.
    """
    states, shared = block.states, Start(shared=start)
    frozen = (start == states).all(-1).expand(len(targets), -1)
    with torch.no_grad():
        sample = Sample.of(shared, states, targets, block.epsilons)
        seen = observe(lambda z, rows: block.attend(z)[:, rows], sample)
        row = RowFunction(block.softcap, block.sinks)
        if not mixes_tokens(block.pre, block.pre(states[None]), states, sample.z[0]):
            for qkv in _along(block, start):
                path = SharedPath(qkv, targets, block.scaling, block.mask, row, frozen, block.query)
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
